//! `stillpoint explain`: the slots of a schedule, its intervals, what the changes of the clock in the coming year do to
//! it, and whether it can meet an objective.

use jiff::Zoned;
use jiff::tz::{Offset, TimeZone};
use serde::Serialize;
use stillpoint_api::clock::Clock;
use stillpoint_scheduler::cron::{self, ClockChange, Effect, Explanation};

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
    /// Of the coming year.
    clock_changes: Vec<ExplainedChange>,
}

/// A change of the clock in the JSON form.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExplainedChange {
    /// The first instant of the new time, RFC 3339 with the new offset.
    at: String,
    /// Seconds; negative when the clock goes back.
    forward: i64,
    /// `untouched`, `moved`, `once` or `twice`.
    effect: &'static str,
    /// How many slots it is about.
    slots: usize,
    /// Seconds, of the intervals about the change.
    min_interval: Option<u64>,
    /// Seconds, of the intervals about the change.
    max_interval: Option<u64>,
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
    Ok(match explanation.rpo_attainable {
        Some(false) => Exit::Failed,
        Some(true) | None => Exit::Success,
    })
}

fn json(explanation: &Explanation) -> Explained {
    Explained {
        slots: explanation.slots.iter().map(offset_time).collect(),
        min_interval: explanation.min_interval.map(|interval| interval.as_secs()),
        max_interval: explanation.max_interval.map(|interval| interval.as_secs()),
        rpo_attainable: explanation.rpo_attainable,
        clock_changes: explanation.clock_changes.iter().map(explained_change).collect(),
    }
}

fn explained_change(change: &ClockChange) -> ExplainedChange {
    let (effect, slots) = match &change.effect {
        Effect::Untouched => ("untouched", 0),
        Effect::Moved { slots, .. } => ("moved", *slots),
        Effect::Once { slots, .. } => ("once", *slots),
        Effect::Twice { slots, .. } => ("twice", *slots),
    };
    ExplainedChange {
        at: offset_time(&change.at),
        forward: change.forward.as_secs(),
        effect,
        slots,
        min_interval: change.intervals.map(|(least, _)| least.as_secs()),
        max_interval: change.intervals.map(|(_, most)| most.as_secs()),
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
    text.push_str(&clock_changes(args, explanation));
    if let (Some(attainable), Some(rpo)) = (explanation.rpo_attainable, args.rpo) {
        text.push_str(&match (attainable, explanation.max_interval) {
            (true, _) => format!("RPO {rpo}: attainable when every run succeeds\n"),
            (false, Some(max)) => format!(
                "RPO {rpo}: NOT attainable, the longest interval is {}; run more often, or ask for that and the time \
                 until a snapshot is ready\n",
                length(max)
            ),
            (false, None) => format!("RPO {rpo}: NOT attainable, it does not fire twice\n"),
        });
    }
    text
}

/// The changes of the coming year, each with what it does to this schedule.
fn clock_changes(args: &ExplainArgs, explanation: &Explanation) -> String {
    if explanation.clock_changes.is_empty() {
        return format!("Clock changes: none in {} in the coming year\n", args.tz);
    }
    let mut rows =
        vec![["", "DAY", "CLOCK", "INTERVALS ABOUT IT", "THE SCHEDULE"].map(str::to_owned).to_vec()];
    for change in &explanation.clock_changes {
        let intervals = change.intervals.map(|(least, most)| {
            if least == most { length(least) } else { format!("{} to {}", length(least), length(most)) }
        });
        rows.push(vec![
            change.at.strftime("%Y-%m-%d").to_string(),
            change.at.strftime("%a").to_string(),
            moves(change),
            intervals.unwrap_or_default(),
            effect(change),
        ]);
    }
    format!("\nClock changes in the coming year:\n{}\n", output::table(&rows))
}

fn effect(change: &ClockChange) -> String {
    let more = |slots: usize| {
        if slots > 1 { format!(", and {} more slots likewise", slots - 1) } else { String::new() }
    };
    match &change.effect {
        Effect::Untouched => {
            let hour = if change.forward.is_negative() { "comes twice" } else { "is skipped" };
            format!("no slot in what {hour}")
        }
        Effect::Moved { slots, written, runs } => format!(
            "{} does not exist: runs at {}{}",
            written.strftime("%H:%M"),
            runs.strftime("%H:%M %:z"),
            more(*slots)
        ),
        Effect::Once { slots, first } => {
            format!(
                "{} comes twice: runs the first time, {}{}",
                first.strftime("%H:%M"),
                first.strftime("%:z"),
                more(*slots)
            )
        }
        Effect::Twice { slots, first } => {
            format!(
                "{} comes twice: runs both times, as an interval{}",
                first.strftime("%H:%M"),
                more(*slots)
            )
        }
    }
}

/// What the clock does on the day of a slot.
fn remark(slot: &Zoned, changes: &[ClockChange]) -> String {
    let change = changes.iter().find(|change| change.at.date() == slot.date());
    change.map(|change| format!("clock goes {}", moves(change))).unwrap_or_default()
}

/// `forward 1h (02:00 becomes 03:00)`.
fn moves(change: &ClockChange) -> String {
    let old = i64::from(change.at.offset().seconds()) - change.forward.as_secs();
    let old = i32::try_from(old).ok().and_then(|old| Offset::from_seconds(old).ok()).unwrap_or(Offset::UTC);
    let wall_before = change.at.timestamp().to_zoned(TimeZone::fixed(old)).strftime("%H:%M").to_string();
    let wall_after = change.at.strftime("%H:%M").to_string();
    let direction = if change.forward.is_negative() { "back" } else { "forward" };
    format!("{direction} {} ({wall_before} becomes {wall_after})", length(change.forward.unsigned_abs()))
}
