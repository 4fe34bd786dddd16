//! One run per workload, whatever the policies and replicas (docs/design/freeze.md §2.6).
//!
//! A lock is a Lease in the controller's namespace, one per held pod and one per claim of the run. It is created and
//! never renewed: it does not expire. It is released when every hold is THAWED or proven gone; the recovery of its run
//! takes it over, and what a run that is over left behind is swept. Locks are taken in the order of their names, so two
//! runs never wait for each other.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use sha2::{Digest, Sha256};
use stillpoint_api::backup::{BACKUP_UID_LABEL, Backup};

use super::{LEASE_LABEL, Ownership, WORKLOAD_LEASE};
use crate::context::{Context, RequestError, bounded};
use crate::resolve::observe::Observed;
use crate::resolve::{Refusal, Resolution};

/// Reason of a refusal that ends when another run ends.
pub const WORKLOAD_BUSY: &str = "WorkloadBusy";
/// Annotation of a lock: namespace and name of the Backup, for people and the sweeper.
const BACKUP_ANNOTATION: &str = "stillpoint.dev/backup";
/// Annotation of a lock: what is locked, for people.
const WORKLOAD_ANNOTATION: &str = "stillpoint.dev/workload";
/// Longest UID that is part of a name as it is; the API server's own have 36 characters.
const MAX_UID: usize = 63;
/// Tries of a lock whose object changes under our hands.
const TRIES: u32 = 5;

/// What only one run at a time may touch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// A claim, by its UID.
    Claim(String),
    /// A pod that is held, by its UID.
    Pod(String),
}

impl Workload {
    /// Name of its lock: the same for everybody.
    pub fn lock_name(&self) -> String {
        let (kind, uid) = match self {
            Self::Claim(uid) => ("claim", uid),
            Self::Pod(uid) => ("pod", uid),
        };
        let plain = uid.len() <= MAX_UID
            && !uid.is_empty()
            && uid.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !uid.ends_with('-');
        if plain {
            return format!("stillpoint-{kind}-{uid}");
        }
        let digest: String =
            Sha256::digest(uid.as_bytes()).iter().take(20).map(|byte| format!("{byte:02x}")).collect();
        format!("stillpoint-{kind}-{digest}")
    }
}

/// Everything that a run locks, in the order in which it does: that of the names.
pub fn workloads<'a>(
    pod_uids: impl IntoIterator<Item = &'a str>,
    claim_uids: impl IntoIterator<Item = &'a str>,
) -> Vec<Workload> {
    let pods = pod_uids.into_iter().map(|uid| Workload::Pod(uid.to_owned()));
    let claims = claim_uids.into_iter().map(|uid| Workload::Claim(uid.to_owned()));
    let unique: BTreeSet<Workload> = pods.chain(claims).collect();
    let mut all: Vec<Workload> = unique.into_iter().collect();
    all.sort_by_key(Workload::lock_name);
    all
}

/// What an attempt locks: the pods it holds and the claims it cuts.
pub fn of(resolution: &Resolution, observed: &Observed) -> Vec<Workload> {
    let cut = |name: &str| resolution.plan.members.iter().any(|member| member.claim_name == name);
    let claims = observed.applications.iter().flat_map(|application| &application.claims);
    workloads(
        resolution.plan.holds.iter().map(|hold| hold.pod_uid.as_str()),
        claims.filter(|(name, _)| cut(name)).filter_map(|(_, (claim, _))| claim.metadata.uid.as_deref()),
    )
}

/// Who has a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// UID of the Backup.
    pub backup_uid: String,
    /// Replica that works on it.
    pub replica: String,
    /// `namespace/name` of the Backup, for people.
    pub backup: String,
}

/// What a run may do with a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody has it: create it.
    Take,
    /// It is this run's, and this replica's.
    Ours,
    /// It is this run's, from another owner: the recovery of a run takes its locks over.
    TakeOver,
    /// Another run has it.
    Busy {
        /// `namespace/name` of its Backup.
        by: String,
    },
}

/// What the run `backup_uid`, worked on by `replica`, may do with a lock.
pub fn decide(existing: Option<&Holder>, backup_uid: &str, replica: &str) -> Decision {
    match existing {
        None => Decision::Take,
        Some(holder) if holder.backup_uid != backup_uid => Decision::Busy { by: holder.backup.clone() },
        Some(holder) if holder.replica == replica => Decision::Ours,
        Some(_) => Decision::TakeOver,
    }
}

/// What became of the run that has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOfLock {
    /// It is not over.
    Active,
    /// It is over: it ended only after its holds were thawed or proven gone.
    Finished,
    /// Its Backup does not exist; somebody removed it past its finalizer, and its freeze may still run.
    Absent {
        /// Whether it has been seen like this for longer than any freeze can last.
        long: bool,
    },
}

/// Whether a lock is left over and may be removed.
pub const fn left_over(run: RunOfLock) -> bool {
    match run {
        RunOfLock::Active => false,
        RunOfLock::Finished => true,
        RunOfLock::Absent { long } => long,
    }
}

/// A lock as it was read.
#[derive(Clone, Debug)]
pub struct Lock {
    lease: Lease,
    /// Who has it.
    pub holder: Holder,
}

impl Lock {
    /// Reads the Lease of a lock.
    pub fn of(lease: Lease) -> Self {
        let holder = Holder {
            backup_uid: lease.labels().get(BACKUP_UID_LABEL).cloned().unwrap_or_default(),
            replica: lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
            backup: lease.annotations().get(BACKUP_ANNOTATION).cloned().unwrap_or_default(),
        };
        Self { lease, holder }
    }

    /// Name of its Lease.
    pub fn name(&self) -> String {
        self.lease.name_any()
    }

    /// UID of its Lease.
    pub fn uid(&self) -> String {
        self.lease.uid().unwrap_or_default()
    }

    /// An annotation of its Lease.
    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.lease.annotations().get(name).map(String::as_str)
    }

    /// Namespace and name of its Backup.
    pub fn backup(&self) -> Option<(&str, &str)> {
        self.holder.backup.split_once('/')
    }
}

/// The locks of the cluster.
pub struct Locks {
    api: Api<Lease>,
    replica: String,
}

impl Locks {
    /// Locks as a replica sees them.
    pub fn new(context: &Context) -> Self {
        let ownership: &Ownership = &context.ownership;
        Self {
            api: Api::namespaced(context.client.clone(), ownership.namespace()),
            replica: ownership.identity().to_owned(),
        }
    }

    /// Takes every lock of a run, or says who has one. What was taken stays taken: the order keeps two runs from waiting
    /// for each other.
    ///
    /// # Errors
    /// Another run has a workload, or a request failed.
    pub async fn take(&self, backup: &Backup, all: &[Workload], at: jiff::Timestamp) -> Result<(), Refusal> {
        for workload in all {
            self.take_one(backup, workload, at).await?;
        }
        Ok(())
    }

    async fn take_one(
        &self,
        backup: &Backup,
        workload: &Workload,
        at: jiff::Timestamp,
    ) -> Result<(), Refusal> {
        let name = workload.lock_name();
        let uid = backup.uid().unwrap_or_default();
        let wanted = self.lease(backup, workload, at);
        let request = |error: RequestError| Refusal::request(&error);
        for _ in 0..TRIES {
            let what = format!("lock a workload by Lease {name}");
            match bounded(what, self.api.create(&PostParams::default(), &wanted)).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(request(error)),
            }
            let read =
                bounded(format!("read Lease {name}"), self.api.get_opt(&name)).await.map_err(request)?;
            let existing = read.map(Lock::of);
            match decide(existing.as_ref().map(|lock| &lock.holder), &uid, &self.replica) {
                Decision::Take => {}
                Decision::Ours => return Ok(()),
                Decision::TakeOver => {
                    if let Some(lock) = existing
                        && self.take_over_one(lock).await.map_err(request)?
                    {
                        return Ok(());
                    }
                }
                Decision::Busy { by } => return Err(busy(workload, &by, &name, self.api_namespace())),
            }
        }
        Err(Refusal::may_pass(WORKLOAD_BUSY, format!("Lease {name} changed at each of {TRIES} looks")))
    }

    fn api_namespace(&self) -> &str {
        self.api.namespace().unwrap_or_default()
    }

    fn lease(&self, backup: &Backup, workload: &Workload, at: jiff::Timestamp) -> Lease {
        let what = match workload {
            Workload::Claim(uid) => format!("claim {uid}"),
            Workload::Pod(uid) => format!("pod {uid}"),
        };
        self.named(backup, &workload.lock_name(), &what, at)
    }

    /// A Lease of a run, by its name; `what` is for people.
    pub(super) fn named(&self, backup: &Backup, name: &str, what: &str, at: jiff::Timestamp) -> Lease {
        let of_backup = format!("{}/{}", backup.namespace().unwrap_or_default(), backup.name_any());
        Lease {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(BTreeMap::from([
                    (LEASE_LABEL.to_owned(), WORKLOAD_LEASE.to_owned()),
                    (BACKUP_UID_LABEL.to_owned(), backup.uid().unwrap_or_default()),
                ])),
                annotations: Some(BTreeMap::from([
                    (BACKUP_ANNOTATION.to_owned(), of_backup),
                    (WORKLOAD_ANNOTATION.to_owned(), what.to_owned()),
                ])),
                ..ObjectMeta::default()
            },
            // No duration: it does not expire.
            spec: Some(LeaseSpec {
                holder_identity: Some(self.replica.clone()),
                acquire_time: Some(MicroTime(at)),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Makes every lock of a run this replica's. The change also keeps an owner that was only stopped from releasing it:
    /// a release names the version that it saw.
    ///
    /// # Errors
    /// A request failed.
    pub async fn take_over(&self, backup_uid: &str) -> Result<(), RequestError> {
        for lock in self.of_backup(backup_uid).await? {
            if lock.holder.replica != self.replica {
                self.take_over_one(lock).await?;
            }
        }
        Ok(())
    }

    /// Whether it is ours now; false: it changed meanwhile.
    async fn take_over_one(&self, lock: Lock) -> Result<bool, RequestError> {
        let name = lock.name();
        let mut lease = lock.lease;
        lease.spec.get_or_insert_default().holder_identity = Some(self.replica.clone());
        let params = PostParams::default();
        let put = self.api.replace(&name, &params, &lease);
        match bounded(format!("take Lease {name} over"), put).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Releases the locks of a run that this replica works on. Only when every hold is THAWED or proven gone.
    ///
    /// # Errors
    /// A request failed; calling it again finishes it.
    pub async fn release(&self, backup_uid: &str) -> Result<(), RequestError> {
        for lock in self.of_backup(backup_uid).await? {
            if lock.holder.replica == self.replica {
                self.remove(&lock).await?;
            }
        }
        Ok(())
    }

    /// Removes exactly this lock, as it was read.
    ///
    /// # Errors
    /// The request failed. A lock that is gone or changed is no error.
    pub async fn remove(&self, lock: &Lock) -> Result<(), RequestError> {
        let name = lock.name();
        let exactly = DeleteParams {
            preconditions: Some(Preconditions {
                uid: lock.lease.uid(),
                resource_version: lock.lease.resource_version(),
            }),
            ..DeleteParams::default()
        };
        match bounded(format!("release Lease {name}"), self.api.delete(&name, &exactly)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where the locks are.
    pub(super) const fn api(&self) -> &Api<Lease> {
        &self.api
    }

    /// Every lock of a run.
    ///
    /// # Errors
    /// The request failed.
    pub(super) async fn of_backup(&self, backup_uid: &str) -> Result<Vec<Lock>, RequestError> {
        self.list(&format!("{LEASE_LABEL}={WORKLOAD_LEASE},{BACKUP_UID_LABEL}={backup_uid}")).await
    }

    /// Every lock there is.
    ///
    /// # Errors
    /// The request failed.
    pub async fn all(&self) -> Result<Vec<Lock>, RequestError> {
        self.list(&format!("{LEASE_LABEL}={WORKLOAD_LEASE}")).await
    }

    async fn list(&self, selector: &str) -> Result<Vec<Lock>, RequestError> {
        let listed =
            bounded("list workload locks", self.api.list(&ListParams::default().labels(selector))).await?;
        Ok(listed.items.into_iter().map(Lock::of).collect())
    }
}

fn busy(workload: &Workload, by: &str, lease: &str, namespace: &str) -> Refusal {
    let what = match workload {
        Workload::Claim(_) => "a claim of this run",
        Workload::Pod(_) => "a pod of this run",
    };
    Refusal::may_pass(
        WORKLOAD_BUSY,
        format!(
            "Backup {by} is backing up {what}, and two freezes of one workload would release each other: it goes on when \
             that run has thawed (Lease {lease} in namespace {namespace})"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(backup_uid: &str, replica: &str) -> Holder {
        Holder { backup_uid: backup_uid.into(), replica: replica.into(), backup: "shop/b".into() }
    }

    #[test]
    fn a_workload_belongs_to_one_run() {
        assert_eq!(decide(None, "u", "r"), Decision::Take);
        assert_eq!(decide(Some(&holder("u", "r")), "u", "r"), Decision::Ours);
        assert_eq!(decide(Some(&holder("other", "r")), "u", "r"), Decision::Busy { by: "shop/b".into() });
    }

    #[test]
    fn the_recovery_of_a_run_takes_its_locks_over_from_another_replica() {
        assert_eq!(decide(Some(&holder("u", "gone")), "u", "r"), Decision::TakeOver);
    }

    #[test]
    fn a_lock_is_left_over_only_when_its_run_cannot_be_freezing() {
        assert!(!left_over(RunOfLock::Active));
        assert!(left_over(RunOfLock::Finished));
        assert!(!left_over(RunOfLock::Absent { long: false }));
        assert!(left_over(RunOfLock::Absent { long: true }));
    }

    #[test]
    fn locks_are_taken_in_one_order_and_each_once() {
        let one = workloads(["pod-2", "pod-1"], ["claim-2", "claim-1", "claim-2"]);
        let other = workloads(["pod-1", "pod-2", "pod-1"], ["claim-1", "claim-2"]);
        assert_eq!(one, other);
        assert_eq!(one.len(), 4);
        assert!(one.is_sorted_by_key(Workload::lock_name));
    }

    #[test]
    fn the_name_of_a_lock_follows_from_what_it_locks() {
        let uid = "0b2c1a5e-3c60-4a8e-9f2e-1a2b3c4d5e6f";
        assert_eq!(Workload::Pod(uid.into()).lock_name(), format!("stillpoint-pod-{uid}"));
        assert_ne!(Workload::Pod(uid.into()).lock_name(), Workload::Claim(uid.into()).lock_name());
        let odd = Workload::Claim("Ü/".repeat(200)).lock_name();
        assert!(
            odd.len() <= 63
                && odd.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
            "{odd}"
        );
    }
}
