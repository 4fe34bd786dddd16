//! The event metrics: how long applications were frozen, how long hooks and storage took, how runs ended.
//!
//! Guarantees: every way in which a run of a policy can end is there with 0 as soon as the policy is known, so
//! that `increase()` sees the first one; durations begin with the first observation; all series of a policy go with it, and
//! an event that comes after the policy was removed brings none of them back (docs/metrics.md §1). A policy takes a few
//! hundred bytes ([`series`](crate::series)), and is rendered in pages.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::{Bound, Deref};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};
use stillpoint_api::backup::Trigger;
use stillpoint_api::evidence::Consistency;

use crate::collector::{PER_PAGE, escape};
use crate::facts::Key;
use crate::meters::Meters;
use crate::restores::Restores;
use crate::series::{Ending, Parts, Series};

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

/// How a part of a hook went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookResult {
    /// As it should.
    Succeeded,
    /// It ended, or was lost, before it was done.
    Failed,
    /// It was not done in its time.
    Timeout,
    /// Its command could not be run, or was not there.
    ExecError,
}

impl HookResult {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Failed, Self::Timeout, Self::ExecError];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::ExecError => "exec_error",
        }
    }
}

/// What must not happen in a run that ended as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A snapshot was not cut between freeze and thaw.
    CutOutsideFreeze,
    /// A hold did not prove at its end that it was there all the time.
    HoldNotClosed,
    /// Two facts of the evidence exclude each other.
    Contradiction,
}

impl Violation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::CutOutsideFreeze, Self::HoldNotClosed, Self::Contradiction];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::CutOutsideFreeze => "cut_outside_freeze",
            Self::HoldNotClosed => "hold_not_closed",
            Self::Contradiction => "contradiction",
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
    /// Both.
    pub const ALL: [Self; 2] = [Self::Succeeded, Self::Failed];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// What became of a delete of retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionResult {
    /// The API server took it.
    Deleted,
    /// It failed, or was not answered.
    Failed,
}

impl DeletionResult {
    pub(crate) const ALL: [Self; 2] = [Self::Deleted, Self::Failed];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Failed => "failed",
        }
    }
}

/// The label value of a consistency.
pub const fn consistency_label(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Application => "application",
        Consistency::Crash => "crash",
        Consistency::None => "none",
    }
}

/// The policies whose series exist.
#[derive(Debug, Default)]
struct Known {
    /// Whether the list of policies is complete. Before that an event of an unknown policy is kept: a run that
    /// survived a restart may end before its policy was listed.
    complete: bool,
    policies: BTreeMap<Key, Series>,
}

/// The families that are about policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventFamily {
    Ended,
    Freeze,
    Overhead,
    Hooks,
    HookResults,
    Violations,
    Deletions,
}

impl EventFamily {
    const ALL: [Self; 7] = [
        Self::Ended,
        Self::Freeze,
        Self::Overhead,
        Self::Hooks,
        Self::HookResults,
        Self::Violations,
        Self::Deletions,
    ];

    const fn name(self) -> &'static str {
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

    const fn help(self) -> &'static str {
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

    const fn kind(self) -> &'static str {
        match self {
            Self::Ended | Self::HookResults | Self::Violations | Self::Deletions => "counter",
            Self::Freeze | Self::Overhead | Self::Hooks => "histogram",
        }
    }

    fn samples(self, labels: &str, series: &Series, out: &mut String) {
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

/// Where a rendering of the events stands.
#[derive(Clone, Debug)]
enum Place {
    /// In a family, after a policy; whether its head was written.
    Family {
        family: usize,
        after: Option<Key>,
        headed: bool,
    },
    /// What is not about policies.
    Rest,
    End,
}

/// The event metrics. Cheap to call; share it in an `Arc`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    cut_duration: HistogramVec,
    ready_duration: HistogramVec,
    meters: Meters,
    /// Without a policy: its own series would be gone as well.
    orphan_deletions: IntCounterVec,
    restores: Restores,
    known: Mutex<Known>,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// A name is registered twice or malformed: a defect of this module.
    pub fn new(build: &BuildInfo) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
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
        let orphan_deletions = IntCounterVec::new(
            Opts::new(
                "stillpoint_orphan_deletions_total",
                "Deletes of Backups without their policy, that rules asked for, by result.",
            ),
            &["result"],
        )?;
        for result in DeletionResult::ALL {
            orphan_deletions.with_label_values(&[result.label()]);
        }
        registry.register(Box::new(orphan_deletions.clone()))?;
        let info = GaugeVec::new(
            Opts::new("stillpoint_build_info", "Which binary this is; always 1."),
            &["version", "revision"],
        )?;
        info.with_label_values(&[&build.version, &build.revision]).set(1.0);
        registry.register(Box::new(info))?;
        let (meters, restores) = (Meters::new(&registry)?, Restores::new(&registry)?);
        let known = Mutex::default();
        Ok(Self { registry, cut_duration, ready_duration, orphan_deletions, meters, restores, known })
    }

    /// What the controller measures of its own work.
    pub const fn meters(&self) -> &Meters {
        &self.meters
    }

    /// A policy exists with these applications: its counters start at 0. Applications it no longer has lose their series.
    pub fn policy_accepted<A: AsRef<str>>(&self, namespace: &str, policy: &str, applications: &[A]) {
        let mut known = self.known();
        let series = known.policies.entry((namespace.to_owned(), policy.to_owned())).or_default();
        if !series.has_applications(applications) {
            series.set_applications(applications);
        }
    }

    /// A policy is gone: so are its series.
    pub fn policy_removed(&self, namespace: &str, policy: &str) {
        self.known().policies.remove(&(namespace.to_owned(), policy.to_owned()));
    }

    /// Every existing policy was reported: what is not `existing` is gone, and from now on events of unknown
    /// policies are dropped.
    pub fn policies_listed(&self, existing: impl Fn(&Key) -> bool) {
        let mut known = self.known();
        known.complete = true;
        known.policies.retain(|key, _| existing(key));
    }

    /// A freeze window ended: t3 − t0.
    pub fn freeze(&self, namespace: &str, policy: &str, seconds: f64) {
        self.observe(namespace, policy, |series| {
            series.freeze.get_or_insert_default().observe(&FREEZE_BUCKETS, seconds);
        });
    }

    /// The same window without the storage system's time.
    pub fn overhead(&self, namespace: &str, policy: &str, seconds: f64) {
        self.observe(namespace, policy, |series| {
            series.overhead.get_or_insert_default().observe(&OVERHEAD_BUCKETS, seconds);
        });
    }

    /// One phase of one application's hold ended.
    pub fn hook(&self, namespace: &str, policy: &str, application: &str, phase: HookPhase, seconds: f64) {
        let count = |parts: &mut Parts| parts.observe(phase, &FREEZE_BUCKETS, seconds);
        self.observe_hook(namespace, policy, application, count);
    }

    /// One part of one application's hook went like this.
    pub fn hook_ended(
        &self,
        namespace: &str,
        policy: &str,
        application: &str,
        phase: HookPhase,
        result: HookResult,
    ) {
        self.observe_hook(namespace, policy, application, |parts| parts.count(phase, result));
    }

    /// A run that ended as it should contradicts itself.
    pub fn violation(&self, namespace: &str, policy: &str, violation: Violation) {
        self.observe(namespace, policy, |series| series.count_violation(violation));
    }

    /// A Restore ended; `policy` is that of what was restored, empty when that was of none or was not found.
    pub fn restored(&self, namespace: &str, policy: &str, result: RunResult, seconds: f64) {
        self.restores.count(namespace, policy, result, seconds);
    }

    fn observe_hook(&self, namespace: &str, policy: &str, application: &str, count: impl FnOnce(&mut Parts)) {
        let complete = self.known().complete;
        self.observe(namespace, policy, |series| {
            // After the list: an application that was edited out while its last run was under way.
            if !complete && !series.hooks.iter().any(|hooks| &*hooks.application == application) {
                let known: Vec<Box<str>> =
                    series.hooks.iter().map(|hooks| hooks.application.clone()).collect();
                let names: Vec<&str> = known.iter().map(|name| &**name).chain([application]).collect();
                series.set_applications(&names);
            }
            let hooks = series.hooks.iter_mut().find(|hooks| &*hooks.application == application);
            if let Some(hooks) = hooks {
                count(hooks.parts.get_or_insert_default());
            }
        });
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
        self.observe(namespace, policy, |series| series.count(Ending { trigger, consistency, result }));
    }

    /// Retention asked for the deletion of a Backup.
    pub fn retention_deletion(&self, namespace: &str, policy: &str, result: DeletionResult) {
        self.observe(namespace, policy, |series| series.count_deletion(result));
    }

    /// A rule asked for the deletion of a Backup whose policy is gone.
    pub fn orphan_deletion(&self, result: DeletionResult) {
        self.orphan_deletions.with_label_values(&[result.label()]).inc();
    }

    /// All events in the text format, in pages: one page is in memory at a time.
    pub fn render<M: Deref<Target = Self>>(metrics: M) -> impl Iterator<Item = String> {
        let first = Place::Family { family: 0, after: None, headed: false };
        std::iter::successors(Some((first, String::new())), move |(place, _)| metrics.page(place))
            .map(|(_, page)| page)
            .filter(|page| !page.is_empty())
    }

    fn page(&self, place: &Place) -> Option<(Place, String)> {
        let mut page = String::new();
        let next = match place {
            Place::End => return None,
            Place::Rest => {
                for family in self.registry.gather() {
                    let mut text = String::new();
                    if let Err(error) =
                        TextEncoder::new().encode_utf8(std::slice::from_ref(&family), &mut text)
                    {
                        tracing::warn!(%error, family = family.name(), "a metric family cannot be rendered; left out");
                        continue;
                    }
                    page.push_str(&text);
                }
                Place::End
            }
            Place::Family { family, after, headed } => {
                let Some(kind) = EventFamily::ALL.get(*family) else { return Some((Place::Rest, page)) };
                let known = self.known();
                let from = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                let mut last = None;
                let mut body = String::new();
                for (key, series) in known.policies.range::<Key, _>((from, Bound::Unbounded)).take(PER_PAGE) {
                    let mut labels = "namespace=\"".to_owned();
                    escape(&key.0, &mut labels);
                    labels.push_str("\",policy=\"");
                    escape(&key.1, &mut labels);
                    labels.push('"');
                    kind.samples(&labels, series, &mut body);
                    last = Some(key.clone());
                }
                drop(known);
                if !headed && !body.is_empty() {
                    // Writing to a String cannot fail.
                    let _ = write!(
                        page,
                        "# HELP {name} {}\n# TYPE {name} {}\n",
                        kind.help(),
                        kind.kind(),
                        name = kind.name()
                    );
                }
                let headed = *headed || !body.is_empty();
                page.push_str(&body);
                match last {
                    Some(key) => Place::Family { family: *family, after: Some(key), headed },
                    None => Place::Family { family: family + 1, after: None, headed: false },
                }
            }
        };
        Some((next, page))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is a single insert or remove, so a poisoned map is still a true one.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an event, unless its policy is known to be gone.
    fn observe(&self, namespace: &str, policy: &str, count: impl FnOnce(&mut Series)) {
        let mut known = self.known();
        let key = (namespace.to_owned(), policy.to_owned());
        if known.complete {
            if let Some(series) = known.policies.get_mut(&key) {
                count(series);
            }
        } else {
            count(known.policies.entry(key).or_default());
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
        Metrics::render(metrics).collect()
    }

    #[test]
    fn every_ending_of_a_policy_starts_at_zero_and_durations_with_the_first_one() {
        let metrics = metrics();
        metrics.policy_accepted("shop", "nightly", &["db"]);
        let text = text(&metrics);
        for line in [
            r#"stillpoint_backups_total{namespace="shop",policy="nightly",trigger="schedule",consistency="none",result="failed"} 0"#,
            r#"stillpoint_backups_total{namespace="shop",policy="nightly",trigger="initial",consistency="application",result="succeeded"} 0"#,
            r#"stillpoint_retention_deletions_total{namespace="shop",policy="nightly",result="deleted"} 0"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.lines().any(|line| line.contains("duration") && line.contains("policy=")), "{text}");
    }

    #[test]
    fn an_event_is_counted_under_its_labels() {
        let metrics = metrics();
        metrics.policy_accepted("shop", "nightly", &["db"]);
        metrics.freeze("shop", "nightly", 0.07);
        metrics.hook("shop", "nightly", "db", HookPhase::Acquire, 0.003);
        metrics.cut("disk.csi", 0.06);
        metrics.ready("disk.csi", 0.4);
        metrics.retention_deletion("shop", "nightly", DeletionResult::Failed);
        metrics.backup_finished(
            "shop",
            "nightly",
            Trigger::Schedule,
            Consistency::Application,
            RunResult::Succeeded,
        );
        let text = text(&metrics);
        for line in [
            r#"stillpoint_retention_deletions_total{namespace="shop",policy="nightly",result="failed"} 1"#,
            r#"stillpoint_freeze_duration_seconds_bucket{namespace="shop",policy="nightly",le="0.05"} 0"#,
            r#"stillpoint_freeze_duration_seconds_bucket{namespace="shop",policy="nightly",le="0.1"} 1"#,
            r#"stillpoint_cut_duration_seconds_count{driver="disk.csi"} 1"#,
            r#"stillpoint_backups_total{namespace="shop",policy="nightly",trigger="schedule",consistency="application",result="succeeded"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_removed_policy_takes_its_series_along_and_a_late_event_brings_none_back() {
        let metrics = metrics();
        metrics.policy_accepted("shop", "nightly", &["db"]);
        metrics.policies_listed(|key| key.1 == "nightly");
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
        metrics.policies_listed(|key| key.1 == "nightly");
        let text = text(&metrics);
        let counted = r#"_count{namespace="shop",policy="nightly",application="db",phase="hold"} 1"#;
        assert!(text.contains(counted), "{text}");
        assert!(!text.contains("gone"), "{text}");
    }

    #[test]
    fn an_application_that_left_the_policy_loses_its_series() {
        let metrics = metrics();
        metrics.policies_listed(|key| key.1 == "nightly");
        metrics.policy_accepted("shop", "nightly", &["db", "cache"]);
        for application in ["db", "cache"] {
            metrics.hook("shop", "nightly", application, HookPhase::Hold, 0.1);
        }
        metrics.policy_accepted("shop", "nightly", &["db"]);
        metrics.hook("shop", "nightly", "cache", HookPhase::Hold, 0.1);
        let text = text(&metrics);
        assert!(!text.contains("cache") && text.contains(r#"application="db""#), "{text}");
    }

    #[test]
    fn violations_start_at_zero_and_the_results_of_hooks_with_the_first_one_of_their_application() {
        let metrics = metrics();
        metrics.policies_listed(|_| true);
        metrics.policy_accepted("shop", "nightly", &["db", "cache"]);
        let zero = r#"stillpoint_consistency_violations_total{namespace="shop",policy="nightly",reason="contradiction"} 0"#;
        let before = text(&metrics);
        assert!(before.contains(zero) && !before.contains("hook_executions"), "{before}");
        metrics.violation("shop", "nightly", Violation::CutOutsideFreeze);
        metrics.hook_ended("shop", "nightly", "db", HookPhase::Acquire, HookResult::Timeout);
        metrics.hook_ended("shop", "nightly", "gone", HookPhase::Acquire, HookResult::Failed);
        let after = text(&metrics);
        let of = r#"{namespace="shop",policy="nightly""#;
        for line in [
            format!(r#"stillpoint_consistency_violations_total{of},reason="cut_outside_freeze"}} 1"#),
            format!(
                r#"stillpoint_hook_executions_total{of},application="db",phase="acquire",result="timeout"}} 1"#
            ),
            format!(
                r#"stillpoint_hook_executions_total{of},application="db",phase="thaw",result="failed"}} 0"#
            ),
        ] {
            assert!(after.contains(&line), "{line}\n{after}");
        }
        assert!(!after.contains(r#"application="cache""#) && !after.contains("hook_duration"), "{after}");
        assert!(!after.contains(r#"application="gone""#), "{after}");
    }

    #[test]
    fn a_restore_is_counted_also_when_the_policy_of_its_point_is_gone() {
        let metrics = metrics();
        metrics.policies_listed(|_| false);
        metrics.restored("shop", "gone", RunResult::Failed, 9.0);
        let of = r#"{namespace="shop",policy="gone","#;
        let failed = format!(r#"stillpoint_restores_total{of}result="failed"}} 1"#);
        let succeeded = format!(r#"stillpoint_restores_total{of}result="succeeded"}} 0"#);
        let before = text(&metrics);
        assert!(before.contains(&failed) && before.contains(&succeeded), "{before}");
        assert!(!before.contains("stillpoint_restore_duration_seconds_count"), "{before}");
        metrics.restored("shop", "gone", RunResult::Succeeded, 9.0);
        let took = r#"stillpoint_restore_duration_seconds_bucket{namespace="shop",policy="gone",le="15"} 1"#;
        assert!(text(&metrics).contains(took), "{}", text(&metrics));
    }

    #[test]
    fn many_policies_are_rendered_in_pages_with_one_head_per_family() {
        let metrics = metrics();
        let many = 2 * PER_PAGE + 1;
        for number in 0..many {
            metrics.policy_accepted("shop", &format!("p{number:05}"), &["db"]);
        }
        metrics.freeze("shop", "p00000", 0.07);
        let pages: Vec<String> = Metrics::render(&metrics).collect();
        assert!(pages.len() > 3);
        let text = text(&metrics);
        assert_eq!(text.matches("# TYPE stillpoint_backups_total").count(), 1);
        assert_eq!(text.matches(r#"trigger="manual",consistency="none",result="failed"} 0"#).count(), many);
        assert_eq!(text.matches("# TYPE stillpoint_freeze_duration_seconds histogram").count(), 1);
    }
}
