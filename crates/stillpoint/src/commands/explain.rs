//! `stillpoint explain`: the slots of a schedule, its intervals, and what a change of the clock does to it.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Zoned};
use serde::Serialize;
use stillpoint_api::clock::Clock;
use stillpoint_scheduler::cron::{self, Explanation};

use crate::cli::ExplainArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, length};

/// The JSON form; a contract with scripts.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    /// RFC 3339 with the zone's offset.
    slots: Vec<String>,
    /// Seconds.
    min_interval: Option<u64>,
    /// Seconds.
    max_interval: Option<u64>,
    rpo_attainable: Option<bool>,
}

/// Explains a schedule.
///
/// # Errors
/// The expression or the zone is wrong.
pub fn run(args: &ExplainArgs, clock: &dyn Clock) -> Result<Exit, Failure> {
    let from = args.from.unwrap_or_else(|| clock.wall());
    let rpo = args.rpo.map(|rpo| rpo.get());
    let explanation =
        cron::explain(&args.expression, &args.tz, from, usize::from(args.count), rpo).map_err(|error| {
            Failure::new(
                format!("cannot explain {:?} in zone {:?}", args.expression, args.tz),
                error.to_string(),
                "",
            )
        })?;
    match args.output {
        Format::Json => output::print_json(&json(&explanation))?,
        Format::Text => output::print(&text(args, &explanation))?,
    }
    Ok(Exit::Success)
}

fn json(explanation: &Explanation) -> Explained {
    Explained {
        slots: explanation.slots.iter().map(offset_time).collect(),
        min_interval: explanation.min_interval.map(|interval| interval.as_secs()),
        max_interval: explanation.max_interval.map(|interval| interval.as_secs()),
        rpo_attainable: explanation.rpo_attainable,
    }
}

fn offset_time(at: &Zoned) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

fn text(args: &ExplainArgs, explanation: &Explanation) -> String {
    let mut rows =
        vec![["", "LOCAL", "DAY", "OFFSET", "UTC", "SINCE THE LAST", "REMARK"].map(str::to_owned).to_vec()];
    for (index, slot) in explanation.slots.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|before| explanation.slots.get(before));
        let since =
            before.and_then(|before| slot.timestamp().duration_since(before.timestamp()).try_into().ok());
        rows.push(vec![
            (index + 1).to_string(),
            slot.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            slot.strftime("%a").to_string(),
            slot.strftime("%:z").to_string(),
            output::instant(slot.timestamp()),
            since.map(length).unwrap_or_default(),
            remark(slot, &explanation.clock_changes),
        ]);
    }
    let mut text = format!("{}  in {}\n\n{}", args.expression, args.tz, output::table(&rows));
    if explanation.slots.is_empty() {
        text.push_str("\nIt does not fire any more.\n");
    }
    text.push('\n');
    if let (Some(min), Some(max)) = (explanation.min_interval, explanation.max_interval) {
        if min == max {
            text.push_str(&format!("Interval: always {}\n", length(min)));
        } else {
            text.push_str(&format!("Interval: {} to {}\n", length(min), length(max)));
        }
    }
    if let (Some(attainable), Some(rpo)) = (explanation.rpo_attainable, args.rpo) {
        text.push_str(&if attainable {
            format!("RPO {rpo}: attainable when every run succeeds\n")
        } else {
            format!("RPO {rpo}: NOT attainable, the longest interval is longer\n")
        });
    }
    text
}

/// What the clock does on the day of a slot.
fn remark(slot: &Zoned, changes: &[Zoned]) -> String {
    let Some(change) = changes.iter().find(|change| change.date() == slot.date()) else {
        return String::new();
    };
    let Ok(before) = change.timestamp().checked_sub(SignedDuration::from_nanos(1)) else {
        return String::new();
    };
    let old = before.to_zoned(change.time_zone().clone()).offset();
    let moved = SignedDuration::from_secs(i64::from(change.offset().seconds() - old.seconds()));
    let wall_before = change.timestamp().to_zoned(TimeZone::fixed(old)).strftime("%H:%M").to_string();
    let wall_after = change.strftime("%H:%M").to_string();
    let by = length(moved.unsigned_abs());
    let direction = if moved.is_negative() { "back" } else { "forward" };
    format!("clock goes {direction} {by} ({wall_before} becomes {wall_after})")
}
