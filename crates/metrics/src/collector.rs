//! Renders the facts about policies in the Prometheus text format, one family at a time.
//!
//! Guarantees: computed at the scrape, so nothing is stale; one page of one family is in memory at a time, so a scrape of many
//! policies is a stream and not one string (docs/metrics.md §5). The prometheus crate's `Collector` would
//! build every sample of every family as an object first; the format is simple enough to write.

use std::fmt::Write as _;
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;

use crate::facts::{Facts, Found, NamespaceFacts, PointFacts, PointState, PolicyFacts};

/// Reasons for which a slot does not run; each is there with 0. Others appear when they happen.
const MISSED_REASONS: [&str; 5] = ["blackout", "concurrency", "controller_down", "deadline", "rule_blackout"];

/// The reason of a slot that was not to run: the policy says so.
const SKIPPED: &str = "blackout";

/// What keeps points that no rule keeps.
const BLOCKED_REASONS: [&str; 4] = ["breaker", "clock_skew", "last_good", "legal_hold"];

/// Types of conditions a policy has, absent ones are Unknown.
const CONDITIONS: [&str; 2] = ["Accepted", "Ready"];

/// Policies of one page. The largest family has 20 series of 170 bytes for each: 680 KiB of text. Five times as much stayed with the
/// allocator after a scrape: 14 MiB.
pub const PER_PAGE: usize = 200;

/// Type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}

/// One metric family about policies or namespaces.
#[derive(Clone, Copy)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: About,
}

/// What the samples of a family are about.
#[derive(Clone, Copy)]
enum About {
    Policy(fn(&PolicyFacts<'_>, &mut Samples<'_>)),
    /// Runs, also those of no policy and of one that is gone.
    Runs(fn(&PointFacts, &mut Samples<'_>)),
    Namespace(fn(&NamespaceFacts<'_>, &mut Samples<'_>)),
}

/// Where the samples of one policy, or of one namespace, go.
struct Samples<'a> {
    out: &'a mut String,
    /// What every sample begins with: name and first labels, without the last quote.
    head: &'a str,
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Family {
    /// All families, sorted by name.
    pub const ALL: &'static [Self] = FAMILIES;

    /// The family as text: nothing when no policy has a sample.
    pub fn render(&self, facts: &dyn Facts) -> String {
        self.paged(facts).collect()
    }

    /// The same in pages of [`PER_PAGE`] policies.
    pub fn pages(&'static self, facts: Arc<dyn Facts>) -> impl Iterator<Item = String> {
        self.paged(facts)
    }

    fn paged<'f, F: Deref<Target = dyn Facts + 'f>>(&self, facts: F) -> impl Iterator<Item = String> {
        let mut place = Some(None);
        let mut headed = false;
        std::iter::from_fn(move || {
            let after: Option<(String, String)> = place.take()?;
            let (mut page, mut head) = (String::new(), String::new());
            let name = self.name;
            let last = match self.samples {
                About::Policy(samples) => facts.page(after.as_ref(), &mut |found| {
                    if let Found::Policy(found) = found {
                        begin(&mut head, name, found.namespace, Some(found.policy));
                        samples(found, &mut Samples { out: &mut page, head: &head });
                    }
                }),
                About::Runs(samples) => facts.page(after.as_ref(), &mut |found| {
                    let (namespace, policy, points) = found.runs();
                    begin(&mut head, name, namespace, Some(policy));
                    samples(points, &mut Samples { out: &mut page, head: &head });
                }),
                // Namespaces are fewer by far: one page.
                About::Namespace(samples) => {
                    facts.namespaces(&mut |found| {
                        begin(&mut head, name, found.namespace, None);
                        samples(found, &mut Samples { out: &mut page, head: &head });
                    });
                    None
                }
            };
            place = last.map(Some);
            if !page.is_empty() && !headed {
                headed = true;
                let kind = match self.kind {
                    Kind::Gauge => "gauge",
                    Kind::Counter => "counter",
                };
                let (name, help) = (self.name, self.help);
                page.insert_str(0, &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            }
            Some(page)
        })
        .filter(|page| !page.is_empty())
    }
}

impl Samples<'_> {
    fn put(&mut self, value: f64) {
        self.labelled(&[], value);
    }

    fn maybe(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.put(value);
        }
    }

    fn labelled(&mut self, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(self.head);
        for (name, text) in labels {
            self.out.push_str("\",");
            self.out.push_str(name);
            self.out.push_str("=\"");
            escape(text, self.out);
        }
        self.out.push_str("\"} ");
        number(value, self.out);
        self.out.push('\n');
    }
}

/// What the samples of one policy, or of one namespace, begin with.
fn begin(head: &mut String, name: &str, namespace: &str, policy: Option<&str>) {
    head.clear();
    head.push_str(name);
    head.push_str("{namespace=\"");
    escape(namespace, head);
    if let Some(policy) = policy {
        head.push_str("\",policy=\"");
        escape(policy, head);
    }
}

/// Appends a value. Most are whole and small, and many are 0: those need no search for the shortest decimal.
fn number(value: f64, out: &mut String) {
    if value == 0.0 {
        out.push('0');
    } else if value.fract() == 0.0 && value.abs() < 1e15 {
        // Below 2^53 it is exact. Writing to a String cannot fail.
        let _ = write!(out, "{}", value as i64);
    } else {
        let _ = write!(out, "{value}");
    }
}

/// Appends a label value.
pub(crate) fn escape(text: &str, out: &mut String) {
    if !text.contains(['\\', '"', '\n']) {
        return out.push_str(text);
    }
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

pub(crate) fn seconds(at: Timestamp) -> f64 {
    // Microseconds fit a double exactly until the year 2255.
    at.as_microsecond() as f64 / 1e6
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    samples: fn(&PolicyFacts<'_>, &mut Samples<'_>),
) -> Family {
    Family { name, help, kind: Kind::Gauge, samples: About::Policy(samples) }
}

const fn of_runs(
    name: &'static str,
    help: &'static str,
    samples: fn(&PointFacts, &mut Samples<'_>),
) -> Family {
    Family { name, help, kind: Kind::Gauge, samples: About::Runs(samples) }
}

const fn of_namespace(
    name: &'static str,
    help: &'static str,
    samples: fn(&NamespaceFacts<'_>, &mut Samples<'_>),
) -> Family {
    Family { name, help, kind: Kind::Gauge, samples: About::Namespace(samples) }
}

const FAMILIES: &[Family] = &[
    of_runs(
        "stillpoint_active_run_start_timestamp_seconds",
        "Start of the run that is not finished; 0 when there is none.",
        |runs, out| out.put(runs.active_since.map_or(0.0, seconds)),
    ),
    of_runs(
        "stillpoint_application_left_quiesced",
        "Runs with an application that may still be frozen: nobody heard it thaw, and recovering it failed so far.",
        |runs, out| out.put(f64::from(runs.left_quiesced)),
    ),
    gauge(
        "stillpoint_consecutive_failures",
        "Finished runs since the last success that were none.",
        |policy, out| out.put(f64::from(policy.spec.consecutive_failures)),
    ),
    of_runs(
        "stillpoint_frozen_since_timestamp_seconds",
        "Since when an application is, or must be taken to be, frozen; 0 when it is not.",
        |runs, out| out.put(runs.frozen_since.map_or(0.0, seconds)),
    ),
    gauge(
        "stillpoint_last_freeze_duration_seconds",
        "Length of the newest freeze window; absent before the first.",
        |policy, out| out.maybe(policy.points.last_freeze_seconds),
    ),
    gauge(
        "stillpoint_last_run_duration_seconds",
        "Length of the run that ended last, from its first attempt on; absent before the first.",
        |policy, out| out.maybe(policy.points.last_run_seconds),
    ),
    Family {
        name: "stillpoint_missed_runs_total",
        help: "Slots that did not run, by reason, since the policy exists.",
        kind: Kind::Counter,
        samples: About::Policy(|policy, out| {
            let missed = &policy.spec.missed;
            let more = missed.keys().map(String::as_str).filter(|reason| !MISSED_REASONS.contains(reason));
            for reason in MISSED_REASONS.into_iter().chain(more) {
                let count = missed.get(reason).copied().unwrap_or(0);
                out.labelled(&[("reason", reason)], count as f64);
            }
        }),
    },
    of_namespace(
        "stillpoint_orphaned_backups",
        "Backups whose policy is gone: they stay, and nothing prunes them.",
        |namespace, out| out.maybe(namespace.orphans.map(f64::from)),
    ),
    gauge(
        "stillpoint_policy_condition",
        "Conditions of the policy: 1 for the status that holds.",
        |policy, out| {
            let found = &policy.spec.conditions;
            let more = found.iter().map(|(kind, _)| kind.as_str()).filter(|kind| !CONDITIONS.contains(kind));
            for kind in CONDITIONS.into_iter().chain(more) {
                let holds = found.iter().find(|(name, _)| name == kind);
                let holds = holds.map_or("Unknown", |(_, status)| status.as_str());
                for status in ["True", "False", "Unknown"] {
                    let value = if status == holds { 1.0 } else { 0.0 };
                    out.labelled(&[("type", kind), ("status", status)], value);
                }
            }
        },
    ),
    gauge(
        "stillpoint_policy_created_timestamp_seconds",
        "When the policy was created: the start of protection.",
        |policy, out| out.put(seconds(policy.spec.created)),
    ),
    gauge(
        "stillpoint_policy_in_blackout",
        "1 inside a blackout of the policy or of a ProtectionRule: nothing starts.",
        |policy, out| out.put(if policy.in_blackout() { 1.0 } else { 0.0 }),
    ),
    gauge("stillpoint_policy_info", "How the policy is scheduled; always 1.", |policy, out| {
        out.labelled(
            &[
                ("schedule", &policy.spec.schedule),
                ("timezone", &policy.spec.time_zone),
                ("concurrency", policy.spec.concurrency),
                ("catch_up", policy.spec.catch_up),
            ],
            1.0,
        );
    }),
    gauge(
        "stillpoint_policy_rpo_reference_timestamp_seconds",
        "Cut of the newest proven recovery point, else the start of protection.",
        |policy, out| out.put(seconds(policy.points.newest.unwrap_or(policy.spec.created))),
    ),
    gauge(
        "stillpoint_policy_rpo_target_seconds",
        "How old the newest proven recovery point may become; absent without an objective.",
        |policy, out| out.maybe(policy.spec.rpo_seconds),
    ),
    gauge("stillpoint_policy_suspended", "1 while the policy starts nothing.", |policy, out| {
        out.put(if policy.spec.suspended { 1.0 } else { 0.0 });
    }),
    gauge(
        "stillpoint_recovery_point_cut_spread_seconds",
        "From the earliest to the latest cut of the newest proven recovery point; absent without one.",
        |policy, out| out.maybe(policy.points.cut_spread_seconds),
    ),
    gauge(
        "stillpoint_recovery_point_oldest_timestamp_seconds",
        "Cut of the oldest proven recovery point; absent without one.",
        |policy, out| out.maybe(policy.points.oldest.map(seconds)),
    ),
    gauge(
        "stillpoint_recovery_point_timestamp_seconds",
        "Cut of the newest proven recovery point; absent without one.",
        |policy, out| out.maybe(policy.points.newest.map(seconds)),
    ),
    gauge(
        "stillpoint_recovery_points",
        "Backups of the policy by state; held ones are counted besides.",
        |policy, out| {
            for (state, count) in PointState::ALL.into_iter().zip(policy.points.counts) {
                out.labelled(&[("state", state.label())], f64::from(count));
            }
        },
    ),
    gauge(
        "stillpoint_restore_size_bytes",
        "What the proven recovery points need to be restored, together, as far as drivers say.",
        |policy, out| out.put(policy.points.restore_bytes as f64),
    ),
    gauge(
        "stillpoint_retention_blocked",
        "Points that no rule keeps and that stay all the same, by what keeps them.",
        |policy, out| {
            for reason in BLOCKED_REASONS {
                let count = policy.spec.retention_blocked.get(reason).copied().unwrap_or(0);
                out.labelled(&[("reason", reason)], f64::from(count));
            }
        },
    ),
    gauge("stillpoint_retention_overdue", "Points that may go and are not gone yet.", |policy, out| {
        out.put(f64::from(policy.spec.retention_overdue))
    }),
    of_namespace(
        "stillpoint_runs_waiting",
        "Runs that wait because a ProtectionRule limits how many freezes go on at once.",
        |namespace, out| out.maybe(namespace.waiting.map(f64::from)),
    ),
    gauge(
        "stillpoint_schedule_last_slot_timestamp_seconds",
        "Newest slot that was decided upon; absent before the first.",
        |policy, out| out.maybe(policy.spec.last_slot.map(seconds)),
    ),
    gauge(
        "stillpoint_schedule_max_interval_seconds",
        "Longest interval between two slots.",
        |policy, out| out.maybe(policy.spec.max_interval_seconds.map(|interval| interval as f64)),
    ),
    gauge(
        "stillpoint_schedule_min_interval_seconds",
        "Shortest interval between two slots.",
        |policy, out| out.maybe(policy.spec.min_interval_seconds.map(|interval| interval as f64)),
    ),
    gauge(
        "stillpoint_schedule_next_timestamp_seconds",
        "Next slot; absent while there is none.",
        |policy, out| out.maybe(policy.spec.next_slot.map(seconds)),
    ),
    Family {
        name: "stillpoint_slots_total",
        help: "Slots by outcome, since the policy exists; skipped ones were not to run.",
        kind: Kind::Counter,
        samples: About::Policy(|policy, out| {
            let (met, failed) = policy.spec.slots;
            let missed = |skipped: bool| -> u64 {
                let of = policy.spec.missed.iter().filter(|(reason, _)| (*reason == SKIPPED) == skipped);
                of.map(|(_, count)| count).sum()
            };
            let outcomes =
                [("met", met), ("failed", failed), ("missed", missed(false)), ("skipped", missed(true))];
            for (outcome, count) in outcomes {
                out.labelled(&[("outcome", outcome)], count as f64);
            }
        }),
    },
    of_namespace(
        "stillpoint_unprotected_volumes",
        "Bound claims of the namespace that are in no proven recovery point and are not said to need none.",
        |namespace, out| out.maybe(namespace.unprotected.map(f64::from)),
    ),
];

#[cfg(test)]
#[path = "collector_tests.rs"]
mod tests;
