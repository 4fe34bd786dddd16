//! Whether the cuts of a run can fit into its freeze, by what runs on the same storage path have measured
//! (docs/design/freeze.md §3). Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use stillpoint_api::backup::Backup;

use super::Refusal;
use crate::run::Plan;
use crate::storage_path::{Basis, PathRun, Queue, expected_window};

/// How old a measurement may be: a nightly run is refused by last night's, and the night after tries again.
const LATELY: Duration = Duration::from_secs(26 * 3600);

/// A finished run whose snapshots were timed.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Name of its Backup.
    backup: String,
    /// Drivers of its members.
    drivers: BTreeSet<String>,
    path: PathRun,
}

/// The runs that finished lately, newest first.
pub fn measured(backups: &[Backup], now: Timestamp) -> Vec<Measured> {
    let mut finished: Vec<(Timestamp, Measured)> = backups
        .iter()
        .filter_map(|backup| {
            let status = backup.status.as_ref()?;
            let at = status.finished_at.as_ref()?.0;
            let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
            let measured = Measured {
                backup: backup.name_any(),
                drivers: status.members.iter().map(|member| member.driver.clone()).collect(),
                path: PathRun::of(status)?,
            };
            (age <= LATELY).then_some((at, measured))
        })
        .collect();
    finished.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    finished.into_iter().map(|(_, measured)| measured).collect()
}

/// Refuses a run whose cuts are measured to take longer than the freeze may.
///
/// Only a measurement refuses: an assumption would refuse for ever where the rates were raised.
///
/// # Errors
/// `WindowTooLong`, with what to change.
pub(super) fn check(plan: &Plan, measured: &[Measured]) -> Result<(), Refusal> {
    let drivers: BTreeSet<String> = plan.members.iter().map(|member| member.driver.clone()).collect();
    let (names, runs): (Vec<&str>, Vec<PathRun>) = measured
        .iter()
        .filter(|run| run.drivers == drivers)
        .map(|run| (run.backup.as_str(), run.path.clone()))
        .unzip();
    let expected = expected_window(plan.cuts.len(), &runs);
    let budget = plan.cut_budget();
    let Basis::Measured { queue, .. } = expected.basis else { return Ok(()) };
    if expected.window <= budget {
        return Ok(());
    }
    let cure = match queue {
        Some(Queue::Throttled { .. }) => {
            "raise --kube-api-qps and --kube-api-burst of snapshot-controller and csi-snapshotter"
        }
        Some(Queue::Serialised { .. }) => {
            "the driver makes them one after the other: cut them as one group (snapshot.group), or split the policy"
        }
        None => "the storage takes that long for each",
    };
    Err(Refusal::stands(
        "WindowTooLong",
        format!(
            "{} snapshots are expected to take {:.1} s, and a freeze of {:?} leaves {:.1} s for them: {cure}; or raise \
             freeze.maxHold, or exclude volumes. It was measured by {}; what is older than a day, or deleted, does not count",
            plan.cuts.len(),
            expected.window.as_secs_f64(),
            plan.max_hold,
            budget.as_secs_f64(),
            names.iter().take(3).copied().collect::<Vec<_>>().join(", ")
        ),
    ))
}
