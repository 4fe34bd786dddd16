//! The test vectors of docs/design/schedule.md §7 about expressions and zones, by number.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn parse(expression: &str, zone: &str) -> Schedule {
    Schedule::parse(expression, zone, at("2026-11-20T00:00:00Z"))
        .unwrap_or_else(|error| panic!("{expression:?} in {zone}: {error}"))
}

fn refused(expression: &str) -> ScheduleError {
    match Schedule::parse(expression, "Etc/UTC", at("2026-11-20T00:00:00Z")) {
        Ok(_) => panic!("{expression:?} is accepted"),
        Err(error) => error,
    }
}

/// Slots after `after` as `YYYY-MM-DDTHH:MM+HH:MM`, as many as are expected.
#[track_caller]
fn expect(expression: &str, zone: &str, after: &str, expected: &[&str]) {
    let schedule = parse(expression, zone);
    let slots: Vec<String> = schedule
        .slots(at(after))
        .take(expected.len())
        .map(|slot| slot.to_zoned(schedule.zone().clone()).strftime("%Y-%m-%dT%H:%M%:z").to_string())
        .collect();
    assert_eq!(slots, expected, "{expression} in {zone} after {after}");
}

/// Dates of the slots after 2026-11-20T00:00Z in UTC, `MM-DD`.
#[track_caller]
fn expect_days(expression: &str, expected: &[&str]) {
    let slots: Vec<String> = parse(expression, "Etc/UTC")
        .slots(at("2026-11-20T00:00:00Z"))
        .take(expected.len())
        .map(|slot| slot.strftime("%m-%d").to_string())
        .collect();
    assert_eq!(slots, expected, "{expression}");
}

fn hours(expression: &str, zone: &str) -> (u64, u64) {
    let found = parse(expression, zone).analysis(at("2026-11-20T00:00:00Z")).unwrap();
    (found.min_interval.as_secs() / 3600, found.max_interval.as_secs() / 3600)
}

#[test]
fn vector_01_a_slot_in_the_gap_moves_forward_by_the_gap() {
    let expected = ["2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00"];
    expect("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &expected);
}

#[test]
fn vector_02_a_slot_after_the_gap_runs_once() {
    let expected = ["2026-03-29T03:00+02:00", "2026-03-30T03:00+02:00"];
    expect("0 3 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &expected);
}

#[test]
fn vector_03_two_slots_that_the_gap_moves_together_run_once() {
    let expected = ["2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00", "2026-03-30T03:30+02:00"];
    expect("30 2,3 * * *", "Europe/Berlin", "2026-03-28T20:00:00Z", &expected);
}

#[test]
fn vector_04_a_whole_skipped_hour_is_moved() {
    let expected = ["2026-03-29T03:00+02:00", "2026-03-29T03:30+02:00", "2026-03-30T02:00+02:00"];
    expect("*/30 2 * * *", "Europe/Berlin", "2026-03-28T20:00:00Z", &expected);
}

#[test]
fn vector_05_intervals_stay_even_over_the_gap() {
    let expected = ["2026-03-29T01:45+01:00", "2026-03-29T03:00+02:00", "2026-03-29T03:15+02:00"];
    expect("*/15 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", &expected);
}

#[test]
fn vector_06_every_second_hour_over_the_gap() {
    let expected = ["2026-03-29T00:00+01:00", "2026-03-29T03:00+02:00", "2026-03-29T04:00+02:00"];
    expect("0 */2 * * *", "Europe/Berlin", "2026-03-28T22:30:00Z", &expected);
}

#[test]
fn vector_07_a_daily_slot_in_the_fold_runs_once() {
    let expected = ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"];
    expect("30 2 * * *", "Europe/Berlin", "2026-10-24T20:00:00Z", &expected);
}

#[test]
fn vector_08_a_restart_inside_the_fold_does_not_run_it_again() {
    expect("30 2 * * *", "Europe/Berlin", "2026-10-25T00:45:00Z", &["2026-10-26T02:30+01:00"]);
}

#[test]
fn vector_09_intervals_run_through_both_passes_of_the_fold_in_order() {
    let expected = [
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:30+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T02:30+01:00",
        "2026-10-25T03:00+01:00",
    ];
    expect("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", &expected);
}

#[test]
fn vector_10_a_restricted_hour_runs_in_its_first_pass_only() {
    let expected = ["2026-10-25T02:00+02:00", "2026-10-25T02:30+02:00", "2026-10-26T02:00+01:00"];
    expect("*/30 2 * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", &expected);
}

#[test]
fn vector_11_hourly_runs_in_both_passes() {
    let expected = ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"];
    expect("0 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", &expected);
}

#[test]
fn vector_12_an_interval_differs_from_the_same_hours_as_a_list() {
    let interval = [
        "2026-10-25T00:00+02:00",
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T04:00+01:00",
    ];
    expect("0 */2 * * *", "Europe/Berlin", "2026-10-24T21:00:00Z", &interval);
    let list = ["2026-10-25T00:00+02:00", "2026-10-25T02:00+02:00", "2026-10-25T04:00+01:00"];
    expect("0 0,2,4 * * *", "Europe/Berlin", "2026-10-24T21:00:00Z", &list);
}

#[test]
fn vector_13_six_hours_become_seven_in_autumn_and_a_six_hour_rpo_is_unattainable() {
    let expected = ["2026-10-25T00:00+02:00", "2026-10-25T06:00+01:00"];
    expect("0 */6 * * *", "Europe/Berlin", "2026-10-24T20:00:00Z", &expected);
    let six = Some(Duration::from_secs(6 * 3600));
    let told = explain("0 */6 * * *", "Europe/Berlin", at("2026-10-24T20:00:00Z"), 2, six).unwrap();
    assert_eq!(told.rpo_attainable, Some(false));
    assert_eq!(told.max_interval, Some(Duration::from_secs(7 * 3600)));
    assert_eq!(told.clock_changes.len(), 2);
}

#[test]
fn vector_14_midnight_itself_is_skipped() {
    let expected = ["2026-09-05T00:00-04:00", "2026-09-06T01:00-03:00", "2026-09-07T00:00-03:00"];
    expect("@daily", "America/Santiago", "2026-09-04T12:00:00Z", &expected);
}

#[test]
fn vector_15_a_fold_before_midnight_runs_once_on_its_day() {
    let expected = ["2026-04-03T23:30-03:00", "2026-04-04T23:30-03:00", "2026-04-05T23:30-04:00"];
    expect("30 23 * * *", "America/Santiago", "2026-04-03T12:00:00Z", &expected);
}

#[test]
fn vector_16_every_six_hours_over_a_midnight_gap() {
    let expected = ["2026-09-05T18:00-04:00", "2026-09-06T01:00-03:00", "2026-09-06T06:00-03:00"];
    expect("0 */6 * * *", "America/Santiago", "2026-09-05T20:00:00Z", &expected);
}

#[test]
fn vector_17_a_gap_of_half_an_hour() {
    let expected = ["2026-10-04T02:45+11:00", "2026-10-05T02:15+11:00"];
    expect("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", &expected);
}

#[test]
fn vector_18_a_fold_of_half_an_hour() {
    let expected = ["2026-04-04T01:45+11:00", "2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"];
    expect("45 1 * * *", "Australia/Lord_Howe", "2026-04-03T00:00:00Z", &expected);
}

#[test]
fn vector_19_a_gap_at_midnight_in_cairo() {
    let expected = ["2026-04-24T01:30+03:00", "2026-04-25T00:30+03:00"];
    expect("30 0 * * *", "Africa/Cairo", "2026-04-23T12:00:00Z", &expected);
}

#[test]
fn vector_20_a_whole_skipped_day() {
    let expected = ["2011-12-29T12:00-10:00", "2011-12-31T12:00+14:00", "2012-01-01T12:00+14:00"];
    expect("0 12 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", &expected);
}

#[test]
fn vector_21_leap_days_until_the_calendar_ends() {
    let expected = ["2028-02-29T00:00+00:00", "2032-02-29T00:00+00:00"];
    expect("0 0 29 2 *", "Etc/UTC", "2026-11-20T00:00:00Z", &expected);
    assert_eq!(parse("0 0 29 2 *", "Etc/UTC").next(at("2096-11-20T00:00:00Z")), None);
}

#[test]
fn vector_22_the_31st_of_months_that_have_one() {
    expect_days("0 0 31 * *", &["12-31", "01-31", "03-31", "05-31"]);
    assert_eq!(hours("0 0 31 * *", "Etc/UTC").1, 1464);
}

#[test]
fn vector_23_what_never_fires_is_refused() {
    for expression in ["0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
        let error = refused(expression);
        assert_eq!(error.field, Field::DayOfMonth);
        assert!(error.reason.contains("never fires"), "{error}");
    }
}

#[test]
fn vector_24_neither_day_field_is_starred_and_one_match_is_enough() {
    expect_days("0 0 13 * 5", &["11-27", "12-04", "12-11", "12-13"]);
}

#[test]
fn vector_25_a_list_of_days_or_a_weekday() {
    expect_days("0 0 1,15 * 1", &["11-23", "11-30", "12-01", "12-07"]);
}

#[test]
fn vector_26_a_stepped_star_is_no_star() {
    expect_days("0 0 */2 * MON", &["11-21", "11-23", "11-25", "11-27"]);
}

#[test]
fn vector_27_a_starred_day_field_and_the_other_must_both_match() {
    expect_days("0 0 */1 * MON", &["11-23", "11-30", "12-07"]);
    expect_days("0 0 13 * *,5", &["12-13", "01-13", "02-13"]);
}

#[test]
fn vector_28_a_full_range_is_no_star() {
    expect_days("0 0 1-31 * MON", &["11-21", "11-22", "11-23", "11-24"]);
}

#[test]
fn vector_29_every_second_weekday_or_the_first() {
    expect_days("0 0 1 * */2", &["11-21", "11-22", "11-24", "11-26"]);
}

#[test]
fn vector_30_the_seam_of_an_uneven_minute_step() {
    let expected = ["2026-11-20T00:56+00:00", "2026-11-20T01:00+00:00", "2026-11-20T01:07+00:00"];
    expect("*/7 * * * *", "Etc/UTC", "2026-11-20T00:50:00Z", &expected);
    let found = parse("*/7 * * * *", "Etc/UTC").analysis(at("2026-11-20T00:00:00Z")).unwrap();
    assert_eq!(found.min_interval, Duration::from_secs(240));
    assert_eq!(found.max_interval, Duration::from_secs(420));
}

#[test]
fn vector_31_the_seam_of_an_uneven_hour_step() {
    let expected = ["2026-11-20T21:00+00:00", "2026-11-21T00:00+00:00", "2026-11-21T07:00+00:00"];
    expect("0 */7 * * *", "Etc/UTC", "2026-11-20T20:50:00Z", &expected);
    assert_eq!(hours("0 */7 * * *", "Etc/UTC"), (3, 7));
}

#[test]
fn vector_32_seven_is_sunday_too() {
    for expression in ["0 0 * * 0", "0 0 * * 7", "0 0 * * sun", "0 0 * * SUN"] {
        expect_days(expression, &["11-22", "11-29"]);
    }
    expect_days("0 0 * * 5-7", &["11-21", "11-22", "11-27", "11-28"]);
}

#[test]
fn vector_33_weekdays_count_from_sunday() {
    expect_days("0 0 * * 1", &["11-23", "11-30"]);
}

#[test]
fn vector_34_a_step_beyond_the_range_is_its_first_value() {
    for expression in ["*/60 * * * *", "*/90 * * * *", "*/99999999999 * * * *"] {
        let expected = ["2026-11-20T01:00+00:00", "2026-11-20T02:00+00:00"];
        expect(expression, "Etc/UTC", "2026-11-20T00:00:00Z", &expected);
    }
}

#[test]
fn vector_35_a_start_with_a_step_runs_to_the_end() {
    let expected = [
        "2026-11-20T00:05+00:00",
        "2026-11-20T00:20+00:00",
        "2026-11-20T00:35+00:00",
        "2026-11-20T00:50+00:00",
        "2026-11-20T01:05+00:00",
    ];
    expect("5/15 * * * *", "Etc/UTC", "2026-11-20T00:00:00Z", &expected);
}

#[test]
fn vector_36_other_accepted_forms() {
    for expression in
        ["? ? * * *", "00 08 * * *", "0 0 * jan-mar mon-fri", "  0\t0 * * *  ", "0 0-23/4 * * *"]
    {
        parse(expression, "Etc/UTC");
    }
}

#[test]
fn vector_37_everything_else_is_refused_with_the_field_named() {
    let minute =
        ["60", "*/0", "50-10", "0,,30", "+5", "*-5", ",", "H", "1-", "-1", "1/", "/5", "5//2", "a", "1/x"];
    for field in minute {
        assert_eq!(refused(&format!("{field} * * * *")).field, Field::Minute, "{field}");
    }
    assert_eq!(refused("0 24 * * *").field, Field::Hour);
    for field in ["0", "32", "L", "15W"] {
        assert_eq!(refused(&format!("0 0 {field} * *")).field, Field::DayOfMonth, "{field}");
    }
    for field in ["0", "13", "january"] {
        assert_eq!(refused(&format!("0 0 1 {field} *")).field, Field::Month, "{field}");
    }
    for field in ["8", "Sunday", "1#1", "fri-mon", "5L"] {
        assert_eq!(refused(&format!("* * * * {field}")).field, Field::DayOfWeek, "{field}");
    }
    let whole = [
        "",
        "   ",
        "* * * *",
        "* * * * * *",
        "* * * * * * *",
        "@Daily",
        "@reboot",
        "TZ=UTC * * * * *",
        "CRON_TZ=UTC * * * * *",
    ];
    for expression in whole {
        assert_eq!(refused(expression).field, Field::Expression, "{expression:?}");
    }
    assert!(refused("TZ=UTC * * * * *").reason.contains("timeZone"));
    for expression in
        ["@every", "@every 59s", "@every 1d", "@every 1.5h", "@every h", "@every -1h", "@every 999999h"]
    {
        assert_eq!(refused(expression).field, Field::Interval, "{expression}");
    }
    assert_eq!(refused(&"0,".repeat(400)).field, Field::Expression);
}

#[test]
fn vector_38_the_next_slot_is_strictly_after() {
    let schedule = parse("0 * * * *", "Etc/UTC");
    assert_eq!(schedule.next(at("2026-11-20T00:59:59.5Z")), Some(at("2026-11-20T01:00:00Z")));
    assert_eq!(schedule.next(at("2026-11-20T01:00:00Z")), Some(at("2026-11-20T02:00:00Z")));
    assert_eq!(schedule.prev(at("2026-11-20T01:00:00Z")), Some(at("2026-11-20T01:00:00Z")));
    assert_eq!(schedule.prev(at("2026-11-20T00:59:59.5Z")), Some(at("2026-11-20T00:00:00Z")));
}

#[test]
fn vector_52_zones_are_iana_names_in_any_case_and_never_local() {
    let now = at("2026-11-20T00:00:00Z");
    for zone in ["", "Local", "local", "Mars/Olympus", "../etc/passwd", "UTC+1h"] {
        assert_eq!(Schedule::parse("@daily", zone, now).unwrap_err().field, Field::TimeZone, "{zone:?}");
    }
    assert_eq!(parse("@daily", "europe/berlin").zone_name(), "Europe/Berlin");
    assert_eq!(parse("@daily", "UTC").zone().iana_name(), Some("UTC"));
}

#[test]
fn intervals_are_those_that_were_measured() {
    assert_eq!(hours("0 2 * * *", "Europe/Berlin"), (23, 25));
    assert_eq!(hours("30 2 * * *", "Europe/Berlin"), (23, 25));
    assert_eq!(hours("0 */6 * * *", "America/Santiago").1, 7);
    assert_eq!(hours("0 0 * * 1-5", "Etc/UTC"), (24, 72));
    assert_eq!(hours("0 */2 * * *", "Europe/Berlin").1, 2);
    assert_eq!(hours("0 0,2,4,6,8,10,12,14,16,18,20,22 * * *", "Europe/Berlin").1, 3);
    assert_eq!(hours("0 0 29 2 *", "Etc/UTC"), (1461 * 24, 1461 * 24));
    assert_eq!(parse("0 0 29 2 *", "Etc/UTC").analysis(at("2096-11-20T00:00:00Z")), None);
}

#[test]
fn the_analysis_agrees_with_walking_the_slots() {
    let from = at("2026-11-20T00:00:00Z");
    for (expression, zone, years) in [
        ("0 2 * * *", "Europe/Berlin", 8),
        ("30 2,14 * * 1-5", "America/New_York", 8),
        ("0 0 1 * *", "America/Santiago", 8),
        ("*/20 1-4 * * *", "Australia/Lord_Howe", 8),
        ("15 3 13 * 5", "Europe/Berlin", 8),
        ("0 */3 * * *", "Africa/Cairo", 8),
        ("*/10 * * * *", "Europe/Berlin", 1),
    ] {
        let schedule = parse(expression, zone);
        let end = from + SignedDuration::from_hours(24 * 366 * years);
        let slots: Vec<Timestamp> = schedule.slots(from).take_while(|slot| *slot < end).collect();
        let gaps = || slots.windows(2).map(|pair| pair[1].duration_since(pair[0]).unsigned_abs());
        let found = schedule.analysis(from).unwrap();
        assert_eq!(Some(found.min_interval), gaps().min(), "shortest of {expression} in {zone}");
        assert_eq!(Some(found.max_interval), gaps().max(), "longest of {expression} in {zone}");
    }
}

#[test]
fn every_is_a_grid_from_the_anchor_that_no_clock_change_moves() {
    let anchor = at("2026-10-24T22:10:30Z");
    let schedule = Schedule::parse("@every 1h30m", "Europe/Berlin", anchor).unwrap();
    assert_eq!(schedule.next(at("2020-01-01T00:00:00Z")), Some(at("2026-10-24T23:40:30Z")));
    assert_eq!(schedule.next(at("2026-10-24T23:40:30Z")), Some(at("2026-10-25T01:10:30Z")));
    assert_eq!(schedule.prev(at("2026-10-25T01:10:29Z")), Some(at("2026-10-24T23:40:30Z")));
    assert_eq!(schedule.prev(anchor), None);
    assert_eq!(schedule.analysis(anchor).unwrap().max_interval, Duration::from_secs(5400));
}
