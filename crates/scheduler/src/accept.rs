//! Turns the spec of a policy into what can be scheduled, or says why not.
//!
//! A policy that is not accepted starts nothing and deletes nothing; its RPO clock keeps ticking.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use stillpoint_api::policy::{BackupPolicy, CatchUp, DEFAULT_RETENTION_LAST};
use stillpoint_api::validate::{self, Finding};

use crate::cron::{Analysis, Field, Schedule, ScheduleError};
use crate::slots::{SlotSpec, jitter_offset};

/// The zone of a schedule that names none.
pub const DEFAULT_ZONE: &str = "Etc/UTC";

/// Longest message of a refusal: it is shown in a condition and an event.
const MAX_MESSAGE: usize = 1000;

/// Parsed schedules that are kept for reuse; more than this many distinct ones are parsed each time.
const MAX_SHARED: usize = 4096;

/// A policy that can be scheduled.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its slots.
    pub slots: SlotSpec,
    /// Its intervals; `None` when it fires at most once more.
    pub analysis: Option<Analysis>,
    /// Proven points that are kept.
    pub keep_last: u32,
}

/// Why a policy cannot be scheduled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The bounded word, reason of the condition `Accepted`.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Parsed schedules by expression and zone.
#[derive(Debug, Default)]
pub struct Schedules {
    shared: Mutex<HashMap<(String, String), Parsed>>,
}

type Parsed = (Arc<Schedule>, Option<Analysis>);

impl From<&[Finding]> for Refusal {
    /// The first finding gives the reason, all of them the message.
    fn from(findings: &[Finding]) -> Self {
        let messages: Vec<String> =
            findings.iter().map(|finding| format!("{}: {}", finding.path, finding.message)).collect();
        Self {
            reason: findings.first().map_or("Invalid", |first| first.rule).to_owned(),
            message: messages.join("; ").chars().take(MAX_MESSAGE).collect(),
        }
    }
}

impl Schedules {
    /// Parses, or finds what was parsed before.
    fn parse(
        &self,
        cron: &str,
        zone: &str,
        created: Timestamp,
        now: Timestamp,
    ) -> Result<Parsed, ScheduleError> {
        let key = (cron.to_owned(), zone.to_owned());
        let found = self.shared.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(parsed) = found {
            return Ok(parsed);
        }
        let schedule = Schedule::parse(cron, zone, created)?;
        let analysis = schedule.analysis(now);
        let parsed = (Arc::new(schedule), analysis);
        if parsed.0.is_shared() {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.len() >= MAX_SHARED {
                shared.retain(|_, (schedule, _)| Arc::strong_count(schedule) > 1);
            }
            if shared.len() < MAX_SHARED {
                shared.insert(key, parsed.clone());
            }
        }
        Ok(parsed)
    }
}

/// Everything that keeps `policy` from being scheduled: the API's own rules, then the schedule's. For `lint`; the
/// same words that the condition `Accepted` has.
pub fn findings(policy: &BackupPolicy, now: Timestamp) -> Vec<Finding> {
    check(policy, &Schedules::default(), now).err().unwrap_or_default()
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
    let (schedule, analysis) =
        check(policy, schedules, now).map_err(|findings| Refusal::from(findings.as_slice()))?;
    let spec = &policy.spec;
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    Ok(Accepted {
        slots: SlotSpec {
            schedule,
            offset: jitter_offset(cluster_uid, namespace, &policy.name_any(), jitter(policy)),
            deadline: spec.schedule.starting_deadline.map(|deadline| deadline.get()),
            catch_up: match spec.schedule.catch_up {
                CatchUp::Latest => true,
                CatchUp::None => false,
            },
            suspended: spec.suspend,
            max_interval: analysis.map_or(Duration::ZERO, |found| found.max_interval),
        },
        analysis,
        keep_last: spec.retention.and_then(|retention| retention.last).unwrap_or(DEFAULT_RETENTION_LAST),
    })
}

fn check(policy: &BackupPolicy, schedules: &Schedules, now: Timestamp) -> Result<Parsed, Vec<Finding>> {
    let mut findings = validate::policy(policy);
    let parsed = scheduled(policy, schedules, now).map_err(|finding| findings.push(finding));
    match parsed {
        Ok(parsed) if findings.is_empty() => Ok(parsed),
        _ => Err(findings),
    }
}

/// The intervals of the schedule of `policy`, with its zone and jitter judged: the part of [`findings`] that is not the
/// API's own, for `lint`, which judges the rest by the object's shape.
///
/// # Errors
/// What keeps it from being scheduled.
pub fn intervals(policy: &BackupPolicy, now: Timestamp) -> Result<Option<Analysis>, Finding> {
    scheduled(policy, &Schedules::default(), now).map(|(_, analysis)| analysis)
}

fn scheduled(policy: &BackupPolicy, schedules: &Schedules, now: Timestamp) -> Result<Parsed, Finding> {
    let schedule = &policy.spec.schedule;
    let zone = schedule.time_zone.as_deref().unwrap_or(DEFAULT_ZONE);
    let parsed = schedules
        .parse(&schedule.cron, zone, created(policy), now)
        .map_err(|error| schedule_finding(&error))?;
    match parsed.1 {
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

fn schedule_finding(error: &ScheduleError) -> Finding {
    let (path, rule) = match error.field {
        Field::TimeZone => ("spec.schedule.timeZone", "InvalidTimeZone"),
        Field::Expression
        | Field::Minute
        | Field::Hour
        | Field::DayOfMonth
        | Field::Month
        | Field::DayOfWeek
        | Field::Interval => ("spec.schedule.cron", "InvalidSchedule"),
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
