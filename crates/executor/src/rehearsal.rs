//! A rehearsal: prepare, freeze and thaw of live applications, and no snapshot.
//!
//! It is resolved like a backup and carried out by the same machine with a plan without cuts, so that everything promised
//! of a freeze holds here too: `maxHold`, the ends that work without each other, a thaw whatever happens. It leaves no
//! object behind.

use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use kube::ResourceExt;
use stillpoint_api::backup::{Backup, Trigger};
use stillpoint_api::evidence::{Consistency, Resolved};
use stillpoint_api::outcome::{HookPhase, HookResult, RunResult, Violation};
use tokio::sync::{Mutex, watch};

use crate::attempt;
use crate::context::Context;
use crate::journal::Journal;
use crate::observer::{RunLabels, RunObserver};
use crate::resolve::{Nonces, Refusal, ask, decide, observe};
use crate::run::{Abort, End, Record};

/// FREEZE is fenced by the claim of a run; a rehearsal has none ([`crate::ownership::Ownership::unclaimed`]) and is over
/// long before this.
pub const FENCE: Duration = Duration::from_secs(3600);

/// What a rehearsal showed.
#[derive(Debug)]
pub struct Rehearsal {
    /// What was resolved.
    pub resolved: Resolved,
    /// Application and seconds of each prepare that ran to its end.
    pub prepared: Vec<(String, f64)>,
    /// What the holds said, and when.
    pub record: Record,
    /// Why it was given up, if it was.
    pub end: Result<(), Abort>,
}

/// Rehearses what `backup`, which need not exist, would hold.
///
/// # Errors
/// Why it cannot begin; nothing was run in any container then, except what tells the role of a pod.
pub async fn rehearse(
    context: &Context,
    backup: Backup,
    stop: watch::Receiver<Option<Abort>>,
) -> Result<Rehearsal, Refusal> {
    if let Some(first) = stillpoint_api::validate::backup(&backup).first() {
        return Err(Refusal::stands("NotAccepted", format!("{}: {}", first.path, first.message)));
    }
    let mut observed = observe::observe(context, &backup).await?;
    ask::ask(context, &backup, &mut observed).await?;
    let Nonces { attempt: nonce, holds: hold_nonces } = Nonces::draw(&*context.entropy, &observed)?;
    let given = decide::Given {
        backup: &backup,
        attempt: 1,
        nonce: &nonce,
        hold_nonces: &hold_nonces,
        storage: &context.storage,
        impersonate: context.impersonate,
    };
    let mut resolution = decide::decide(&given, &observed)?;
    resolution.plan.cuts.clear();
    resolution.plan.members.clear();
    resolution.classes.clear();
    resolution.groups.clear();
    resolution.plan.fence = context.clock.mono() + FENCE;
    for hold in &mut resolution.plan.holds {
        // A rehearsal ends nobody's statement, whatever the policy allows a backup.
        hold.end_blocker = false;
    }
    let resolved = resolution.resolved.clone();
    let times = Arc::new(PrepareTimes::default());
    let context = Context { observer: Arc::clone(&times) as Arc<dyn RunObserver>, ..context.clone() };
    let labels = RunLabels {
        namespace: backup.namespace().unwrap_or_default(),
        policy: backup.policy_name().unwrap_or_default().to_owned(),
    };
    let journal = Arc::new(Mutex::new(Journal::unwritten(backup)));
    let carried =
        attempt::carry_out(&context, journal, Arc::new(resolution), nonce.to_string(), labels, stop).await;
    let end = match carried.end {
        End::Thawed => Ok(()),
        End::Aborted(why) => Err(why),
        End::Disowned(why) => Err(Abort::new(crate::run::Reason::Internal, why)),
    };
    let prepared = times.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Rehearsal { resolved, prepared, record: carried.record, end })
}

/// Keeps how long each prepare took.
#[derive(Default)]
struct PrepareTimes(Lock<Vec<(String, f64)>>);

impl RunObserver for PrepareTimes {
    fn freeze(&self, _: &RunLabels, _: f64) {}
    fn overhead(&self, _: &RunLabels, _: f64) {}
    fn hook(&self, _: &RunLabels, application: &str, phase: HookPhase, seconds: f64) {
        if phase == HookPhase::Prepare {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.push((application.to_owned(), seconds));
        }
    }
    fn hook_ended(&self, _: &RunLabels, _: &str, _: HookPhase, _: HookResult) {}
    fn violation(&self, _: &RunLabels, _: Violation) {}
    fn restored(&self, _: &RunLabels, _: RunResult, _: f64) {}
    fn cut(&self, _: &str, _: f64) {}
    fn ready(&self, _: &str, _: f64) {}
    fn finished(&self, _: &RunLabels, _: Trigger, _: Option<Consistency>, _: RunResult) {}
}
