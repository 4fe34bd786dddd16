//! What holds for every expression, zone and instant: slots against a walk over the wall clock, the order of slots, and
//! another implementation of cron.

use std::str::FromStr as _;

use jiff::tz::{AmbiguousOffset, Offset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, Zoned};
use proptest::prelude::*;

use super::*;

/// Origin of `@every`, which no expression here uses.
const ANCHOR: Timestamp = Timestamp::UNIX_EPOCH;

/// Around a change of the clock: the largest one, 24 h, and some.
const AROUND: SignedDuration = SignedDuration::from_hours(30);

/// The seconds of 1970 to 2099.
const SECONDS: std::ops::Range<i64> = 0..130 * 31_556_952;

fn zones() -> Vec<String> {
    TimeZoneDatabase::bundled().available().map(|name| name.as_str().to_owned()).collect()
}

fn parse(expression: &str, zone: &str) -> Schedule {
    Schedule::parse(expression, zone, ANCHOR)
        .unwrap_or_else(|error| panic!("{expression:?} in {zone}: {error}"))
}

/// An expression, and the same in words that need no parser.
struct Plain {
    expression: &'static str,
    matches: fn(hour: i8, minute: i8) -> bool,
    both_passes: bool,
    /// How far from a change it is compared: dense ones nearby only, where order matters.
    reach: SignedDuration,
}

const PLAIN: [Plain; 3] = [
    Plain {
        expression: "*/20 * * * *",
        matches: |_, minute| minute % 20 == 0,
        both_passes: true,
        reach: SignedDuration::from_hours(4),
    },
    Plain {
        expression: "10,50 0-4 * * *",
        matches: |hour, minute| hour <= 4 && (minute == 10 || minute == 50),
        both_passes: false,
        reach: AROUND,
    },
    Plain {
        expression: "30 23 * * *",
        matches: |hour, minute| hour == 23 && minute == 30,
        both_passes: false,
        reach: AROUND,
    },
];

/// The slots in `(from, to]` by looking at every tenth minute of the wall clock: the definition, without any calendar.
fn by_brute_force(plain: &Plain, zone: &TimeZone, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
    let mut slots = Vec::new();
    let civil = |at: Timestamp| at.as_second() + i64::from(zone.to_offset(at).seconds());
    // A slot may be moved by as much as the clock: what is written up to a day earlier or later counts.
    let first = (civil(from) - AROUND.as_secs()).div_euclid(600) * 600;
    for second in (first..civil(to) + AROUND.as_secs()).step_by(600) {
        let minutes = second.div_euclid(60);
        let of_day = |number: i64, per: i64| i8::try_from(number.rem_euclid(per)).unwrap();
        if (plain.matches)(of_day(minutes.div_euclid(60), 24), of_day(minutes, 60)) {
            let written = Offset::UTC.to_datetime(Timestamp::from_second(second).unwrap());
            let ambiguous = zone.to_ambiguous_timestamp(written);
            slots.push(ambiguous.compatible().unwrap());
            if plain.both_passes && matches!(ambiguous.offset(), AmbiguousOffset::Fold { .. }) {
                slots.push(ambiguous.later().unwrap());
            }
        }
    }
    slots.retain(|slot| *slot > from && *slot <= to);
    slots.sort();
    slots.dedup();
    slots
}

/// Compares around the changes of `zones` in the given years, forward and backward; the number of slots.
fn agree_with_brute_force(zones: &[String], years: &[i16]) -> usize {
    let mut compared = 0;
    for name in zones {
        for plain in &PLAIN {
            let schedule = parse(plain.expression, name);
            let zone = schedule.zone().clone();
            for year in years {
                let start = jiff::civil::date(*year, 1, 1).to_zoned(TimeZone::UTC).unwrap().timestamp();
                let end = start + SignedDuration::from_hours(366 * 24);
                let changes = zone.following(start).map(|change| change.timestamp());
                for change in changes.take_while(|change| *change < end) {
                    // A change of a whole day is looked at from afar.
                    let moved = i64::from(zone.to_offset(change).seconds())
                        - i64::from(zone.to_offset(change - SignedDuration::from_secs(1)).seconds());
                    let reach = if moved.abs() > 2 * 3600 { AROUND } else { plain.reach };
                    let (from, to) = (change - reach, change + reach);
                    let expected = by_brute_force(plain, &zone, from, to);
                    let found: Vec<Timestamp> = schedule.slots(from).take_while(|slot| *slot <= to).collect();
                    assert_eq!(found, expected, "{} in {name} around {change}", plain.expression);
                    for pair in expected.windows(2) {
                        assert_eq!(schedule.prev(pair[1]), Some(pair[1]), "{} in {name}", plain.expression);
                        let just_before = pair[1] - SignedDuration::from_secs(1);
                        assert_eq!(
                            schedule.prev(just_before),
                            Some(pair[0]),
                            "{} in {name}",
                            plain.expression
                        );
                    }
                    compared += expected.len();
                }
            }
        }
    }
    compared
}

/// Every zone of the database at every change of its clock in 2026 and 2027, and in 2011, when a zone left out a day.
#[test]
fn slots_agree_with_brute_force_in_every_zone() {
    let zones = zones();
    assert!(zones.len() > 590, "{}", zones.len());
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2);
    let compared: usize = std::thread::scope(|scope| {
        let running: Vec<_> = zones
            .chunks(zones.len().div_ceil(threads))
            .map(|zones| scope.spawn(|| agree_with_brute_force(zones, &[2011, 2026, 2027])))
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(compared > 60_000, "{compared}");
}

/// A field: `*`, stepped, a range, a list, one number; numbers from `low` to `high`.
fn field(low: u32, high: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        Just("*".to_owned()),
        (1..=high).prop_map(|step| format!("*/{step}")),
        (low..=high, low..=high).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        (low..=high, low..=high, 1..=high).prop_map(|(a, b, step)| format!(
            "{}-{}/{step}",
            a.min(b),
            a.max(b)
        )),
        proptest::collection::vec(low..=high, 1..4).prop_map(|numbers| numbers
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(",")),
        (low..=high).prop_map(|number| number.to_string()),
    ]
}

/// Five fields. Days up to the 28th, so that each of them fires.
fn expressions() -> impl Strategy<Value = String> {
    (field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6))
        .prop_map(|(minute, hour, day, month, weekday)| format!("{minute} {hour} {day} {month} {weekday}"))
}

/// The same cases on every machine.
fn cases(number: u32) -> ProptestConfig {
    ProptestConfig {
        cases: number,
        failure_persistence: None,
        rng_seed: prop::test_runner::RngSeed::Fixed(20_261_120),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn in_any_zone_next_is_later_and_slots_strictly_increase_and_prev_undoes_next(
        expression in expressions(),
        zone in prop::sample::select(zones()),
        second in SECONDS,
        nanosecond in 0..1_000_000_000_i32,
    ) {
        let schedule = parse(&expression, &zone);
        let mut now = Timestamp::new(second, nanosecond).unwrap();
        for _ in 0..4 {
            let Some(next) = schedule.next(now) else { break };
            prop_assert!(next > now, "{expression} in {zone}: {next} is not after {now}");
            prop_assert_eq!(schedule.prev(next), Some(next));
            let before = schedule.prev(next - SignedDuration::from_nanos(1));
            prop_assert!(before.is_none_or(|slot| slot <= now), "{expression} in {zone}: {before:?} was left out");
            now = next;
        }
    }
}

/// The day rule of the other implementation: a day field is starred only when it is exactly `*`. Ours, a CronJob's, also
/// takes a list with a star and `*/1` for one. Where they differ the field is written so that both mean the same.
fn for_the_other(expression: &str) -> String {
    let star = |field: &str| field.split(',').any(|item| matches!(item, "*" | "?" | "*/1"));
    let fields: Vec<&str> = expression.split(' ').collect();
    let day = |field: &str| if star(field) { "*".to_owned() } else { field.to_owned() };
    format!("{} {} {} {} {}", fields[0], fields[1], day(fields[2]), fields[3], day(fields[4]))
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn in_utc_slots_agree_with_another_implementation(expression in expressions(), second in SECONDS) {
        let from = Timestamp::from_second(second).unwrap();
        let ours: Vec<Timestamp> = parse(&expression, "Etc/UTC").slots(from).take(6).collect();
        let other = croner::Cron::from_str(&for_the_other(&expression)).unwrap();
        let start: Zoned = from.to_zoned(TimeZone::UTC);
        let theirs: Vec<Timestamp> =
            other.iter_after(start).take(ours.len()).map(|slot| slot.timestamp()).collect();
        prop_assert_eq!(&ours, &theirs, "{}", expression);
    }
}

#[test]
fn the_day_rule_differs_from_the_other_implementation_only_in_what_is_a_star() {
    let from: Timestamp = "2026-11-20T00:00:00Z".parse().unwrap();
    let differ = |expression: &str, written: &str| {
        let ours = parse(expression, "Etc/UTC").slots(from).take(8).collect::<Vec<_>>();
        let other = croner::Cron::from_str(written).unwrap();
        let theirs = other.iter_after(from.to_zoned(TimeZone::UTC)).take(8).map(|slot| slot.timestamp());
        ours != theirs.collect::<Vec<_>>()
    };
    for (expression, differs) in [
        ("0 0 13 * 5", false),
        ("0 0 */2 * 1", false),
        ("0 0 1-31 * 1", false),
        ("0 0 */1 * 1", true),
        ("0 0 13 * */1", true),
    ] {
        assert_eq!(differ(expression, expression), differs, "{expression}");
        assert!(!differ(expression, &for_the_other(expression)), "{expression}");
    }
}

#[path = "../../fuzz/expression.rs"]
mod expression;

/// A short run of what the fuzz target does, the same on every machine: any bytes, and bytes of the dialect.
#[test]
fn no_text_makes_the_parser_panic_and_what_it_accepts_fires() {
    let mut state = 7_u64;
    let mut roll = |sides: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    };
    let alphabet = "0123456789*/,-? @LWH#+SUNjanevryhms\u{0}é\t".as_bytes();
    let mut accepted = 0;
    for round in 0..20_000 {
        let length = roll(16);
        let bytes: Vec<u8> = (0..length)
            .map(|_| match round % 4 {
                0 => u8::try_from(roll(256)).unwrap(),
                _ => alphabet[usize::try_from(roll(alphabet.len() as u64)).unwrap()],
            })
            .collect();
        accepted += u32::from(expression::check(&bytes));
    }
    // Five fields at random are rare; whole ones with a fault in them are the other half.
    for round in 0..3_000 {
        let fields: Vec<String> = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
            .map(|(low, high)| match roll(4) {
                0 => "*".to_owned(),
                1 => format!("*/{}", roll(high + 2)),
                2 => format!("{}-{}", low + roll(high), low + roll(high)),
                _ => (low + roll(high + 2 - low)).to_string(),
            })
            .to_vec();
        let mut text = fields.join(" ").into_bytes();
        if round % 3 == 0 {
            let place = usize::try_from(roll(text.len() as u64)).unwrap();
            text[place] = u8::try_from(roll(128)).unwrap();
        }
        accepted += u32::from(expression::check(&text));
    }
    assert!(accepted > 500, "{accepted}");
}
