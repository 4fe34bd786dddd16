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
use stillpoint_api::outcome::{HookPhase, HookResult, RunResult, Violation};

use crate::collector::{PER_PAGE, escape};
use crate::facts::Key;
use crate::families::{EventFamily, FREEZE_BUCKETS, OVERHEAD_BUCKETS};
use crate::labels::DeletionResult;
use crate::meters::Meters;
use crate::restores::Restores;
use crate::series::{Ending, Parts, Series};

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

/// The policies whose series exist.
#[derive(Debug, Default)]
struct Known {
    /// Whether the list of policies is complete. Before that an event of an unknown policy is kept: a run that
    /// survived a restart may end before its policy was listed.
    complete: bool,
    policies: BTreeMap<Key, Series>,
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
#[path = "registry_tests.rs"]
mod tests;
