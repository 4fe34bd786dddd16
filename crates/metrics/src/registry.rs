//! The event metrics: how long applications were frozen, how long hooks and storage took, how runs ended.
//!
//! Guarantees: every label combination that a policy can produce is there with 0 as soon as the policy is known, so
//! that `increase()` sees the first event; all series of a policy go with it, and an event that comes after the
//! policy was removed brings none of them back (docs/metrics.md §1).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, Encoder as _, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder,
};
use stillpoint_api::backup::Trigger;
use stillpoint_api::evidence::Consistency;

/// Freeze and hook durations: log-spaced from what a good driver needs (25 ms) to twice the default `maxHold`
/// (docs/metrics.md §2).
pub const FREEZE_BUCKETS: [f64; 11] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Our own share of a freeze: the aim is about 100 ms (ARCHITECTURE.md).
pub const OVERHEAD_BUCKETS: [f64; 8] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Cuts: local snapshots take tens of milliseconds, cloud ones seconds.
pub const CUT_BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// Readiness: at once on local storage, hours where the snapshot is uploaded first.
pub const READY_BUCKETS: [f64; 10] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 28800.0];

/// Which binary this is.
#[derive(Clone, Debug)]
pub struct BuildInfo {
    /// Version of the release.
    pub version: String,
    /// Revision of the source; empty: unknown.
    pub revision: String,
}

/// The parts of a hook that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPhase {
    /// Heavy work before the freeze.
    Prepare,
    /// From the lock being asked for to FROZEN.
    Acquire,
    /// From FROZEN to the thaw being sent.
    Hold,
    /// From the thaw being sent to THAWED.
    Thaw,
}

impl HookPhase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Prepare, Self::Acquire, Self::Hold, Self::Thaw];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Acquire => "acquire",
            Self::Hold => "hold",
            Self::Thaw => "thaw",
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunResult {
    /// A recovery point exists.
    Succeeded,
    /// None does.
    Failed,
}

impl RunResult {
    const ALL: [Self; 2] = [Self::Succeeded, Self::Failed];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

const TRIGGERS: [Trigger; 4] = [Trigger::Manual, Trigger::Schedule, Trigger::CatchUp, Trigger::Initial];
const CONSISTENCIES: [Consistency; 3] = [Consistency::Application, Consistency::Crash, Consistency::None];

/// The label value of a consistency.
pub const fn consistency_label(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Application => "application",
        Consistency::Crash => "crash",
        Consistency::None => "none",
    }
}

/// Whether a run can end like this today; such a series starts at 0.
fn possible(trigger: Trigger, consistency: Consistency, result: RunResult) -> bool {
    let triggered = match trigger {
        Trigger::Manual | Trigger::Schedule | Trigger::CatchUp | Trigger::Initial => true,
    };
    let ended = match (result, consistency) {
        // What is proven does not fail.
        (RunResult::Failed, Consistency::Application) => false,
        (RunResult::Failed, Consistency::Crash | Consistency::None) | (RunResult::Succeeded, _) => true,
    };
    triggered && ended
}

/// The policies whose series exist.
#[derive(Debug, Default)]
struct Known {
    /// Whether the list of policies is complete. Before that an event of an unknown policy is kept: a run that
    /// survived a restart may end before its policy was listed.
    complete: bool,
    applications: BTreeMap<(String, String), BTreeSet<String>>,
}

/// The event metrics. Cheap to call; share it in an `Arc`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    freeze_duration: HistogramVec,
    freeze_overhead: HistogramVec,
    hook_duration: HistogramVec,
    cut_duration: HistogramVec,
    ready_duration: HistogramVec,
    backups: CounterVec,
    known: Mutex<Known>,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// A name is registered twice or malformed: a defect of this module.
    pub fn new(build: &BuildInfo) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let policy = ["namespace", "policy"];
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let freeze_duration = histogram(
            "stillpoint_freeze_duration_seconds",
            "Freeze window: from before the first lock was sent to the last confirmed thaw.",
            &policy,
            &FREEZE_BUCKETS,
        )?;
        let freeze_overhead = histogram(
            "stillpoint_freeze_overhead_seconds",
            "Freeze window without the time the storage system needed.",
            &policy,
            &OVERHEAD_BUCKETS,
        )?;
        let hook_duration = histogram(
            "stillpoint_hook_duration_seconds",
            "Time one application spent in one phase of its hold.",
            &["namespace", "policy", "application", "phase"],
            &FREEZE_BUCKETS,
        )?;
        let cut_duration = histogram(
            "stillpoint_cut_duration_seconds",
            "From a snapshot being posted to the signal that it is cut.",
            &["driver"],
            &CUT_BUCKETS,
        )?;
        let ready_duration = histogram(
            "stillpoint_ready_duration_seconds",
            "From a snapshot being cut to it being ready to use.",
            &["driver"],
            &READY_BUCKETS,
        )?;
        let backups = CounterVec::new(
            Opts::new("stillpoint_backups_total", "Runs that ended, by what was proven."),
            &["namespace", "policy", "trigger", "consistency", "result"],
        )?;
        registry.register(Box::new(backups.clone()))?;
        let info = GaugeVec::new(
            Opts::new("stillpoint_build_info", "Which binary this is; always 1."),
            &["version", "revision"],
        )?;
        info.with_label_values(&[&build.version, &build.revision]).set(1.0);
        registry.register(Box::new(info))?;
        Ok(Self {
            registry,
            freeze_duration,
            freeze_overhead,
            hook_duration,
            cut_duration,
            ready_duration,
            backups,
            known: Mutex::default(),
        })
    }

    /// A policy exists with these applications: its series start at 0. Applications it no longer has lose theirs.
    pub fn policy_accepted<A: AsRef<str>>(&self, namespace: &str, policy: &str, applications: &[A]) {
        let now: BTreeSet<String> = applications.iter().map(|name| name.as_ref().to_owned()).collect();
        let mut known = self.known();
        let before = known.applications.insert((namespace.to_owned(), policy.to_owned()), now.clone());
        if before.as_ref() == Some(&now) {
            return;
        }
        for gone in before.iter().flatten().filter(|name| !now.contains(*name)) {
            self.remove_hooks(namespace, policy, gone);
        }
        self.freeze_duration.with_label_values(&[namespace, policy]);
        self.freeze_overhead.with_label_values(&[namespace, policy]);
        for application in &now {
            for phase in HookPhase::ALL {
                self.hook_duration.with_label_values(&[namespace, policy, application, phase.label()]);
            }
        }
        for_each_ending(|trigger, consistency, result| {
            if possible(trigger, consistency, result) {
                self.backups.with_label_values(&ending(namespace, policy, trigger, consistency, result));
            }
        });
    }

    /// A policy is gone: so are its series.
    pub fn policy_removed(&self, namespace: &str, policy: &str) {
        let mut known = self.known();
        let applications = known.applications.remove(&(namespace.to_owned(), policy.to_owned()));
        self.remove_policy(namespace, policy, applications.unwrap_or_default());
    }

    /// Every existing policy was reported: what is not among `existing` is gone, and from now on events of unknown
    /// policies are dropped.
    pub fn policies_listed(&self, existing: &BTreeSet<(String, String)>) {
        let mut known = self.known();
        known.complete = true;
        let gone: Vec<_> =
            known.applications.keys().filter(|key| !existing.contains(*key)).cloned().collect();
        for key in gone {
            let applications = known.applications.remove(&key).unwrap_or_default();
            self.remove_policy(&key.0, &key.1, applications);
        }
    }

    /// A freeze window ended: t3 − t0.
    pub fn freeze(&self, namespace: &str, policy: &str, seconds: f64) {
        if self.admit(namespace, policy, None) {
            self.freeze_duration.with_label_values(&[namespace, policy]).observe(seconds);
        }
    }

    /// The same window without the storage system's time.
    pub fn overhead(&self, namespace: &str, policy: &str, seconds: f64) {
        if self.admit(namespace, policy, None) {
            self.freeze_overhead.with_label_values(&[namespace, policy]).observe(seconds);
        }
    }

    /// One phase of one application's hold ended.
    pub fn hook(&self, namespace: &str, policy: &str, application: &str, phase: HookPhase, seconds: f64) {
        if self.admit(namespace, policy, Some(application)) {
            let labels = [namespace, policy, application, phase.label()];
            self.hook_duration.with_label_values(&labels).observe(seconds);
        }
    }

    /// A snapshot was cut.
    pub fn cut(&self, driver: &str, seconds: f64) {
        self.cut_duration.with_label_values(&[driver]).observe(seconds);
    }

    /// A snapshot became ready to use.
    pub fn ready(&self, driver: &str, seconds: f64) {
        self.ready_duration.with_label_values(&[driver]).observe(seconds);
    }

    /// A run ended.
    pub fn backup_finished(
        &self,
        namespace: &str,
        policy: &str,
        trigger: Trigger,
        consistency: Consistency,
        result: RunResult,
    ) {
        if self.admit(namespace, policy, None) {
            self.backups.with_label_values(&ending(namespace, policy, trigger, consistency, result)).inc();
        }
    }

    /// The families with at least one series, sorted by name.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// Writes one family in the text format.
    ///
    /// # Errors
    /// The writer's.
    pub fn encode(family: &MetricFamily, out: &mut Vec<u8>) -> io::Result<()> {
        TextEncoder::new().encode(std::slice::from_ref(family), out).map_err(io::Error::other)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is a single insert or remove, so a poisoned map is still a true one.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an event of this policy counts; notes what it will bring into being.
    fn admit(&self, namespace: &str, policy: &str, application: Option<&str>) -> bool {
        let mut known = self.known();
        let complete = known.complete;
        let key = (namespace.to_owned(), policy.to_owned());
        let applications = match known.applications.get_mut(&key) {
            Some(applications) => applications,
            None if complete => return false,
            None => known.applications.entry(key).or_default(),
        };
        match application {
            Some(name) if !applications.contains(name) => {
                // An application that was edited out while its last run was under way.
                if !complete {
                    applications.insert(name.to_owned());
                }
                !complete
            }
            Some(_) | None => true,
        }
    }

    fn remove_policy(&self, namespace: &str, policy: &str, applications: BTreeSet<String>) {
        // A series that was never made cannot be removed; that is the state that is wanted.
        let _ = self.freeze_duration.remove_label_values(&[namespace, policy]);
        let _ = self.freeze_overhead.remove_label_values(&[namespace, policy]);
        for application in &applications {
            self.remove_hooks(namespace, policy, application);
        }
        for_each_ending(|trigger, consistency, result| {
            let labels = ending(namespace, policy, trigger, consistency, result);
            let _ = self.backups.remove_label_values(&labels);
        });
    }

    fn remove_hooks(&self, namespace: &str, policy: &str, application: &str) {
        for phase in HookPhase::ALL {
            let labels = [namespace, policy, application, phase.label()];
            let _ = self.hook_duration.remove_label_values(&labels);
        }
    }
}

fn ending<'a>(
    namespace: &'a str,
    policy: &'a str,
    trigger: Trigger,
    consistency: Consistency,
    result: RunResult,
) -> [&'a str; 5] {
    [namespace, policy, trigger.label(), consistency_label(consistency), result.label()]
}

fn for_each_ending(mut each: impl FnMut(Trigger, Consistency, RunResult)) {
    for trigger in TRIGGERS {
        for consistency in CONSISTENCIES {
            for result in RunResult::ALL {
                each(trigger, consistency, result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(&BuildInfo { version: "1.2.3".into(), revision: String::new() }).unwrap()
    }

    fn text(metrics: &Metrics) -> String {
        let mut out = Vec::new();
        for family in metrics.gather() {
            Metrics::encode(&family, &mut out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_series_of_a_policy_starts_at_zero() {
        let metrics = metrics();
        metrics.policy_accepted("shop", "nightly", &["db"]);
        let text = text(&metrics);
        for line in [
            r#"stillpoint_freeze_duration_seconds_count{namespace="shop",policy="nightly"} 0"#,
            r#"stillpoint_hook_duration_seconds_count{application="db",namespace="shop",phase="thaw",policy="nightly"} 0"#,
            r#"stillpoint_backups_total{consistency="none",namespace="shop",policy="nightly",result="failed",trigger="schedule"} 0"#,
            r#"stillpoint_backups_total{consistency="application",namespace="shop",policy="nightly",result="succeeded",trigger="initial"} 0"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn an_event_is_counted_under_its_labels() {
        let metrics = metrics();
        metrics.policy_accepted("shop", "nightly", &["db"]);
        metrics.freeze("shop", "nightly", 0.07);
        metrics.hook("shop", "nightly", "db", HookPhase::Acquire, 0.003);
        metrics.cut("disk.csi", 0.06);
        metrics.ready("disk.csi", 0.4);
        metrics.backup_finished(
            "shop",
            "nightly",
            Trigger::Schedule,
            Consistency::Application,
            RunResult::Succeeded,
        );
        let text = text(&metrics);
        for line in [
            r#"stillpoint_freeze_duration_seconds_bucket{namespace="shop",policy="nightly",le="0.05"} 0"#,
            r#"stillpoint_freeze_duration_seconds_bucket{namespace="shop",policy="nightly",le="0.1"} 1"#,
            r#"stillpoint_cut_duration_seconds_count{driver="disk.csi"} 1"#,
            r#"stillpoint_backups_total{consistency="application",namespace="shop",policy="nightly",result="succeeded",trigger="schedule"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_removed_policy_takes_its_series_along_and_a_late_event_brings_none_back() {
        let metrics = metrics();
        metrics.policy_accepted("shop", "nightly", &["db"]);
        metrics.policies_listed(&BTreeSet::from([("shop".to_owned(), "nightly".to_owned())]));
        metrics.freeze("shop", "nightly", 0.07);
        metrics.policy_removed("shop", "nightly");
        metrics.freeze("shop", "nightly", 0.07);
        metrics.hook("shop", "nightly", "db", HookPhase::Thaw, 0.01);
        metrics.backup_finished("shop", "nightly", Trigger::Manual, Consistency::None, RunResult::Failed);
        assert!(!text(&metrics).contains("nightly"));
    }

    #[test]
    fn a_run_that_ends_before_its_policy_was_listed_counts() {
        let metrics = metrics();
        metrics.hook("shop", "nightly", "db", HookPhase::Hold, 0.05);
        metrics.freeze("shop", "gone", 0.05);
        metrics.policy_accepted("shop", "nightly", &["db"]);
        metrics.policies_listed(&BTreeSet::from([("shop".to_owned(), "nightly".to_owned())]));
        let text = text(&metrics);
        let counted = r#"_count{application="db",namespace="shop",phase="hold",policy="nightly"} 1"#;
        assert!(text.contains(counted), "{text}");
        assert!(!text.contains("gone"), "{text}");
    }

    #[test]
    fn an_application_that_left_the_policy_loses_its_series() {
        let metrics = metrics();
        metrics.policy_accepted("shop", "nightly", &["db", "cache"]);
        metrics.policy_accepted("shop", "nightly", &["db"]);
        let text = text(&metrics);
        assert!(!text.contains("cache") && text.contains(r#"application="db""#), "{text}");
    }
}
