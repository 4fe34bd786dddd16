//! Vectors 39 to 48 of docs/design/schedule.md §7 and the stability of names and offsets.

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn spec(expression: &str) -> SlotSpec {
    let schedule = Schedule::parse(expression, "Etc/UTC", at("2026-11-01T00:00:00Z")).unwrap();
    let max_interval = schedule.analysis(at("2026-11-01T00:00:00Z")).unwrap().max_interval;
    SlotSpec {
        schedule: Arc::new(schedule),
        offset: Duration::ZERO,
        deadline: None,
        catch_up: true,
        suspended: false,
        max_interval,
    }
}

fn since(text: &str) -> SlotState {
    SlotState { since: at(text), last_slot: None, newest_backup: None, active: false }
}

fn ran(last_slot: &str) -> SlotState {
    SlotState { last_slot: Some(at(last_slot)), ..since("2026-11-01T00:00:00Z") }
}

fn down(count: u32) -> Option<Missed> {
    Some(Missed { count, reason: MissedReason::ControllerDown })
}

#[test]
fn vector_39_after_downtime_only_the_newest_missed_slot_runs() {
    let state = ran("2026-11-09T02:00:00Z");
    let now = at("2026-11-13T10:00:00Z");
    let slot = at("2026-11-13T02:00:00Z");
    let daily = spec("0 2 * * *");
    assert_eq!(decide(&daily, &state, now), Decision::Run { slot, catch_up: true, missed: down(3) });

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
        Decision::Run { slot, catch_up: false, missed: None }
    );
}

#[test]
fn vector_41_thousands_of_missed_slots_are_counted_exactly() {
    let minutely = spec("* * * * *");
    let decision = decide(&minutely, &ran("2026-11-10T00:00:00Z"), at("2026-11-13T00:00:05Z"));
    let slot = at("2026-11-13T00:00:00Z");
    assert_eq!(decision, Decision::Run { slot, catch_up: false, missed: down(4319) });
}

#[test]
fn vector_41_the_count_is_capped() {
    let decision = decide(&spec("* * * * *"), &ran("2026-11-01T00:00:00Z"), at("2026-11-13T00:00:05Z"));
    assert!(matches!(decision, Decision::Run { missed: Some(Missed { count: MISSED_CAP, .. }), .. }));
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
    assert_eq!(decide(&hourly, &resumed, slot), Decision::Run { slot, catch_up: false, missed: None });
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
    let expected = Decision::PassOver { slot, missed: None, reason: MissedReason::Concurrency };
    assert_eq!(decide(&spec("0 * * * *"), &busy, slot), expected);
}

#[test]
fn a_slot_waits_for_its_offset() {
    let spread = SlotSpec { offset: Duration::from_secs(600), ..spec("0 2 * * *") };
    let state = ran("2026-11-12T02:00:00Z");
    let (slot, due) = (at("2026-11-13T02:00:00Z"), at("2026-11-13T02:10:00Z"));
    assert_eq!(decide(&spread, &state, at("2026-11-13T02:09:59Z")), Decision::Wait { slot, due });
    assert_eq!(decide(&spread, &state, due), Decision::Run { slot, catch_up: false, missed: None });
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
            assert_eq!(missed, None);
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
