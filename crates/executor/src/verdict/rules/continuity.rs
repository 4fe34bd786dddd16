//! Rule 10: the lock was there all the time, and how well that is known.

use stillpoint_api::evidence::{HoldAnswer, HoldEvidence, HoldKind};
use stillpoint_api::policy::Continuity;

use super::{Checked, NOT_NEEDED, pod};
use crate::verdict::Case;

/// The weakest grade of the application's holds.
pub(in crate::verdict) fn continuity(case: &Case<'_>) -> Continuity {
    case.holds.iter().map(|hold| grade(case, hold)).min().unwrap_or_default()
}

fn positions<'h>(case: &Case<'_>, hold: &'h HoldEvidence) -> Option<(&'h str, &'h str)> {
    let key = case.application.position.as_ref()?;
    let of = |answer: Option<&'h HoldAnswer>| {
        answer.and_then(|answer| answer.position.get(key)).map(String::as_str)
    };
    let (begin, end) = (of(hold.frozen.as_ref())?, of(hold.held.as_ref())?);
    // `off`: the counter does not run.
    let counts = |value: &str| {
        !value.is_empty() && !value.eq_ignore_ascii_case("off") && !value.eq_ignore_ascii_case("null")
    };
    (counts(begin) && counts(end)).then_some((begin, end))
}

fn grade(case: &Case<'_>, hold: &HoldEvidence) -> Continuity {
    if positions(case, hold).is_some_and(|(begin, end)| begin == end) {
        Continuity::Position
    } else if !case.application.thaw_proves_lock.is_empty() && hold.thawed.is_some() {
        Continuity::Lock
    } else if case.application.probed && hold.held.is_some() {
        Continuity::State
    } else {
        Continuity::Declared
    }
}

/// 10: continuity of the lock, at least as good as asked for.
pub(super) fn continuous(case: &Case<'_>) -> Checked {
    if !case.locks() {
        return Checked::proved(NOT_NEEDED);
    }
    for hold in &case.holds {
        if let Some((begin, end)) = positions(case, hold)
            && begin != end
        {
            return Checked::contradiction(format!(
                "{}: something was committed under the lock: {begin} → {end}",
                pod(hold)
            ));
        }
    }
    if case.application.hold == HoldKind::Direct && !case.application.probed {
        return Checked::missing(
            "two separate commands without a probe: nothing shows that it was frozen before the cut and until the thaw",
        );
    }
    let grade = continuity(case);
    let least = case.evidence.resolved.min_continuity;
    if grade < least {
        return Checked::missing(format!("the lock is proven as {grade:?}, and {least:?} is asked for"));
    }
    Checked::proved(match grade {
        Continuity::Position => "Position: a counter that only a commit moves stood still".to_owned(),
        Continuity::Lock => format!("Lock: {}", case.application.thaw_proves_lock),
        Continuity::State => "State: a probe saw the frozen state at the end".to_owned(),
        Continuity::Declared => "Declared: the template's author vouches for it".to_owned(),
    })
}
