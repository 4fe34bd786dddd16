//! What becomes of the Backups of policies that are gone. Pure.
//!
//! The time counts from when it was first seen that the policy is gone, which is noted on the Backup: an old point of a
//! policy that was deleted by mistake a minute ago is as safe as a new one. Nothing goes on the strength of the note's first
//! look, nothing that is held, runs or was cut in the future, and no newest point unless every rule lets it go. The note goes,
//! and with it the time, when the policy is back or no rule asks any more (docs/rules.md).

use std::collections::BTreeSet;
use std::iter::Sum;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use stillpoint_api::policy::DELETIONS_AGREED_ANNOTATION;
use stillpoint_api::rule::{Newest, ProtectionRule};

use crate::projection::BackupView;
use crate::reconciler::points;
use crate::retention::{self, KeepReason, Rules, Standing};

/// So many policies may be gone without being asked about: that is work of people, not the loss of a whole cluster's.
const GONE_UNASKED: usize = 10;

/// What the rules that hold for a namespace say together. A rule narrows, so the one that keeps more counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// How long Backups stay after it was seen that their policy is gone: the longest time of any rule.
    pub keep: SignedDuration,
    /// What becomes of the newest point: it stays when any rule says so.
    pub newest: Newest,
    /// The rules, by name.
    pub rules: Vec<String>,
    /// Somebody agreed to the deletions of each of them.
    pub agreed: bool,
}

/// What is to be done about the Backups of one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// Note on these that the policy is gone.
    pub mark: Vec<String>,
    /// Take the note from these.
    pub unmark: Vec<String>,
    /// Delete these with their data, oldest first.
    pub delete: Vec<String>,
    /// When the next ones are to be deleted.
    pub wake_at: Option<Timestamp>,
    /// For people.
    pub orphaned: Orphaned,
}

/// Backups of policies that are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orphaned {
    /// All of them.
    pub backups: usize,
    /// Those that go unless something changes.
    pub expiring: usize,
    /// When the first of these goes, at the earliest.
    pub next: Option<Timestamp>,
}

/// So many policies are gone that it looks like a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Policies that are gone and have Backups that would go.
    pub gone: usize,
    /// Policies that are there.
    pub left: usize,
}

impl Asked {
    /// What these rules, which hold for a namespace, say; nothing when none of them says anything.
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a ProtectionRule>) -> Option<Self> {
        let mut asked: Option<Self> = None;
        for rule in rules {
            let Some(orphans) = rule.spec.orphans else { continue };
            let keep = SignedDuration::try_from(orphans.keep.get()).unwrap_or(SignedDuration::MAX);
            let name = rule.metadata.name.clone().unwrap_or_default();
            let agreed = rule.deletions_agreed();
            let Some(asked) = &mut asked else {
                asked = Some(Self { keep, newest: orphans.newest, rules: vec![name], agreed });
                continue;
            };
            asked.keep = asked.keep.max(keep);
            asked.agreed &= agreed;
            asked.newest = match (asked.newest, orphans.newest) {
                (Newest::Delete, Newest::Delete) => Newest::Delete,
                (Newest::Keep, _) | (_, Newest::Keep) => Newest::Keep,
            };
            asked.rules.push(name);
        }
        asked
    }

    /// The rules, for people.
    pub fn whose(&self) -> String {
        let noun = if self.rules.len() == 1 { "ProtectionRule" } else { "ProtectionRules" };
        format!("{noun} {}", self.rules.join(", "))
    }

    /// What is told about a Backup of `policy` when the note is made at `now`.
    pub fn marked(&self, policy: &str, now: Timestamp) -> String {
        let until = now.checked_add(self.keep).map_or_else(|_| "never".to_owned(), |until| until.to_string());
        let newest = match self.newest {
            Newest::Keep => ", or this is the newest point",
            Newest::Delete => "",
        };
        format!(
            "the policy {policy} is gone: by spec.orphans of {} this Backup is deleted with its data, not before {until}, \
             unless a policy of that name comes back, it is held (spec.hold){newest}",
            self.whose()
        )
    }

    /// What is told about a Backup of `policy` that is deleted.
    pub fn deleted(&self, policy: &str) -> String {
        let days = Duration::try_from(self.keep).map_or(0, |keep| keep.as_secs() / (24 * 3600));
        format!(
            "deleted with its data by spec.orphans of {}: the policy {policy} is gone for more than {days} day(s)",
            self.whose()
        )
    }
}

impl Sum for Orphaned {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            backups: sum.backups + one.backups,
            expiring: sum.expiring + one.expiring,
            next: [sum.next, one.next].into_iter().flatten().min(),
        })
    }
}

impl Pause {
    /// The circuit breaker: whether `gone` policies, where `left` are left, look like a mistake.
    ///
    /// It counts policies whose Backups would go at any time, not only now: whoever deleted all policies by mistake is told
    /// when it happens, and not when the first Backups are due.
    pub fn of(gone: usize, left: usize) -> Option<Self> {
        (gone > GONE_UNASKED && gone > left).then_some(Self { gone, left })
    }

    /// What has happened, and what to do.
    pub fn message(&self, generation: i64) -> String {
        format!(
            "{} policies with Backups are gone and {} are left, which looks like a mistake: none of the Backups is deleted. \
             Bring the policies back, or agree with the annotation {DELETIONS_AGREED_ANNOTATION}={generation} on this rule",
            self.gone, self.left
        )
    }
}

impl Fate {
    /// Whether there is something to do now.
    pub const fn is_idle(&self) -> bool {
        self.mark.is_empty() && self.unmark.is_empty() && self.delete.is_empty()
    }
}

/// What is to be done about these Backups of one policy, which `exists` or not.
pub fn decide(asked: Option<&Asked>, exists: bool, backups: &[BackupView], now: Timestamp) -> Fate {
    let staying = || backups.iter().filter(|backup| !backup.deleting);
    let mut fate = Fate::default();
    let Some(asked) = asked.filter(|_| !exists) else {
        let noted = staying().filter(|backup| backup.orphaned.is_some());
        fate.unmark = noted.map(|backup| backup.name.clone()).collect();
        return fate;
    };
    let stay = staying_names(asked, backups, now);
    let mut going: Vec<(Timestamp, &BackupView)> = Vec::new();
    for backup in staying() {
        fate.orphaned.backups += 1;
        // What lies ahead was not written by us now: the time begins anew.
        let Some(since) = backup.orphaned.filter(|since| *since <= now) else {
            fate.mark.push(backup.name.clone());
            continue;
        };
        // Never, when the time is longer than time.
        let Ok(goes) = since.checked_add(asked.keep) else { continue };
        if !stay.contains(&backup.name) {
            going.push((goes, backup));
        }
    }
    fate.orphaned.expiring = going.len();
    fate.orphaned.next = going.iter().map(|(goes, _)| *goes).min();
    fate.wake_at = going.iter().map(|(goes, _)| *goes).filter(|goes| *goes > now).min();
    going.retain(|(goes, _)| *goes <= now);
    going.sort_by_key(|(_, backup)| (backup.cut.unwrap_or(backup.created), backup.name.clone()));
    fate.delete = going.into_iter().map(|(_, backup)| backup.name.clone()).collect();
    fate
}

/// What stays for ever, by the guards of retention.
fn staying_names(asked: &Asked, backups: &[BackupView], now: Timestamp) -> BTreeSet<String> {
    let (last, none) = (1, 0);
    let rules = Rules {
        last,
        hourly: none,
        daily: none,
        weekly: none,
        monthly: none,
        yearly: none,
        within: Duration::ZERO,
        zone: TimeZone::UTC,
    };
    let points = points(backups);
    let proven = points.iter().any(|point| point.standing == Standing::Proven && !point.held);
    let stays = |reason: &KeepReason| match (reason, asked.newest) {
        (
            KeepReason::Held | KeepReason::Unfinished | KeepReason::FutureDated | KeepReason::ClockSkew,
            Newest::Keep | Newest::Delete,
        )
        | (KeepReason::Newest | KeepReason::NewestOfApplication | KeepReason::NoRules, Newest::Keep) => true,
        // The newest that is not proven, or lost its snapshot, is all there is.
        (KeepReason::Nth(..), Newest::Keep) => !proven,
        (
            KeepReason::Within | KeepReason::Oldest(_) | KeepReason::RecentFailure,
            Newest::Keep | Newest::Delete,
        )
        | (
            KeepReason::Newest | KeepReason::NewestOfApplication | KeepReason::NoRules | KeepReason::Nth(..),
            Newest::Delete,
        ) => false,
    };
    let plan = retention::plan(&points, &rules, false, now);
    let keep = plan.keep.into_iter().filter(|kept| kept.reasons.iter().any(stays));
    keep.map(|kept| kept.name).collect()
}

#[cfg(test)]
#[path = "orphans_tests.rs"]
mod tests;
