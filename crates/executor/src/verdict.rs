//! The verdict: what a recovery point is worth, computed from the stored evidence alone.
//!
//! One pure function over the evidence, per application; the Backup's is the weakest (docs/design/freeze.md §4).
//! A missing record never counts in favour: what is not written down was not proven. The numbers of the rules are
//! those of the design; messages and tests use them.

mod rules;
pub(crate) use rules::{driver_cut_time, lies_on, local_gap, path_gap, torn_pod};
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use stillpoint_api::backup::BackupStatus;
use stillpoint_api::evidence::{
    Consistency, HoldEvidence, HoldKind, MemberEvidence, Offset, Resolved, ResolvedApplication, RuleFinding,
    Verdict, Window,
};
use stillpoint_api::outcome::Violation;
use stillpoint_api::policy::Continuity;

/// Tolerance of rule 6 for a driver's cut time before t1, beyond truncation: clocks of the storage system and of the
/// controller differ (docs/design/freeze.md §4.6).
pub const CUT_TIME_TOLERANCE: Duration = Duration::from_secs(2);
/// Drivers that give whole seconds truncate by up to this much.
pub const CUT_TIME_TRUNCATION: Duration = Duration::from_secs(1);

/// The evidence of one run, as stored.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What was resolved.
    pub resolved: &'a Resolved,
    /// The holds.
    pub holds: &'a [HoldEvidence],
    /// The members.
    pub members: &'a [MemberEvidence],
    /// The window.
    pub window: &'a Window,
    /// Which rules are looked at; all of them outside the tests that prove each one necessary.
    pub(crate) only: RuleMask,
}

/// Rules that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RuleMask(u16);

impl RuleMask {
    pub(crate) const ALL: Self = Self(0x7ff);

    /// All but one: for the tests that show that leaving a rule out is noticed.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) const fn without(rule: u8) -> Self {
        Self(Self::ALL.0 & !(1 << rule))
    }

    pub(crate) const fn has(self, rule: u8) -> bool {
        self.0 & (1 << rule) != 0
    }
}

impl<'a> Evidence<'a> {
    /// The evidence that a Backup's status holds; `None` where nothing was frozen or cut.
    pub fn of(status: &'a BackupStatus) -> Option<Self> {
        Some(Self {
            resolved: status.resolved.as_ref()?,
            holds: &status.holds,
            members: &status.members,
            window: status.window.as_ref()?,
            only: RuleMask::ALL,
        })
    }

    /// Evidence from its parts.
    pub fn new(
        resolved: &'a Resolved,
        holds: &'a [HoldEvidence],
        members: &'a [MemberEvidence],
        window: &'a Window,
    ) -> Self {
        Self { resolved, holds, members, window, only: RuleMask::ALL }
    }

    fn wall(&self, offset: Offset) -> Option<Timestamp> {
        let t0 = self.window.started_at.as_ref()?.0;
        t0.checked_add(jiff::SignedDuration::from_micros(offset.0)).ok()
    }
}

/// What the evidence proves.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The weakest application's.
    pub consistency: Consistency,
    /// Weakest continuity grade of the locking holds; `None` where nothing is locked.
    pub continuity: Option<Continuity>,
    /// All applications were held together over all cuts.
    pub cross_consistent: bool,
    /// Rule by rule.
    pub verdict: Verdict,
    /// What must not happen, each once, in order.
    pub violations: BTreeSet<Violation>,
}

/// One application's part of the evidence.
pub(crate) struct Case<'a> {
    pub(crate) evidence: Evidence<'a>,
    pub(crate) application: &'a ResolvedApplication,
    pub(crate) holds: Vec<&'a HoldEvidence>,
    pub(crate) members: Vec<&'a MemberEvidence>,
}

impl Case<'_> {
    /// Whether the application claims to be held by a lock.
    pub(crate) fn locks(&self) -> bool {
        self.application.hold.locks()
    }

    /// Whether it has stages: statements between its cuts, whose order the copy depends on (docs/design/freeze.md §2.5).
    pub(crate) fn staged(&self) -> bool {
        self.application.stages > 1
    }

    /// Whether the copy depends on its holds: on their locks, or on what they said between the stages.
    pub(crate) fn depends_on_holds(&self) -> bool {
        self.locks() || self.staged()
    }
}

/// Judges the evidence.
pub fn judge(evidence: &Evidence<'_>) -> Judgement {
    let mut verdict = Verdict::default();
    let mut consistency = Consistency::Application;
    let mut continuity: Option<Continuity> = None;
    let mut violations = BTreeSet::new();
    let mut all_held = !evidence.resolved.applications.is_empty();

    for application in &evidence.resolved.applications {
        let case = Case {
            evidence: *evidence,
            application,
            holds: evidence.holds.iter().filter(|hold| hold.application == application.name).collect(),
            members: evidence
                .members
                .iter()
                .filter(|member| member.application == application.name)
                .collect(),
        };
        let judged = judge_application(&case);
        consistency = consistency.min(judged.consistency);
        if case.locks() {
            let grade = judged.grade.unwrap_or_default();
            continuity = Some(continuity.map_or(grade, |least| least.min(grade)));
        }
        all_held &= judged.held_over_all_cuts;
        violations.extend(judged.violations);
        verdict.proved.extend(judged.proved);
        verdict.missing.extend(judged.missing);
        verdict.warnings.extend(judged.warnings);
    }
    if evidence.resolved.applications.is_empty() || evidence.members.is_empty() {
        consistency = Consistency::None;
    }
    // One lock over all cuts of all applications, or one write-ordered cut of them all: their common point in time is one
    // instant.
    let one_cut = rules::are_one_cut(&evidence.members.iter().collect::<Vec<_>>());
    let cross_consistent =
        ((all_held && held_together(evidence)) || one_cut) && consistency == Consistency::Application;
    Judgement { consistency, continuity, cross_consistent, verdict, violations }
}

/// Whether every hold had answered FROZEN before anything of any application was cut, and none was thawed before all was.
fn held_together(evidence: &Evidence<'_>) -> bool {
    let frozen = evidence.holds.iter().map(|hold| hold.frozen.as_ref().map(|frozen| frozen.at));
    let posts = evidence.members.iter().map(|member| member.post_sent);
    let signals = evidence.members.iter().map(|member| member.signal);
    let thaws = evidence.holds.iter().map(|hold| hold.thaw_sent);
    // A time that is not known proves nothing.
    let all = |times: &mut dyn Iterator<Item = Option<Offset>>| times.collect::<Option<Vec<Offset>>>();
    let (Some(frozen), Some(posts), Some(signals), Some(thaws)) =
        (all(&mut { frozen }), all(&mut { posts }), all(&mut { signals }), all(&mut { thaws }))
    else {
        return false;
    };
    frozen.iter().max() <= posts.iter().min() && signals.iter().max() <= thaws.iter().min()
}

struct Judged {
    consistency: Consistency,
    grade: Option<Continuity>,
    held_over_all_cuts: bool,
    violations: BTreeSet<Violation>,
    proved: Vec<RuleFinding>,
    missing: Vec<RuleFinding>,
    warnings: Vec<String>,
}

fn judge_application(case: &Case<'_>) -> Judged {
    let mut proved = Vec::new();
    let mut missing = Vec::new();
    let mut warnings = Vec::new();
    let mut void = false;

    for rule in rules::RULES {
        if !case.evidence.only.has(rule.number) {
            continue;
        }
        let mut checked = (rule.check)(case);
        warnings.append(&mut checked.warnings);
        void |= checked.void;
        let finding = RuleFinding {
            rule: rule.number,
            application: case.application.name.clone(),
            finding: bounded(&checked.finding),
        };
        if checked.holds { proved.push(finding) } else { missing.push(finding) }
    }

    let misses = |number: u8| missing.iter().any(|finding| finding.rule == number);
    let consistency = if case.members.is_empty() || void {
        Consistency::None
    } else if missing.is_empty() {
        Consistency::Application
    } else if is_crash_consistent(case, &misses) {
        Consistency::Crash
    } else {
        Consistency::None
    };
    let held_over_all_cuts = case.locks() && [1, 2, 3, 4].iter().all(|rule| !misses(*rule));
    let mut violations = BTreeSet::new();
    violations.extend((misses(1) || misses(2)).then_some(Violation::CutOutsideFreeze));
    violations.extend(misses(3).then_some(Violation::HoldNotClosed));
    violations.extend(void.then_some(Violation::Contradiction));
    Judged {
        consistency,
        violations,
        grade: case.locks().then(|| rules::continuity(case)),
        held_over_all_cuts,
        proved,
        missing,
        warnings,
    }
}

/// `Crash` iff the members were cut in one atomic volume or one write-ordered group and rule 7 holds, or all were cut
/// under proven holds and only 5, 9 or 10 miss. A contradiction (rule 6, a voided claim) is never `Crash`.
fn is_crash_consistent(case: &Case<'_>, misses: &dyn Fn(u8) -> bool) -> bool {
    if misses(6) || misses(7) || !rules::cut_volume_is_the_mounted_one(case) {
        return false;
    }
    let one_atomic_cut =
        rules::cut_at_one_instant(case) && rules::all_cuts_atomic(case) && rules::all_cut(case);
    let held_cuts =
        case.application.hold != HoldKind::None && [1, 2, 3, 4, 8].iter().all(|rule| !misses(*rule));
    one_atomic_cut || (case.locks() && held_cuts)
}

fn bounded(text: &str) -> String {
    const MOST: usize = 1024; // maxLength of RuleFinding.finding
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST - 1).chain(['…']).collect()
}
