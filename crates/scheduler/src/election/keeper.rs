//! Carries out what [`Election`] decides: asks for the Lease and writes it, by compare-and-swap.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use stillpoint_api::clock::SharedClock;
use tracing::{debug, info, warn};

use super::decide::{Action, Election, Event, Sighting, Terms};
use super::leadership::Leadership;

/// Name of the Lease of whoever schedules.
pub const LEASE_NAME: &str = "stillpoint-scheduler";

/// Who stands for election, and where.
#[derive(Clone)]
pub struct Candidate {
    /// A client that never repeats a request by itself.
    pub client: Client,
    /// Namespace of the Lease; the same for every replica.
    pub namespace: String,
    /// Identity of this process; none of another start.
    pub identity: String,
    /// Time.
    pub clock: SharedClock,
    /// The times of the election.
    pub terms: Terms,
    /// Where the outcome is told.
    pub leadership: Leadership,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Stands for election until `leave`, then lets the Lease go. Whoever asks for `leave` has stopped everything that only
/// the leader does. Dropping the future is what a killed process does: the Lease runs out.
pub async fn run(candidate: Candidate, leave: impl Future<Output = ()>) {
    let mut leave = pin!(leave);
    let mut election = Election::new(candidate.identity.clone(), candidate.terms);
    let mut booth = Booth::new(candidate);
    let mut event = Event::Time;
    loop {
        let action = election.step(event, booth.candidate.clock.mono());
        booth.tell(&election);
        event = match action {
            Action::Wait(pause) => tokio::select! {
                () = &mut leave => Event::Leave,
                () = tokio::time::sleep(pause) => Event::Time,
            },
            Action::Look => booth.look().await,
            Action::Hold(version) => booth.hold(version).await,
            Action::LetGo(version) => {
                booth.let_go(version).await;
                return;
            }
            Action::Done => return,
        };
    }
}

/// Where the Lease is asked for and written.
struct Booth {
    candidate: Candidate,
    api: Api<Lease>,
    /// The Lease as it was answered last: what others wrote into it stays.
    last: Option<Lease>,
    led: bool,
}

impl Booth {
    fn new(candidate: Candidate) -> Self {
        let api = Api::namespaced(candidate.client.clone(), &candidate.namespace);
        Self { candidate, api, last: None, led: false }
    }

    fn tell(&mut self, election: &Election) {
        self.candidate.leadership.told(election.leads_until(), election.holder());
        let leads = election.leads_until().is_some();
        if leads != self.led {
            self.led = leads;
            let identity = &self.candidate.identity;
            let holder = election.holder().unwrap_or_default();
            if leads {
                info!(identity, "this replica leads: it schedules, prunes and sweeps");
            } else {
                info!(identity, holder, "this replica leads no more");
            }
        }
    }

    /// The answer of a request, unless it takes too long to be of use.
    async fn ask<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Event> {
        match tokio::time::timeout(self.candidate.terms.request(), request).await {
            Ok(Ok(answer)) => Ok(answer),
            // Somebody was faster, or the Lease was deleted: the next look shows which.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                debug!(what, reason = status.reason, "the Lease of the scheduler is not what it was");
                Err(Event::Failed)
            }
            Ok(Err(error)) => {
                warn!(
                    namespace = self.candidate.namespace, what, %error,
                    "the Lease of the scheduler is out of reach; without it this replica does not schedule. It needs the \
                     namespace of its Leases (--lease-namespace) and the Role of deploy/base there"
                );
                Err(Event::Failed)
            }
            Err(_) => {
                warn!(what, "the API server did not answer in time about the Lease of the scheduler");
                Err(Event::Failed)
            }
        }
    }

    async fn look(&mut self) -> Event {
        match self.ask("read", self.api.get_opt(LEASE_NAME)).await {
            Ok(found) => {
                self.last = found;
                Event::Looked(self.last.as_ref().map(sighting))
            }
            Err(failed) => failed,
        }
    }

    async fn hold(&mut self, version: Option<String>) -> Event {
        let wanted = self.wanted(version.clone(), Some(&self.candidate.identity));
        let params = PostParams::default();
        let sent = self.candidate.clock.mono();
        let written = match version {
            Some(_) => self.ask("write", self.api.replace(LEASE_NAME, &params, &wanted)).await,
            None => self.ask("create", self.api.create(&params, &wanted)).await,
        };
        match written {
            Ok(lease) => {
                let event = Event::Wrote { sent, lease: sighting(&lease) };
                self.last = Some(lease);
                event
            }
            Err(failed) => failed,
        }
    }

    async fn let_go(&mut self, version: String) {
        let wanted = self.wanted(Some(version), None);
        let params = PostParams::default();
        if self.ask("let go", self.api.replace(LEASE_NAME, &params, &wanted)).await.is_ok() {
            info!("the Lease of the scheduler was let go");
        }
    }

    /// The Lease as it shall be. Its times are for people.
    fn wanted(&self, version: Option<String>, holder: Option<&str>) -> Lease {
        let now = MicroTime(self.candidate.clock.wall());
        let before = self.last.clone().filter(|_| version.is_some());
        let (metadata, spec) = before.map(|lease| (lease.metadata, lease.spec)).unwrap_or_default();
        let spec = spec.unwrap_or_default();
        let same = spec.holder_identity.as_deref() == holder;
        let seconds = self.candidate.terms.lease.as_millis().div_ceil(1000);
        let spec = LeaseSpec {
            // An empty name is refused by newer servers.
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: spec.acquire_time.filter(|_| same).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(!same))),
            ..spec
        };
        let metadata = ObjectMeta {
            name: Some(LEASE_NAME.to_owned()),
            namespace: Some(self.candidate.namespace.clone()),
            resource_version: version,
            managed_fields: None,
            ..metadata
        };
        Lease { metadata, spec: Some(spec) }
    }
}

fn sighting(lease: &Lease) -> Sighting {
    let spec = lease.spec.as_ref();
    let seconds =
        spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    Sighting {
        holder: spec.and_then(|spec| spec.holder_identity.clone()),
        // Every answer has one; without it nothing could be written, and nothing is.
        version: lease.resource_version().unwrap_or_default(),
        lasts: seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs),
    }
}
