//! Our own Lease: renewed while this process can, and what every fence is measured from.
//!
//! Guarantees: a renewal counts from the instant its request was *sent*; what it allows ends on our own monotonic clock
//! whatever the task that renews does; a restarted process has another identity.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use stillpoint_api::clock::{Mono, SharedClock};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::claim::{self, Claim};
use super::peers::{Peers, Sighting};
use super::{LEASE_LABEL, REPLICA_LEASE, Timing};
use crate::context::{RequestError, bounded};
use crate::hold::Entropy;

/// Pause after a renewal that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest part of an identity that names the replica: with the incarnation it fits `status.executor`.
const MAX_NAME: usize = 200;
/// Random bytes of an incarnation: 64 bits, no two processes of one name ever meet.
const INCARNATION: usize = 8;
/// A Lease that did not change for so many durations belongs to a process that is gone for good.
const LEFT_OVER_AFTER: u32 = 40;

/// What is known about our own Lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnLease {
    /// When the last confirmed renewal was sent.
    renewed: Option<Mono>,
}

impl OwnLease {
    /// A Lease whose renewal was sent then, and confirmed.
    pub const fn renewed_at(sent: Mono) -> Self {
        Self { renewed: Some(sent) }
    }

    /// Until when FREEZE and POST may be written: half the lease. Another replica acts a whole lease after it saw the
    /// renewal, so half of it is left for a process that was stopped between the check and the write.
    pub fn fence(self, lease: Duration) -> Option<Mono> {
        self.renewed.map(|sent| sent + lease / 2)
    }

    /// Until when our claims hold: another replica may take them over after that.
    pub fn ends(self, lease: Duration) -> Option<Mono> {
        self.renewed.map(|sent| sent + lease)
    }
}

/// What happened to our claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimNews {
    /// They were confirmed; FREEZE and POST may be written until then.
    Renewed {
        /// The fence.
        fence: Mono,
    },
    /// They could not be confirmed in time: somebody else may own them.
    Lost {
        /// Why, for people.
        why: String,
    },
}

/// Follows our own Lease for one attempt.
pub struct ClaimWatch {
    own: watch::Receiver<OwnLease>,
    lease: Duration,
    clock: SharedClock,
    told: bool,
}

impl ClaimWatch {
    /// Waits for the next news. Nothing is lost when the future is dropped. The end is found on our own clock: it needs
    /// neither the API server nor the task that renews.
    pub async fn news(&mut self) -> ClaimNews {
        loop {
            let left = match self.own.borrow().ends(self.lease) {
                Some(ends) if !self.told => ends.since(self.clock.mono()),
                Some(_) => Duration::MAX,
                None if !self.told => Duration::ZERO,
                None => Duration::MAX,
            };
            tokio::select! {
                biased;
                changed = self.own.changed() => {
                    if changed.is_err() {
                        // The sender lives in the Ownership that made us; without it nothing renews.
                        std::future::pending::<()>().await;
                    }
                    if let Some(fence) = self.own.borrow().fence(self.lease) {
                        self.told = false;
                        return ClaimNews::Renewed { fence };
                    }
                }
                () = tokio::time::sleep(left), if left < Duration::MAX => {
                    self.told = true;
                    let why = format!("this replica could not renew its Lease for {:?}", self.lease);
                    return ClaimNews::Lost { why };
                }
            }
        }
    }
}

/// The identity of this process, its Lease, and what it knows about other replicas. Cheap to clone.
#[derive(Clone)]
pub struct Ownership {
    shared: Arc<Shared>,
}

struct Shared {
    identity: String,
    namespace: String,
    timing: Timing,
    own: watch::Sender<OwnLease>,
    peers: Mutex<Peers>,
    /// Attempts in progress in this process.
    windows: watch::Sender<usize>,
    /// What this process works on, and how often.
    works: Mutex<BTreeMap<String, usize>>,
    /// Whether this replica sweeps.
    sweeps: watch::Sender<bool>,
}

/// While it lives this process works on what it names.
pub struct Work {
    shared: Arc<Shared>,
    name: String,
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut works = self.shared.works.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = works.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                works.remove(&self.name);
            }
        }
    }
}

/// While it lives the sweeper of this process rests.
pub struct Window(Arc<Shared>);

impl Drop for Window {
    fn drop(&mut self) {
        self.0.windows.send_modify(|open| *open = open.saturating_sub(1));
    }
}

impl std::fmt::Debug for Ownership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ownership").field("identity", &self.shared.identity).finish_non_exhaustive()
    }
}

/// `<name>_<random>`: the same replica after a restart is another owner.
///
/// # Errors
/// The system gave no random bytes.
pub fn identity(name: &str, entropy: &dyn Entropy) -> io::Result<String> {
    let mut bytes = [0_u8; INCARNATION];
    entropy.bytes(&mut bytes)?;
    let name: String = name.chars().take(MAX_NAME).collect();
    let incarnation: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{name}_{incarnation}"))
}

/// Name of the Lease of an identity: its incarnation is unique, and a host name may not fit.
fn lease_name(identity: &str) -> String {
    let incarnation = identity.rsplit('_').next().unwrap_or(identity);
    format!("stillpoint-replica-{incarnation}")
}

impl Ownership {
    /// The ownership of a process with this [`identity`]. Its Leases are in `namespace`.
    pub fn new(identity: impl Into<String>, namespace: impl Into<String>, timing: Timing) -> Self {
        let shared = Shared {
            identity: identity.into(),
            namespace: namespace.into(),
            timing,
            own: watch::Sender::new(OwnLease::default()),
            peers: Mutex::default(),
            windows: watch::Sender::new(0),
            works: Mutex::default(),
            sweeps: watch::Sender::new(true),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The ownership of a process that claims nothing, so that no other replica takes anything over from it: of a
    /// rehearsal. FREEZE may be written until `lasts` from now.
    pub fn unclaimed(identity: impl Into<String>, now: Mono, lasts: Duration) -> Self {
        let this = Self::new(identity, "", Timing { lease: lasts * 2, ..Timing::default() });
        this.shared.own.send_replace(OwnLease::renewed_at(now));
        this
    }

    /// Identity in claims and journals.
    pub fn identity(&self) -> &str {
        &self.shared.identity
    }

    /// Namespace of the Leases.
    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// The times.
    pub fn timing(&self) -> Timing {
        self.shared.timing
    }

    /// Until when FREEZE and POST may be written; none before the Lease was confirmed once.
    pub fn fence(&self) -> Option<Mono> {
        self.shared.own.borrow().fence(self.shared.timing.lease)
    }

    /// Follows the Lease, from its present state.
    pub fn follow(&self, clock: SharedClock) -> ClaimWatch {
        ClaimWatch { own: self.shared.own.subscribe(), lease: self.shared.timing.lease, clock, told: false }
    }

    /// Waits until the Lease was confirmed lately enough for a freeze to begin.
    pub async fn held(&self, clock: &SharedClock) {
        let mut own = self.shared.own.subscribe();
        loop {
            if own
                .borrow_and_update()
                .fence(self.shared.timing.lease)
                .is_some_and(|fence| fence > clock.mono())
            {
                return;
            }
            if own.changed().await.is_err() {
                return;
            }
        }
    }

    /// What we may do with a Backup whose status names this executor.
    pub fn claim(&self, executor: Option<&str>, now: Mono) -> Claim {
        claim::decide(executor, &self.shared.identity, |holder| {
            self.peers().standing(holder, self.shared.timing.lease, now)
        })
    }

    /// Says that a freeze of this process may be under way.
    pub fn open_window(&self) -> Window {
        self.shared.windows.send_modify(|open| *open += 1);
        Window(Arc::clone(&self.shared))
    }

    /// Waits until no freeze of this process is under way.
    pub async fn windows_closed(&self) {
        let mut open = self.shared.windows.subscribe();
        // The sender lives as long as we do.
        let _ = open.wait_for(|open| *open == 0).await;
    }

    /// Says that this process works on an object, for [`Ownership::works`].
    pub fn works_on(&self, kind: &str, namespace: &str, name: &str) -> Work {
        let name = format!("{kind}/{namespace}/{name}");
        let mut works = self.shared.works.lock().unwrap_or_else(PoisonError::into_inner);
        *works.entry(name.clone()).or_default() += 1;
        drop(works);
        Work { shared: Arc::clone(&self.shared), name }
    }

    /// What this process works on: `kind/namespace/name`, sorted.
    pub fn works(&self) -> Vec<String> {
        let works = self.shared.works.lock().unwrap_or_else(PoisonError::into_inner);
        works.keys().cloned().collect()
    }

    /// Says whether this replica sweeps; one that is told nothing does. Sweeping twice is harmless and costs requests, so
    /// one replica does it: the leader (docs/design/freeze.md §5).
    pub fn sweep(&self, sweeps: bool) {
        self.shared.sweeps.send_if_modified(|before| std::mem::replace(before, sweeps) != sweeps);
    }

    /// Waits until this replica is the one that sweeps, or is not.
    pub(crate) async fn sweeps(&self, wanted: bool) {
        // The sender lives as long as we do.
        let _ = self.shared.sweeps.subscribe().wait_for(|sweeps| *sweeps == wanted).await;
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        // Every change leaves a true picture, so a poisoned one is still true.
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, client: &Client) -> Api<Lease> {
        Api::namespaced(client.clone(), &self.shared.namespace)
    }

    /// Renews our Lease and watches the others', until the future is dropped.
    pub async fn keep(&self, client: Client, clock: SharedClock) {
        let api = self.api(&client);
        let mut ours: Option<Lease> = None;
        loop {
            let began = clock.mono();
            // A look that hangs must not keep the next renewal waiting.
            let look = tokio::time::timeout(self.within(), self.look(&api, &clock));
            let (renewed, looked) = tokio::join!(self.renew(&api, &clock, &mut ours), look);
            if !matches!(looked, Ok(Ok(()))) {
                debug!(?looked, "the Leases of other replicas were not seen");
            }
            let pause = match renewed {
                Ok(()) => self.shared.timing.renew,
                Err(error) => {
                    warn!(
                        namespace = self.shared.namespace, %error,
                        "this replica's Lease was not renewed; without it no freeze begins. It needs the namespace of \
                         its Leases (--lease-namespace) and the Role of deploy/base there"
                    );
                    RETRY_AFTER.min(self.shared.timing.renew)
                }
            };
            let spent = clock.mono().since(began);
            tokio::time::sleep(pause.saturating_sub(spent)).await;
        }
    }

    /// Bound of one request: a renewal that takes longer is of no use for the fence.
    fn within(&self) -> Duration {
        self.shared.timing.lease / 3
    }

    async fn renew(
        &self,
        api: &Api<Lease>,
        clock: &SharedClock,
        ours: &mut Option<Lease>,
    ) -> Result<(), RequestError> {
        let what = "renew this replica's Lease";
        let name = lease_name(&self.shared.identity);
        let limit = |error: tokio::time::error::Elapsed| {
            debug!(%error, "a request about our Lease took too long");
            RequestError::Timeout { what: what.to_owned() }
        };
        let known = match ours.take() {
            Some(known) => Some(known),
            None => {
                let read = tokio::time::timeout(self.within(), bounded(what, api.get_opt(&name)));
                read.await.map_err(limit)??
            }
        };
        let sent = clock.mono();
        let wanted = self.lease(&name, known.as_ref(), clock);
        let params = PostParams::default();
        let written = match &known {
            Some(_) => {
                tokio::time::timeout(self.within(), bounded(what, api.replace(&name, &params, &wanted))).await
            }
            None => tokio::time::timeout(self.within(), bounded(what, api.create(&params, &wanted))).await,
        };
        // After any failure the next try reads it first: the write may have happened.
        let written = written.map_err(limit)??;
        *ours = Some(written);
        self.shared.own.send_replace(OwnLease::renewed_at(sent));
        Ok(())
    }

    fn lease(&self, name: &str, known: Option<&Lease>, clock: &SharedClock) -> Lease {
        let now = MicroTime(clock.wall());
        let before = known.and_then(|known| known.spec.clone()).unwrap_or_default();
        let seconds = self.shared.timing.lease.as_millis().div_ceil(1000);
        let spec = LeaseSpec {
            holder_identity: Some(self.shared.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: before.acquire_time.or_else(|| Some(now.clone())),
            renew_time: Some(now),
            ..before
        };
        let labels = BTreeMap::from([(LEASE_LABEL.to_owned(), REPLICA_LEASE.to_owned())]);
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.shared.namespace.clone()),
            labels: Some(labels),
            resource_version: known.and_then(ResourceExt::resource_version),
            ..ObjectMeta::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    async fn look(&self, api: &Api<Lease>, clock: &SharedClock) -> Result<(), RequestError> {
        let asked = clock.mono();
        let params = ListParams::default().labels(&format!("{LEASE_LABEL}={REPLICA_LEASE}"));
        let listed = bounded("list the Leases of replicas", api.list(&params)).await?;
        let sightings: Vec<Sighting> = listed.items.iter().filter_map(sighting).collect();
        self.peers().observe(&sightings, asked, clock.mono());
        Ok(())
    }

    /// Removes our Lease: every run has ended. Best effort; what stays is swept later.
    pub async fn release(&self, client: &Client) {
        let name = lease_name(&self.shared.identity);
        let (api, params) = (self.api(client), DeleteParams::default());
        if let Err(error) = bounded("remove this replica's Lease", api.delete(&name, &params)).await {
            debug!(%error, "this replica's Lease stays until it is swept");
        }
    }

    /// Removes Leases of replicas that are gone for good.
    ///
    /// # Errors
    /// A request failed.
    pub async fn sweep_replicas(&self, client: &Client) -> Result<(), RequestError> {
        let api = self.api(client);
        let silent = self.peers().long_silent(LEFT_OVER_AFTER);
        for holder in silent.iter().filter(|holder| **holder != self.shared.identity) {
            let name = lease_name(holder);
            let Some(lease) = bounded("read a replica's Lease", api.get_opt(&name)).await? else { continue };
            let exactly = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: lease.uid(),
                    resource_version: lease.resource_version(),
                }),
                ..DeleteParams::default()
            };
            match bounded("remove the Lease of a replica that is gone", api.delete(&name, &exactly)).await {
                Ok(_) => debug!(holder, "removed the Lease of a replica that is gone"),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn sighting(lease: &Lease) -> Option<Sighting> {
    let spec = lease.spec.as_ref()?;
    let seconds = u64::try_from(spec.lease_duration_seconds?).ok()?;
    Some(Sighting {
        holder: spec.holder_identity.clone()?,
        version: lease.resource_version()?,
        lease: Duration::from_secs(seconds.max(1)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::SystemEntropy;
    use stillpoint_api::clock::SystemClock;

    fn at(millis: u64) -> Mono {
        Mono::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn what_a_renewal_allows_counts_from_when_it_was_sent() {
        let lease = Duration::from_secs(15);
        let own = OwnLease::renewed_at(at(1000));
        assert_eq!(own.fence(lease), Some(at(8500)));
        assert_eq!(own.ends(lease), Some(at(16_000)));
        assert_eq!(OwnLease::default().fence(lease), None);
    }

    #[test]
    fn a_restarted_process_has_another_identity_and_another_lease() {
        let long = "x".repeat(300);
        let (one, other) =
            (identity(&long, &SystemEntropy).unwrap(), identity(&long, &SystemEntropy).unwrap());
        assert_ne!(lease_name(&one), lease_name(&other));
        assert!(one.len() <= 253);
    }

    #[tokio::test]
    async fn a_lease_that_is_not_renewed_is_lost_on_our_own_clock_and_found_again() {
        let timing = Timing { lease: Duration::from_millis(50), ..Timing::default() };
        let ownership = Ownership::new("a_1", "here", timing);
        let clock = SystemClock::shared();
        ownership.shared.own.send_replace(OwnLease::renewed_at(clock.mono()));
        let mut claim = ownership.follow(Arc::clone(&clock));
        assert!(matches!(claim.news().await, ClaimNews::Lost { .. }));
        let again = tokio::time::timeout(Duration::from_millis(100), claim.news()).await;
        assert!(again.is_err(), "it is told once: {again:?}");
        let sent = clock.mono();
        ownership.shared.own.send_replace(OwnLease::renewed_at(sent));
        assert_eq!(claim.news().await, ClaimNews::Renewed { fence: sent + Duration::from_millis(25) });
    }

    #[tokio::test]
    async fn the_sweeper_rests_while_a_window_is_open() {
        let ownership = Ownership::new("a_1", "here", Timing::default());
        let window = ownership.open_window();
        let waited = tokio::time::timeout(Duration::from_millis(20), ownership.windows_closed()).await;
        assert!(waited.is_err());
        drop(window);
        ownership.windows_closed().await;
    }
}
