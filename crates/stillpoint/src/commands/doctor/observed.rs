//! What was read from the cluster: facts without judgement.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use k8s_openapi::api::rbac::v1::PolicyRule;
use stillpoint_api::snapshot::VolumeSnapshotClass;
use stillpoint_executor::storage_path::PathRun;

use super::component::Component;

/// Something that was read, or why it could not be.
pub(super) type Seen<T> = Result<T, String>;

/// Everything that the checks judge.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// Major and minor version of the API server.
    pub version: Seen<(u32, u32)>,
    /// The server's clock minus this machine's.
    pub clock: Seen<ClockOffset>,
    /// Served versions by API group.
    pub groups: Seen<BTreeMap<String, Vec<String>>>,
    pub components: Seen<Vec<Component>>,
    /// None: the snapshot API is not served.
    pub classes: Seen<Option<Vec<VolumeSnapshotClass>>>,
    /// CSI drivers with volumes, and the StorageClasses of these.
    pub drivers: Seen<BTreeMap<String, BTreeSet<String>>>,
    /// None: the snapshot API is not served.
    pub snapshots: Seen<Option<u64>>,
    pub authority: Seen<Authority>,
    /// Namespaces with the hooks account.
    pub opted_in: Seen<BTreeSet<String>>,
    /// Namespaces with a policy; none: our kinds are not installed.
    pub with_policies: Seen<Option<BTreeSet<String>>>,
    /// Names of the cluster's templates; none: our kinds are not installed.
    pub templates: Seen<Option<BTreeSet<String>>>,
    /// Storage paths of finished runs by driver, newest first.
    pub runs: Seen<BTreeMap<String, Vec<PathRun>>>,
}

/// How far two clocks are apart: the truth lies between both. The header that tells the server's has whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClockOffset {
    pub least: SignedDuration,
    pub most: SignedDuration,
}

/// Who may do what, as far as it matters here.
#[derive(Clone, Debug, Default)]
pub(super) struct Authority {
    /// Rules of the ClusterRole `stillpoint-hooks`; none: it is not there.
    pub hooks: Option<Vec<PolicyRule>>,
    /// Namespaces in which that role is bound to the hooks account.
    pub bound: BTreeSet<String>,
    /// Rules of roles that are bound to all service accounts, or to all of a namespace.
    pub to_all_accounts: Vec<Grant>,
    /// Rules of roles that are bound to the controller's account.
    pub to_controller: Vec<Grant>,
}

/// A role that somebody has.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grant {
    /// The binding, `ClusterRoleBinding/name` or `RoleBinding/namespace/name`.
    pub binding: String,
    /// Whom it is granted to.
    pub to: String,
    pub role: String,
    /// None: the role is not there.
    pub rules: Option<Vec<PolicyRule>>,
}
