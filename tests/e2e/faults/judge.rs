//! The truth about one run: what the writers, the driver's ledger and the server say, and whether the Backup agrees.

use std::time::Duration;

use jiff::SignedDuration;
use kube::{Api, ResourceExt as _};
use stillpoint_api::Backup;
use stillpoint_api::backup::{JournalKind, NAMESPACE_LABEL, Phase};
use stillpoint_api::clock::{Clock as _, SystemClock};
use stillpoint_api::evidence::{Consistency, Offset};
use stillpoint_api::snapshot::VolumeSnapshotContent;
use stillpoint_e2e::acks::{Stall, stalls};
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Present as _, ensure, point};

use crate::database::{Database, LEASE, MAX_HOLD};
use crate::inflict::Inflicted;
use crate::instant::Places;
use crate::plan::{Aim, Fault};

/// After SIGKILL of the controller, or of the client itself, commits go on within this (docs/design/freeze.md §9).
const AFTER_KILL: i64 = 1_000_000;
/// What a busy machine may add before a writer notes its first commit, where §9 promises seconds.
const NOTED_WITHIN: i64 = 250_000;
/// A pause in the commits that is worth telling from the machine's own.
const A_STALL: i64 = 150_000;
/// Label of the Leases that lock a pod or a claim, by whose UID they are named (docs/design/freeze.md §2.6).
const WORKLOAD_LOCKS: &str = "stillpoint.dev/lease=workload";
/// A client without a session that sees no end of input has this long to end all the same.
const AFTER_LEASE: Duration = Duration::from_secs(12);
/// So late a writer of a busy machine may note the answer to a commit that was made before the hold.
const NOTED_LATE: i64 = 400_000;
/// Sessions of a run that ended, and what is deleted after it, are gone within this.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// What the snapshot controller makes of a request that was deleted while the API server was away goes with the next sweep: one
/// every 5 minutes (docs/design/freeze.md §5).
const SWEPT_WITHIN: Duration = Duration::from_secs(360);

/// What is told about a run in the table.
#[derive(Clone, Debug)]
pub struct Findings {
    /// At which instant the fault really came, by what others saw.
    pub instant: Aim,
    /// Whether writers stood still when the fault came.
    pub held: bool,
    /// Longest time without a commit, milliseconds.
    pub longest_ms: f64,
    /// From the fault to the next commit, where writers stood still; milliseconds.
    pub freed_ms: Option<f64>,
    /// `Application`, or why there is no point.
    pub outcome: String,
    /// Attempts it took.
    pub attempts: u32,
}

/// One run, and everything it is judged by.
pub struct Case<'a> {
    /// The suite.
    pub world: &'a World,
    /// Whose run.
    pub database: &'a Database,
    /// The run, finished.
    pub backup: &'a Backup,
    /// What was done to it.
    pub fault: Fault,
    /// When.
    pub inflicted: Inflicted,
    /// Where the records ended before it.
    pub places: Places,
}

impl Case<'_> {
    /// Judges it.
    ///
    /// # Errors
    /// The first thing that is not as promised.
    pub async fn judge(&self) -> Outcome<Findings> {
        let mut findings = self.stall()?;
        self.verdict().await?;
        if self.nothing_leaked().await? > 0 {
            findings.outcome += ", idle client left";
        }
        Ok(findings)
    }

    fn micros(&self, of: Option<Offset>) -> Option<i64> {
        let window = self.backup.status.as_ref()?.window.as_ref()?;
        Some(
            window
                .started_at
                .as_ref()?
                .0
                .checked_add(SignedDuration::from_micros(of?.0))
                .ok()?
                .as_microsecond(),
        )
    }

    /// The longest time without a commit, against the promise.
    fn stall(&self) -> Outcome<Findings> {
        let name = self.backup.name_any();
        let acks = self.database.acks.since(self.places.acks)?;
        ensure!(!acks.is_empty(), "{name}: the writers noted nothing at all");
        let all = stalls(&acks, A_STALL);
        let longest = all.iter().map(|stall| stall.micros()).max().unwrap_or_default();
        let at_fault = all.iter().copied().find(|stall| stall.holds(self.inflicted.at));
        let promise = MAX_HOLD.as_micros() as i64 + 5_000_000 + NOTED_WITHIN;
        ensure!(
            longest <= promise,
            "{name}: writers waited {longest} µs, the promise is {promise} µs: {all:?}"
        );
        if let Some(stall) = at_fault {
            self.freed(&name, stall)?;
        }
        let status = self.backup.status.as_ref().present("the status")?;
        let outcome = match status.consistency {
            Some(consistency) if status.phase == Phase::Succeeded => format!("{consistency:?}"),
            _ => point::outcome_of(self.backup).split(':').next().unwrap_or_default().to_owned(),
        };
        Ok(Findings {
            instant: self.instant()?,
            held: at_fault.is_some() && self.database.locks(),
            longest_ms: longest as f64 / 1e3,
            freed_ms: at_fault.map(|stall| (stall.to - self.inflicted.at) as f64 / 1e3),
            outcome,
            attempts: status.attempt,
        })
    }

    fn freed(&self, name: &str, stall: Stall) -> Outcome {
        let after = stall.to - self.inflicted.at;
        let limit = match self.fault {
            Fault::Controller | Fault::Client => AFTER_KILL,
            // The last beat was before the fault.
            Fault::Kubelet | Fault::ApiServer | Fault::Containerd | Fault::Partition | Fault::Stopped => {
                LEASE.as_micros() as i64 + NOTED_WITHIN
            }
            Fault::SnapshotController | Fault::Sidecar | Fault::Driver => {
                MAX_HOLD.as_micros() as i64 + NOTED_WITHIN
            }
        };
        ensure!(
            after <= limit,
            "{name}: commits went on {after} µs after the fault ({}), promised within {limit} µs: {stall:?}",
            self.fault.name()
        );
        Ok(())
    }

    /// Where in the run the fault came: journal, audit log, ledger.
    fn instant(&self) -> Outcome<Aim> {
        let at = self.inflicted.at;
        let status = self.backup.status.as_ref().present("the status")?;
        let entry = |kind: JournalKind| {
            let first = status.journal.iter().find(|line| line.entry == kind && line.attempt == 1);
            first.map(|line| line.at.0.as_microsecond())
        };
        let Some(freezing) = entry(JournalKind::Freezing).filter(|freezing| *freezing <= at) else {
            return Ok(Aim::BeforeReady);
        };
        let audit = self.world.cluster.audit().since(self.places.audit)?;
        let posted = audit
            .iter()
            .filter(|entry| entry.verb == "create" && entry.about("volumesnapshots", ""))
            .filter(|entry| entry.namespace() == self.database.namespace && !entry.is_dry_run())
            .map(|entry| entry.request_received_timestamp.as_microsecond())
            .find(|posted| *posted >= freezing);
        if posted.is_none_or(|posted| at < posted) {
            return Ok(Aim::Freezing);
        }
        let lines = self.world.cluster.ledger.lines()?;
        let cut = lines
            .iter()
            .skip(self.places.ledger)
            .find(|line| line.event == "cut" && line.volume == self.database.volume)
            .and_then(|line| line.cut_start);
        if cut.is_none_or(|cut| at < cut.as_microsecond()) {
            return Ok(Aim::Storage);
        }
        let ended = [JournalKind::Thawed, JournalKind::Aborted].into_iter().filter_map(entry).min();
        Ok(if ended.is_some_and(|ended| ended <= at) { Aim::Settling } else { Aim::Thawing })
    }

    /// What the Backup says, against the ledger and the writers.
    async fn verdict(&self) -> Outcome {
        let name = self.backup.name_any();
        let status = self.backup.status.as_ref().present("the status")?;
        if status.phase != Phase::Succeeded {
            ensure!(
                status.consistency != Some(Consistency::Application),
                "{name} is {:?} and yet {:?}",
                status.phase,
                status.consistency
            );
            return Ok(());
        }
        if status.consistency != Some(Consistency::Application) {
            return Ok(());
        }
        if !self.database.locks() {
            // The loss of an observer costs evidence, not the verdict (§4): the window may not be whole. What such a
            // point is worth is said by its copy (`copies`); that it was cut after it was asked for, here.
            return self.observed(&name);
        }
        let instants = point::verify(&self.world.cluster, self.backup).await?;
        let to = instants.cut.to.as_microsecond();
        let acks = self.database.acks.since(self.places.acks)?;
        // Begun after FROZEN and acknowledged before THAW: the lock cannot have been there.
        let inside: Vec<_> = acks
            .iter()
            .filter(|ack| ack.started > instants.frozen && ack.acked < instants.thaw_sent)
            .collect();
        ensure!(
            inside.is_empty(),
            "{name} is Application, and commits were made inside its hold: {inside:?}"
        );
        // The writers alone: the driver was asked long before it cut, and all that time nothing was acknowledged but
        // what a busy machine noted late.
        let member = status.members.first().present("the member")?;
        let asked_for = format!("snapshot-{}", member.volume_snapshot_uid.as_deref().unwrap_or_default());
        let lines = self.world.cluster.ledger.lines()?;
        let asked = lines.iter().find(|line| line.event == "rpc-start" && line.name == asked_for);
        let quiet_from = asked.present("the driver's call")?.at.as_microsecond() + NOTED_LATE;
        let around: Vec<_> = acks.iter().filter(|ack| quiet_from < ack.acked && ack.acked < to).collect();
        ensure!(
            around.is_empty(),
            "{name} is Application, and commits were acknowledged while its driver was about to cut ({quiet_from}..{to}): {around:?}"
        );
        Ok(())
    }

    /// The cut of an observed point is in the ledger, of this volume, after its POST and before the signal.
    fn observed(&self, name: &str) -> Outcome {
        let status = self.backup.status.as_ref().present("the status")?;
        let member = status.members.first().present("the member")?;
        let uid = member.volume_snapshot_uid.as_deref().present("members[0].volumeSnapshotUID")?;
        let cut = self.world.cluster.ledger.cut_of(uid)?;
        let posted = self.micros(member.post_sent).present("members[0].postSent")?;
        let signal = self.micros(member.signal).present("members[0].signal")?;
        let (from, to) = (cut.from.as_microsecond(), cut.to.as_microsecond());
        ensure!(
            posted <= from && to <= signal && member.volume_handle == self.database.volume,
            "{name} is Application, and was cut {from}..{to}, outside of its POST {posted} and signal {signal}"
        );
        Ok(())
    }

    /// No session, snapshot, content, Lease or data is left but the points, and no client process but after a crash of
    /// containerd; answers how many of those.
    async fn nothing_leaked(&self) -> Outcome<usize> {
        let name = self.backup.name_any();
        until(&format!("no session of {name} to be left in the server"), GONE_WITHIN, async || {
            // A kubelet that was just started may refuse the first exec.
            Ok(match self.database.foreign_sessions().await {
                Ok(left) => Look::at(left.is_empty().then_some(()), left),
                Err(problem) => Look::NotYet(problem.0),
            })
        })
        .await?;
        let within = if self.fault == Fault::Containerd { AFTER_LEASE } else { GONE_WITHIN };
        let clients = until(&format!("no client of {name} to be left in the pod"), within, async || {
            let left = self.database.clients()?;
            Ok(Look::at(left.is_empty().then_some(()), format!("{left:?}")))
        })
        .await;
        let left = match clients {
            Ok(()) => 0,
            // Nothing outside of the pod can end it: the shim keeps its input open, and its server has ended its session.
            Err(_) if self.fault == Fault::Containerd => {
                let left = self.database.clients()?;
                self.database.leave_behind(&left);
                left.len()
            }
            Err(problem) => return Err(problem),
        };
        self.only_points().await?;
        self.no_workload_lease().await?;
        Ok(left)
    }

    async fn only_points(&self) -> Outcome {
        let contents: Api<VolumeSnapshotContent> = Api::all(self.world.cluster.client.clone());
        let what =
            format!("only points of {} to be left after {}", self.database.namespace, self.backup.name_any());
        let clock = SystemClock::new();
        let began = clock.mono();
        until(&what, SWEPT_WITHIN, async || {
            let backups = self.database.backups().list(&Default::default()).await?.items;
            let succeeded = backups
                .iter()
                .filter_map(|backup| backup.status.as_ref())
                .filter(|status| status.phase == Phase::Succeeded)
                .flat_map(|status| status.members.iter().filter_map(|member| member.handle.clone()))
                .collect::<Vec<_>>();
            let mut found: Vec<String> = contents
                .list(&Default::default())
                .await?
                .items
                .into_iter()
                .filter(|one| {
                    one.spec.volume_snapshot_ref.namespace.as_deref() == Some(self.database.namespace)
                })
                .map(|one| {
                    let named = one.labels().get(NAMESPACE_LABEL).is_some();
                    let handle = one.status.and_then(|status| status.snapshot_handle);
                    handle
                        .filter(|_| named)
                        .unwrap_or_else(|| format!("unlabelled {}", one.metadata.name.unwrap_or_default()))
                })
                .collect();
            found.sort_unstable();
            let mut data = self.world.cluster.ledger.left_since(0, Some(&self.database.volume))?;
            data.sort_unstable();
            let points = data.iter().all(|handle| succeeded.contains(handle));
            let good = found == data && points;
            Ok(Look::at(
                good.then_some(()),
                format!("contents {found:?}, data {data:?}, points {succeeded:?}"),
            ))
        })
        .await?;
        let waited = clock.mono().since(began);
        if waited > GONE_WITHIN {
            println!("        {what}: only after {} s", waited.as_secs());
        }
        Ok(())
    }

    /// Locks of the workload are released; the replicas' own Leases stay.
    async fn no_workload_lease(&self) -> Outcome {
        until("every workload lock to be released", GONE_WITHIN, async || {
            let leases = ["-n", "stillpoint-system", "get", "leases", "-l", WORKLOAD_LOCKS, "-o", "name"];
            let names = self.world.cluster.kubectl(&leases, None).await?.good("list the Leases")?;
            let (pod, claim) = (&self.database.pod_uid, &self.database.claim_uid);
            let left: Vec<&str> = names
                .lines()
                .filter(|name| name.contains(pod.as_str()) || name.contains(claim.as_str()))
                .collect();
            Ok(Look::at(left.is_empty().then_some(()), left.join(", ")))
        })
        .await
    }
}
