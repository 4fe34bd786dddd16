//! The API server: Backups with optimistic concurrency, Leases, snapshots; and the network to it.

use std::collections::BTreeMap;

use stillpoint_api::backup::{BackupStatus, Phase};
use stillpoint_api::evidence::ContainerState;

use super::faults::Fault;
use super::ownership::Holder;
use super::storage::{Asked, Content};
use super::world::{Happening, TaskId, World};
use super::{MS, Micros, S};

/// A Backup as stored.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Whether it exists yet.
    pub created: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether its finalizer is gone: it exists no more.
    pub gone: bool,
    /// Its resourceVersion.
    pub version: u64,
    /// Its status.
    pub status: BackupStatus,
    /// The replica that wrote last.
    pub last_replica: usize,
}

impl Stored {
    /// Whether nothing remains to be done for it.
    pub fn finished(&self) -> bool {
        self.gone
            || (!self.deleting
                && matches!(self.status.phase, Phase::Succeeded | Phase::Failed | Phase::Deleting))
    }
}

/// A request.
#[derive(Clone, Debug)]
pub enum Request {
    /// Read a Backup.
    GetBackup(usize),
    /// Replace its status, if it is still that version.
    PutStatus {
        /// The Backup.
        backup: usize,
        /// The version that was read.
        version: u64,
        /// The new status.
        status: Box<BackupStatus>,
    },
    /// Remove its finalizer.
    LetGo(usize),
    /// Renew the replica's own Lease; answers every Lease.
    Renew(String),
    /// Create a workload lock.
    Lock {
        /// What is locked.
        key: String,
        /// The run that locks it, and the replica that works on it.
        holder: Holder,
    },
    /// Make a workload lock another replica's, if it is still that version.
    TakeLock {
        /// What is locked.
        key: String,
        /// The version that was read.
        version: u64,
        /// The replica.
        replica: String,
    },
    /// Delete a workload lock, if it is still that version.
    Unlock {
        /// What is locked.
        key: String,
        /// The version that was read.
        version: u64,
    },
    /// Create a snapshot.
    Post(Asked),
    /// List the snapshots of a Backup, of one attempt or of all.
    List {
        /// The Backup.
        backup: usize,
        /// The attempt.
        attempt: Option<String>,
    },
    /// Delete a snapshot.
    Delete(usize),
    /// Read a snapshot and its content.
    Look(String),
    /// Read the pods of the workload.
    Pods,
}

/// A workload lock as stored. What takes it over or removes it names its version: a request that was slow changes nothing that
/// was written after it.
#[derive(Clone, Debug)]
pub struct Locked {
    /// Whose it is.
    pub holder: Holder,
    /// Its version, which no other lock ever had.
    pub version: u64,
}

/// A snapshot as it is read.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its place in the ledger.
    pub id: usize,
    /// Its attempt.
    pub attempt: String,
    /// Its UID.
    pub uid: String,
    /// The volumes whose copies the group has.
    pub volumes: Vec<usize>,
    /// Its content.
    pub content: Option<Content>,
}

/// A pod as it is read.
#[derive(Clone, Debug)]
pub struct PodSeen {
    /// Its UID.
    pub uid: String,
    /// Its container.
    pub container: ContainerState,
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Done.
    Done,
    /// A Backup, its version and whether it is being deleted.
    Backup(u64, Box<BackupStatus>, bool),
    /// Written; the new version.
    Written(u64),
    /// It changed since, or exists already.
    Conflict,
    /// The lock exists already.
    Locked(Locked),
    /// There is no such thing.
    NotFound,
    /// Every Lease: name and renewals.
    Leases(BTreeMap<String, u64>),
    /// The UID of what was created.
    Created(String),
    /// Snapshots.
    Snapshots(Vec<Seen>),
    /// Pods, in order.
    Pods(Vec<PodSeen>),
}

#[derive(Clone, Debug)]
struct Pending {
    replica: usize,
    task: TaskId,
    answer: Option<Answer>,
}

/// The API server.
#[derive(Clone, Debug, Default)]
pub struct ApiServer {
    /// The Backups.
    pub backups: Vec<Stored>,
    /// Leases of replicas: renewals.
    pub leases: BTreeMap<String, u64>,
    /// Workload locks by what they lock.
    pub locks: BTreeMap<String, Locked>,
    lock_versions: u64,
    /// Nothing is served before.
    pub down_until: Micros,
    pending: BTreeMap<u64, Pending>,
    next: u64,
}

impl ApiServer {
    /// A server with Backups that do not exist yet.
    pub fn new(backups: usize) -> Self {
        Self { backups: vec![Stored::default(); backups], ..Self::default() }
    }

    fn lock_version(&mut self) -> u64 {
        self.lock_versions += 1;
        self.lock_versions
    }

    /// The locks of a run, and what they lock.
    pub fn locks_of(&self, run: &str) -> Vec<(String, Locked)> {
        let ours = self.locks.iter().filter(|(_, lock)| lock.holder.backup_uid == run);
        ours.map(|(key, lock)| (key.clone(), lock.clone())).collect()
    }

    /// Who asked.
    pub fn asker(&self, id: u64) -> Option<usize> {
        self.pending.get(&id).map(|pending| pending.replica)
    }
}

impl World {
    /// Sends a request of the current task. Answers its number.
    pub fn send_request(&mut self, replica: usize, request: Request) -> u64 {
        self.api.next += 1;
        let id = self.api.next;
        self.api.pending.insert(id, Pending { replica, task: self.current, answer: None });
        let mut takes = self.rng.between(MS, 6 * MS);
        if self.happens(Fault::SlowApi, 120) {
            takes += self.faults.rng(Fault::SlowApi).below(16 * S);
        }
        if self.happens(Fault::LostRequest, 100) {
            return id;
        }
        self.after(takes, Happening::Request(id, Box::new(request)));
        id
    }

    /// Gives a request up.
    pub fn forget_request(&mut self, id: u64) {
        self.api.pending.remove(&id);
    }

    /// The answer to a request, if it is there.
    pub fn take_answer(&mut self, id: u64) -> Option<Answer> {
        let answer = self.api.pending.get_mut(&id)?.answer.take()?;
        self.api.pending.remove(&id);
        Some(answer)
    }

    /// An answer arrives.
    pub fn answered(&mut self, id: u64, answer: Answer) {
        if let Some(pending) = self.api.pending.get_mut(&id) {
            pending.answer = Some(answer);
            let task = pending.task;
            self.ready.push_back(task);
        }
    }

    /// A request arrives at the server. It is served even when nobody waits for it any more.
    pub fn serve(&mut self, id: u64, request: Request) {
        if self.now < self.api.down_until {
            return;
        }
        let replica = self.api.asker(id).unwrap_or(usize::MAX);
        let writes = matches!(
            request,
            Request::PutStatus { .. } | Request::Post(_) | Request::Lock { .. } | Request::Renew(_)
        );
        let answer = self.execute(request, replica);
        let per_mille = if writes { 120 } else { 40 };
        if self.happens(Fault::LostAnswer, per_mille) {
            return;
        }
        let mut takes = self.rng.between(MS, 6 * MS);
        if self.happens(Fault::SlowApi, 60) {
            takes += self.faults.rng(Fault::SlowApi).below(16 * S);
        }
        self.after(takes, Happening::Answer(id, Box::new(answer)));
    }

    fn execute(&mut self, request: Request, replica: usize) -> Answer {
        match request {
            Request::GetBackup(backup) => {
                let stored = &self.api.backups[backup];
                if stored.created && !stored.gone {
                    Answer::Backup(stored.version, Box::new(stored.status.clone()), stored.deleting)
                } else {
                    Answer::NotFound
                }
            }
            Request::PutStatus { backup, version, status } => {
                let stored = &self.api.backups[backup];
                if stored.gone {
                    return Answer::NotFound;
                }
                if stored.version != version {
                    self.coverage.outcome("status write in conflict");
                    return Answer::Conflict;
                }
                self.check_journal(backup, &status);
                let stored = &mut self.api.backups[backup];
                stored.version += 1;
                stored.status = *status;
                if replica < self.replicas.len() {
                    stored.last_replica = replica;
                }
                Answer::Written(self.api.backups[backup].version)
            }
            Request::LetGo(backup) => {
                self.api.backups[backup].gone = true;
                Answer::Done
            }
            Request::Renew(name) => {
                *self.api.leases.entry(name).or_default() += 1;
                Answer::Leases(self.api.leases.clone())
            }
            Request::Lock { key, holder } => match self.api.locks.get(&key) {
                Some(existing) => Answer::Locked(existing.clone()),
                None => {
                    let version = self.api.lock_version();
                    self.api.locks.insert(key, Locked { holder, version });
                    Answer::Done
                }
            },
            Request::TakeLock { key, version, replica } => {
                let next = self.api.lock_version();
                match self.api.locks.get_mut(&key) {
                    Some(lock) if lock.version == version => {
                        lock.holder.replica = replica;
                        lock.version = next;
                        Answer::Done
                    }
                    Some(_) => Answer::Conflict,
                    None => Answer::NotFound,
                }
            }
            Request::Unlock { key, version } => {
                match self.api.locks.get(&key) {
                    Some(lock) if lock.version == version => {
                        self.api.locks.remove(&key);
                    }
                    Some(_) => self.coverage.outcome("slow release of a lock that was taken anew"),
                    None => {}
                }
                Answer::Done
            }
            Request::Post(asked) => {
                if self.happens(Fault::NameTaken, 250) {
                    return Answer::Conflict;
                }
                if self.snapshots.iter().any(|one| one.exists && one.name == asked.name) {
                    return Answer::Conflict;
                }
                let replica = replica.min(self.replicas.len() - 1);
                Answer::Created(self.create_snapshot(asked, replica))
            }
            Request::List { backup, attempt } => Answer::Snapshots(
                (0..self.snapshots.len())
                    .filter(|id| {
                        let one = &self.snapshots[*id];
                        one.exists
                            && one.backup == backup
                            && attempt.as_ref().is_none_or(|attempt| one.attempt == *attempt)
                    })
                    .map(|id| self.seen(id))
                    .collect(),
            ),
            Request::Delete(id) => {
                self.note(|| format!("replica {replica} asks for the deletion of snapshot {id}"));
                self.delete_snapshot(id);
                Answer::Done
            }
            Request::Look(uid) => {
                let found = (0..self.snapshots.len())
                    .find(|id| self.snapshots[*id].uid == uid && self.snapshots[*id].exists);
                found.map_or(Answer::NotFound, |id| Answer::Snapshots(vec![self.seen(id)]))
            }
            Request::Pods => Answer::Pods(
                self.pods
                    .iter()
                    .map(|pod| PodSeen {
                        uid: pod.uid.clone(),
                        container: ContainerState {
                            container_id: pod.container.clone(),
                            restart_count: pod.restarts,
                        },
                    })
                    .collect(),
            ),
        }
    }

    fn seen(&self, id: usize) -> Seen {
        let one = &self.snapshots[id];
        Seen {
            id,
            attempt: one.attempt.clone(),
            uid: one.uid.clone(),
            volumes: one.copies.iter().map(|copy| copy.asked).collect(),
            content: one.content.clone(),
        }
    }
}
