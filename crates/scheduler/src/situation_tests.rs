//! Every setting that keeps a slot from starting, or starts one: what starts, what is counted under which reason, which events
//! are told, and what `Ready` says (docs/schedules.md).

use super::*;

/// A policy is seen when it is created, the slot of the 14th runs, and at `now` it is decided upon again.
struct Situation {
    name: &'static str,
    /// Beside `cron: 0 2 * * *`.
    schedule: Value,
    suspend: bool,
    /// What the policy says from `now` on, where it was edited.
    edited: Option<Value>,
    /// Phase of the run of the 14th at `now`.
    before: &'static str,
    now: &'static str,
    start: Option<(&'static str, Trigger)>,
    cancelled: usize,
    missed: &'static [(&'static str, u64)],
    events: &'static [&'static str],
    ready: &'static str,
}

const ORDINARY: Situation = Situation {
    name: "a slot that is due",
    schedule: Value::Null,
    suspend: false,
    edited: None,
    before: "Succeeded",
    now: "2026-11-15T02:00:00Z",
    start: Some(("2026-11-15T02:00:00Z", Trigger::Schedule)),
    cancelled: 0,
    missed: &[],
    events: &[],
    ready: "Protected",
};

fn schedule(extra: &Value) -> Value {
    let mut schedule = json!({"cron": "0 2 * * *"});
    for (key, value) in extra.as_object().into_iter().flatten() {
        schedule[key] = value.clone();
    }
    schedule
}

fn situations() -> Vec<Situation> {
    let window =
        |action: &str| json!({"blackouts": [{"start": "0 22 14 * *", "duration": "8h", "action": action}]});
    vec![
        ORDINARY,
        Situation {
            name: "too late by the deadline",
            schedule: json!({"startingDeadline": "1h"}),
            now: "2026-11-15T03:00:01Z",
            start: None,
            missed: &[("deadline", 1)],
            events: &["MissedSlots"],
            ..ORDINARY
        },
        Situation {
            name: "late, and within the deadline",
            schedule: json!({"startingDeadline": "1h"}),
            now: "2026-11-15T03:00:00Z",
            start: Some(("2026-11-15T02:00:00Z", Trigger::CatchUp)),
            ..ORDINARY
        },
        Situation {
            name: "three slots after an outage",
            now: "2026-11-17T10:00:00Z",
            start: Some(("2026-11-17T02:00:00Z", Trigger::CatchUp)),
            missed: &[("controller_down", 2)],
            events: &["MissedSlots"],
            ..ORDINARY
        },
        Situation {
            name: "the same without catch-up",
            schedule: json!({"catchUp": "None"}),
            now: "2026-11-17T10:00:00Z",
            start: None,
            missed: &[("controller_down", 3)],
            events: &["MissedSlots"],
            ..ORDINARY
        },
        Situation {
            name: "a window that drops",
            schedule: window("Skip"),
            start: None,
            missed: &[("blackout", 1)],
            ..ORDINARY
        },
        Situation { name: "a window that defers", schedule: window("Defer"), start: None, ..ORDINARY },
        Situation {
            name: "a run in the way, forbidden",
            before: "Freezing",
            ready: "Pending",
            start: None,
            missed: &[("concurrency", 1)],
            ..ORDINARY
        },
        Situation {
            name: "a run in the way, queued behind it",
            schedule: json!({"concurrency": "Queue"}),
            before: "Freezing",
            ready: "Pending",
            start: None,
            ..ORDINARY
        },
        Situation {
            name: "a run in the way, replaced",
            schedule: json!({"concurrency": "Replace"}),
            before: "Freezing",
            ready: "Pending",
            start: None,
            cancelled: 1,
            events: &["BackupReplaced"],
            ..ORDINARY
        },
        Situation {
            name: "suspended over three slots",
            suspend: true,
            now: "2026-11-17T10:00:00Z",
            start: None,
            ready: "Suspended",
            ..ORDINARY
        },
        Situation {
            name: "an edit of the expression, after the new slot of today",
            edited: Some(schedule(&json!({"cron": "0 1 * * *"}))),
            start: None,
            ..ORDINARY
        },
        Situation {
            name: "an edit of the jitter, at the moment of the slot",
            edited: Some(schedule(&json!({"jitter": "1h"}))),
            start: None,
            ..ORDINARY
        },
        Situation {
            name: "an edit that is refused",
            edited: Some(schedule(&json!({"cron": "0 25 * * *"}))),
            start: None,
            events: &["InvalidSchedule"],
            ready: "InvalidSchedule",
            ..ORDINARY
        },
        Situation {
            name: "runOnCreate that is set later",
            edited: Some(schedule(&json!({"runOnCreate": true}))),
            ..ORDINARY
        },
    ]
}

#[test]
fn every_situation_has_its_start_its_count_its_events_and_its_condition() {
    for situation in situations() {
        let name = situation.name;
        let spec = json!({"schedule": schedule(&situation.schedule), "suspend": situation.suspend});
        let (_, seen) = decided(&policy(spec), &[], "2026-11-13T09:00:00Z");
        let running = [backup("2026-11-14T02:00:00Z", "Freezing")];
        let (_, mut seen) = decided(&seen, &running, "2026-11-14T02:00:20Z");
        let running = [backup("2026-11-14T02:00:00Z", situation.before)];
        if let Some(edited) = &situation.edited {
            seen.spec.schedule = serde_json::from_value(edited.clone()).unwrap();
        }
        let (outcome, noted) = decided(&seen, &running, situation.now);
        let start = situation.start.map(|(slot, trigger)| Start { slot: at(slot), trigger });
        assert_eq!(outcome.start, start, "{name}");
        assert_eq!(outcome.cancel.len(), situation.cancelled, "{name}");
        let missed: BTreeMap<String, u64> =
            situation.missed.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        assert_eq!(outcome.status.missed, missed, "{name}");
        let events: Vec<&str> = outcome.notes.iter().map(Note::reason).collect();
        assert_eq!(events, situation.events, "{name}");
        assert_eq!(condition(&noted, READY).reason, situation.ready, "{name}");
        // Told once: the same look again counts and tells nothing more. (What starts is there by then.)
        if outcome.start.is_none() && outcome.cancel.is_empty() {
            let (again, _) = decided(&noted, &running, situation.now);
            assert_eq!((again.start, again.notes.len()), (None, 0), "{name}, again");
            assert_eq!(again.status.missed, missed, "{name}, again");
        }
    }
}
