//! What a run tells the outside while it happens: true events only, for histograms and counters.
//!
//! The executor does not know the metrics; the binary adapts this to them.

use stillpoint_api::backup::Trigger;
use stillpoint_api::evidence::Consistency;
use stillpoint_api::outcome::{HookPhase, HookResult, RunResult, Violation};

/// Which policy a run belongs to; empty for a run without one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunLabels {
    /// Namespace of the run.
    pub namespace: String,
    /// Its policy.
    pub policy: String,
}

/// Takes the events of runs. All durations are in seconds.
pub trait RunObserver: Send + Sync {
    /// A window from t0 to t3.
    fn freeze(&self, run: &RunLabels, seconds: f64);
    /// The part of a window that was not the storage system's.
    fn overhead(&self, run: &RunLabels, seconds: f64);
    /// One phase of one application's hook.
    fn hook(&self, run: &RunLabels, application: &str, phase: HookPhase, seconds: f64);
    /// One part of one application's hook went like this.
    fn hook_ended(&self, run: &RunLabels, application: &str, phase: HookPhase, result: HookResult);
    /// A run that was thought good was found to contradict itself.
    fn violation(&self, run: &RunLabels, violation: Violation);
    /// A Restore ended; `run` names the policy of what was restored, as far as that was found.
    fn restored(&self, run: &RunLabels, result: RunResult, seconds: f64);
    /// POST to cut signal.
    fn cut(&self, driver: &str, seconds: f64);
    /// Cut signal to ready.
    fn ready(&self, driver: &str, seconds: f64);
    /// A run ended.
    fn finished(
        &self,
        run: &RunLabels,
        trigger: Trigger,
        consistency: Option<Consistency>,
        result: RunResult,
    );
}

/// Takes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl RunObserver for Unobserved {
    fn freeze(&self, _: &RunLabels, _: f64) {}
    fn overhead(&self, _: &RunLabels, _: f64) {}
    fn hook(&self, _: &RunLabels, _: &str, _: HookPhase, _: f64) {}
    fn hook_ended(&self, _: &RunLabels, _: &str, _: HookPhase, _: HookResult) {}
    fn violation(&self, _: &RunLabels, _: Violation) {}
    fn restored(&self, _: &RunLabels, _: RunResult, _: f64) {}
    fn cut(&self, _: &str, _: f64) {}
    fn ready(&self, _: &str, _: f64) {}
    fn finished(&self, _: &RunLabels, _: Trigger, _: Option<Consistency>, _: RunResult) {}
}
