//! What the controller measures of its own work: how late starts are, how its passes over policies end, what the API
//! server answers, and how far the clocks are apart.
//!
//! Nothing here is about a policy, so that a hundred thousand of them add no series: every label has a small closed set of
//! values (docs/metrics.md).

use std::time::Duration;

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, Result, core::Collector,
};

/// Delays of starts: a start takes one request (some ms); a herd of a hundred thousand some minutes; what waits for
/// another run longer.
const DELAY_BUCKETS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

/// Passes and requests: from a cache's answer to the bound of a request, and somewhat more (10 s, docs/design/freeze.md §5).
const WORK_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// What the scheduler works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// A pass over a policy: everything about it is looked at and decided.
    Policy,
    /// A start that was decided upon beforehand.
    Start,
}

/// How a piece of that work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkResult {
    /// It was done.
    Succeeded,
    /// It was not, and is tried again.
    Failed,
    /// The lead passed on meanwhile.
    Deposed,
}

/// The metrics.
#[derive(Debug)]
pub struct Meters {
    start_delay: Histogram,
    reconciles: IntCounterVec,
    reconcile_duration: HistogramVec,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    skew: Gauge,
    registry: Registry,
}

impl WorkKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Policy, Self::Start];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Start => "start",
        }
    }
}

impl WorkResult {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Succeeded, Self::Failed, Self::Deposed];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Deposed => "deposed",
        }
    }
}

impl Meters {
    pub(crate) fn new(registry: &Registry) -> Result<Self> {
        fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C> {
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        }
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            HistogramOpts::new(name, help).buckets(buckets.to_vec())
        };
        let start_delay = Histogram::with_opts(histogram(
            "stillpoint_run_start_delay_seconds",
            "From a slot being due, with its jitter or after a blackout, to its Backup being created.",
            &DELAY_BUCKETS,
        ))?;
        let reconciles = IntCounterVec::new(
            Opts::new("stillpoint_reconcile_total", "Pieces of the scheduler's work that ended, by result."),
            &["kind", "result"],
        )?;
        for kind in WorkKind::ALL {
            for result in WorkResult::ALL {
                reconciles.with_label_values(&[kind.label(), result.label()]);
            }
        }
        let reconcile_duration = HistogramVec::new(
            histogram(
                "stillpoint_reconcile_duration_seconds",
                "Time that a piece of the scheduler's work took.",
                &WORK_BUCKETS,
            ),
            &["kind"],
        )?;
        for kind in WorkKind::ALL {
            reconcile_duration.with_label_values(&[kind.label()]);
        }
        let requests = IntCounterVec::new(
            Opts::new(
                "stillpoint_kube_requests_total",
                "Requests to the API server, by what became of them.",
            ),
            &["verb", "resource", "code"],
        )?;
        let request_duration = HistogramVec::new(
            histogram(
                "stillpoint_kube_request_duration_seconds",
                "From a request to the API server to the head of its answer, or to its being given up.",
                &WORK_BUCKETS,
            ),
            &["verb"],
        )?;
        let skew = Gauge::new(
            "stillpoint_clock_skew_seconds",
            "How far our clock is ahead of the API server's for certain; 0 while they may agree.",
        )?;
        Ok(Self {
            start_delay: registered(registry, start_delay)?,
            reconciles: registered(registry, reconciles)?,
            reconcile_duration: registered(registry, reconcile_duration)?,
            requests: registered(registry, requests)?,
            request_duration: registered(registry, request_duration)?,
            // Shown from the first reading on: before it nothing is known.
            skew,
            registry: registry.clone(),
        })
    }

    /// A Backup was created so long after its slot was due.
    pub fn started(&self, delay: Duration) {
        self.start_delay.observe(delay.as_secs_f64());
    }

    /// A piece of the scheduler's work ended.
    pub fn worked(&self, kind: WorkKind, result: WorkResult, took: Duration) {
        self.reconciles.with_label_values(&[kind.label(), result.label()]).inc();
        self.reconcile_duration.with_label_values(&[kind.label()]).observe(took.as_secs_f64());
    }

    /// A request to the API server ended. `code`: its HTTP status, or a word where there was none.
    pub fn requested(&self, verb: &str, resource: &str, code: &str, took: Duration) {
        self.requests.with_label_values(&[verb, resource, code]).inc();
        self.request_duration.with_label_values(&[verb]).observe(took.as_secs_f64());
    }

    /// How far our clock was found to be ahead of the API server's, in seconds.
    pub fn clocks_read(&self, ahead: f64) {
        self.skew.set(ahead);
        // Known already from the second reading on, which is no fault.
        let _ = self.registry.register(Box::new(self.skew.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::registry::{BuildInfo, Metrics};

    #[test]
    fn the_scheduler_s_work_starts_at_zero_and_the_clocks_with_the_first_reading() {
        let build = BuildInfo { version: "1.2.3".into(), revision: String::new() };
        let metrics = Arc::new(Metrics::new(&build).unwrap());
        let text = || Metrics::render(&*metrics).collect::<String>();
        let before = text();
        for line in [
            r#"stillpoint_reconcile_total{kind="start",result="failed"} 0"#,
            r#"stillpoint_reconcile_duration_seconds_count{kind="policy"} 0"#,
            "stillpoint_run_start_delay_seconds_count 0",
        ] {
            assert!(before.contains(line), "{line}\n{before}");
        }
        assert!(!before.contains("skew") && !before.contains("stillpoint_kube_requests_total{"), "{before}");
        let second = Duration::from_secs(1);
        let meters = metrics.meters();
        meters.started(Duration::from_millis(300));
        meters.worked(WorkKind::Policy, WorkResult::Failed, second);
        meters.requested("get", "pods", "abandoned", 10 * second);
        meters.clocks_read(-31.5);
        meters.clocks_read(42.0);
        let after = text();
        for line in [
            r#"stillpoint_run_start_delay_seconds_bucket{le="0.25"} 0"#,
            r#"stillpoint_run_start_delay_seconds_bucket{le="0.5"} 1"#,
            r#"stillpoint_reconcile_total{kind="policy",result="failed"} 1"#,
            r#"stillpoint_kube_requests_total{code="abandoned",resource="pods",verb="get"} 1"#,
            r#"stillpoint_kube_request_duration_seconds_bucket{verb="get",le="10"} 1"#,
            "stillpoint_clock_skew_seconds 42",
        ] {
            assert!(after.contains(line), "{line}\n{after}");
        }
        assert_eq!(after.matches("# TYPE stillpoint_clock_skew_seconds gauge").count(), 1, "{after}");
    }
}
