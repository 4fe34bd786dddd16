//! The event series of one policy, as small as they can be counted in.
//!
//! A series object of the prometheus crate carries its description and its labels and takes about a kibibyte; a policy with one
//! application has 26 of them. Here a policy whose runs were never seen takes a few words, and one that ran in this process
//! some hundred bytes more (docs/figures.md, Scale).

use std::fmt::Write as _;
use std::sync::LazyLock;

use stillpoint_api::backup::Trigger;
use stillpoint_api::evidence::Consistency;
use stillpoint_api::outcome::{HookPhase, HookResult, RunResult, Violation};

use crate::labels::{DeletionResult, consistency_label};

pub(crate) const TRIGGERS: [Trigger; 4] =
    [Trigger::Manual, Trigger::Schedule, Trigger::CatchUp, Trigger::Initial];
pub(crate) const CONSISTENCIES: [Consistency; 3] =
    [Consistency::Application, Consistency::Crash, Consistency::None];

/// A histogram with `N` buckets below the last one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Durations<const N: usize> {
    /// Observations by the first bound that they do not exceed; the last place: none.
    counts: [u32; N],
    above: u32,
    sum: f64,
}

/// How a run ended, and what started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub trigger: Trigger,
    pub consistency: Consistency,
    pub result: RunResult,
}

/// The hooks of one application.
#[derive(Clone, Debug)]
pub(crate) struct Hooks {
    pub application: Box<str>,
    /// None before the first observation.
    pub parts: Option<Box<Parts>>,
}

/// What was observed of the hooks of one application, in the order of [`HookPhase::ALL`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    durations: [Durations<11>; 4],
    /// In the order of [`HookResult::ALL`].
    results: [[u32; 4]; 4],
}

/// The series of one policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    pub freeze: Option<Box<Durations<11>>>,
    pub overhead: Option<Box<Durations<8>>>,
    pub hooks: Box<[Hooks]>,
    /// Runs that ended, without those that are 0.
    ended: Box<[(Ending, u64)]>,
    /// Deletes of retention, in the order of [`DeletionResult::ALL`].
    deletions: [u32; 2],
    /// In the order of [`Violation::ALL`]; none before the first one.
    violations: Option<Box<[u32; 3]>>,
}

impl<const N: usize> Default for Durations<N> {
    fn default() -> Self {
        Self { counts: [0; N], above: 0, sum: 0.0 }
    }
}

impl<const N: usize> Durations<N> {
    /// Counts one observation.
    pub(crate) fn observe(&mut self, bounds: &[f64; N], seconds: f64) {
        let place = bounds.iter().position(|bound| seconds <= *bound);
        let count = place.and_then(|place| self.counts.get_mut(place)).unwrap_or(&mut self.above);
        *count = count.saturating_add(1);
        self.sum += seconds;
    }

    /// Whether anything was observed.
    pub(crate) fn any(&self) -> bool {
        self.above > 0 || self.counts.iter().any(|count| *count > 0)
    }

    /// The series as text. `labels` comes without braces and is not empty.
    pub(crate) fn render(&self, name: &str, labels: &str, bounds: &[f64; N], out: &mut String) {
        let mut below = 0_u64;
        for (bound, count) in bounds.iter().zip(self.counts) {
            below += u64::from(count);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        below += u64::from(self.above);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {below}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {below}", self.sum);
    }
}

impl Parts {
    /// Counts how long a part took.
    pub(crate) fn observe(&mut self, phase: HookPhase, bounds: &[f64; 11], seconds: f64) {
        let place = HookPhase::ALL.iter().position(|known| *known == phase);
        if let Some(durations) = place.and_then(|place| self.durations.get_mut(place)) {
            durations.observe(bounds, seconds);
        }
    }

    /// Counts how a part went.
    pub(crate) fn count(&mut self, phase: HookPhase, result: HookResult) {
        let place = HookPhase::ALL.iter().position(|known| *known == phase);
        let results = place.and_then(|place| self.results.get_mut(place));
        let place = HookResult::ALL.iter().position(|known| *known == result);
        if let Some(count) = results.zip(place).and_then(|(results, place)| results.get_mut(place)) {
            *count = count.saturating_add(1);
        }
    }
}

impl Ending {
    /// Every ending there is.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        TRIGGERS.into_iter().flat_map(|trigger| {
            CONSISTENCIES.into_iter().flat_map(move |consistency| {
                RunResult::ALL.into_iter().map(move |result| Self { trigger, consistency, result })
            })
        })
    }

    /// Whether a run can end like this today; such a series starts at 0.
    pub(crate) fn possible(self) -> bool {
        match (self.result, self.consistency) {
            // What is proven does not fail.
            (RunResult::Failed, Consistency::Application) => false,
            (RunResult::Failed, Consistency::Crash | Consistency::None) | (RunResult::Succeeded, _) => true,
        }
    }

    fn labels(self) -> String {
        format!(
            "trigger=\"{}\",consistency=\"{}\",result=\"{}\"",
            self.trigger.label(),
            consistency_label(self.consistency),
            self.result.label()
        )
    }
}

/// Every ending there is, whether a series of it starts at 0, and its labels: the same for every policy.
static ENDINGS: LazyLock<Vec<(Ending, bool, String)>> =
    LazyLock::new(|| Ending::all().map(|ending| (ending, ending.possible(), ending.labels())).collect());

impl Hooks {
    /// The labels of the policy, and those of one part.
    fn labels(&self, of_policy: &str, phase: HookPhase) -> String {
        let mut labels = of_policy.to_owned();
        labels.push_str(",application=\"");
        crate::collector::escape(&self.application, &mut labels);
        // Writing to a String cannot fail.
        let _ = write!(labels, "\",phase=\"{}\"", phase.label());
        labels
    }
}

impl Series {
    /// Its applications are these from now on: those that stay keep their series.
    pub(crate) fn set_applications<A: AsRef<str>>(&mut self, names: &[A]) {
        let mut before = std::mem::take(&mut self.hooks).into_vec();
        let mut hooks: Vec<Hooks> = Vec::with_capacity(names.len());
        for name in names.iter().map(AsRef::as_ref) {
            if hooks.iter().any(|known| &*known.application == name) {
                continue;
            }
            let known = before.iter().position(|known| &*known.application == name);
            hooks.push(match known {
                Some(place) => before.swap_remove(place),
                None => Hooks { application: name.into(), parts: None },
            });
        }
        hooks.sort_by(|one, other| one.application.cmp(&other.application));
        self.hooks = hooks.into_boxed_slice();
    }

    /// Whether these are its applications, in any order.
    pub(crate) fn has_applications<A: AsRef<str>>(&self, names: &[A]) -> bool {
        let known = |name: &A| self.hooks.iter().any(|hooks| *hooks.application == *name.as_ref());
        names.len() == self.hooks.len() && names.iter().all(known)
    }

    /// Counts a run that ended.
    pub(crate) fn count(&mut self, ending: Ending) {
        if let Some((_, count)) = self.ended.iter_mut().find(|(known, _)| *known == ending) {
            *count += 1;
            return;
        }
        let mut ended = std::mem::take(&mut self.ended).into_vec();
        ended.push((ending, 1));
        self.ended = ended.into_boxed_slice();
    }

    /// The runs that ended, as text: every possible ending, and what was counted although it is not.
    pub(crate) fn render_ended(&self, name: &str, labels: &str, out: &mut String) {
        for (ending, possible, of_ending) in &*ENDINGS {
            let count = self.ended.iter().find(|(known, _)| known == ending).map(|(_, count)| *count);
            let Some(count) = count.or_else(|| possible.then_some(0)) else { continue };
            for part in [name, "{", labels, ",", of_ending, "} "] {
                out.push_str(part);
            }
            if count == 0 {
                out.push('0');
            } else {
                let _ = write!(out, "{count}");
            }
            out.push('\n');
        }
    }

    /// Counts a delete of retention.
    pub(crate) fn count_deletion(&mut self, result: DeletionResult) {
        let place = DeletionResult::ALL.iter().position(|known| *known == result);
        if let Some(count) = place.and_then(|place| self.deletions.get_mut(place)) {
            *count = count.saturating_add(1);
        }
    }

    /// The deletes of retention, as text.
    pub(crate) fn render_deletions(&self, name: &str, labels: &str, out: &mut String) {
        for (result, count) in DeletionResult::ALL.iter().zip(self.deletions) {
            let _ = writeln!(out, "{name}{{{labels},result=\"{}\"}} {count}", result.label());
        }
    }

    /// Counts a violation.
    pub(crate) fn count_violation(&mut self, violation: Violation) {
        let place = Violation::ALL.iter().position(|known| *known == violation);
        let counts = self.violations.get_or_insert_default();
        if let Some(count) = place.and_then(|place| counts.get_mut(place)) {
            *count = count.saturating_add(1);
        }
    }

    /// The violations, as text: each that there can be.
    pub(crate) fn render_violations(&self, name: &str, labels: &str, out: &mut String) {
        let counts = self.violations.as_deref().copied().unwrap_or_default();
        for (violation, count) in Violation::ALL.iter().zip(counts) {
            let _ = writeln!(out, "{name}{{{labels},reason=\"{}\"}} {count}", violation.label());
        }
    }

    /// How long the parts of hooks took, as text.
    pub(crate) fn render_hooks(&self, name: &str, labels: &str, bounds: &[f64; 11], out: &mut String) {
        for hooks in &self.hooks {
            let parts = hooks.parts.iter().flat_map(|parts| &parts.durations);
            for (phase, durations) in HookPhase::ALL.into_iter().zip(parts) {
                if durations.any() {
                    durations.render(name, &hooks.labels(labels, phase), bounds, out);
                }
            }
        }
    }

    /// How the parts of hooks went, as text: of an application that was hooked once, every result there can be.
    pub(crate) fn render_hook_results(&self, name: &str, labels: &str, out: &mut String) {
        for hooks in &self.hooks {
            let parts = hooks.parts.iter().flat_map(|parts| &parts.results);
            for (phase, results) in HookPhase::ALL.into_iter().zip(parts) {
                let labels = hooks.labels(labels, phase);
                for (result, count) in HookResult::ALL.iter().zip(results) {
                    let _ = writeln!(out, "{name}{{{labels},result=\"{}\"}} {count}", result.label());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: [f64; 2] = [0.1, 1.0];

    #[test]
    fn buckets_are_cumulative_and_an_observation_on_a_bound_is_below_it() {
        let mut durations = Durations::<2>::default();
        for seconds in [0.1, 0.5, 2.0] {
            durations.observe(&BOUNDS, seconds);
        }
        let mut text = String::new();
        durations.render("d", "a=\"b\"", &BOUNDS, &mut text);
        let expected = "d_bucket{a=\"b\",le=\"0.1\"} 1\nd_bucket{a=\"b\",le=\"1\"} 2\nd_bucket{a=\"b\",le=\"+Inf\"} 3\n\
                        d_sum{a=\"b\"} 2.6\nd_count{a=\"b\"} 3\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_policy_that_never_ran_takes_no_more_than_its_words() {
        let mut series = Series::default();
        series.set_applications(&["db"]);
        assert!(size_of::<Series>() <= 64 && size_of::<Hooks>() <= 24);
        assert!(
            series.freeze.is_none()
                && series.violations.is_none()
                && series.hooks[0].parts.is_none()
                && series.ended.is_empty()
        );
    }
}
