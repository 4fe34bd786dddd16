//! Which points of a policy go, and what its status says about those that stay.

use std::collections::BTreeMap;

use jiff::Timestamp;
use stillpoint_api::policy::{BackupPolicyStatus, KeptPoint, RetentionStatus};

use super::Observed;
use super::standing::cut;
use super::starting::ClockView;
use crate::projection::BackupView;
use crate::retention;
use crate::retention::{Guard, HeldBack, Kept, Point, Standing};

/// Kept points shown in status, newest first: a status of some kilobytes.
const KEPT_SHOWN: usize = 64;

/// What retention comes to.
pub(super) struct Expired {
    pub(super) delete: Vec<String>,
    pub(super) status: Option<RetentionStatus>,
    pub(super) held_back: Option<HeldBack>,
}

/// Failed runs first, then points, oldest first; no points while the breaker is open, and then what was on its way
/// before stays noted, so that the next pass sees the same jump.
pub(super) fn expire(
    observed: &Observed<'_>,
    before: &BackupPolicyStatus,
    clock: ClockView,
    now: Timestamp,
) -> Expired {
    let Ok(accepted) = observed.accepted else {
        return Expired { delete: Vec::new(), status: None, held_back: None };
    };
    let points = points(observed.backups);
    let skewed = clock != ClockView::Sane;
    let plan = retention::plan(&points, &accepted.retention, skewed, now);
    let usable = points.iter().filter(|point| match point.standing {
        Standing::Proven | Standing::Unproven | Standing::Lost => true,
        Standing::Failed | Standing::Unfinished => false,
    });
    let known = before.retention.as_ref().map_or(0, |noted| noted.expiring as usize);
    let agreed = observed.policy.deletions_agreed();
    let agreed = agreed.is_some() && agreed == observed.policy.metadata.generation;
    let held_back = retention::hold_back(plan.delete.len(), usable.count(), known).filter(|_| !agreed);
    let expiring = match held_back {
        Some(_) => known.min(plan.delete.len()),
        // Nothing is decided about points while the clock is in doubt.
        None if skewed => known,
        None => plan.delete.len(),
    };
    let unfinished =
        |name: &str| points.iter().any(|point| point.name == name && point.standing == Standing::Unfinished);
    let kept =
        plan.keep.iter().filter(|kept| !unfinished(&kept.name)).take(KEPT_SHOWN).map(|kept| KeptPoint {
            backup: kept.name.clone(),
            reasons: kept.reasons.iter().map(ToString::to_string).collect(),
        });
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mut blocked: BTreeMap<String, u32> = BTreeMap::new();
    for guard in plan.keep.iter().filter_map(Kept::guard) {
        *blocked.entry(guard.label().to_owned()).or_default() += 1;
    }
    if held_back.is_some() {
        blocked.insert(Guard::Breaker.label().to_owned(), number(plan.delete.len()));
    }
    let status = RetentionStatus { kept: kept.collect(), expiring: number(expiring), blocked };
    let mut delete = plan.delete_failed;
    if held_back.is_none() {
        delete.extend(plan.delete);
    }
    let empty = status == RetentionStatus::default();
    Expired { delete, status: (!empty).then_some(status), held_back }
}

/// What is on its way out takes no place among the newest.
pub(crate) fn points(backups: &[BackupView]) -> Vec<Point> {
    let staying = backups.iter().filter(|backup| !backup.deleting);
    staying
        .map(|backup| Point {
            name: backup.name.clone(),
            cut: cut(backup),
            standing: backup.standing,
            held: backup.held,
            applications: backup.applications.clone(),
        })
        .collect()
}
