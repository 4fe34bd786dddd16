//! Pods with an application that commits: the commit log is the ground truth of every copy.
//!
//! A writer commits once a millisecond whenever nothing stops it, so a commit's number follows from the time that the
//! application was free. What stops it: a session's lock, the frozen flag of a command, writers stuck behind a
//! statement that a lock waits for.

use super::exec::StreamId;
use super::faults::{Fault, Milestone};
use super::scenario::Scenario;
use super::world::{Happening, World};
use super::{MS, Micros, S};

/// How often the writer commits.
const COMMIT_EVERY: Micros = MS;

/// One volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its handle in the storage system.
    pub handle: String,
    /// Its claim.
    pub claim: String,
    /// UID of the claim.
    pub claim_uid: String,
    /// The pod that mounts it.
    pub pod: usize,
    /// Its place among the pod's volumes; in a staged application the last one has the log.
    pub index: usize,
}

/// Who set the frozen flag of an application that commands freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagBy {
    /// One of our holders.
    Ours(StreamId),
    /// Somebody else.
    Foreign,
}

/// One pod and its application.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Index of its application.
    pub app: usize,
    /// Its name; it survives a replacement.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Id of its container.
    pub container: String,
    /// Restarts of the container.
    pub restarts: i32,
    /// Its volumes.
    pub volumes: Vec<usize>,
    /// Sessions that hold the lock.
    pub locks: Vec<StreamId>,
    /// The frozen flag.
    pub flag: Option<FlagBy>,
    /// A statement in the way of a lock runs until then.
    pub statement_until: Micros,
    /// Writers are stuck behind a lock that waits, or waited, for that statement.
    pub stalled: bool,
    /// Connections that the server ever had.
    pub connections: u64,
    /// Its role.
    pub role: &'static str,
    /// Where the server says that its data is.
    pub data_path: &'static str,
    /// What the server calls its host.
    pub host: String,
    /// Time that the application was free, up to `touched`.
    free: Micros,
    touched: Micros,
    /// When it was stopped by a lock or a flag, if it is.
    pub frozen_since: Option<Micros>,
}

impl Pod {
    /// Whether commits are stopped.
    pub fn stopped(&self) -> bool {
        self.frozen() || self.stalled
    }

    /// Whether a lock or a flag stops commits.
    pub fn frozen(&self) -> bool {
        !self.locks.is_empty() || self.flag.is_some()
    }

    /// The number of the last commit.
    pub fn position(&self, now: Micros) -> u64 {
        let since = if self.stopped() { 0 } else { now - self.touched };
        (self.free + since) / COMMIT_EVERY
    }
}

/// The pods and volumes of a scenario.
pub fn build(scenario: &Scenario) -> (Vec<Pod>, Vec<Volume>) {
    let (mut pods, mut volumes) = (Vec::new(), Vec::new());
    for (app, spec) in scenario.apps.iter().enumerate() {
        for (number, count) in spec.pods.iter().enumerate() {
            let pod = pods.len();
            let name = format!("{}-{number}", spec.name);
            let mut mounted = Vec::new();
            for index in 0..*count {
                mounted.push(volumes.len());
                let id = volumes.len();
                volumes.push(Volume {
                    handle: format!("vol-{id}"),
                    claim: format!("data-{id}"),
                    claim_uid: format!("claim-uid-{id}"),
                    pod,
                    index,
                });
            }
            pods.push(Pod {
                app,
                uid: format!("{name}-uid-0"),
                container: format!("{name}-c-0"),
                host: name.clone(),
                name,
                restarts: 0,
                volumes: mounted,
                locks: Vec::new(),
                flag: None,
                statement_until: 0,
                stalled: false,
                connections: 0,
                role: "primary",
                data_path: "/data",
                free: 50 * S,
                touched: 0,
                frozen_since: None,
            });
        }
    }
    (pods, volumes)
}

impl World {
    /// Changes what stops an application, keeping its commit log right.
    pub fn change_pod(&mut self, pod: usize, change: impl FnOnce(&mut Pod)) {
        let now = self.now;
        let pod = &mut self.pods[pod];
        if !pod.stopped() {
            pod.free += now - pod.touched;
        }
        pod.touched = now;
        change(pod);
        pod.frozen_since = if pod.frozen() { pod.frozen_since.or(Some(now)) } else { None };
    }

    /// A session gets the lock.
    pub fn lock(&mut self, stream: StreamId) {
        let pod = self.streams[stream].pod;
        self.change_pod(pod, |pod| pod.locks.push(stream));
        self.froze(stream);
    }

    /// What every freeze of ours does, whatever its kind.
    pub fn froze(&mut self, stream: StreamId) {
        let pod = self.streams[stream].pod;
        self.check_sole_holder(stream);
        let position = self.pods[pod].position(self.now);
        let now = self.now;
        let stream_ref = &mut self.streams[stream];
        stream_ref.frozen_at = Some(now);
        stream_ref.frozen_position = Some(position);
        let replica = stream_ref.replica;
        self.note(|| format!("pod {pod} is frozen by stream {stream} at commit {position}"));
        self.milestone(Milestone::Frozen, replica, Some(pod));
    }

    /// A session's lock goes, however.
    pub fn release(&mut self, stream: StreamId) {
        let pod = self.streams[stream].pod;
        if self.pods[pod].locks.contains(&stream) {
            self.change_pod(pod, |pod| pod.locks.retain(|one| *one != stream));
            self.freed(stream);
        }
    }

    /// The flag of one of our holders goes.
    pub fn clear_flag(&mut self, stream: StreamId) {
        let pod = self.streams[stream].pod;
        match self.pods[pod].flag {
            Some(FlagBy::Ours(by)) if by == stream => {
                self.change_pod(pod, |pod| pod.flag = None);
                self.freed(stream);
            }
            Some(FlagBy::Ours(_)) => self.broken("a holder thawed what another one froze", String::new()),
            Some(FlagBy::Foreign) => {
                self.broken("a foreign freeze is never thawed", format!("pod {pod}, stream {stream}"));
            }
            None => {}
        }
    }

    fn freed(&mut self, stream: StreamId) {
        let now = self.now;
        let freed = &mut self.streams[stream];
        freed.freed_at = Some(now);
        freed.thaws += 1;
        let (pod, replica) = (freed.pod, freed.replica);
        self.note(|| format!("pod {pod} is free again (stream {stream})"));
        self.milestone(Milestone::Thawed, replica, Some(pod));
    }

    /// An operator unlocks behind our back.
    pub fn unlock(&mut self, pod: usize) -> bool {
        if !self.pods[pod].locks.is_empty() {
            let locks = self.pods[pod].locks.clone();
            for stream in locks {
                self.release(stream);
            }
            return true;
        }
        if let Some(FlagBy::Ours(stream)) = self.pods[pod].flag {
            self.clear_flag(stream);
            return true;
        }
        false
    }

    /// The server becomes a standby.
    pub fn change_role(&mut self, pod: usize) -> bool {
        self.pods[pod].role = if self.pods[pod].role == "primary" { "standby" } else { "primary" };
        true
    }

    /// A statement that a lock would wait for begins, perhaps. Answers until when the lock must wait.
    pub fn statement_in_the_way(&mut self, pod: usize) -> Option<Micros> {
        if self.happens(Fault::LongStatement, 600) {
            let lasts = self.faults.rng(Fault::LongStatement).between(300 * MS, 45 * S);
            let until = self.now + lasts;
            self.pods[pod].statement_until = until;
            self.after(lasts, Happening::StatementEnds(pod));
        }
        Some(self.pods[pod].statement_until).filter(|until| *until > self.now)
    }

    /// The statement ends; so do the stalls behind it.
    pub fn statement_ends(&mut self, pod: usize) {
        if self.now >= self.pods[pod].statement_until {
            self.change_pod(pod, |pod| pod.stalled = false);
        }
    }

    /// The container restarts: every process in it dies, every lock and flag of the application with it.
    pub fn restart_container(&mut self, pod: usize) -> bool {
        self.kill_processes(pod, "the container was restarted");
        if let Some(FlagBy::Ours(stream)) = self.pods[pod].flag {
            self.clear_flag(stream);
        }
        let generation = self.pods[pod].restarts + 1;
        self.pods[pod].restarts = generation;
        self.pods[pod].container = format!("{}-c-{generation}", self.pods[pod].name);
        self.change_pod(pod, |pod| {
            pod.flag = None;
            pod.stalled = false;
            pod.statement_until = 0;
        });
        self.pod_news(pod, "container restarted");
        true
    }

    /// The pod is replaced by another of its name, with the same volumes.
    pub fn replace_pod(&mut self, pod: usize) -> bool {
        self.restart_container(pod);
        let now = self.now;
        self.pods[pod].uid = format!("{}-uid-{now}", self.pods[pod].name);
        self.pods[pod].restarts = 0;
        self.pod_news(pod, "pod replaced");
        true
    }

    fn pod_news(&mut self, pod: usize, what: &str) {
        for mailbox in 0..self.mailboxes.len() {
            if self.mailboxes[mailbox].open {
                // Sometimes the news come after everything is over: rule 4 reads the pods again.
                let delay =
                    if self.rng.chance(300) { self.rng.below(20 * S) } else { self.rng.below(300 * MS) };
                let text = format!("{what}: {}", self.pods[pod].name);
                self.after(delay, Happening::PodNews(mailbox, text));
            }
        }
    }
}
