//! Vectors 39 to 51 of docs/design/schedule.md §7, blackouts, and the stability of names and offsets.

#[path = "slots_blackout_tests.rs"]
mod blackouts;

use stillpoint_api::policy::BlackoutAction;

use super::*;
use crate::blackouts::Window;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn spec(expression: &str) -> SlotSpec {
    spec_in(expression, "Etc/UTC")
}

fn spec_in(expression: &str, zone: &str) -> SlotSpec {
    let schedule = Schedule::parse(expression, zone, at("2026-11-01T00:00:00Z")).unwrap();
    let max_interval = schedule.analysis(at("2026-11-01T00:00:00Z")).unwrap().max_interval;
    SlotSpec {
        schedule: Arc::new(schedule),
        offset: Duration::ZERO,
        deadline: None,
        catch_up: true,
        concurrency: Concurrency::Forbid,
        blackouts: Arc::default(),
        suspended: false,
        max_interval,
    }
}

/// Windows of start, hours and action, in `zone`.
fn blackouts(zone: &str, windows: &[(&str, u64, BlackoutAction)]) -> Arc<Blackouts> {
    let window = |(start, hours, action): &(&str, u64, BlackoutAction)| Window {
        starts: Arc::new(Schedule::parse(start, zone, at("2026-11-01T00:00:00Z")).unwrap()),
        length: Duration::from_secs(hours * 3600),
        action: *action,
        rule: None,
    };
    Arc::new(Blackouts::new(windows.iter().map(window).collect()))
}

fn run(slot: &str, trigger: Trigger, missed: Vec<Missed>) -> Decision {
    Decision::Run { slot: at(slot), trigger, missed }
}

fn wait(slot: &str, due: &str) -> Decision {
    Decision::Wait { slot: at(slot), due: at(due) }
}

fn passed(slot: &str, missed: Vec<Missed>, reason: MissedReason) -> Decision {
    Decision::PassOver { slot: at(slot), missed, reason }
}

/// Slots that ran, each with the time of its start.
type Starts = Vec<(String, String)>;
/// Slots that did not, by reason.
type Counts = Vec<(MissedReason, u32)>;

/// Decides every `step` seconds from `from` to `to` as a live scheduler does; gives the slots that ran with the time of
/// their start, and how many were missed by reason.
fn live(spec: &SlotSpec, state: &mut SlotState, from: &str, to: &str, step: i64) -> (Starts, Counts) {
    let (mut now, mut runs, mut counts) = (at(from), Vec::new(), Vec::<(MissedReason, u32)>::new());
    while now <= at(to) {
        let (slot, missed) = match decide(spec, state, now) {
            Decision::Run { slot, missed, .. } => {
                runs.push((slot.to_string(), now.to_string()));
                (slot, missed)
            }
            Decision::PassOver { slot, mut missed, reason } => {
                missed.push(Missed { count: 1, reason });
                (slot, missed)
            }
            _ => {
                now += SignedDuration::from_secs(step);
                continue;
            }
        };
        for missed in missed {
            match counts.iter_mut().find(|(reason, _)| *reason == missed.reason) {
                Some((_, count)) => *count += missed.count,
                None => counts.push((missed.reason, missed.count)),
            }
        }
        state.last_slot = Some(slot);
    }
    (runs, counts)
}

fn since(text: &str) -> SlotState {
    SlotState {
        since: at(text),
        last_slot: None,
        initial: None,
        newest_backup: None,
        active: false,
        busy: None,
    }
}

fn ran(last_slot: &str) -> SlotState {
    SlotState { last_slot: Some(at(last_slot)), ..since("2026-11-01T00:00:00Z") }
}

fn down(count: u32) -> Vec<Missed> {
    vec![Missed { count, reason: MissedReason::ControllerDown }]
}

#[test]
fn vector_39_after_downtime_only_the_newest_missed_slot_runs() {
    let state = ran("2026-11-09T02:00:00Z");
    let now = at("2026-11-13T10:00:00Z");
    let slot = at("2026-11-13T02:00:00Z");
    let daily = spec("0 2 * * *");
    assert_eq!(
        decide(&daily, &state, now),
        Decision::Run { slot, trigger: Trigger::CatchUp, missed: down(3) }
    );

    let strict = SlotSpec { deadline: Some(Duration::from_secs(3600)), ..daily.clone() };
    let reason = MissedReason::Deadline;
    assert_eq!(decide(&strict, &state, now), Decision::PassOver { slot, missed: down(3), reason });

    let none = SlotSpec { catch_up: false, ..daily };
    let reason = MissedReason::ControllerDown;
    assert_eq!(decide(&none, &state, now), Decision::PassOver { slot, missed: down(3), reason });
}

#[test]
fn vector_39_exactly_at_the_deadline_still_runs() {
    let strict = SlotSpec { deadline: Some(Duration::from_secs(3600)), ..spec("0 2 * * *") };
    let state = ran("2026-11-12T02:00:00Z");
    assert!(matches!(decide(&strict, &state, at("2026-11-13T03:00:00Z")), Decision::Run { .. }));
    assert!(matches!(decide(&strict, &state, at("2026-11-13T03:00:00.001Z")), Decision::PassOver { .. }));
}

#[test]
fn vector_40_no_catch_up_right_before_the_next_slot() {
    let state = ran("2026-11-09T02:00:00Z");
    let daily = spec("0 2 * * *");
    let passed = at("2026-11-12T02:00:00Z");
    let expected = Decision::PassOver { slot: passed, missed: down(2), reason: MissedReason::ControllerDown };
    assert_eq!(decide(&daily, &state, at("2026-11-13T01:59:30Z")), expected);
    let slot = at("2026-11-13T02:00:00Z");
    let state = SlotState { last_slot: Some(passed), ..state };
    assert_eq!(
        decide(&daily, &state, at("2026-11-13T02:00:00Z")),
        Decision::Run { slot, trigger: Trigger::Schedule, missed: Vec::new() }
    );
}

#[test]
fn vector_41_thousands_of_missed_slots_are_counted_exactly() {
    let minutely = spec("* * * * *");
    let decision = decide(&minutely, &ran("2026-11-10T00:00:00Z"), at("2026-11-13T00:00:05Z"));
    let slot = at("2026-11-13T00:00:00Z");
    assert_eq!(decision, Decision::Run { slot, trigger: Trigger::Schedule, missed: down(4319) });
}

#[test]
fn vector_41_the_count_is_capped() {
    let decision = decide(&spec("* * * * *"), &ran("2026-11-01T00:00:00Z"), at("2026-11-13T00:00:05Z"));
    assert!(matches!(decision, Decision::Run { missed, .. } if missed == down(MISSED_CAP)));
}

#[test]
fn vector_42_a_backup_that_was_created_before_a_crash_is_adopted() {
    let slot = at("2026-11-13T02:00:00Z");
    let state = SlotState { newest_backup: Some(slot), active: true, ..ran("2026-11-11T02:00:00Z") };
    let now = at("2026-11-13T02:00:20Z");
    assert_eq!(decide(&spec("0 2 * * *"), &state, now), Decision::Adopt { slot, missed: down(1) });
    let noted = SlotState { last_slot: Some(slot), ..state };
    let next = at("2026-11-14T02:00:00Z");
    assert_eq!(decide(&spec("0 2 * * *"), &noted, now), Decision::Wait { slot: next, due: next });
}

#[test]
fn vector_44_a_clock_set_back_does_not_run_the_slot_again() {
    let last_slot = at("2026-11-13T02:00:00Z");
    let decision = decide(&spec("0 2 * * *"), &ran("2026-11-13T02:00:00Z"), at("2026-11-13T00:00:05Z"));
    assert_eq!(decision, Decision::Skewed { last_slot });
}

#[test]
fn vector_45_a_slot_from_a_wrong_year_is_dropped_and_the_schedule_resumes() {
    let daily = spec("0 2 * * *");
    let future = at("2027-11-13T02:00:00Z");
    let state = SlotState { newest_backup: Some(future), ..ran("2026-11-12T02:00:00Z") };
    let noted = SlotState { last_slot: Some(future), ..state };
    let now = at("2026-11-13T10:00:00Z");
    let reset_to = at("2026-11-13T02:00:00Z");
    assert_eq!(decide(&daily, &noted, now), Decision::Corrupt { reset_to });
    // The Backup from the wrong year is still there and is not taken for a decided slot.
    let reset = SlotState { last_slot: Some(reset_to), ..state };
    let next = at("2026-11-14T02:00:00Z");
    assert_eq!(decide(&daily, &reset, now), Decision::Wait { slot: next, due: next });
}

#[test]
fn vector_46_nothing_of_a_suspension_is_caught_up_or_counted() {
    let hourly = spec("0 * * * *");
    let suspended = SlotSpec { suspended: true, ..hourly.clone() };
    let friday = SlotState { last_slot: Some(at("2026-11-13T18:00:00Z")), ..since("2026-11-13T18:00:00Z") };
    assert_eq!(decide(&suspended, &friday, at("2026-11-16T08:59:00Z")), Decision::Suspended);
    let resumed = SlotState { since: at("2026-11-16T09:00:00Z"), ..friday };
    let slot = at("2026-11-16T10:00:00Z");
    assert_eq!(decide(&hourly, &resumed, at("2026-11-16T09:00:00Z")), Decision::Wait { slot, due: slot });
    assert_eq!(
        decide(&hourly, &resumed, slot),
        Decision::Run { slot, trigger: Trigger::Schedule, missed: Vec::new() }
    );
}

#[test]
fn vector_47_an_edit_runs_nothing_of_before() {
    let edited = SlotState { since: at("2026-11-13T09:00:00Z"), ..ran("2026-11-13T02:00:00Z") };
    let slot = at("2026-11-14T08:00:00Z");
    assert_eq!(
        decide(&spec("0 8 * * *"), &edited, at("2026-11-13T09:00:00Z")),
        Decision::Wait { slot, due: slot }
    );
}

#[test]
fn vector_48_creation_runs_nothing_at_once() {
    let created = since("2026-11-13T09:00:00Z");
    let slot = at("2026-11-14T02:00:00Z");
    assert_eq!(
        decide(&spec("0 2 * * *"), &created, at("2026-11-13T09:00:00Z")),
        Decision::Wait { slot, due: slot }
    );
}

#[test]
fn vector_49_a_slot_that_meets_a_running_backup_is_passed_over() {
    let busy = SlotState { active: true, ..ran("2026-11-13T01:00:00Z") };
    let slot = at("2026-11-13T02:00:00Z");
    let expected = Decision::PassOver { slot, missed: Vec::new(), reason: MissedReason::Concurrency };
    assert_eq!(decide(&spec("0 * * * *"), &busy, slot), expected);
}

#[test]
fn vector_49_a_queued_slot_starts_when_the_run_ends() {
    let hourly = SlotSpec { concurrency: Concurrency::Queue, ..spec("0 * * * *") };
    // The run of 01:00 lasts 90 minutes.
    let busy = SlotState { active: true, ..ran("2026-11-13T01:00:00Z") };
    let slot = at("2026-11-13T02:00:00Z");
    let look_again = Some(at("2026-11-13T03:00:00Z"));
    assert_eq!(decide(&hourly, &busy, slot), Decision::Queued { slot, look_again });
    let over = Busy { from: at("2026-11-13T01:00:00Z"), to: at("2026-11-13T02:30:00Z") };
    let free = SlotState { active: false, busy: Some(over), ..busy };
    let run_at = at("2026-11-13T02:30:01Z");
    assert_eq!(decide(&hourly, &free, run_at), run("2026-11-13T02:00:00Z", Trigger::Schedule, Vec::new()));
    // It was no downtime, so a policy that catches nothing up runs it as well.
    let none = SlotSpec { catch_up: false, ..hourly.clone() };
    assert_eq!(decide(&none, &free, run_at), run("2026-11-13T02:00:00Z", Trigger::Schedule, Vec::new()));
}

#[test]
fn of_several_queued_slots_the_newest_starts_and_the_others_met_the_run() {
    let hourly = SlotSpec { concurrency: Concurrency::Queue, ..spec("0 * * * *") };
    let over = Busy { from: at("2026-11-13T01:00:00Z"), to: at("2026-11-13T04:20:00Z") };
    let free = SlotState { busy: Some(over), ..ran("2026-11-13T01:00:00Z") };
    let met = vec![Missed { count: 2, reason: MissedReason::Concurrency }];
    let expected = run("2026-11-13T04:00:00Z", Trigger::Schedule, met);
    assert_eq!(decide(&hourly, &free, at("2026-11-13T04:20:01Z")), expected);
}

#[test]
fn a_queued_slot_starts_within_its_deadline_or_never() {
    let deadline = Some(Duration::from_secs(600));
    let hourly = SlotSpec { concurrency: Concurrency::Queue, deadline, ..spec("0 * * * *") };
    let busy = SlotState { active: true, ..ran("2026-11-13T01:00:00Z") };
    let slot = at("2026-11-13T02:00:00Z");
    let look_again = Some(at("2026-11-13T02:10:01Z"));
    assert_eq!(decide(&hourly, &busy, at("2026-11-13T02:10:00Z")), Decision::Queued { slot, look_again });
    let expected = passed("2026-11-13T02:00:00Z", Vec::new(), MissedReason::Deadline);
    assert_eq!(decide(&hourly, &busy, at("2026-11-13T02:10:01Z")), expected);
}

#[test]
fn a_slot_that_no_run_kept_waiting_was_missed_by_the_controller() {
    let hourly = SlotSpec { concurrency: Concurrency::Queue, ..spec("0 * * * *") };
    let over = Busy { from: at("2026-11-13T01:00:00Z"), to: at("2026-11-13T01:20:00Z") };
    let free = SlotState { busy: Some(over), ..ran("2026-11-13T01:00:00Z") };
    let expected = run("2026-11-13T04:00:00Z", Trigger::CatchUp, down(2));
    assert_eq!(decide(&hourly, &free, at("2026-11-13T04:20:01Z")), expected);
}

#[test]
fn a_slot_that_replaces_waits_until_the_run_has_ended() {
    let hourly = SlotSpec { concurrency: Concurrency::Replace, ..spec("0 * * * *") };
    let busy = SlotState { active: true, ..ran("2026-11-13T01:00:00Z") };
    let slot = at("2026-11-13T02:00:00Z");
    assert!(matches!(decide(&hourly, &busy, slot), Decision::Queued { slot: queued, .. } if queued == slot));
    let over = Busy { from: at("2026-11-13T01:00:00Z"), to: at("2026-11-13T02:00:07Z") };
    let free = SlotState { active: false, busy: Some(over), ..busy };
    let expected = run("2026-11-13T02:00:00Z", Trigger::Schedule, Vec::new());
    assert_eq!(decide(&hourly, &free, at("2026-11-13T02:00:08Z")), expected);
}

#[test]
fn a_policy_with_run_on_create_runs_at_once_and_then_by_its_schedule() {
    let created = at("2026-11-13T09:00:20Z");
    let state = SlotState { initial: Some(created), ..since("2026-11-13T09:00:20Z") };
    let daily = SlotSpec { offset: Duration::from_secs(600), ..spec("0 2 * * *") };
    let now = at("2026-11-13T09:00:21Z");
    assert_eq!(
        decide(&daily, &state, now),
        Decision::Run { slot: created, trigger: Trigger::Initial, missed: Vec::new() }
    );
    let noted = SlotState { last_slot: Some(created), initial: None, ..state };
    assert_eq!(decide(&daily, &noted, now), wait("2026-11-14T02:00:00Z", "2026-11-14T02:10:00Z"));
    // Nobody was there for a day: the slot runs, the first run is one of those that were missed.
    let expected = run("2026-11-14T02:00:00Z", Trigger::CatchUp, down(1));
    assert_eq!(decide(&daily, &state, at("2026-11-14T09:00:00Z")), expected);
    // Nobody was there for an hour: it is still the first run.
    assert_eq!(
        decide(&daily, &state, at("2026-11-13T10:00:00Z")),
        Decision::Run { slot: created, trigger: Trigger::Initial, missed: Vec::new() }
    );
    let windows = blackouts("Etc/UTC", &[("0 8 * * *", 4, BlackoutAction::Skip)]);
    let dark = SlotSpec { blackouts: windows, ..daily };
    let expected = Decision::PassOver { slot: created, missed: Vec::new(), reason: MissedReason::Blackout };
    assert_eq!(decide(&dark, &state, now), expected);
}

#[test]
fn a_jump_of_the_clock_forward_is_downtime() {
    let hourly = spec("0 * * * *");
    let mut state = ran("2026-11-13T01:00:00Z");
    let expected = run("2026-11-13T12:00:00Z", Trigger::CatchUp, down(10));
    assert_eq!(decide(&hourly, &state, at("2026-11-13T12:20:00Z")), expected);
    // And back: what ran does not run again; the next slot does.
    state.last_slot = Some(at("2026-11-13T12:00:00Z"));
    let last_slot = at("2026-11-13T12:00:00Z");
    assert_eq!(decide(&hourly, &state, at("2026-11-13T02:00:00Z")), Decision::Skewed { last_slot });
    assert_eq!(
        decide(&hourly, &state, at("2026-11-13T11:55:00Z")),
        wait("2026-11-13T13:00:00Z", "2026-11-13T13:00:00Z")
    );
}

#[test]
fn a_last_slot_of_the_end_of_time_is_corrupt_and_one_of_the_beginning_is_downtime() {
    let daily = spec("0 2 * * *");
    let now = at("2026-11-13T10:00:00Z");
    let corrupt = SlotState { last_slot: Some(Timestamp::MAX), ..since("2026-11-01T00:00:00Z") };
    assert_eq!(decide(&daily, &corrupt, now), Decision::Corrupt { reset_to: at("2026-11-13T02:00:00Z") });
    // The time of creation bounds what can have been missed.
    let zero = SlotState { last_slot: Some(Timestamp::UNIX_EPOCH), ..since("2026-11-11T00:00:00Z") };
    assert_eq!(decide(&daily, &zero, now), run("2026-11-13T02:00:00Z", Trigger::CatchUp, down(2)));
}

#[test]
fn a_slot_waits_for_its_offset() {
    let spread = SlotSpec { offset: Duration::from_secs(600), ..spec("0 2 * * *") };
    let state = ran("2026-11-12T02:00:00Z");
    let (slot, due) = (at("2026-11-13T02:00:00Z"), at("2026-11-13T02:10:00Z"));
    assert_eq!(decide(&spread, &state, at("2026-11-13T02:09:59Z")), Decision::Wait { slot, due });
    assert_eq!(
        decide(&spread, &state, due),
        Decision::Run { slot, trigger: Trigger::Schedule, missed: Vec::new() }
    );
}

#[test]
fn a_schedule_without_another_slot_is_exhausted() {
    let state = ran("2096-02-29T00:00:00Z");
    assert_eq!(decide(&spec("0 0 29 2 *"), &state, at("2097-01-01T00:00:00Z")), Decision::Exhausted);
}

#[test]
fn repeated_decisions_run_every_slot_once_whatever_the_ticks() {
    let every_five = spec("*/5 * * * *");
    let mut state = since("2026-11-13T00:00:00Z");
    let mut runs = Vec::new();
    for second in (0..7200).step_by(37) {
        let now = at("2026-11-13T00:00:00Z") + SignedDuration::from_secs(second);
        if let Decision::Run { slot, missed, .. } = decide(&every_five, &state, now) {
            assert_eq!(missed, []);
            runs.push(slot);
            state.last_slot = Some(slot);
        }
    }
    assert_eq!(runs.len(), 23);
    assert!(runs.windows(2).all(|pair| pair[1].duration_since(pair[0]) == SignedDuration::from_mins(5)));
}

#[test]
fn names_are_stable_valid_and_different_per_policy_and_slot() {
    let slot = at("2026-11-13T02:00:00Z");
    assert_eq!(backup_name("nightly", "uid-1", slot), backup_name("nightly", "uid-1", slot));
    let uid = "0b0fb0f2-6d0c-4a5e-9a83-000000000001";
    assert_eq!(backup_name("nightly", uid, at("1970-01-01T00:36:00Z")).split('-').next_back(), Some("10"));
    assert_ne!(backup_name("nightly", "uid-1", slot), backup_name("nightly", "uid-2", slot));
    assert_ne!(
        backup_name("nightly", "uid-1", slot),
        backup_name("nightly", "uid-1", slot + SignedDuration::from_mins(1))
    );
    let long = format!("{}-.{}", "a".repeat(38), "b".repeat(200));
    let name = backup_name(&long, "uid-1", slot);
    assert!(name.starts_with(&format!("{}-", "a".repeat(38))), "{name}");
    assert!(name.len() <= 60 && !name.contains("--") && !name.contains(".-"), "{name}");
}

#[test]
fn vector_51_offsets_are_stable_and_fill_the_day_evenly() {
    let jitter = Duration::from_secs(86_399);
    let offset = |name: &str| jitter_offset("cluster", "shop", name, jitter);
    assert_eq!(offset("p1"), offset("p1"));
    assert_ne!(jitter_offset("other", "shop", "p1", jitter), offset("p1"));
    assert_eq!(jitter_offset("cluster", "shop", "p1", Duration::ZERO), Duration::ZERO);
    let mut hours = [0_u32; 24];
    let mut minutes = std::collections::HashMap::new();
    for number in 0..1440 {
        let seconds = offset(&format!("policy-{number}")).as_secs();
        assert!(seconds <= 86_399);
        hours[usize::try_from(seconds / 3600).unwrap()] += 1;
        *minutes.entry(seconds / 60).or_insert(0_u32) += 1;
    }
    // 60 an hour are expected; chi squared with 23 degrees of freedom is below 49.7 in 999 of 1000 cases.
    let chi: f64 = hours.iter().map(|count| (f64::from(*count) - 60.0).powi(2) / 60.0).sum();
    assert!(chi < 49.7, "{chi}");
    assert!(minutes.values().all(|count| *count <= 8));
}
