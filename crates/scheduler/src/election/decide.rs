//! What a candidate does next, from what it saw of the Lease and when, on its own monotonic clock. Pure.
//!
//! The algorithm is client-go's: a Lease that was seen unchanged for its whole duration may be taken; whoever holds it
//! writes it again and again, and stops acting well before that duration is over. Every write names the version that
//! was read, so of several that try one succeeds.

use std::time::Duration;

use stillpoint_api::clock::Mono;

/// The times of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a Lease must have been seen unchanged before somebody else takes it. Default 15 s, as the cluster's own
    /// controllers have it; a whole number of seconds, because that is what a Lease can say.
    pub lease: Duration,
    /// How long a leader acts after it *sent* the last renewal that was confirmed. Default 10 s: by a clock that is slow by
    /// a sixth that is 12 s, and by one that is fast by a sixth [`Terms::lease`] is 12.9 s. With clocks as machines have
    /// them a request that was sent at the last moment has 5 s to arrive.
    pub act: Duration,
    /// Pause between renewals. Default 2 s: four may fail.
    pub renew: Duration,
    /// Pause between looks of those who wait, and after anything that failed. Default 1 s: after a leader that was killed
    /// another leads within [`Terms::lease`] and one look, which is less than the 2 s that are promised.
    pub look: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            act: Duration::from_secs(10),
            renew: Duration::from_secs(2),
            look: Duration::from_secs(1),
        }
    }
}

impl Terms {
    /// Longest time one request may take: two of them fit into [`Terms::act`], so that one that hangs does not cost
    /// the lead.
    pub fn request(&self) -> Duration {
        self.act / 2
    }
}

/// The Lease as an answer showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Who holds it. `None`: it was let go.
    pub holder: Option<String>,
    /// Changes with every write; only equality counts.
    pub version: String,
    /// How long it counts, as its holder says. `None`: it does not say.
    pub lasts: Option<Duration>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time went by.
    Time,
    /// The Lease was asked for, and this was answered; `None`: there is none.
    Looked(Option<Sighting>),
    /// Our write, sent at that instant, was confirmed: this is the Lease now.
    Wrote {
        /// When the request was sent.
        sent: Mono,
        /// The Lease.
        lease: Sighting,
    },
    /// A request was refused, or its outcome is unknown.
    Failed,
    /// This process ends and does nothing any more.
    Leave,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing for so long.
    Wait(Duration),
    /// Ask for the Lease.
    Look,
    /// Write the Lease in our name over this version; `None`: create it.
    Hold(Option<String>),
    /// Write over this version that nobody holds it.
    LetGo(String),
    /// It is over.
    Done,
}

/// What we know of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    /// Who holds it, or held it last when it is gone.
    holder: Option<String>,
    /// `None`: there is none.
    version: Option<String>,
    /// When the answer came that showed this for the first time: the write was before.
    since: Mono,
    lasts: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Waiting,
    /// The last renewal that was confirmed was sent then.
    Leading {
        renewed: Mono,
    },
    Leaving,
}

/// One candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    me: String,
    terms: Terms,
    role: Role,
    known: Option<Known>,
    /// Whether what we know was asked for after the last request that failed.
    sure: bool,
    /// Nothing is asked or written before.
    rest: Mono,
}

impl Election {
    /// A candidate that has seen nothing. `me` is an identity that no other process ever has, this one's next start
    /// included.
    pub fn new(me: impl Into<String>, terms: Terms) -> Self {
        Self {
            me: me.into(),
            terms,
            role: Role::Waiting,
            known: None,
            sure: false,
            rest: Mono::from_origin(Duration::ZERO),
        }
    }

    /// Until when this candidate leads, if nothing is confirmed meanwhile.
    pub fn leads_until(&self) -> Option<Mono> {
        match self.role {
            Role::Leading { renewed } => Some(renewed + self.terms.act),
            Role::Waiting | Role::Leaving => None,
        }
    }

    /// Who holds the Lease, as far as we know.
    pub fn holder(&self) -> Option<&str> {
        self.known.as_ref().and_then(|known| known.holder.as_deref())
    }

    /// Takes in what happened and says what to do.
    pub fn step(&mut self, event: Event, now: Mono) -> Action {
        match event {
            Event::Time => {}
            Event::Looked(found) => {
                self.sure = true;
                self.rest = now + self.terms.look;
                self.looked(found, now);
            }
            Event::Wrote { sent, lease } => {
                self.sure = true;
                self.rest = now;
                match self.role {
                    Role::Waiting | Role::Leading { .. } => self.role = Role::Leading { renewed: sent },
                    Role::Leaving => {}
                }
                self.looked(Some(lease), now);
            }
            Event::Failed => {
                self.sure = false;
                self.rest = now + self.terms.look;
            }
            Event::Leave => self.role = Role::Leaving,
        }
        if self.leads_until().is_some_and(|until| until <= now) {
            self.role = Role::Waiting;
        }
        match self.role {
            Role::Leading { renewed } => self.lead(renewed, now),
            Role::Waiting => self.wait(now),
            Role::Leaving => self.leave(),
        }
    }

    fn looked(&mut self, found: Option<Sighting>, now: Mono) {
        let version = found.as_ref().map(|found| found.version.clone());
        if let Some(known) = &self.known
            && known.version == version
        {
            return;
        }
        self.known = Some(match found {
            Some(found) => Known {
                holder: found.holder.filter(|holder| !holder.is_empty()),
                version,
                since: now,
                lasts: found.lasts.unwrap_or(self.terms.lease),
            },
            // Somebody deleted it: its holder does not know yet and acts on.
            None => {
                let before = self.known.take();
                let lasts = before.as_ref().map_or(self.terms.lease, |before| before.lasts);
                Known { holder: before.and_then(|before| before.holder), version, since: now, lasts }
            }
        });
        match self.role {
            Role::Leading { .. } if self.holder() != Some(&self.me) => self.role = Role::Waiting,
            Role::Leading { .. } | Role::Waiting | Role::Leaving => {}
        }
    }

    fn lead(&self, renewed: Mono, now: Mono) -> Action {
        let due = if self.sure { renewed + self.terms.renew } else { self.rest };
        if now < due {
            return Action::Wait(due.since(now));
        }
        match &self.known {
            Some(known) if self.sure => Action::Hold(known.version.clone()),
            Some(_) | None => Action::Look,
        }
    }

    fn wait(&self, now: Mono) -> Action {
        let Some(known) = self.known.as_ref().filter(|_| self.sure) else {
            return if now < self.rest { Action::Wait(self.rest.since(now)) } else { Action::Look };
        };
        let free = match &known.holder {
            None => now,
            // Ours: an answer was lost, or our time to act ran out and nobody took it since.
            Some(holder) if *holder == self.me => now,
            Some(_) => known.since + known.lasts,
        };
        // The write itself proves that nothing changed since we looked last: it names the version.
        if free <= now {
            return Action::Hold(known.version.clone());
        }
        let next = free.min(self.rest);
        if now < next { Action::Wait(next.since(now)) } else { Action::Look }
    }

    fn leave(&self) -> Action {
        match &self.known {
            Some(Known { holder: Some(holder), version: Some(version), .. })
                if self.sure && *holder == self.me =>
            {
                Action::LetGo(version.clone())
            }
            // One that we are not sure of runs out by itself.
            Some(_) | None => Action::Done,
        }
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
