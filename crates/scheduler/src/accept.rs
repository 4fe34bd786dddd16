//! Turns the spec of a policy into what can be scheduled, or says why not.
//!
//! A policy that is not accepted starts nothing and deletes nothing; its RPO clock keeps ticking.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use stillpoint_api::policy::{BackupPolicy, Blackout, CatchUp, Concurrency, Schedule as ScheduleSpec};
use stillpoint_api::validate::{self, Finding};

use stillpoint_api::rule::{RULE_VIOLATION, judge};

use crate::blackouts::{Blackouts, Window, just_before};
use crate::cron::{Analysis, Field, Schedule, ScheduleError};
use crate::retention::Rules;
use crate::rules::Known;
use crate::slots::{SlotSpec, jitter_offset};

/// The zone of a schedule that names none.
pub const DEFAULT_ZONE: &str = "Etc/UTC";

/// Longest message of a refusal: it is shown in a condition and an event.
const MAX_MESSAGE: usize = 1000;

/// Parsed schedules that are kept for reuse; more than this many distinct ones are parsed each time.
const MAX_SHARED: usize = 4096;

/// Windows whose gaps are measured: a year of one a day, and a few.
const WINDOWS_ANALYSED: usize = 400;

/// How often a window may start again before it ends: each of these starts is looked at for each slot.
const STARTS_INSIDE: u32 = 16;

/// The one form of an expression that depends on when the policy was created.
pub(crate) const EVERY: &str = "@every";

/// A policy that can be scheduled.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its slots.
    pub slots: SlotSpec,
    /// Its intervals; `None` when it fires at most once more.
    pub analysis: Option<Analysis>,
    /// Which points are kept.
    pub retention: Rules,
}

/// Why a policy cannot be scheduled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The bounded word, reason of the condition `Accepted`.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
    /// The ProtectionRules that the policy is outside of, each once, in the order of their names.
    pub rules: Vec<String>,
}

/// Parsed schedules by expression, zone and blackouts.
#[derive(Debug, Default)]
pub struct Schedules {
    shared: Mutex<HashMap<(String, String, String), Parsed>>,
}

/// What a schedule says, and when it does not hold.
#[derive(Clone, Debug)]
struct Parsed {
    schedule: Arc<Schedule>,
    blackouts: Arc<Blackouts>,
    analysis: Option<Analysis>,
}

impl From<&[Finding]> for Refusal {
    /// The first finding gives the reason, all of them the message.
    fn from(findings: &[Finding]) -> Self {
        let messages: Vec<String> =
            findings.iter().map(|finding| format!("{}: {}", finding.path, finding.message)).collect();
        Self {
            reason: findings.first().map_or("Invalid", |first| first.rule).to_owned(),
            message: messages.join("; ").chars().take(MAX_MESSAGE).collect(),
            rules: Vec::new(),
        }
    }
}

impl From<&[judge::Violation]> for Refusal {
    fn from(violations: &[judge::Violation]) -> Self {
        let mut rules: Vec<String> = violations.iter().map(|outside| outside.rule.clone()).collect();
        rules.dedup();
        Self {
            reason: RULE_VIOLATION.to_owned(),
            message: judge::told(violations).chars().take(MAX_MESSAGE).collect(),
            rules,
        }
    }
}

impl Schedules {
    /// Parses, or finds what was parsed before.
    fn parse(
        &self,
        spec: &ScheduleSpec,
        rules: &[Arc<Known>],
        created: Timestamp,
        now: Timestamp,
    ) -> Result<Parsed, Finding> {
        let zone = spec.time_zone.as_deref().unwrap_or(DEFAULT_ZONE);
        let windows: Vec<String> = spec.blackouts.iter().map(written).collect();
        let mut windows = windows.join("; ");
        for rule in rules.iter().filter(|rule| !rule.spec().blackouts.is_empty()) {
            let ruled: Vec<String> = rule.spec().blackouts.iter().map(written).collect();
            windows.push_str(&format!(" rule {} of {}: {}", rule.name(), rule.created(), ruled.join("; ")));
        }
        // Only `@every` depends on the policy; everything else is shared by those that write the same.
        if spec.cron.contains(EVERY) || windows.contains(EVERY) {
            windows.push_str(&format!(" since {created}"));
        }
        let key = (spec.cron.clone(), zone.to_owned(), windows);
        let found = self.shared.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(parsed) = found {
            return Ok(parsed);
        }
        let schedule = Schedule::parse(&spec.cron, zone, created)
            .map_err(|error| schedule_finding(&error, "spec.schedule", "cron", "InvalidSchedule"))?;
        let mut blackouts = parse_blackouts(&spec.blackouts, zone, created, now, "spec.schedule.blackouts")?;
        for rule in rules {
            let ruled = rule_blackouts(&rule.spec().blackouts, rule.created(), now)?;
            blackouts
                .extend(ruled.into_iter().map(|window| Window { rule: Some(rule.name().into()), ..window }));
        }
        let blackouts = Blackouts::new(blackouts);
        let analysis = analysis(&schedule, &blackouts, now)?;
        let parsed = Parsed { schedule: Arc::new(schedule), blackouts: Arc::new(blackouts), analysis };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.len() >= MAX_SHARED {
            shared.retain(|_, parsed| Arc::strong_count(&parsed.schedule) > 1);
        }
        if shared.len() < MAX_SHARED {
            shared.insert(key, parsed.clone());
        }
        drop(shared);
        Ok(parsed)
    }
}

/// Everything that keeps `policy` from being scheduled: the API's own rules, then the schedule's. For `lint`; the
/// same words that the condition `Accepted` has.
pub fn findings(policy: &BackupPolicy, now: Timestamp) -> Vec<Finding> {
    check(policy, &[], &Schedules::default(), now).err().unwrap_or_default()
}

/// Accepts or refuses `policy`. `cluster_uid` seeds the jitter.
///
/// # Errors
/// Why it is refused.
pub fn accept(
    policy: &BackupPolicy,
    schedules: &Schedules,
    cluster_uid: &str,
    now: Timestamp,
) -> Result<Accepted, Refusal> {
    accept_under(&[], policy, schedules, cluster_uid, now)
}

/// The same under the rules that hold for its namespace: their blackouts are added to the policy's, and a policy that is
/// outside one of them is refused.
///
/// # Errors
/// Why it is refused.
pub fn accept_under(
    rules: &[Arc<Known>],
    policy: &BackupPolicy,
    schedules: &Schedules,
    cluster_uid: &str,
    now: Timestamp,
) -> Result<Accepted, Refusal> {
    let Parsed { schedule, blackouts, analysis } =
        check(policy, rules, schedules, now).map_err(|findings| Refusal::from(findings.as_slice()))?;
    let spec = &policy.spec;
    let interval = analysis.map(|found| found.min_interval);
    let outside = judge::policy(spec, interval, rules.iter().map(|rule| rule.rule()));
    if !outside.is_empty() {
        return Err(Refusal::from(outside.as_slice()));
    }
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let retention = Rules::new(spec.retention.as_ref(), schedule.zone().clone());
    Ok(Accepted {
        slots: SlotSpec {
            schedule,
            offset: jitter_offset(cluster_uid, namespace, &policy.name_any(), jitter(policy)),
            deadline: spec.schedule.starting_deadline.map(|deadline| deadline.get()),
            catch_up: match spec.schedule.catch_up {
                CatchUp::Latest => true,
                CatchUp::None => false,
            },
            concurrency: spec.schedule.concurrency,
            blackouts,
            suspended: spec.suspend,
            max_interval: analysis.map_or(Duration::ZERO, |found| found.max_interval),
        },
        analysis,
        retention,
    })
}

fn check(
    policy: &BackupPolicy,
    rules: &[Arc<Known>],
    schedules: &Schedules,
    now: Timestamp,
) -> Result<Parsed, Vec<Finding>> {
    let mut findings = validate::policy(policy);
    let parsed = scheduled(policy, rules, schedules, now).map_err(|finding| findings.push(finding));
    match parsed {
        Ok(parsed) if findings.is_empty() => Ok(parsed),
        _ => Err(findings),
    }
}

/// The intervals of the schedule of `policy`, with its zone, jitter and blackouts judged: the part of [`findings`] that is not the
/// API's own, for `lint`, which judges the rest by the object's shape.
///
/// # Errors
/// What keeps it from being scheduled.
pub fn intervals(policy: &BackupPolicy, now: Timestamp) -> Result<Option<Analysis>, Finding> {
    scheduled(policy, &[], &Schedules::default(), now).map(|parsed| parsed.analysis)
}

fn scheduled(
    policy: &BackupPolicy,
    rules: &[Arc<Known>],
    schedules: &Schedules,
    now: Timestamp,
) -> Result<Parsed, Finding> {
    let parsed = schedules.parse(&policy.spec.schedule, rules, created(policy), now)?;
    match parsed.analysis {
        Some(found) if jitter(policy) >= found.min_interval => Err(Finding::new(
            "spec.schedule.jitter",
            "InvalidJitter",
            format!(
                "{}s is not below the shortest interval of the schedule, {}s: make it shorter",
                jitter(policy).as_secs(),
                found.min_interval.as_secs()
            ),
        )),
        Some(_) | None => Ok(parsed),
    }
}

/// The windows of a rule; their zone is UTC unless they say otherwise.
///
/// # Errors
/// What is wrong with one of them.
pub(crate) fn rule_blackouts(
    blackouts: &[Blackout],
    created: Timestamp,
    now: Timestamp,
) -> Result<Vec<Window>, Finding> {
    parse_blackouts(blackouts, DEFAULT_ZONE, created, now, "spec.blackouts")
}

/// Windows whose zone is that of the schedule unless they say otherwise.
///
/// # Errors
/// What is wrong with one of them.
pub(crate) fn parse_blackouts(
    blackouts: &[Blackout],
    zone: &str,
    created: Timestamp,
    now: Timestamp,
    field: &str,
) -> Result<Vec<Window>, Finding> {
    let mut windows = Vec::with_capacity(blackouts.len());
    for (index, blackout) in blackouts.iter().enumerate() {
        let path = format!("{field}[{index}]");
        let zone = blackout.time_zone.as_deref().unwrap_or(zone);
        let starts = Schedule::parse(&blackout.start, zone, created)
            .map_err(|error| schedule_finding(&error, &path, "start", "InvalidBlackout"))?;
        let length = blackout.duration.get();
        let intervals = starts.analysis(now);
        if intervals.is_some_and(|found| found.min_interval.saturating_mul(STARTS_INSIDE) < length) {
            return Err(Finding::new(
                format!("{path}.start"),
                "InvalidBlackout",
                format!(
                    "the window starts again more than {STARTS_INSIDE} times before it ends: write its first start only"
                ),
            ));
        }
        if intervals.is_some_and(|found| length >= found.max_interval) {
            return Err(Finding::new(
                format!("{path}.duration"),
                "BlackoutNeverEnds",
                format!(
                    "{} reaches the next start of the window, so that it never ends: make it shorter",
                    blackout.duration
                ),
            ));
        }
        windows.push(Window { starts: Arc::new(starts), length, action: blackout.action, rule: None });
    }
    Ok(windows)
}

/// The intervals of the schedule, with the gaps that blackouts make: those of [`WINDOWS_ANALYSED`] windows.
fn analysis(schedule: &Schedule, blackouts: &Blackouts, now: Timestamp) -> Result<Option<Analysis>, Finding> {
    let Some(mut found) = schedule.analysis(now) else { return Ok(None) };
    if blackouts.is_empty() {
        return Ok(Some(found));
    }
    let spec = SlotSpec {
        schedule: Arc::new(schedule.clone()),
        offset: Duration::ZERO,
        deadline: None,
        catch_up: false,
        concurrency: Concurrency::Forbid,
        blackouts: Arc::new(blackouts.clone()),
        suspended: false,
        max_interval: found.max_interval,
    };
    let Some(first) = spec.starts(now).next() else {
        let rules = blackouts.rules().into_iter().collect::<Vec<_>>().join(", ");
        let whose = if rules.is_empty() {
            String::new()
        } else {
            format!(" (ProtectionRule {rules} has some of them)")
        };
        return Err(Finding::new(
            "spec.schedule.blackouts",
            "NothingStarts",
            format!(
                "every slot of the coming years is inside a blackout that drops it{whose}: move the slots or shorten a window"
            ),
        ));
    };
    let mut last = first;
    for window in blackouts.starts(first).take(WINDOWS_ANALYSED) {
        // The last start before the window, and the two after it.
        let before = just_before(window).and_then(|at| schedule.prev(at));
        last = before.filter(|slot| blackouts.at(*slot).is_none()).map_or(last, |slot| slot.max(last));
        for start in spec.starts(last).take(2) {
            found.max_interval = found.max_interval.max(start.duration_since(last).unsigned_abs());
            last = start;
        }
    }
    Ok(Some(found))
}

/// A blackout as text: equal texts are equal windows.
pub(crate) fn written(blackout: &Blackout) -> String {
    let zone = blackout.time_zone.as_deref().unwrap_or_default();
    format!("{} {} {zone} {:?}", blackout.start, blackout.duration, blackout.action)
}

fn schedule_finding(error: &ScheduleError, path: &str, field: &str, rule: &'static str) -> Finding {
    let (path, rule) = match error.field {
        Field::TimeZone => (format!("{path}.timeZone"), "InvalidTimeZone"),
        Field::Expression
        | Field::Minute
        | Field::Hour
        | Field::DayOfMonth
        | Field::Month
        | Field::DayOfWeek
        | Field::Interval => (format!("{path}.{field}"), rule),
    };
    Finding::new(path, rule, error.to_string())
}

fn jitter(policy: &BackupPolicy) -> Duration {
    policy.spec.schedule.jitter.map_or(Duration::ZERO, |jitter| jitter.get())
}

/// When the policy was created.
pub fn created(policy: &BackupPolicy) -> Timestamp {
    policy.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}
