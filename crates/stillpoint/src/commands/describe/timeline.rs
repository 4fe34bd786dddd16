//! Draws the freeze window: what happened when, from t0 to the last THAWED, on a bar to scale.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use stillpoint_api::backup::BackupStatus;
use stillpoint_api::evidence::{HoldKind, MemberEvidence, Offset};

use crate::commands::backup::stops_commits;
use crate::output::{length, precise, seconds};

/// Columns of the bar: with offset and text it fits a terminal of 100.
const WIDTH: usize = 40;

/// Events of one kind that are drawn one by one; of more, the first and the last are.
const DRAWN: usize = 6;

/// What a mark on the bar stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Freeze,
    Barrier,
    Frozen,
    Signal,
    Stage,
    Staged,
    Post,
    Thaw,
    Thawed,
    Ended,
}

#[derive(Clone, Debug)]
struct Event {
    at: Offset,
    mark: Mark,
    text: String,
}

/// A bar from t0 to `end` with a symbol at `at` and the held part before it shaded.
#[derive(Clone, Copy, Debug)]
struct Bar {
    at: Offset,
    held: Option<(Offset, Offset)>,
    end: Offset,
    symbol: char,
    shade: char,
}

impl Mark {
    const ALL: [Self; 10] = [
        Self::Freeze,
        Self::Barrier,
        Self::Frozen,
        Self::Signal,
        Self::Stage,
        Self::Staged,
        Self::Post,
        Self::Thaw,
        Self::Thawed,
        Self::Ended,
    ];

    const fn symbol(self) -> char {
        match self {
            Self::Freeze => '│',
            Self::Barrier => '≡',
            Self::Frozen => '■',
            Self::Stage => '▷',
            Self::Staged => '▪',
            Self::Post => '▸',
            Self::Signal => '◆',
            Self::Thaw => '▹',
            Self::Thawed => '□',
            Self::Ended => '✕',
        }
    }

    const fn plural(self) -> &'static str {
        match self {
            Self::Freeze => "FREEZE sent",
            Self::Barrier => "barriers",
            Self::Frozen => "FROZEN",
            Self::Stage => "stage texts sent",
            Self::Staged => "stages answered",
            Self::Post => "snapshots posted",
            Self::Signal => "cut signals",
            Self::Thaw => "THAW sent",
            Self::Thawed => "THAWED",
            Self::Ended => "statements in the way ended",
        }
    }
}

impl Bar {
    fn draw(self) -> String {
        (0..WIDTH)
            .map(|place| match self.held {
                _ if place == self.column(self.at) => self.symbol,
                Some((from, to)) if (self.column(from)..self.column(to)).contains(&place) => self.shade,
                Some(_) | None => '·',
            })
            .collect()
    }

    fn column(self, at: Offset) -> usize {
        let scaled = i128::from(at.0.clamp(0, self.end.0)) * (WIDTH as i128 - 1) / i128::from(self.end.0);
        usize::try_from(scaled).unwrap_or(0)
    }
}

/// The window as text; empty while nothing was frozen.
pub fn draw(status: &BackupStatus) -> String {
    let Some(window) = &status.window else { return String::new() };
    let locks = stops_commits(status);
    let mut applications = status.resolved.iter().flat_map(|resolved| &resolved.applications);
    let held = applications.any(|application| application.hold != HoldKind::None);
    let what = match (held, locks) {
        (true, true) => "Freeze window",
        (true, false) => "Window (nobody was stopped)",
        (false, _) => "Cut (nothing was held)",
    };
    let mut text = format!("{what}:");
    let head = text.len();
    if let Some(frozen) = window.frozen_seconds {
        let _ = write!(text, " {}", seconds(frozen));
    }
    // Nothing was promised of what is not held.
    if let Some(resolved) = status.resolved.as_ref().filter(|resolved| held && resolved.max_hold_millis > 0) {
        let promised = Duration::from_millis(resolved.max_hold_millis);
        let _ = write!(text, " (promised: at most {})", length(promised));
    }
    if let Some(started) = &window.started_at {
        let comma = if text.len() > head { "," } else { "" };
        let _ = write!(text, "{comma} from {}", precise(started.0));
    }
    text.push('\n');
    let events = events(status);
    // An observer stops nobody: what it watched over is not drawn as frozen.
    let shade = if locks { '━' } else { '─' };
    let locked = window.locked.or(events.iter().map(|event| event.at).min());
    let end = window.thawed.max(events.iter().map(|event| event.at).max()).unwrap_or_default();
    let end = Offset(end.0.max(1));
    let _ = writeln!(
        text,
        "{:>10}  {}  {} (t0)",
        "0.0 ms",
        Bar { at: Offset(0), held: None, end, symbol: '│', shade }.draw(),
        if held { "the first FREEZE is sent" } else { "it begins" }
    );
    for event in &events {
        let held = locked.filter(|locked| event.at > *locked).map(|locked| (locked, event.at));
        let bar = Bar { at: event.at, held, end, symbol: event.mark.symbol(), shade }.draw();
        let _ = writeln!(text, "{:>10}  {bar}  {}", offset(event.at), event.text);
    }
    let storage = window.cut_start.zip(window.cut_end).map(|(from, to)| Offset(to.0.saturating_sub(from.0)));
    if let (Some(storage), Some(frozen)) = (storage, window.frozen_seconds) {
        let own = seconds((frozen - storage.seconds()).max(0.0));
        let _ = writeln!(
            text,
            "  of which {} are the storage system's and {own} ours and the application's",
            offset(storage)
        );
    }
    text
}

/// Everything between t0 and t3, in order; many events of one kind become their first and last.
fn events(status: &BackupStatus) -> Vec<Event> {
    let mut all = Vec::new();
    let mut add = |at: Option<Offset>, mark: Mark, text: String| {
        if let Some(at) = at {
            all.push(Event { at, mark, text });
        }
    };
    let first_freeze = status.holds.iter().filter_map(|hold| hold.freeze_sent).min();
    for hold in &status.holds {
        let of = format!("{} ({})", hold.application, hold.pod_name);
        // The first FREEZE is t0 itself; a later order has its own.
        let later = hold.freeze_sent.filter(|at| Some(*at) > first_freeze);
        add(later, Mark::Freeze, format!("FREEZE sent  {of}"));
        for stage in &hold.stages {
            let name = format!("stage {}", stage.stage);
            add(stage.sent, Mark::Stage, format!("{name} begins  {of}"));
            add(
                stage.frozen.as_ref().map(|answer| answer.at),
                Mark::Staged,
                format!("{name} answered  {of}"),
            );
        }
        add(hold.frozen.as_ref().map(|answer| answer.at), Mark::Frozen, format!("FROZEN  {of}"));
        for barrier in &hold.barriers {
            add(Some(barrier.at), Mark::Barrier, format!("barrier {}  {of}", barrier.name));
        }
        for ended in &hold.ended_blockers {
            let how = if ended.failed.is_some() { "could not be ended" } else { "ended" };
            add(Some(ended.sent), Mark::Ended, format!("statement {} in the way {how}  {of}", ended.id));
        }
        let thaw = hold.thaw_sent.or(hold.closing_sent);
        add(thaw, Mark::Thaw, format!("THAW sent  {of}"));
        add(hold.thawed, Mark::Thawed, format!("THAWED  {of}"));
    }
    let (singles, groups) = by_cut(&status.members);
    for member in singles {
        add(member.post_sent, Mark::Post, format!("snapshot posted  {}", member.claim_name));
        add(member.signal, Mark::Signal, format!("cut signal  {}", member.claim_name));
    }
    for members in groups.values() {
        let Some(first) = members.first() else { continue };
        let claims = members.iter().map(|member| member.claim_name.as_str()).collect::<Vec<_>>().join(", ");
        add(first.post_sent, Mark::Post, format!("group snapshot posted  {claims}"));
        add(first.signal, Mark::Signal, format!("group cut signal  {claims}"));
    }
    all.sort_by_key(|event| (event.at, event.mark));
    for mark in Mark::ALL {
        let count = all.iter().filter(|event| event.mark == mark).count();
        if count > DRAWN {
            let mut seen = 0;
            all.retain_mut(|event| {
                if event.mark != mark {
                    return true;
                }
                seen += 1;
                let which = if seen == 1 { "first" } else { "last" };
                event.text = format!("{which} of {count} {}", mark.plural());
                seen == 1 || seen == count
            });
        }
    }
    all
}

/// Members that were cut alone, and those of each group, which share one request and one signal.
fn by_cut(members: &[MemberEvidence]) -> (Vec<&MemberEvidence>, BTreeMap<&str, Vec<&MemberEvidence>>) {
    let mut singles = Vec::new();
    let mut groups: BTreeMap<&str, Vec<&MemberEvidence>> = BTreeMap::new();
    for member in members {
        match &member.group {
            None => singles.push(member),
            Some(group) => groups.entry(&group.volume_group_snapshot).or_default().push(member),
        }
    }
    (singles, groups)
}

fn offset(at: Offset) -> String {
    let sign = if at.0 < 0 { "-" } else { "" };
    format!("{sign}{}", seconds(at.seconds().abs()))
}
