//! What one attempt is about to do: the only input of the machine besides events.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{ApiClock, ContainerState, MemberEvidence};
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

/// Index of a cut in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CutId(pub usize);

/// One request to the snapshot stack: a VolumeSnapshot of one member, or a VolumeGroupSnapshot of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutPlan {
    /// Its members: exactly one, unless it is a group.
    pub members: Vec<MemberId>,
    /// Whether it is a VolumeGroupSnapshot.
    pub group: bool,
    /// The stage in which it is asked for (docs/design/freeze.md §2.5).
    pub stage: u32,
}

impl CutPlan {
    /// A VolumeSnapshot of one member in the first stage.
    pub fn single(member: MemberId) -> Self {
        Self { members: vec![member], group: false, stage: 0 }
    }
}

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
    /// The cuts: every member is in exactly one.
    pub cuts: Vec<CutPlan>,
    /// Until when FREEZE and snapshot requests may be written: the last confirmed renewal of the claim and half its
    /// duration (docs/design/freeze.md §5).
    pub fence: Mono,
    /// What the API server's clock said before the freeze; `None`: it was not read.
    pub api_clock: Option<ApiClockReading>,
}

/// One look at the API server's clock (docs/design/freeze.md §4.6).
///
/// Kept against our monotonic clock, so that setting our wall clock before t0 changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiClockReading {
    /// The instant of the look.
    pub at: Mono,
    /// The server's clock said at least this much then.
    pub least: Timestamp,
    /// The server's clock said at most this much then.
    pub most: Timestamp,
}

impl ApiClockReading {
    /// How far the server's clock is ahead of ours, where ours reads `wall` at `now`.
    pub fn against(&self, now: Mono, wall: Timestamp) -> ApiClock {
        let passed = SignedDuration::try_from(now.since(self.at)).unwrap_or_default();
        let ahead = |said: Timestamp| {
            let micros = (said.duration_since(wall) + passed).as_micros();
            i64::try_from(micros).unwrap_or(if micros < 0 { i64::MIN } else { i64::MAX })
        };
        ApiClock { least_ahead_micros: ahead(self.least), most_ahead_micros: ahead(self.most) }
    }
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
    /// Unit in which the server tells its lease; `None`: no server ends this hold, as under the POSIX holder, whose own
    /// deadline does.
    pub lease_unit: Option<LeaseUnit>,
    /// Lower freezes first and thaws last; equal orders go together.
    pub order: i32,
    /// Stages of its cut: 1, or more with statements between them (docs/design/freeze.md §2.5).
    pub stages: u32,
    /// Whether the client is tried to stop at its first error before it is trusted.
    pub canary: bool,
    /// Whether the template can tell that writers are stuck behind a lock that was not acquired.
    pub stall_probe: bool,
    /// Whether a statement that keeps writers stuck behind such a lock may be ended: the policy asks for it and the
    /// template can (docs/design/freeze.md §3, `KillBlocker`).
    pub end_blocker: bool,
    /// How the server says that it is this container's.
    pub local: Option<LocalRule>,
    /// Facts whose values are paths that must lie on a member.
    pub data_paths: Vec<String>,
    /// Facts that its recovery needs: told by READY, and so in the journal before the freeze.
    pub recovery_needs: Vec<String>,
    /// Where this container mounts members.
    pub mount_paths: Vec<String>,
    /// Where it mounts something else below these.
    pub foreign_mounts: Vec<String>,
}

impl HoldPlan {
    /// Whether the attempt depends on it: an observer of one stage costs evidence only, a staged one carries what a
    /// restore needs.
    pub const fn essential(&self) -> bool {
        self.locks || self.stages > 1
    }
}

impl Plan {
    /// Number of stages over all holds and cuts; at least 1.
    pub fn stages(&self) -> u32 {
        let of_cuts = self.cuts.iter().map(|cut| cut.stage + 1).max().unwrap_or(1);
        let of_holds = self.holds.iter().map(|hold| hold.stages).max().unwrap_or(1);
        of_cuts.max(of_holds).max(1)
    }

    /// Time from t0 by which every cut must have been seen.
    pub fn cut_budget(&self) -> Duration {
        self.max_hold.saturating_sub(THAW_RESERVE)
    }
}
