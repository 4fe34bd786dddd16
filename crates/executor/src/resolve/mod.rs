//! From a Backup to a plan: what is held, what is cut, and why it cannot be.
//!
//! [`observe`] reads the cluster, [`decide`] is pure. Everything that can fail is found here, before anything is
//! frozen (docs/design/freeze.md §1).

pub mod ask;
pub mod choose;
pub mod decide;
mod fits;
pub mod groups;
mod limits;
mod members;
mod nonces;
pub mod observe;
pub mod pods;
pub mod preflight;
mod refusal;
mod shared;
pub mod stages;
#[cfg(test)]
pub(crate) mod tests;
pub mod window;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use stillpoint_api::evidence::Resolved;
use stillpoint_api::policy::{Application, RunBounds};
use stillpoint_api::template::{ClientMessage, Recipe};

pub use limits::MAX_HOLDS;
pub use nonces::Nonces;
pub use refusal::{Refusal, SNAPSHOT_IN_FLIGHT};

use crate::exec::ExecTarget;
use crate::hold::{HoldTexts, Nonce};
use crate::run::{HoldPlan, Plan};

/// Everything one attempt needs, resolved and checked.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// Namespace of the run.
    pub namespace: String,
    /// Its UID.
    pub namespace_uid: String,
    /// Name of the Backup.
    pub backup: String,
    /// Its UID.
    pub backup_uid: String,
    /// The policy, where there is one.
    pub policy: Option<String>,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Bounds of the slot.
    pub bounds: RunBounds,
    /// Input of the machine.
    pub plan: Plan,
    /// Prepare commands, in the order of `plan.prepares`.
    pub prepares: Vec<RunPrepare>,
    /// Sessions, in the order of `plan.holds`.
    pub holds: Vec<RunHold>,
    /// Snapshot class of each member, in the order of `plan.members`.
    pub classes: Vec<String>,
    /// The groups among `plan.cuts`.
    pub groups: Vec<groups::RunGroup>,
    /// What was resolved, for the record.
    pub resolved: Resolved,
    /// What is read again of each application after the thaw.
    pub again: Vec<LookAgain>,
    /// The templates with their parameters substituted, in the order of `resolved.applications`.
    pub recipes: Vec<Recipe>,
}

impl Resolution {
    /// Notes since when prepare covers an application, once every prepare succeeded. The beginning counts and not the end:
    /// what was acknowledged while it ran may not be part of what it flushed.
    pub fn prepared(&self, resolved: &mut Resolved, began: Option<Timestamp>) {
        for application in &mut resolved.applications {
            if self.prepares.iter().any(|prepare| prepare.application == application.name) {
                application.prepared_at = began.map(MicroTime);
            }
        }
    }
}

/// What is read again after the thaw, to be compared with what was resolved (docs/design/freeze.md §4.4).
#[derive(Clone, Debug)]
pub struct LookAgain {
    /// The application.
    pub application: Application,
    /// How its pods are chosen.
    pub rule: choose::PodRule,
    /// Its members.
    pub claims: Vec<String>,
}

/// A command that runs before the freeze.
#[derive(Clone, Debug)]
pub struct RunPrepare {
    /// Its application.
    pub application: String,
    /// Where and what.
    pub target: ExecTarget,
    /// Longest time it may take.
    pub timeout: Duration,
    /// What its client's words mean.
    pub messages: Vec<ClientMessage>,
}

/// A session that will be held.
#[derive(Clone, Debug)]
pub struct RunHold {
    /// The machine's part.
    pub plan: HoldPlan,
    /// Where and what.
    pub target: ExecTarget,
    /// What it is told.
    pub texts: HoldTexts,
    /// Argv of the template's stall probe; empty: it has none.
    pub stall_probe: Vec<String>,
    /// What its client's words mean.
    pub messages: Vec<ClientMessage>,
    /// Argv that ends the statement `{{blocker}}`; empty: the template has none.
    pub end_blocker: Vec<String>,
    /// Only lines with it count.
    pub nonce: Nonce,
    /// How many facts its template says that it tells.
    pub facts: usize,
}

impl RunHold {
    /// For messages.
    pub fn place(&self) -> String {
        format!("{}/{}", self.target.pod, self.target.container)
    }
}
