//! How long snapshots take here, as finished runs measured it, and what makes new ones slow.

use std::time::Duration;

use stillpoint_executor::storage_path::{PathRun, Queue, detect, expected_window};

use super::super::finding::Finding;
use super::super::observed::Observed;
use super::look;
use crate::output::length;

/// With more of them every resync of the snapshot controller delays new ones by minutes (seen by others from 5000 on).
const MANY_SNAPSHOTS: u64 = 5000;
/// What a window is told for, beside what was measured.
const TOLD_FOR: usize = 10;

/// One finding per driver that has runs.
pub(super) fn measured(observed: &Observed) -> Vec<Finding> {
    let runs = look!("storage-path", "the finished backups", &observed.runs);
    if runs.is_empty() {
        return vec![Finding::ok("storage-path", "no finished backup yet: nothing was measured")];
    }
    runs.iter().map(|(driver, newest_first)| of_driver(driver, newest_first)).collect()
}

fn of_driver(driver: &str, newest_first: &[PathRun]) -> Finding {
    const CHECK: &str = "storage-path";
    let many = expected_window(TOLD_FOR, newest_first).window;
    let seconds = |duration: Duration| format!("{:.1} s", duration.as_secs_f64());
    match detect(newest_first) {
        Some((Queue::Throttled { step }, run)) => {
            let total = run.waits.last().copied().unwrap_or_default();
            Finding::warning(
                CHECK,
                format!(
                    "driver {driver}: the last run of {} snapshots waited {} for them, the first {}, each further one {} more",
                    run.waits.len(),
                    seconds(total),
                    length(run.waits.first().copied().unwrap_or_default()),
                    seconds(step)
                ),
                format!(
                    "a few at once and the rest in steps is the client throttle of the snapshot stack (5 requests a second \
                     by default), not the storage; {TOLD_FOR} volumes freeze about {}",
                    seconds(many)
                ),
                "add --kube-api-qps=100 --kube-api-burst=200 to snapshot-controller and to the driver's csi-snapshotter, or \
                 cut the volumes as one group (snapshot.group)",
            )
        }
        Some((queue @ Queue::Serialised { step }, run)) => {
            let group = "cut the volumes as one group (snapshot.group), if the driver has groups, or use fewer volumes";
            let (cause, cure) = if queue.may_be_throttle() {
                (
                    "a driver that makes one at a time does this, and so does the client throttle of the snapshot stack on a \
                     busy cluster (5 requests a second by default: about 0.8 s each); ",
                    format!(
                        "add --kube-api-qps=100 --kube-api-burst=200 to snapshot-controller and to the driver's csi-snapshotter, \
                         and look again after the next run; if it is the same then, {group}"
                    ),
                )
            } else {
                ("", group.to_owned())
            };
            Finding::warning(
                CHECK,
                format!(
                    "driver {driver}: the last run of {} snapshots waited {}: they are made one after the other, {} each",
                    run.waits.len(),
                    seconds(run.waits.last().copied().unwrap_or_default()),
                    seconds(step)
                ),
                format!(
                    "{cause}every volume of an application adds to its freeze; {TOLD_FOR} volumes freeze about {}",
                    seconds(many)
                ),
                cure,
            )
        }
        None => {
            let most = newest_first.iter().max_by_key(|run| run.waits.len());
            let told = most.map_or(String::new(), |run| {
                let total = run.waits.last().copied().unwrap_or_default();
                format!(": {} snapshots at once took {}", run.waits.len(), length(total))
            });
            Finding::ok(
                CHECK,
                format!("driver {driver}: no sign of a throttle in {} runs{told}", newest_first.len()),
            )
        }
    }
}

/// How many snapshots there are in all.
pub(super) fn number_of_snapshots(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "number-of-snapshots";
    let Some(number) = look!(CHECK, "the number of snapshots", &observed.snapshots) else {
        return Vec::new();
    };
    if *number <= MANY_SNAPSHOTS {
        return vec![Finding::ok(CHECK, format!("there are {number} VolumeSnapshots"))];
    }
    vec![Finding::warning(
        CHECK,
        format!("there are {number} VolumeSnapshots"),
        "the snapshot controller looks at all of them every 15 minutes; a new one then waits, and with it a freeze",
        "keep fewer (retention of the policies), or raise --resync-period of snapshot-controller and csi-snapshotter",
    )]
}
