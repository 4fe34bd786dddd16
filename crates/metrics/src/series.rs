//! The event series of one policy, as small as they can be counted in.
//!
//! A series object of the prometheus crate carries its description and its labels and takes about a kibibyte; a policy with one
//! application has 26 of them. Here a policy whose runs were never seen takes a few words, and one that ran in this process
//! some hundred bytes more (docs/figures.md, Scale).

use std::fmt::Write as _;
use std::sync::LazyLock;

use stillpoint_api::backup::Trigger;
use stillpoint_api::evidence::Consistency;

use crate::registry::{DeletionResult, HookPhase, RunResult, consistency_label};

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
    /// In the order of [`HookPhase::ALL`]; none before the first observation.
    pub phases: Option<Box<[Durations<11>; 4]>>,
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
                None => Hooks { application: name.into(), phases: None },
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

    /// The hooks, as text.
    pub(crate) fn render_hooks(&self, name: &str, labels: &str, bounds: &[f64; 11], out: &mut String) {
        for hooks in &self.hooks {
            for (phase, durations) in
                HookPhase::ALL.iter().zip(hooks.phases.iter().flat_map(|all| all.iter()))
            {
                if !durations.any() {
                    continue;
                }
                let mut labels = labels.to_owned();
                labels.push_str(",application=\"");
                crate::collector::escape(&hooks.application, &mut labels);
                let _ = write!(labels, "\",phase=\"{}\"", phase.label());
                durations.render(name, &labels, bounds, out);
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
        assert!(size_of::<Series>() <= 56 && size_of::<Hooks>() <= 24);
        assert!(series.freeze.is_none() && series.hooks[0].phases.is_none() && series.ended.is_empty());
    }
}
