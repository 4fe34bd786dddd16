//! Civil slots become instants, and how far a zone's clock changes can reorder them.
//!
//! A slot in a skipped hour moves forward by the gap (02:30 becomes 03:30), so a daily backup is never lost. A
//! slot in a repeated hour runs at its first pass; at both only when the hour field means "at intervals"
//! (docs/design/schedule.md §1.3).

use std::sync::LazyLock;

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

use super::dialect::Field;
use super::schedule::ScheduleError;

/// The largest change of any zone's clock since 1970 is 24 h (Pacific/Apia 2011), with two hours to spare.
pub(super) const REACH: SignedDuration = SignedDuration::from_hours(26);

/// The bundled database only: the same answers in every image, whatever the host has installed.
static DATABASE: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The instants of one civil slot, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instants {
    /// The usual case.
    One(Timestamp),
    /// Both passes of a repeated hour.
    Two(Timestamp, Timestamp),
    /// Outside the range of time.
    None,
}

impl Instants {
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Timestamp> {
        let (first, second) = match self {
            Self::One(only) => (Some(only), None),
            Self::Two(first, second) => (Some(first), Some(second)),
            Self::None => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// Finds a zone by its IANA name, in any letter case; its canonical name is used from there on.
///
/// # Errors
/// Empty, `Local` and unknown names.
pub(super) fn find(name: &str) -> Result<TimeZone, ScheduleError> {
    let bad = |reason: &str| ScheduleError {
        field: Field::TimeZone,
        value: name.chars().take(64).collect(),
        reason: reason.to_owned(),
    };
    if name.is_empty() {
        return Err(bad("is empty; leave it out for Etc/UTC or give an IANA name such as Europe/Berlin"));
    }
    if name.eq_ignore_ascii_case("local") {
        return Err(bad(
            "would depend on where the controller runs; give an IANA name such as Europe/Berlin",
        ));
    }
    DATABASE
        .get(name)
        .map_err(|_| bad("is not in the time zone database; give an IANA name such as Europe/Berlin"))
}

/// Maps one civil slot.
pub(super) fn instants(zone: &TimeZone, civil: i64, both_passes: bool) -> Instants {
    let Some(datetime) = datetime(civil) else { return Instants::None };
    let ambiguous = zone.to_ambiguous_timestamp(datetime);
    let one = |result: Result<Timestamp, jiff::Error>| result.map_or(Instants::None, Instants::One);
    match ambiguous.offset() {
        AmbiguousOffset::Fold { .. } if both_passes => match (ambiguous.earlier(), ambiguous.later()) {
            (Ok(first), Ok(second)) => Instants::Two(first, second),
            (first, _) => one(first),
        },
        // `compatible`: the first pass of a fold, forward by the gap's length.
        AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Gap { .. } | AmbiguousOffset::Fold { .. } => {
            one(ambiguous.compatible())
        }
    }
}

/// Civil seconds of `at` on the zone's wall.
pub(super) fn civil(zone: &TimeZone, at: Timestamp) -> i64 {
    at.as_second() + i64::from(zone.to_offset(at).seconds())
}

/// How far, in civil seconds, slots around `at` may be out of order: the spread of offsets in use nearby, zero
/// when the clock does not change. A civil slot more than this beyond another is beyond it in time as well.
pub(super) fn disorder(zone: &TimeZone, at: Timestamp) -> i64 {
    let from = at.saturating_sub(REACH).unwrap_or(Timestamp::MIN);
    let to = at.saturating_add(REACH).unwrap_or(Timestamp::MAX);
    let start = zone.to_offset(from).seconds();
    let (mut low, mut high) = (start, start);
    for change in zone.following(from).take_while(|change| change.timestamp() <= to) {
        low = low.min(change.offset().seconds());
        high = high.max(change.offset().seconds());
    }
    i64::from(high - low)
}

/// The instants at which the zone's clock changes, in `(from, to]`.
pub(super) fn changes(
    zone: &TimeZone,
    from: Timestamp,
    to: Timestamp,
) -> impl Iterator<Item = Timestamp> + '_ {
    let mut offset = zone.to_offset(from);
    zone.following(from).take_while(move |change| change.timestamp() <= to).filter_map(move |change| {
        // Some entries rename the zone only.
        let moved = change.offset() != offset;
        offset = change.offset();
        moved.then(|| change.timestamp())
    })
}

fn datetime(civil: i64) -> Option<DateTime> {
    Timestamp::from_second(civil).ok().map(|naive| Offset::UTC.to_datetime(naive))
}
