//! Decides which recovery points of one policy may go, and says why the others stay.
//!
//! Pure. Only proven, ready points count towards what is kept; the newest of them, and of each application, never goes;
//! time alone lets nothing go, only newer points do; nothing goes while the clock is in doubt, and nothing at once that
//! looks like a mistake ([`hold_back`]) (docs/design/schedule.md §5).

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use stillpoint_api::policy::{DEFAULT_RETENTION_LAST, Retention};

/// Failed runs that are kept for inspection, newest first; they never push out a proven point.
pub const FAILED_KEPT: usize = 3;

/// Points that may always be let go at once. More than this *and* more than half of the points is taken for a mistake
/// in an edit. Ten is more than one new point ever lets go: at most one for each rule.
pub const LET_GO_AT_ONCE: usize = 10;

/// Backups of one policy that are being deleted at once: their snapshots load the storage of the application they
/// belong to. The next ones follow when these are gone.
pub const DELETES_AT_ONCE: usize = 2;

/// A Backup as retention sees it; one that is being deleted already is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Name of the Backup.
    pub name: String,
    /// When the data was cut; for a run without a cut, when it was created.
    pub cut: Timestamp,
    /// Where it stands.
    pub standing: Standing,
    /// Under a legal hold (`Backup.spec.hold`).
    pub held: bool,
    /// The applications whose data it has.
    pub applications: Arc<[String]>,
}

/// What a Backup is worth to retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not finished.
    Unfinished,
    /// Finished, ready and proven `Application`.
    Proven,
    /// Finished and usable, but not proven: kept under `BestEffort`.
    Unproven,
    /// Was usable, and somebody deleted a snapshot of it. Its data may be imported: it follows the same rules as the
    /// others, among its like, and goes by no other.
    Lost,
    /// Finished without a usable point.
    Failed,
}

/// `spec.retention` of a policy. A number of 0 is a rule that is not there; rules without any keep everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The newest n points.
    pub last: u32,
    /// The newest point of each of the newest n hours that have one; the hours of a repeated one are two.
    pub hourly: u32,
    /// The same for days.
    pub daily: u32,
    /// The same for ISO weeks.
    pub weekly: u32,
    /// The same for months.
    pub monthly: u32,
    /// The same for years.
    pub yearly: u32,
    /// Every point that is at most this much older than the newest.
    pub within: Duration,
    /// Where days begin: the zone of the policy's schedule.
    pub zone: TimeZone,
}

/// What retention decides about one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Points that stay and why, newest first.
    pub keep: Vec<Kept>,
    /// Failed runs that go, oldest first. They have no data.
    pub delete_failed: Vec<String>,
    /// Points that go, oldest first.
    pub delete: Vec<String>,
}

/// A point that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Name of the Backup.
    pub name: String,
    /// Every reason that there is; at least one.
    pub reasons: Vec<KeepReason>,
}

/// Why a point stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// The n-th of its rule; 1 is the newest.
    Nth(Rule, u32),
    /// Young enough, seen from the newest point.
    Within,
    /// The oldest point, while the rule has fewer points than it asks for: history grows from here.
    Oldest(Rule),
    /// The newest proven point, whatever the rules say.
    Newest,
    /// The newest proven point of an application that newer points do not have.
    NewestOfApplication,
    /// Under a legal hold. It takes no place: what the rules keep, they keep besides.
    Held,
    /// No rule says what may go.
    NoRules,
    /// One of the newest failed runs, kept for inspection.
    RecentFailure,
    /// Not finished.
    Unfinished,
    /// Cut in the future: written by a wrong clock. Never an anchor.
    FutureDated,
    /// Nothing is deleted while the clock is in doubt.
    ClockSkew,
}

/// A rule that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `last`
    Last,
    /// `hourly`
    Hourly,
    /// `daily`
    Daily,
    /// `weekly`
    Weekly,
    /// `monthly`
    Monthly,
    /// `yearly`
    Yearly,
}

/// What keeps a point that no rule keeps; the words of status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// Nothing newer is proven, or nothing newer has its application.
    LastGood,
    /// A legal hold.
    LegalHold,
    /// More would go at once than an edit that was meant.
    Breaker,
    /// The clock is in doubt.
    ClockSkew,
}

impl Guard {
    /// The bounded word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::LastGood => "last_good",
            Self::LegalHold => "legal_hold",
            Self::Breaker => "breaker",
            Self::ClockSkew => "clock_skew",
        }
    }
}

impl Kept {
    /// The guard that alone keeps this point; `None` when a rule does, or when nothing was to go.
    pub fn guard(&self) -> Option<Guard> {
        let mut guard = None;
        for reason in &self.reasons {
            let found = match reason {
                KeepReason::Newest | KeepReason::NewestOfApplication => Guard::LastGood,
                KeepReason::Held => Guard::LegalHold,
                KeepReason::ClockSkew => Guard::ClockSkew,
                KeepReason::Nth(..)
                | KeepReason::Within
                | KeepReason::Oldest(_)
                | KeepReason::NoRules
                | KeepReason::RecentFailure
                | KeepReason::Unfinished
                | KeepReason::FutureDated => return None,
            };
            // A hold that a person set says more than the others.
            guard = Some(if guard == Some(Guard::LegalHold) { Guard::LegalHold } else { found });
        }
        guard
    }
}

/// More would go at once than an edit that was meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// Points that would go.
    pub expiring: usize,
    /// Points that there are.
    pub of: usize,
}

impl Rules {
    /// The rules of `spec.retention`. Left out: the default. Given and empty: none, which keeps everything.
    pub fn new(retention: Option<&Retention>, zone: TimeZone) -> Self {
        let default = Retention { last: Some(DEFAULT_RETENTION_LAST), ..Retention::default() };
        let given = retention.unwrap_or(&default);
        Self {
            last: given.last.unwrap_or(0),
            hourly: given.hourly.unwrap_or(0),
            daily: given.daily.unwrap_or(0),
            weekly: given.weekly.unwrap_or(0),
            monthly: given.monthly.unwrap_or(0),
            yearly: given.yearly.unwrap_or(0),
            within: given.within.map_or(Duration::ZERO, |within| within.get()),
            zone,
        }
    }

    fn is_empty(&self) -> bool {
        let numbers = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        numbers.iter().all(|number| *number == 0) && self.within.is_zero()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

/// As status shows it: `daily-3`, `oldest-monthly`, `held`.
impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nth(rule, nth) => write!(f, "{rule}-{nth}"),
            Self::Oldest(rule) => write!(f, "oldest-{rule}"),
            Self::Within => f.write_str("within"),
            Self::Newest => f.write_str("newest"),
            Self::NewestOfApplication => f.write_str("newest-of-application"),
            Self::Held => f.write_str("held"),
            Self::NoRules => f.write_str("no-rules"),
            Self::RecentFailure => f.write_str("recent-failure"),
            Self::Unfinished => f.write_str("unfinished"),
            Self::FutureDated => f.write_str("future-dated"),
            Self::ClockSkew => f.write_str("clock-skew"),
        }
    }
}

/// What `rules` say about `points` at `now`. `skewed`: the clock is in doubt.
///
/// `now` only tells which points are from the future: a scheduler that was dead for a year lets nothing go by that.
/// Unproven points follow the same rules among themselves, and so do those whose snapshots somebody deleted: they count
/// neither for nor against proven ones.
pub fn plan(points: &[Point], rules: &Rules, skewed: bool, now: Timestamp) -> Plan {
    let mut newest_first: Vec<&Point> = points.iter().collect();
    // The name decides between equal cuts, so that two passes agree.
    newest_first.sort_by(|a, b| b.cut.cmp(&a.cut).then_with(|| b.name.cmp(&a.name)));
    let mut reasons: Vec<Vec<KeepReason>> =
        newest_first.iter().map(|point| unconditional(point, skewed, now)).collect();

    // What is held, or from the future, takes no place and is no anchor.
    let counted = |standing: Standing| -> Vec<usize> {
        let counts = |point: &Point| point.standing == standing && !point.held && point.cut <= now;
        (0..newest_first.len()).filter(|&at| counts(newest_first[at])).collect()
    };
    for standing in [Standing::Proven, Standing::Unproven, Standing::Lost] {
        let places = counted(standing);
        let cuts: Vec<Timestamp> = places.iter().map(|&at| newest_first[at].cut).collect();
        for (place, found) in places.iter().zip(by_rules(&cuts, rules)) {
            reasons[*place].extend(found);
        }
    }
    for at in counted(Standing::Failed).into_iter().take(FAILED_KEPT) {
        reasons[at].push(KeepReason::RecentFailure);
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (nth, at) in counted(Standing::Proven).into_iter().enumerate() {
        let mut first_of_any = false;
        for application in newest_first[at].applications.iter() {
            first_of_any |= seen.insert(application);
        }
        if nth == 0 {
            reasons[at].push(KeepReason::Newest);
        } else if first_of_any {
            reasons[at].push(KeepReason::NewestOfApplication);
        }
    }

    let mut plan = Plan::default();
    for (point, reasons) in newest_first.into_iter().zip(reasons) {
        if !reasons.is_empty() {
            plan.keep.push(Kept { name: point.name.clone(), reasons });
        } else if point.standing == Standing::Failed {
            plan.delete_failed.push(point.name.clone());
        } else {
            plan.delete.push(point.name.clone());
        }
    }
    plan.delete_failed.reverse();
    plan.delete.reverse();
    plan
}

/// Reasons that do not depend on the other points.
fn unconditional(point: &Point, skewed: bool, now: Timestamp) -> Vec<KeepReason> {
    let mut found = Vec::new();
    if point.standing == Standing::Unfinished {
        found.push(KeepReason::Unfinished);
    }
    if point.held {
        found.push(KeepReason::Held);
    }
    if point.cut > now {
        found.push(KeepReason::FutureDated);
    }
    if skewed {
        found.push(KeepReason::ClockSkew);
    }
    found
}

/// What the rules say about each of `cuts`, which are newest first.
fn by_rules(cuts: &[Timestamp], rules: &Rules) -> Vec<Vec<KeepReason>> {
    let mut reasons = vec![Vec::new(); cuts.len()];
    if rules.is_empty() {
        reasons.iter_mut().for_each(|found| found.push(KeepReason::NoRules));
        return reasons;
    }
    for (found, nth) in reasons.iter_mut().zip(1..=rules.last) {
        found.push(KeepReason::Nth(Rule::Last, nth));
    }
    if rules.within > Duration::ZERO
        && let Some(newest) = cuts.first()
    {
        let young = |cut: &Timestamp| newest.duration_since(*cut).unsigned_abs() <= rules.within;
        for (found, _) in reasons.iter_mut().zip(cuts).filter(|(_, cut)| young(cut)) {
            found.push(KeepReason::Within);
        }
    }
    let zoned: Vec<jiff::Zoned> = cuts.iter().map(|cut| cut.to_zoned(rules.zone.clone())).collect();
    // Both passes of a repeated hour are hours: the offset is part of the key.
    let hour = |at: &jiff::Zoned| (at.date(), at.hour(), at.offset().seconds());
    let week = |at: &jiff::Zoned| (at.date().iso_week_date().year(), at.date().iso_week_date().week());
    newest_of_each(&mut reasons, zoned.iter().map(hour), Rule::Hourly, rules.hourly);
    newest_of_each(&mut reasons, zoned.iter().map(jiff::Zoned::date), Rule::Daily, rules.daily);
    newest_of_each(&mut reasons, zoned.iter().map(week), Rule::Weekly, rules.weekly);
    newest_of_each(
        &mut reasons,
        zoned.iter().map(|at| (at.year(), at.month())),
        Rule::Monthly,
        rules.monthly,
    );
    newest_of_each(&mut reasons, zoned.iter().map(jiff::Zoned::year), Rule::Yearly, rules.yearly);
    reasons
}

/// The newest of each of the first `number` buckets, and while there are fewer, the oldest: what a rule asks for and does
/// not have yet grows from it.
fn newest_of_each<K: Eq + Hash>(
    reasons: &mut [Vec<KeepReason>],
    keys: impl Iterator<Item = K>,
    rule: Rule,
    number: u32,
) {
    if number == 0 {
        return;
    }
    // Not only neighbours are compared: days come back where a clock is set back over midnight.
    let mut buckets: HashSet<K> = HashSet::new();
    for (found, key) in reasons.iter_mut().zip(keys) {
        let full = buckets.len() >= number as usize;
        if buckets.insert(key) && !full {
            found.push(KeepReason::Nth(rule, u32::try_from(buckets.len()).unwrap_or(u32::MAX)));
        }
    }
    if buckets.len() < number as usize
        && let Some(oldest) = reasons.last_mut()
        && !oldest.iter().any(|reason| matches!(reason, KeepReason::Nth(known, _) if *known == rule))
    {
        oldest.push(KeepReason::Oldest(rule));
    }
}

/// The circuit breaker: whether letting `expiring` of `of` points go looks like a mistake, where `known` of them were on
/// their way already.
///
/// Only what is new counts. A backlog of deletes that had to wait for a freeze or hung grows with each new point and is no
/// mistake; an edit from 30 points to 3 lets 27 go at once.
pub fn hold_back(expiring: usize, of: usize, known: usize) -> Option<HeldBack> {
    let fresh = expiring.saturating_sub(known);
    // More than half, without a rounded half.
    (fresh > LET_GO_AT_ONCE && fresh * 2 > of).then_some(HeldBack { expiring, of })
}

/// Which of `delete` go now: those that nobody uses, and no more than storage bears while `going` are on their way out.
pub fn now(delete: &[String], used: &BTreeSet<String>, going: usize) -> Vec<String> {
    let free = delete.iter().filter(|name| !used.contains(*name));
    free.take(DELETES_AT_ONCE.saturating_sub(going)).cloned().collect()
}

/// The point that a Restore of the newest proven one before `before` will read: it is in use before it is chosen.
pub fn newest_before(points: &[Point], before: Option<Timestamp>) -> Option<&Point> {
    let proven = points.iter().filter(|point| point.standing == Standing::Proven);
    let early = proven.filter(|point| before.is_none_or(|before| point.cut < before));
    early.max_by(|a, b| a.cut.cmp(&b.cut).then_with(|| a.name.cmp(&b.name)))
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
