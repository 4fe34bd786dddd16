//! What a hold is told, per kind: the texts of a session, or the lines of the holder.
//!
//! Guarantees: every text is parsed before anything is opened; a closing beat and its thaw are one write
//! (docs/design/freeze.md §2.4).

use std::time::Duration;

use bytes::Bytes;
use stillpoint_api::template::{Commands, Freeze, LeaseUnit, LocalRule, Recipe, Session};

use super::{Nonce, Text, TextError, TextValues, holder};
use crate::run::{HoldPlan, MAX_LEASE, in_unit};

/// How an application is held, as its template says, ready to be opened.
#[derive(Clone, Debug)]
pub struct HoldRecipe {
    /// The first process: a client, or the holder. Empty for two separate execs.
    pub argv: Vec<String>,
    /// What it is told.
    pub texts: HoldTexts,
    /// Whether it stops commits.
    pub locks: bool,
    /// Lease that each beat asks for; where no server keeps one, how long silence may last.
    pub lease: Duration,
    /// Unit of the server's lease, where one keeps it.
    pub lease_unit: Option<LeaseUnit>,
    /// How the server says that it is this container's; commands run in it.
    pub local: Option<LocalRule>,
    /// Whether the client is tried to stop at its first error.
    pub canary: bool,
}

impl HoldRecipe {
    /// How `recipe`, with its parameters filled in, holds; `None` when it does not.
    ///
    /// # Errors
    /// A text of the session cannot be used.
    pub fn of(recipe: &Recipe, nonce: &Nonce) -> Result<Option<Self>, TextError> {
        Ok(match &recipe.freeze {
            Some(Freeze::Session(session)) => Some(Self {
                argv: session.command.clone(),
                texts: HoldTexts::Session(Box::new(SessionTexts::parse(session)?)),
                locks: session.locks,
                lease: session.lease.duration.map_or(MAX_LEASE, |lease| lease.get()).min(MAX_LEASE),
                lease_unit: Some(session.lease.unit),
                local: session.local.clone(),
                canary: session.canary.is_some(),
            }),
            Some(Freeze::Commands(commands)) => {
                let direct = commands.allow_without_deadline;
                Some(Self {
                    argv: if direct { Vec::new() } else { holder::argv(nonce, commands) },
                    texts: if direct { HoldTexts::Direct(commands.clone()) } else { HoldTexts::Holder },
                    locks: true,
                    lease: MAX_LEASE,
                    lease_unit: None,
                    local: None,
                    canary: false,
                })
            }
            Some(Freeze::None {}) | None => None,
        })
    }
}

/// What is written to a hold.
#[derive(Clone, Debug)]
pub enum HoldTexts {
    /// The template's texts, to its client.
    Session(Box<SessionTexts>),
    /// Lines, to the POSIX holder, which has the commands as its words.
    Holder,
    /// The same lines, to our own end of two separate execs (`allowWithoutDeadline`).
    Direct(Commands),
}

impl HoldTexts {
    /// What is written when the stream is open; empty: nothing, it is READY by itself.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn open(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        lease: Duration,
        acquire: Duration,
    ) -> Result<Bytes, TextError> {
        match self {
            Self::Session(texts) => texts.open(hold, nonce, lease, acquire),
            Self::Holder | Self::Direct(_) => Ok(Bytes::new()),
        }
    }

    /// The freeze. A hold without a server's lease is told its own deadline, `within`, in whole seconds.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn freeze(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        lease: Duration,
        acquire: Duration,
        within: Duration,
    ) -> Result<Bytes, TextError> {
        match self {
            Self::Session(texts) => texts.freeze(hold, nonce, lease, acquire),
            Self::Holder | Self::Direct(_) => {
                Ok(Bytes::from(format!("freeze {nonce} {}\n", within.as_secs().max(1))))
            }
        }
    }

    /// What leads to a stage, from 1. Commands have one stage and are never asked for another.
    ///
    /// # Errors
    /// A placeholder has no value here, or there is no such text.
    pub fn stage(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        stage: u32,
        lease: Duration,
        acquire: Duration,
    ) -> Result<Bytes, TextError> {
        match self {
            Self::Session(texts) => texts.stage(hold, nonce, stage, lease, acquire),
            Self::Holder | Self::Direct(_) => Err(TextError::NoValue { name: "stage" }),
        }
    }

    /// A beat.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn beat(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        lease: Duration,
        index: u32,
    ) -> Result<Bytes, TextError> {
        match self {
            Self::Session(texts) => texts.beat(hold, nonce, lease, index),
            Self::Holder | Self::Direct(_) => Ok(Bytes::from(format!("beat {nonce} {index}\n"))),
        }
    }

    /// The closing beat and the thaw in one write (docs/design/freeze.md §2.4).
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn closing(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        lease: Duration,
        index: u32,
    ) -> Result<Bytes, TextError> {
        match self {
            Self::Session(texts) => texts.closing(hold, nonce, lease, index),
            Self::Holder | Self::Direct(_) => {
                Ok(Bytes::from(format!("beat {nonce} {index}\nthaw {nonce}\n")))
            }
        }
    }

    /// The thaw alone.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn thaw(&self, hold: &HoldPlan, nonce: &Nonce) -> Result<Bytes, TextError> {
        match self {
            Self::Session(texts) => texts.thaw(hold, nonce),
            Self::Holder | Self::Direct(_) => Ok(Bytes::from(format!("thaw {nonce}\n"))),
        }
    }
}

/// The texts of a session, parsed once, before anything is opened.
#[derive(Clone, Debug)]
pub struct SessionTexts {
    open: Text,
    freeze: Text,
    beat: Text,
    thaw: Text,
    /// `then` of each stage but the last.
    stages: Vec<Text>,
    canary: Option<Text>,
}

impl SessionTexts {
    /// Parses a session's texts.
    ///
    /// # Errors
    /// A text has an unknown placeholder.
    pub fn parse(session: &Session) -> Result<Self, TextError> {
        Ok(Self {
            open: Text::parse(&session.open)?,
            freeze: Text::parse(&session.freeze)?,
            beat: Text::parse(&session.beat)?,
            thaw: Text::parse(&session.thaw)?,
            stages: session
                .stages
                .iter()
                .filter_map(|stage| stage.then.as_deref())
                .map(Text::parse)
                .collect::<Result<_, _>>()?,
            canary: session.canary.as_deref().map(Text::parse).transpose()?,
        })
    }

    /// The text that shows whether the client stops at its first error, with a nonce of its own.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn canary(&self, nonce: &Nonce) -> Result<Option<Bytes>, TextError> {
        self.canary.as_ref().map(|text| Text::one_write(&[text], &TextValues::of(nonce))).transpose()
    }

    /// The opening text.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn open(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        lease: Duration,
        acquire: Duration,
    ) -> Result<Bytes, TextError> {
        Text::one_write(&[&self.open], &values(hold, nonce, lease, Some(acquire), None))
    }

    /// The freeze text.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn freeze(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        lease: Duration,
        acquire: Duration,
    ) -> Result<Bytes, TextError> {
        Text::one_write(&[&self.freeze], &values(hold, nonce, lease, Some(acquire), None))
    }

    /// The text that leads to a stage, from 1: the `then` of the one before.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn stage(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        stage: u32,
        lease: Duration,
        acquire: Duration,
    ) -> Result<Bytes, TextError> {
        let before = usize::try_from(stage).unwrap_or(usize::MAX).checked_sub(1);
        let texts: Vec<&Text> = before.and_then(|index| self.stages.get(index)).into_iter().collect();
        Text::one_write(&texts, &values(hold, nonce, lease, Some(acquire), None))
    }

    /// A beat.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn beat(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        lease: Duration,
        index: u32,
    ) -> Result<Bytes, TextError> {
        Text::one_write(&[&self.beat], &values(hold, nonce, lease, None, Some(index)))
    }

    /// The closing beat and the thaw in one write (docs/design/freeze.md §2.4).
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn closing(
        &self,
        hold: &HoldPlan,
        nonce: &Nonce,
        lease: Duration,
        index: u32,
    ) -> Result<Bytes, TextError> {
        Text::one_write(&[&self.beat, &self.thaw], &values(hold, nonce, lease, None, Some(index)))
    }

    /// The thaw alone.
    ///
    /// # Errors
    /// A placeholder has no value here.
    pub fn thaw(&self, hold: &HoldPlan, nonce: &Nonce) -> Result<Bytes, TextError> {
        Text::one_write(&[&self.thaw], &values(hold, nonce, hold.lease, None, None))
    }
}

fn values<'n>(
    hold: &HoldPlan,
    nonce: &'n Nonce,
    lease: Duration,
    acquire: Option<Duration>,
    beat: Option<u32>,
) -> TextValues<'n> {
    TextValues {
        beat: beat.map(u64::from),
        lease: hold.lease_unit.map(|unit| u64::try_from(in_unit(lease, unit)).unwrap_or(u64::MAX)),
        acquire_seconds: acquire.map(|time| time.as_secs().max(1)),
        ..TextValues::of(nonce)
    }
}
