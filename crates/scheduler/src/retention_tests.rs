//! Retention by situations, by properties, and against the rules written a second time.

use jiff::SignedDuration;
use jiff::tz::TimeZoneDatabase;
use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    at("2026-11-14T12:00:00Z")
}

fn zone(name: &str) -> TimeZone {
    TimeZoneDatabase::bundled().get(name).unwrap()
}

fn applications(names: &[&str]) -> Arc<[String]> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn point(name: &str, cut: Timestamp, standing: Standing) -> Point {
    Point { name: name.to_owned(), cut, standing, held: false, applications: applications(&["db"]) }
}

/// Proven points `p1`, `p2`, … of so many hours of age.
fn hours_old(ages: impl IntoIterator<Item = i64>) -> Vec<Point> {
    let cut = |age: i64| now() - SignedDuration::from_hours(age);
    ages.into_iter().map(|age| point(&format!("p{age}"), cut(age), Standing::Proven)).collect()
}

fn none() -> Rules {
    Rules::new(Some(&Retention::default()), TimeZone::UTC)
}

fn last(last: u32) -> Rules {
    Rules { last, ..none() }
}

fn decide(points: &[Point], rules: &Rules) -> Plan {
    plan(points, rules, false, now())
}

fn kept(plan: &Plan) -> Vec<(&str, Vec<String>)> {
    plan.keep
        .iter()
        .map(|kept| (kept.name.as_str(), kept.reasons.iter().map(KeepReason::to_string).collect()))
        .collect()
}

fn reasons(plan: &Plan, name: &str) -> String {
    kept(plan)
        .into_iter()
        .find(|(known, _)| *known == name)
        .map_or_else(String::new, |(_, why)| why.join(" "))
}

#[test]
fn the_newest_n_proven_points_are_kept_and_older_ones_go_oldest_first() {
    let plan = decide(&hours_old(1..=5), &last(3));
    assert_eq!(plan.delete, ["p5", "p4"]);
    assert_eq!(reasons(&plan, "p1"), "last-1 newest");
    assert_eq!(reasons(&plan, "p3"), "last-3");
}

#[test]
fn points_whose_snapshots_somebody_deleted_follow_the_rules_among_themselves() {
    let mut points = hours_old(1..=8);
    for lost in &mut points[..5] {
        lost.standing = Standing::Lost;
    }
    let plan = decide(&points, &last(3));
    // The three that can still be used stay, although five newer ones cannot.
    assert_eq!(plan.delete, ["p5", "p4"]);
    assert_eq!((reasons(&plan, "p6").as_str(), reasons(&plan, "p1").as_str()), ("last-1 newest", "last-1"));
}

#[test]
fn a_policy_without_retention_keeps_seven_and_one_with_an_empty_one_keeps_all() {
    let points = hours_old(1..=9);
    assert_eq!(decide(&points, &Rules::new(None, TimeZone::UTC)).delete, ["p9", "p8"]);
    let all = decide(&points, &none());
    assert_eq!((all.delete.len(), reasons(&all, "p9").as_str()), (0, "no-rules"));
    let zero = Retention { daily: Some(0), ..Retention::default() };
    assert_eq!(decide(&points, &Rules::new(Some(&zero), TimeZone::UTC)).delete.len(), 0);
}

#[test]
fn of_two_points_in_a_bucket_the_newer_stays_and_rules_add_up_with_all_their_reasons() {
    let points = [
        point("late", at("2026-11-14T02:30:00Z"), Standing::Proven),
        point("early", at("2026-11-14T02:00:00Z"), Standing::Proven),
        point("yesterday", at("2026-11-13T02:00:00Z"), Standing::Proven),
        point("older", at("2026-11-12T02:00:00Z"), Standing::Proven),
        point("october", at("2026-10-31T02:00:00Z"), Standing::Proven),
        point("september", at("2026-09-30T02:00:00Z"), Standing::Proven),
    ];
    let plan = decide(&points, &Rules { daily: 2, monthly: 2, ..none() });
    assert_eq!(
        kept(&plan),
        [
            ("late", vec!["daily-1".to_owned(), "monthly-1".to_owned(), "newest".to_owned()]),
            ("yesterday", vec!["daily-2".to_owned()]),
            ("october", vec!["monthly-2".to_owned()]),
        ]
    );
    assert_eq!(plan.delete, ["september", "older", "early"]);
}

#[test]
fn the_last_days_of_a_month_are_of_the_month_of_the_zone() {
    // 2026-11-01 00:30 in Berlin is still October in UTC.
    let points = [
        point("november", at("2026-10-31T23:30:00Z"), Standing::Proven),
        point("october", at("2026-10-31T22:30:00Z"), Standing::Proven),
    ];
    let berlin = Rules { monthly: 2, zone: zone("Europe/Berlin"), ..none() };
    assert_eq!(reasons(&decide(&points, &berlin), "october"), "monthly-2");
    assert_eq!(reasons(&decide(&points, &Rules { monthly: 1, ..none() }), "november"), "monthly-1 newest");
    assert_eq!(decide(&points, &Rules { monthly: 1, ..none() }).delete, ["october"]);
}

#[test]
fn the_turn_of_the_year_lies_in_one_iso_week_and_in_two_years() {
    let points = [
        point("new", at("2027-01-01T02:00:00Z"), Standing::Proven),
        point("old", at("2026-12-31T02:00:00Z"), Standing::Proven),
    ];
    let later = at("2027-01-02T00:00:00Z");
    let weekly = plan(&points, &Rules { weekly: 1, ..none() }, false, later);
    assert_eq!(weekly.delete, ["old"]);
    let yearly = plan(&points, &Rules { yearly: 2, ..none() }, false, later);
    assert_eq!(reasons(&yearly, "old"), "yearly-2");
}

#[test]
fn both_passes_of_a_repeated_hour_are_hours_of_their_own_and_one_day() {
    // 02:30+02:00 and 02:30+01:00 in Berlin.
    let points = [
        point("second", at("2026-10-25T01:30:00Z"), Standing::Proven),
        point("first", at("2026-10-25T00:30:00Z"), Standing::Proven),
    ];
    let berlin = zone("Europe/Berlin");
    let hourly = decide(&points, &Rules { hourly: 2, zone: berlin.clone(), ..none() });
    assert_eq!(reasons(&hourly, "first"), "hourly-2");
    assert_eq!(decide(&points, &Rules { daily: 1, zone: berlin, ..none() }).delete, ["first"]);
}

#[test]
fn a_day_of_23_hours_is_a_day() {
    let points = [
        point("after", at("2026-03-29T21:30:00Z"), Standing::Proven),
        point("before", at("2026-03-28T23:30:00Z"), Standing::Proven),
        point("day-before", at("2026-03-28T22:30:00Z"), Standing::Proven),
    ];
    // 23:30, 00:30 and 23:30 on the wall in Berlin.
    let plan = decide(&points, &Rules { daily: 2, zone: zone("Europe/Berlin"), ..none() });
    assert_eq!(plan.delete, ["before"]);
}

#[test]
fn buckets_that_have_points_are_counted_and_an_outage_expires_nothing() {
    let nightly = hours_old((0..7).map(|day| 30 * 24 + day * 24));
    let plan = decide(&nightly, &Rules { daily: 7, ..none() });
    assert_eq!(plan.delete, Vec::<String>::new());
    assert_eq!(reasons(&plan, &nightly[6].name), "daily-7");
}

#[test]
fn a_clock_that_jumps_a_year_lets_nothing_go() {
    let points = hours_old((0..30).map(|day| day * 24));
    let rules = Rules { last: 2, daily: 20, weekly: 4, within: Duration::from_secs(86_400), ..none() };
    let later = now() + SignedDuration::from_hours(366 * 24);
    assert_eq!(plan(&points, &rules, false, later), decide(&points, &rules));
}

#[test]
fn within_is_measured_from_the_newest_point_and_its_end_is_inside() {
    let rules = Rules { within: Duration::from_secs(2 * 3600), ..none() };
    let plan = decide(&hours_old([101, 102, 103, 104]), &rules);
    assert_eq!(reasons(&plan, "p103"), "within");
    assert_eq!(plan.delete, ["p104"]);
}

#[test]
fn the_oldest_point_stays_until_a_rule_has_what_it_asks_for() {
    let rules = Rules { monthly: 3, ..none() };
    let week = hours_old([0, 24, 48]);
    let plan = decide(&week, &rules);
    assert_eq!(plan.delete, ["p24"]);
    assert_eq!(reasons(&plan, "p48"), "oldest-monthly");
    let mut filled = week;
    filled.extend(hours_old([24 * 31, 24 * 62]));
    assert_eq!(decide(&filled, &rules).delete, ["p48", "p24"]);
}

#[test]
fn failed_runs_never_push_out_a_proven_point() {
    let mut points = vec![point("good", now() - SignedDuration::from_hours(100), Standing::Proven)];
    let failed = hours_old(1..=50).into_iter().map(|bad| Point { standing: Standing::Failed, ..bad });
    points.extend(failed);
    let plan = decide(&points, &last(3));
    assert_eq!(reasons(&plan, "good"), "last-1 newest");
    assert_eq!((plan.delete.len(), plan.delete_failed.len()), (0, 50 - FAILED_KEPT));
    assert_eq!(plan.delete_failed[0], "p50");
    assert_eq!(reasons(&plan, "p1"), "recent-failure");
}

#[test]
fn when_all_runs_failed_the_newest_three_stay() {
    let failed: Vec<Point> =
        hours_old(1..=9).into_iter().map(|bad| Point { standing: Standing::Failed, ..bad }).collect();
    assert_eq!(decide(&failed, &Rules { daily: 1, ..none() }).keep.len(), FAILED_KEPT);
}

#[test]
fn unproven_points_do_not_count_as_proven() {
    let mut points = hours_old(101..=102);
    points.extend(hours_old(1..=9).into_iter().map(|crash| Point { standing: Standing::Unproven, ..crash }));
    let plan = decide(&points, &last(2));
    assert_eq!(plan.delete, ["p9", "p8", "p7", "p6", "p5", "p4", "p3"]);
    assert_eq!(reasons(&plan, "p101"), "last-1 newest");
}

#[test]
fn the_newest_proven_point_of_an_application_that_the_policy_lost_stays() {
    let mut points = hours_old(1..=6);
    points[3].applications = applications(&["db", "cache"]);
    points[5].applications = applications(&["cache"]);
    let plan = decide(&points, &last(2));
    assert_eq!(reasons(&plan, "p4"), "newest-of-application");
    assert_eq!(plan.delete, ["p6", "p5", "p3"]);
}

#[test]
fn a_held_point_stays_and_takes_no_place() {
    let mut points = hours_old(1..=4);
    points[0].held = true;
    points[3].held = true;
    let plan = decide(&points, &last(1));
    assert_eq!(reasons(&plan, "p1"), "held");
    assert_eq!(reasons(&plan, "p2"), "last-1 newest");
    assert_eq!(reasons(&plan, "p4"), "held");
    assert_eq!(plan.delete, ["p3"]);
}

#[test]
fn a_held_failure_stays_beside_the_others() {
    let mut failed: Vec<Point> =
        hours_old(1..=9).into_iter().map(|bad| Point { standing: Standing::Failed, ..bad }).collect();
    failed[8].held = true;
    assert_eq!(decide(&failed, &last(1)).keep.len(), FAILED_KEPT + 1);
}

#[test]
fn nothing_is_deleted_while_the_clock_is_in_doubt() {
    let plan = plan(&hours_old(1..=9), &last(1), true, now());
    assert_eq!(plan.delete, Vec::<String>::new());
    assert_eq!(reasons(&plan, "p9"), "clock-skew");
}

#[test]
fn a_point_from_the_future_is_kept_and_takes_no_place() {
    let mut points = hours_old(1..=2);
    points.extend(hours_old([-1]));
    let plan = decide(&points, &Rules { last: 1, within: Duration::from_secs(60), ..none() });
    assert_eq!(reasons(&plan, "p-1"), "future-dated");
    assert_eq!(reasons(&plan, "p1"), "last-1 within newest");
    assert_eq!(plan.delete, ["p2"]);
}

#[test]
fn unfinished_runs_stay() {
    let mut points = hours_old(1..=2);
    points.push(point("running", now() - SignedDuration::from_hours(500), Standing::Unfinished));
    assert_eq!(decide(&points, &last(1)).delete, ["p2"]);
}

#[test]
fn equal_cuts_are_decided_by_name_whatever_the_order_of_the_points() {
    let cut = now() - SignedDuration::from_hours(1);
    let mut points = vec![point("a", cut, Standing::Proven), point("b", cut, Standing::Proven)];
    assert_eq!(decide(&points, &last(1)).delete, ["a"]);
    points.reverse();
    assert_eq!(decide(&points, &last(1)).delete, ["a"]);
}

#[test]
fn an_edit_from_thirty_points_to_three_is_held_back() {
    assert_eq!(hold_back(27, 30, 0), Some(HeldBack { expiring: 27, of: 30 }));
    // Ten may always go, and half.
    assert_eq!(hold_back(10, 11, 0), None);
    assert_eq!(hold_back(15, 30, 0), None);
    assert_eq!(hold_back(16, 31, 0), Some(HeldBack { expiring: 16, of: 31 }));
}

#[test]
fn a_backlog_of_deletes_that_grows_by_each_new_point_is_not_held_back() {
    for known in 0..100 {
        assert_eq!(hold_back(known + 1, known + 6, known), None);
    }
    assert_eq!(hold_back(100, 105, 80), None);
    assert!(hold_back(100, 105, 40).is_some());
}

#[test]
fn deletes_are_paced_and_pass_over_what_is_in_use() {
    let names = ["a", "b", "c", "d"].map(str::to_owned);
    let used = BTreeSet::from(["b".to_owned()]);
    assert_eq!(super::now(&names, &used, 0), ["a", "c"]);
    assert_eq!(super::now(&names, &used, 1), ["a"]);
    assert_eq!(super::now(&names, &used, 2), Vec::<String>::new());
    assert_eq!(super::now(&names, &used, 9), Vec::<String>::new());
}

#[test]
fn a_restore_of_the_newest_point_before_an_instant_uses_the_one_that_it_will_choose() {
    let points = hours_old(1..=4);
    let name = |before| newest_before(&points, before).map(|point| point.name.as_str());
    assert_eq!(name(None), Some("p1"));
    assert_eq!(name(Some(points[1].cut)), Some("p3"));
    assert_eq!(name(Some(points[3].cut)), None);
}

/// The points that `rules` keep, by the text of the calendar: restic's way, and slow.
fn by_the_calendar(points: &[Point], rules: &Rules) -> BTreeSet<String> {
    let mut proven: Vec<&Point> = points.iter().filter(|point| point.standing == Standing::Proven).collect();
    proven.sort_by_key(|point| std::cmp::Reverse((point.cut, point.name.clone())));
    let mut keep: BTreeSet<String> =
        proven.iter().take(rules.last as usize).map(|point| point.name.clone()).collect();
    for (format, number) in [
        ("%Y-%m-%d %H %z", rules.hourly),
        ("%Y-%m-%d", rules.daily),
        ("%G-%V", rules.weekly),
        ("%Y-%m", rules.monthly),
        ("%Y", rules.yearly),
    ] {
        let mut buckets: Vec<String> = Vec::new();
        for point in &proven {
            let bucket = point.cut.to_zoned(rules.zone.clone()).strftime(format).to_string();
            if !buckets.contains(&bucket) {
                buckets.push(bucket);
                if buckets.len() <= number as usize {
                    keep.insert(point.name.clone());
                }
            }
        }
        if buckets.len() < number as usize {
            keep.extend(proven.last().map(|point| point.name.clone()));
        }
    }
    for point in &proven {
        let age = proven[0].cut.as_second() - point.cut.as_second();
        if rules.within > Duration::ZERO && age <= i64::try_from(rules.within.as_secs()).unwrap() {
            keep.insert(point.name.clone());
        }
    }
    keep.extend(proven.first().map(|point| point.name.clone()));
    keep
}

fn standings() -> impl Strategy<Value = Standing> {
    prop_oneof![
        6 => Just(Standing::Proven),
        1 => Just(Standing::Unproven),
        1 => Just(Standing::Lost),
        1 => Just(Standing::Failed),
        1 => Just(Standing::Unfinished),
    ]
}

/// Points around 25 October 2026, when clocks are set back: of the same quarter of an hour now and then, or years apart.
fn some_points() -> impl Strategy<Value = Vec<Point>> {
    let quarters = prop_oneof![0_i64..200, 0_i64..100_000];
    let one = (quarters, standings(), prop::bool::weighted(0.1), 0_usize..8);
    prop::collection::vec(one, 0..60).prop_map(|drawn| {
        let newest = at("2026-10-27T00:00:00Z");
        let points = drawn.into_iter().enumerate().map(|(index, (quarters, standing, held, which))| Point {
            name: format!("b{index:02}"),
            cut: newest - SignedDuration::from_mins(15 * quarters),
            standing,
            held,
            applications: applications(if which == 0 { &["db", "gone"] } else { &["db"] }),
        });
        points.collect()
    })
}

fn some_rules() -> impl Strategy<Value = Rules> {
    let zones = prop::sample::select(vec![
        "Etc/UTC",
        "Europe/Berlin",
        "Australia/Lord_Howe",
        "America/Santiago",
        "Asia/Kathmandu",
    ]);
    let numbers = [0_u32..4, 0..6, 0..5, 0..4, 0..4, 0..3];
    (numbers, 0_u64..40, zones).prop_map(|([last, hourly, daily, weekly, monthly, yearly], hours, name)| {
        Rules {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within: Duration::from_secs(hours.saturating_sub(20) * 3600),
            zone: zone(name),
        }
    })
}

fn names(plan: &Plan) -> BTreeSet<String> {
    plan.keep.iter().map(|kept| kept.name.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn every_point_stays_with_a_reason_or_goes(points in some_points(), rules in some_rules()) {
        let plan = decide(&points, &rules);
        let mut all = names(&plan);
        prop_assert!(plan.keep.iter().all(|kept| !kept.reasons.is_empty()));
        prop_assert_eq!(plan.keep.len() + plan.delete.len() + plan.delete_failed.len(), points.len());
        all.extend(plan.delete);
        all.extend(plan.delete_failed);
        prop_assert_eq!(all.len(), points.len());
    }

    #[test]
    fn the_newest_proven_point_of_each_application_is_never_deleted(points in some_points(), rules in some_rules()) {
        let stay = names(&decide(&points, &rules));
        for application in ["db", "gone"] {
            let with = points.iter().filter(|point| {
                point.standing == Standing::Proven && point.applications.iter().any(|name| name == application)
            });
            let newest = with.max_by(|a, b| a.cut.cmp(&b.cut).then_with(|| a.name.cmp(&b.name)));
            prop_assert!(newest.is_none_or(|newest| stay.contains(&newest.name)));
        }
    }

    #[test]
    fn what_the_rules_keep_is_what_the_calendar_says(points in some_points(), rules in some_rules()) {
        prop_assume!(!rules.is_empty());
        let points: Vec<Point> = points
            .into_iter()
            .map(|point| Point { held: false, applications: applications(&["db"]), ..point })
            .collect();
        let proven: BTreeSet<String> = points
            .iter()
            .filter(|point| point.standing == Standing::Proven)
            .map(|point| point.name.clone())
            .collect();
        let kept: BTreeSet<String> = names(&decide(&points, &rules)).intersection(&proven).cloned().collect();
        prop_assert_eq!(kept, by_the_calendar(&points, &rules));
    }

    #[test]
    fn a_rule_that_asks_for_more_lets_nothing_go_that_stayed(
        points in some_points(), rules in some_rules(), which in 0..7, more in 1_u32..9,
    ) {
        prop_assume!(!rules.is_empty());
        let mut larger = rules.clone();
        match which {
            0 => larger.last += more,
            1 => larger.hourly += more,
            2 => larger.daily += more,
            3 => larger.weekly += more,
            4 => larger.monthly += more,
            5 => larger.yearly += more,
            _ => larger.within += Duration::from_secs(3600 * u64::from(more)),
        }
        prop_assert!(names(&decide(&points, &rules)).is_subset(&names(&decide(&points, &larger))));
    }

    #[test]
    fn a_hold_lets_no_other_point_go(points in some_points(), rules in some_rules(), which in any::<prop::sample::Index>()) {
        prop_assume!(!points.is_empty());
        let mut held = points.clone();
        which.get_mut(&mut held).held = true;
        let before = names(&decide(&points, &rules));
        // The quota of failures is filled up by another one, and a longer `within` is measured from another newest.
        prop_assume!(rules.within.is_zero());
        prop_assert!(before.is_subset(&names(&decide(&held, &rules))));
    }

    #[test]
    fn deletes_in_any_order_and_number_change_nothing_about_the_rest(
        points in some_points(), rules in some_rules(), gone in prop::collection::vec(any::<bool>(), 60),
    ) {
        let first = decide(&points, &rules);
        let going: Vec<&String> = first.delete.iter().chain(&first.delete_failed).collect();
        let left: Vec<Point> = points
            .iter()
            .filter(|point| !going.iter().zip(&gone).any(|(name, gone)| *gone && **name == point.name))
            .cloned()
            .collect();
        prop_assert_eq!(decide(&left, &rules).keep, first.keep);
    }

    #[test]
    fn the_order_in_which_points_are_seen_does_not_matter(
        points in some_points().prop_flat_map(|points| (Just(points.clone()), Just(points).prop_shuffle())),
        rules in some_rules(),
    ) {
        prop_assert_eq!(decide(&points.0, &rules), decide(&points.1, &rules));
    }

    #[test]
    fn failed_and_unfinished_runs_have_no_say_about_points(points in some_points(), rules in some_rules()) {
        let usable = |point: &&Point| match point.standing {
            Standing::Proven | Standing::Unproven | Standing::Lost => true,
            Standing::Failed | Standing::Unfinished => false,
        };
        let without: Vec<Point> = points.iter().filter(usable).cloned().collect();
        prop_assert_eq!(decide(&points, &rules).delete, decide(&without, &rules).delete);
    }

    #[test]
    fn time_alone_lets_nothing_go(points in some_points(), rules in some_rules(), days in 0_i64..4000) {
        let later = now() + SignedDuration::from_hours(24 * days);
        prop_assert_eq!(plan(&points, &rules, false, later), decide(&points, &rules));
    }
}
