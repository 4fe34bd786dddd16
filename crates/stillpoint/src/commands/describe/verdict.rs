//! The verdict rule by rule: what is proven (✓), what is not (✗) and why.

use std::fmt::Write as _;

use stillpoint_api::evidence::{RuleFinding, Verdict};

/// The rules in one line each (docs/design/freeze.md §4).
const RULES: [&str; 10] = [
    "frozen before the first snapshot",
    "cut before the first thaw",
    "still held after the last cut",
    "the hold covers what was cut",
    "no longer than promised",
    "the driver's own times agree",
    "every snapshot is ready and bound",
    "the cut is one instant",
    "what was frozen was durable",
    "the lock was held without a gap",
];

/// The verdict as text.
pub fn draw(verdict: &Verdict) -> String {
    let mut findings: Vec<(&RuleFinding, bool)> = verdict
        .proved
        .iter()
        .map(|found| (found, true))
        .chain(verdict.missing.iter().map(|found| (found, false)))
        .collect();
    findings.sort_by(|(a, _), (b, _)| (a.rule, &a.application).cmp(&(b.rule, &b.application)));
    let mut text = format!("Verdict: {} proven, {} missing\n", verdict.proved.len(), verdict.missing.len());
    let mut last = None;
    for (found, proven) in findings {
        if last.replace(found.rule) != Some(found.rule) {
            let name = usize::from(found.rule).checked_sub(1).and_then(|index| RULES.get(index));
            let _ = writeln!(text, "  {:>2}. {}", found.rule, name.unwrap_or(&"a rule of another version"));
        }
        let mark = if proven { '✓' } else { '✗' };
        let finding = found.finding.replace('\n', "; ");
        let _ = writeln!(text, "      {mark} {}: {finding}", found.application);
    }
    for warning in &verdict.warnings {
        let _ = writeln!(text, "  warning: {}", warning.replace('\n', "; "));
    }
    text
}
