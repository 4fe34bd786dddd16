//! The families of events that are about policies: name, kind, and how the samples of one policy are written.

use crate::series::Series;

/// Freeze and hook durations: log-spaced from what a good driver needs (25 ms) to twice the default `maxHold`
/// (docs/metrics.md §2).
pub const FREEZE_BUCKETS: [f64; 11] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Our own share of a freeze: the aim is about 100 ms (ARCHITECTURE.md).
pub const OVERHEAD_BUCKETS: [f64; 8] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// The families that are about policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventFamily {
    Ended,
    Freeze,
    Overhead,
    Hooks,
    HookResults,
    Violations,
    Deletions,
}

impl EventFamily {
    pub(crate) const ALL: [Self; 7] = [
        Self::Ended,
        Self::Freeze,
        Self::Overhead,
        Self::Hooks,
        Self::HookResults,
        Self::Violations,
        Self::Deletions,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ended => "stillpoint_backups_total",
            Self::Freeze => "stillpoint_freeze_duration_seconds",
            Self::Overhead => "stillpoint_freeze_overhead_seconds",
            Self::Hooks => "stillpoint_hook_duration_seconds",
            Self::HookResults => "stillpoint_hook_executions_total",
            Self::Violations => "stillpoint_consistency_violations_total",
            Self::Deletions => "stillpoint_retention_deletions_total",
        }
    }

    pub(crate) const fn help(self) -> &'static str {
        match self {
            Self::Ended => "Runs that ended, by what was proven.",
            Self::Freeze => "Freeze window: from before the first lock was sent to the last confirmed thaw.",
            Self::Overhead => "Freeze window without the time the storage system needed.",
            Self::Hooks => "Time one application spent in one phase of its hold.",
            Self::HookResults => "Parts of hooks that were begun, by how they went.",
            Self::Violations => "Runs that ended as they should and contradict themselves.",
            Self::Deletions => "Deletes of Backups by retention, by result.",
        }
    }

    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Ended | Self::HookResults | Self::Violations | Self::Deletions => "counter",
            Self::Freeze | Self::Overhead | Self::Hooks => "histogram",
        }
    }

    pub(crate) fn samples(self, labels: &str, series: &Series, out: &mut String) {
        match self {
            Self::Ended => series.render_ended(self.name(), labels, out),
            Self::Freeze => {
                if let Some(durations) = &series.freeze {
                    durations.render(self.name(), labels, &FREEZE_BUCKETS, out);
                }
            }
            Self::Overhead => {
                if let Some(durations) = &series.overhead {
                    durations.render(self.name(), labels, &OVERHEAD_BUCKETS, out);
                }
            }
            Self::Hooks => series.render_hooks(self.name(), labels, &FREEZE_BUCKETS, out),
            Self::HookResults => series.render_hook_results(self.name(), labels, out),
            Self::Violations => series.render_violations(self.name(), labels, out),
            Self::Deletions => series.render_deletions(self.name(), labels, out),
        }
    }
}
