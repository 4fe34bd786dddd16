//! Where a policy stands: its objective, its points, its failures and its slots, counted.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use stillpoint_api::policy::{BackupPolicyStatus, RecoveryPointCounts, RpoStatus, SlotCounts};

use super::{Observed, seconds};
use crate::accept::created;
use crate::objectives::Standing as Objective;
use crate::projection::BackupView;
use crate::retention::Standing;
use crate::slots::Missed;
use crate::{objectives, retention};

pub(super) fn rpo(
    observed: &Observed<'_>,
    running: bool,
    next_due: Option<Timestamp>,
    now: Timestamp,
) -> (RpoStatus, Option<Timestamp>) {
    let newest = observed.backups.iter().filter(|backup| backup.is_point()).max_by_key(|backup| cut(backup));
    let protected_since = created(observed.policy);
    let reference = newest.map(cut);
    let Some(target) = observed.policy.spec.objectives.and_then(|objectives| objectives.rpo) else {
        let reference = Some(seconds(reference.unwrap_or(protected_since)));
        return (RpoStatus { reference, state: None, attainable: None }, None);
    };
    // A point counts only once it is ready; the newest one tells how long that takes here.
    let expected = newest.and_then(|point| Duration::try_from(point.ended().duration_since(cut(point))).ok());
    let analysis = observed.accepted.ok().and_then(|accepted| accepted.analysis);
    let attainable = analysis
        .map(|found| objectives::attainable(found.max_interval, expected.unwrap_or_default(), target.get()));
    let assessment = objectives::assess(
        &Objective {
            rpo: target.get(),
            newest_proven: reference,
            protected_since,
            next_chance: if running { Some(now) } else { next_due },
            attainable,
            suspended: observed.policy.spec.suspend,
        },
        now,
    );
    let status = RpoStatus {
        reference: Some(seconds(assessment.reference)),
        state: Some(assessment.state.as_str().to_owned()),
        attainable,
    };
    (status, assessment.changes_at)
}

pub(super) fn count_points(backups: &[BackupView]) -> RecoveryPointCounts {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let proven = || backups.iter().filter(|backup| backup.is_point()).map(cut);
    let failed = backups.iter().filter(|backup| match backup.standing {
        Standing::Unfinished | Standing::Proven | Standing::Lost => false,
        Standing::Unproven | Standing::Failed => !backup.deleting,
    });
    let lost = backups.iter().filter(|backup| backup.standing == Standing::Lost && !backup.deleting);
    RecoveryPointCounts {
        ready: number(proven().count()),
        failed: number(failed.count()),
        held: number(backups.iter().filter(|backup| backup.held && !backup.deleting).count()),
        snapshot_deleted: number(lost.count()),
        oldest: proven().min().map(seconds),
        newest: proven().max().map(seconds),
    }
}

/// Failures since the last success. Only the newest failures are kept as objects, so from there on the number is
/// carried forward in status.
pub(super) fn consecutive_failures(observed: &Observed<'_>, before: &BackupPolicyStatus) -> u32 {
    let finished = observed.backups.iter().filter(|backup| backup.standing != Standing::Unfinished);
    let newest_success = finished.filter(|backup| backup.failure.is_none()).map(BackupView::ended).max();
    let failures = observed.backups.iter().filter(|backup| backup.failure.is_some());
    let live =
        failures.filter(|failed| newest_success.is_none_or(|success| failed.ended() > success)).count();
    let counted = u32::try_from(live).unwrap_or(u32::MAX);
    if live < retention::FAILED_KEPT {
        return counted;
    }
    counted.max(before.consecutive_failures.saturating_add(observed.fresh_failures))
}

/// Counts the slots whose run has ended since the last pass. A policy's slots run one after the other: what comes after one
/// that has not ended waits.
pub(super) fn count_slots(observed: &Observed<'_>, known: Option<SlotCounts>) -> Option<SlotCounts> {
    let uid = observed.policy.metadata.uid.as_deref();
    let counted_to = known.as_ref().and_then(|known| known.counted_to.as_ref()).map(|to| to.0);
    let own = observed.backups.iter().filter(|backup| uid.is_some() && backup.policy_uid.as_deref() == uid);
    let mut ended: Vec<(Timestamp, &BackupView)> =
        own.filter_map(|backup| Some((backup.slot?, backup))).collect();
    ended.retain(|(slot, _)| counted_to.is_none_or(|to| *slot > to));
    ended.sort_by_key(|(slot, _)| *slot);
    let mut counts = known;
    for (slot, backup) in ended {
        if backup.standing == Standing::Unfinished {
            break;
        }
        let counts = counts.get_or_insert_default();
        if backup.failure.is_none() {
            counts.met += 1;
        } else {
            counts.failed += 1;
        }
        counts.counted_to = Some(seconds(slot));
    }
    counts
}

pub(super) fn add_missed(mut known: BTreeMap<String, u64>, missed: &[Missed]) -> BTreeMap<String, u64> {
    for missed in missed {
        *known.entry(missed.reason.label().to_owned()).or_default() += u64::from(missed.count);
    }
    known
}

/// The age of a Backup: its cut, else its creation.
pub(super) fn cut(backup: &BackupView) -> Timestamp {
    backup.cut.unwrap_or(backup.created)
}
