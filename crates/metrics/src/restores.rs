//! How Restores ended and how long they took.
//!
//! Unlike everything else about a policy these series stay when it is deleted, until the controller is restarted: what is
//! restored is often what somebody has just deleted. There are no more of them than points were restored from.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, Result};
use stillpoint_api::outcome::RunResult;

/// Restores: a copy-on-write clone takes seconds, a volume that is downloaded first takes hours.
const BUCKETS: [f64; 9] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0];

#[derive(Debug)]
pub(crate) struct Restores {
    ended: IntCounterVec,
    duration: HistogramVec,
}

impl Restores {
    pub(crate) fn new(registry: &Registry) -> Result<Self> {
        let ended = IntCounterVec::new(
            Opts::new("stillpoint_restores_total", "Restores that ended, by result."),
            &["namespace", "policy", "result"],
        )?;
        let duration = HistogramVec::new(
            HistogramOpts::new(
                "stillpoint_restore_duration_seconds",
                "From the beginning of a Restore that succeeded to its claims being bound.",
            )
            .buckets(BUCKETS.to_vec()),
            &["namespace", "policy"],
        )?;
        registry.register(Box::new(ended.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        Ok(Self { ended, duration })
    }

    /// One ended.
    pub(crate) fn count(&self, namespace: &str, policy: &str, result: RunResult, seconds: f64) {
        // The other result is there with 0.
        for known in RunResult::ALL {
            let of_result = self.ended.with_label_values(&[namespace, policy, known.label()]);
            of_result.inc_by(u64::from(known == result));
        }
        match result {
            RunResult::Succeeded => self.duration.with_label_values(&[namespace, policy]).observe(seconds),
            // How long it took to be refused says nothing about the next one.
            RunResult::Failed => {}
        }
    }
}
