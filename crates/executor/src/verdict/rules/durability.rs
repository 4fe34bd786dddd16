//! Rule 9: what was frozen was durable.

use stillpoint_api::evidence::{BarrierEvidence, HoldEvidence};
use stillpoint_api::template::{DataTime, Setting};

use super::{Checked, millis, pod};
use crate::verdict::Case;

/// 9: what was frozen was durable.
pub(super) fn durable(case: &Case<'_>) -> Checked {
    let application = case.application;
    if application.data_time == DataTime::Prepare {
        return if application.prepared_at.is_some() {
            Checked::proved("the point stands for what was acknowledged before prepare began")
        } else {
            Checked::missing("when prepare began is not known")
        };
    }
    if application.crash_safe.is_empty() {
        return Checked::missing(
            "the template neither reads the settings that make a commit durable nor has a barrier",
        );
    }
    if application.settings.is_empty() {
        return Checked::proved(format!("durable by design: {}", application.crash_safe));
    }
    if case.holds.is_empty() {
        return Checked::missing("no hold told the settings that make a commit durable");
    }
    let mut barriers: Vec<String> = Vec::new();
    for hold in &case.holds {
        for setting in &application.settings {
            let Some(gap) = setting_gap(setting, hold) else { continue };
            let barrier = if setting.or_barrier { made_durable(case, hold) } else { Barrier::NotAsked };
            if let Barrier::Ran(name) = barrier {
                let said = format!("barrier {name} of {} made up for {}", pod(hold), setting.name);
                barriers.extend((!barriers.contains(&said)).then_some(said));
                continue;
            }
            match gap {
                SettingGap::Unread => {
                    return Checked::missing(format!("{} did not tell {}{barrier}", pod(hold), setting.name));
                }
                SettingGap::Contradicted(value) => {
                    let finding = format!(
                        "{}: {}={value}, so an acknowledged commit may not be durable (needs {}){barrier}",
                        pod(hold),
                        setting.name,
                        setting.allowed.join(" or ")
                    );
                    // Under a lock the copy is still what a power failure would have left; without one the claim
                    // that the engine recovers is void.
                    return if case.locks() {
                        Checked::missing(finding)
                    } else {
                        Checked::contradiction(finding)
                    };
                }
            }
        }
    }
    let names =
        application.settings.iter().map(|setting| setting.name.as_str()).collect::<Vec<_>>().join(", ");
    if barriers.is_empty() {
        return Checked::proved(format!("{names} read in this run"));
    }
    Checked::proved(format!("{names} read in this run, or made up for: {}", barriers.join(", ")))
}

/// Whether a barrier made durable what a hold froze.
#[derive(Clone, Copy)]
enum Barrier<'h> {
    /// The template does not say that one would do.
    NotAsked,
    /// It ran after the lock was asked for and before FROZEN.
    Ran(&'h str),
    /// It was told, and not then: more may have been acknowledged since, or the snapshots were asked for already.
    OutOfOrder(&'h BarrierEvidence),
    /// None was told.
    NotTold,
}

impl std::fmt::Display for Barrier<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAsked | Self::Ran(_) => Ok(()),
            Self::OutOfOrder(barrier) => write!(
                f,
                "; barrier {} was told at {}, not between FREEZE and FROZEN",
                barrier.name,
                millis(barrier.at)
            ),
            Self::NotTold => write!(f, "; no barrier was told"),
        }
    }
}

/// The barrier of a hold that counts: received after its FREEZE was sent, and not after its FROZEN.
fn made_durable<'h>(case: &Case<'_>, hold: &'h HoldEvidence) -> Barrier<'h> {
    // Who stops nobody acknowledges more after any barrier.
    if !case.locks() {
        return Barrier::NotAsked;
    }
    let between = |barrier: &&BarrierEvidence| {
        let frozen = hold.frozen.as_ref().map(|answer| answer.at);
        hold.freeze_sent.is_some_and(|sent| sent < barrier.at)
            && frozen.is_some_and(|frozen| barrier.at <= frozen)
    };
    match (hold.barriers.iter().find(between), hold.barriers.first()) {
        (Some(barrier), _) => Barrier::Ran(&barrier.name),
        (None, Some(barrier)) => Barrier::OutOfOrder(barrier),
        (None, None) => Barrier::NotTold,
    }
}

enum SettingGap {
    Unread,
    Contradicted(String),
}

fn setting_gap(setting: &Setting, hold: &HoldEvidence) -> Option<SettingGap> {
    let is_one_of = |value: &str, values: &[String]| values.iter().any(|one| one.eq_ignore_ascii_case(value));
    if let Some(condition) = &setting.when {
        match hold.facts.get(&condition.name) {
            None => return Some(SettingGap::Unread),
            Some(value) if !is_one_of(value, &condition.values) => return None,
            Some(_) => {}
        }
    }
    match hold.facts.get(&setting.name) {
        None => Some(SettingGap::Unread),
        Some(value) if is_one_of(value, &setting.allowed) => None,
        Some(value) => Some(SettingGap::Contradicted(value.clone())),
    }
}
