//! Slots and blackouts: what a window drops or defers (docs/design/schedule.md §4, vector 50 of §7).

use super::*;

/// 22:00 to 06:00 in Berlin; the clock goes back on 2026-10-25.
fn night(action: BlackoutAction) -> SlotSpec {
    SlotSpec {
        blackouts: blackouts("Europe/Berlin", &[("0 22 * * *", 8, action)]),
        ..spec_in("0 2,6 * * *", "Europe/Berlin")
    }
}

#[test]
fn vector_50_a_blackout_drops_what_is_inside_and_its_end_is_outside() {
    let night = night(BlackoutAction::Skip);
    let hold = night.blackouts.at(at("2026-10-25T00:00:00Z")).unwrap();
    assert_eq!((hold.from, hold.to), (at("2026-10-24T20:00:00Z"), at("2026-10-25T05:00:00Z")), "nine hours");
    let mut state = SlotState { since: at("2026-10-24T12:00:00Z"), ..ran("2026-10-24T04:00:00Z") };
    let (runs, missed) = live(&night, &mut state, "2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z", 30);
    assert_eq!(runs, [("2026-10-25T05:00:00Z".to_owned(), "2026-10-25T05:00:00Z".to_owned())]);
    assert_eq!(missed, [(MissedReason::Blackout, 1)]);
}

#[test]
fn vector_50_a_blackout_defers_to_one_run_at_its_end() {
    let night = night(BlackoutAction::Defer);
    let mut state = SlotState { since: at("2026-10-24T12:00:00Z"), ..ran("2026-10-24T04:00:00Z") };
    assert_eq!(
        decide(&night, &state, at("2026-10-25T00:30:00Z")),
        wait("2026-10-25T00:00:00Z", "2026-10-25T05:00:00Z")
    );
    let (runs, missed) = live(&night, &mut state, "2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z", 30);
    assert_eq!(runs, [("2026-10-25T05:00:00Z".to_owned(), "2026-10-25T05:00:00Z".to_owned())]);
    assert_eq!(missed, [(MissedReason::Blackout, 1)], "one run stands for both");
}

#[test]
fn a_deferred_slot_starts_at_the_end_of_the_window_and_its_offset() {
    let (hours, offset) = (8, Duration::from_secs(300));
    let spec = SlotSpec {
        blackouts: blackouts("Etc/UTC", &[("0 22 * * *", hours, BlackoutAction::Defer)]),
        offset,
        ..spec("0 3 * * *")
    };
    let state = ran("2026-11-12T03:00:00Z");
    assert_eq!(
        decide(&spec, &state, at("2026-11-13T06:04:59Z")),
        wait("2026-11-13T03:00:00Z", "2026-11-13T06:05:00Z")
    );
    let expected = run("2026-11-13T03:00:00Z", Trigger::Schedule, Vec::new());
    assert_eq!(decide(&spec, &state, at("2026-11-13T06:05:00Z")), expected);
    // The deadline counts from there.
    let strict = SlotSpec { deadline: Some(Duration::from_secs(60)), ..spec };
    assert_eq!(decide(&strict, &state, at("2026-11-13T06:06:00Z")), expected);
    let late = passed("2026-11-13T03:00:00Z", Vec::new(), MissedReason::Deadline);
    assert_eq!(decide(&strict, &state, at("2026-11-13T06:06:01Z")), late);
}

#[test]
fn where_windows_overlap_the_stricter_one_wins_and_what_was_deferred_before_still_runs() {
    let both = [("0 22 * * *", 8, BlackoutAction::Defer), ("0 4 * * *", 1, BlackoutAction::Skip)];
    let hourly = SlotSpec { blackouts: blackouts("Etc/UTC", &both), ..spec("30 * * * *") };
    let mut state = ran("2026-11-12T21:30:00Z");
    let (runs, missed) = live(&hourly, &mut state, "2026-11-12T21:59:00Z", "2026-11-13T06:45:00Z", 30);
    let slot = |slot: &str, start: &str| (slot.to_owned(), start.to_owned());
    assert_eq!(
        runs,
        [
            // 05:30 stands for what was deferred; 04:30 is dropped.
            slot("2026-11-13T05:30:00Z", "2026-11-13T06:00:00Z"),
            slot("2026-11-13T06:30:00Z", "2026-11-13T06:30:00Z"),
        ]
    );
    assert_eq!(missed, [(MissedReason::Blackout, 7)], "22:30 to 04:30");

    // Without a slot after the stricter window the one before it is not lost.
    let four = SlotSpec { blackouts: blackouts("Etc/UTC", &both), ..spec("30 3,4 * * *") };
    let mut state = ran("2026-11-12T04:30:00Z");
    let (runs, missed) = live(&four, &mut state, "2026-11-13T03:00:00Z", "2026-11-13T07:00:00Z", 30);
    assert_eq!(runs, [slot("2026-11-13T03:30:00Z", "2026-11-13T06:00:00Z")]);
    assert_eq!(missed, [(MissedReason::Blackout, 1)]);
}

#[test]
fn what_is_deferred_into_a_window_that_drops_is_dropped() {
    let chained = [("0 22 * * *", 8, BlackoutAction::Defer), ("0 5 * * *", 3, BlackoutAction::Skip)];
    let daily = SlotSpec { blackouts: blackouts("Etc/UTC", &chained), ..spec("0 2,12 * * *") };
    let expected = passed("2026-11-13T02:00:00Z", Vec::new(), MissedReason::Blackout);
    assert_eq!(decide(&daily, &ran("2026-11-12T12:00:00Z"), at("2026-11-13T02:00:00Z")), expected);
    let next = daily.next(at("2026-11-12T12:00:00Z"));
    assert_eq!(next, Some((at("2026-11-13T12:00:00Z"), at("2026-11-13T12:00:00Z"))));
}

#[test]
fn the_test_is_on_the_due_time_and_a_late_start_is_tested_when_it_would_start() {
    let night = |action| SlotSpec {
        blackouts: blackouts("Etc/UTC", &[("0 22 * * *", 8, action)]),
        ..spec("59 21 * * *")
    };
    let (skip, defer) = (night(BlackoutAction::Skip), night(BlackoutAction::Defer));
    let state = ran("2026-11-11T21:59:00Z");
    let slot = "2026-11-12T21:59:00Z";
    // A few seconds into the window: it was due before.
    let on_time = run(slot, Trigger::Schedule, Vec::new());
    assert_eq!(decide(&skip, &state, at("2026-11-12T22:00:00Z")), on_time);
    // The controller comes back inside the window.
    let back = at("2026-11-12T23:00:00Z");
    assert_eq!(decide(&skip, &state, back), passed(slot, Vec::new(), MissedReason::Blackout));
    assert_eq!(decide(&defer, &state, back), wait(slot, "2026-11-13T06:00:00Z"));
    let caught_up = run(slot, Trigger::CatchUp, Vec::new());
    assert_eq!(decide(&defer, &state, at("2026-11-13T06:00:00Z")), caught_up);
}

#[test]
fn downtime_and_blackouts_are_told_apart_slot_by_slot() {
    let hourly = SlotSpec {
        blackouts: blackouts("Etc/UTC", &[("0 22 * * *", 8, BlackoutAction::Skip)]),
        ..spec("0 * * * *")
    };
    // Down from 20:30 to 10:10: 21:00 and 06:00 to 09:00 are lost, 22:00 to 05:00 were never to run.
    let missed = vec![
        Missed { count: 5, reason: MissedReason::ControllerDown },
        Missed { count: 8, reason: MissedReason::Blackout },
    ];
    let expected = run("2026-11-13T10:00:00Z", Trigger::CatchUp, missed);
    assert_eq!(decide(&hourly, &ran("2026-11-12T20:00:00Z"), at("2026-11-13T10:10:00Z")), expected);
    // Back inside the window: what was lost before it is not run in it.
    let expected = passed("2026-11-12T21:00:00Z", Vec::new(), MissedReason::Blackout);
    assert_eq!(decide(&hourly, &ran("2026-11-12T20:00:00Z"), at("2026-11-13T00:10:00Z")), expected);
}

#[test]
fn a_window_ends_when_the_wall_clock_first_shows_its_end() {
    for (start, minutes, at_start, end) in [
        // Ordinary, over the change in autumn, over the change in spring.
        ("0 22 * * *", 480, "2026-11-13T21:00:00Z", "2026-11-14T05:00:00Z"),
        ("0 22 * * *", 480, "2026-10-24T20:00:00Z", "2026-10-25T05:00:00Z"),
        ("0 22 * * *", 480, "2026-03-28T21:00:00Z", "2026-03-29T04:00:00Z"),
        // Starting or ending in the hour that is skipped: both move as slots do.
        ("30 2 * * *", 60, "2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"),
        ("30 1 * * *", 60, "2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"),
        // Ending in the hour that comes twice: the first time.
        ("30 1 * * *", 60, "2026-10-24T23:30:00Z", "2026-10-25T00:30:00Z"),
        // Starting in its second pass: ten minutes.
        ("30 * * * *", 10, "2026-10-25T01:30:00Z", "2026-10-25T01:40:00Z"),
        ("30 * * * *", 10, "2026-10-25T00:30:00Z", "2026-10-25T00:40:00Z"),
    ] {
        let window = Window {
            starts: Arc::new(Schedule::parse(start, "Europe/Berlin", at("2026-01-01T00:00:00Z")).unwrap()),
            length: Duration::from_secs(minutes * 60),
            action: BlackoutAction::Skip,
            rule: None,
        };
        let windows = Blackouts::new(vec![window]);
        let told = format!("{start} for {minutes} minutes from {at_start}");
        let hold = windows.at(at(at_start)).unwrap_or_else(|| panic!("{told}"));
        assert_eq!((hold.from, hold.to), (at(at_start), at(end)), "{told}");
        assert_eq!(windows.at(at(end)), None, "{told}: the end is outside");
        let before = at(at_start) - SignedDuration::from_nanos(1);
        assert_eq!(windows.at(before), None, "{told}: the start is inside");
    }
}

#[test]
fn the_starts_ahead_leave_out_what_is_dropped_and_show_what_is_deferred_once() {
    let hourly = |action| SlotSpec {
        blackouts: blackouts("Etc/UTC", &[("0 22 * * *", 8, action)]),
        offset: Duration::from_secs(60),
        ..spec("30 * * * *")
    };
    let shown = |spec: &SlotSpec| -> Vec<String> {
        let starts = spec.starts(at("2026-11-13T20:00:00Z")).take(4);
        starts.map(|start| start.strftime("%d %H:%M").to_string()).collect()
    };
    assert_eq!(shown(&hourly(BlackoutAction::Skip)), ["13 20:30", "13 21:30", "14 06:30", "14 07:30"]);
    assert_eq!(shown(&hourly(BlackoutAction::Defer)), ["13 20:30", "13 21:30", "14 06:00", "14 06:30"]);
}

/// Of a rule and a policy the stricter window wins; whose it is, is told.
#[test]
fn a_rule_s_window_counts_like_the_policy_s_own_and_is_told_apart() {
    let window = |start: &str, hours: u64, action, rule: Option<&str>| Window {
        starts: Arc::new(Schedule::parse(start, "Etc/UTC", at("2026-11-01T00:00:00Z")).unwrap()),
        length: Duration::from_secs(hours * 3600),
        action,
        rule: rule.map(Into::into),
    };
    let (skip, defer) = (BlackoutAction::Skip, BlackoutAction::Defer);
    let due = at("2026-11-12T09:00:00Z");
    for (own, ruled, strictest, of_rule) in [
        (Some(skip), Some(skip), skip, true),
        (Some(skip), Some(defer), skip, false),
        (Some(defer), Some(skip), skip, true),
        (None, Some(skip), skip, true),
        (None, Some(defer), defer, true),
        (Some(skip), None, skip, false),
    ] {
        let own = own.map(|action| window("0 8 * * *", 2, action, None));
        let ruled = ruled.map(|action| window("0 7 * * *", 4, action, Some("office")));
        let windows = Blackouts::new(own.into_iter().chain(ruled).collect());
        let hold = windows.at(due).unwrap();
        assert_eq!((hold.action, hold.ruled), (strictest, of_rule));
    }
    let both = [window("0 8 * * *", 2, skip, None), window("0 7 * * *", 4, skip, Some("office"))];
    let both = Blackouts::new(both.into());
    assert_eq!(both.whose(due), "inside blackouts of the policy and of ProtectionRule office");
    assert_eq!(both.whose(at("2026-11-12T07:30:00Z")), "inside a blackout of ProtectionRule office");
}
