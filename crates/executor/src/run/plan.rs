//! What one attempt is about to do: the only input of the machine besides events.

use std::time::Duration;

use stillpoint_api::evidence::{ContainerState, MemberEvidence};
use stillpoint_api::template::{LeaseUnit, LocalRule};

/// Time kept back from `maxHold` for the thaw (docs/design/freeze.md §3): no cut by then means thaw.
pub const THAW_RESERVE: Duration = Duration::from_secs(3);
/// Longest lease a template may ask for.
pub const MAX_LEASE: Duration = Duration::from_secs(10);

/// Index of a hold in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldId(pub usize);

/// Index of a member in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub usize);

/// Index of an application in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApplicationId(pub usize);

/// One attempt.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whether a point without proof is worth waiting for: `Required` gives up at the first failed member.
    pub required: bool,
    /// Longest time from t0 to the last THAWED.
    pub max_hold: Duration,
    /// Longest time from t0 to the last FROZEN.
    pub acquire_timeout: Duration,
    /// How long the snapshot stack may stay silent after the POSTs before it counts as down.
    pub stack_patience: Duration,
    /// Applications that have something to prepare.
    pub prepares: Vec<ApplicationId>,
    /// The holds, in order.
    pub holds: Vec<HoldPlan>,
    /// The members.
    pub members: Vec<MemberEvidence>,
}

/// One hold of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldPlan {
    /// Its application.
    pub application: String,
    /// Its pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Its container.
    pub container: String,
    /// Container id and restarts, as resolved.
    pub container_state: ContainerState,
    /// Nonce of this attempt and hold.
    pub nonce: String,
    /// Whether it stops commits; false: an observer.
    pub locks: bool,
    /// Lease that each beat asks for.
    pub lease: Duration,
    /// Unit in which the server tells its lease.
    pub lease_unit: LeaseUnit,
    /// How the server says that it is this container's.
    pub local: Option<LocalRule>,
    /// Facts whose values are paths that must lie on a member.
    pub data_paths: Vec<String>,
    /// Where this container mounts members.
    pub mount_paths: Vec<String>,
}

impl Plan {
    /// Time from t0 by which every cut must have been seen.
    pub fn cut_budget(&self) -> Duration {
        self.max_hold.saturating_sub(THAW_RESERVE)
    }
}
