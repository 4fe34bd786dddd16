//! The processes of the pods: started in their own group, found again through /proc, stopped for a cut, and ended.
//!
//! Guarantees: a stopped pod continues when the last holder of the stop lets go, on every path; nothing starts in a
//! pod while it is stopped; when the process that owns the cluster dies, a watchdog ends everything it started.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::error::SimError;

/// The variable every process of every pod carries: `<cluster>/<pod uid>/<container>/`.
const MARKER: &str = "STILLPOINT_SIMCLUSTER";

/// What containers get when the pod says nothing, as common images have it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who a process belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub pod: String,
    pub container: String,
}

/// Where a container's processes run.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub owner: Owner,
    pub env: BTreeMap<String, String>,
    pub directory: PathBuf,
    /// uid and gid, when the pod asks for any.
    pub user: Option<(u32, u32)>,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("exec: \"{0}\": executable file not found in $PATH: unknown")]
    NotFound(String),
    #[error("cannot start {0}: {1}")]
    Start(String, std::io::Error),
    #[error("the cluster is shutting down")]
    Closed,
}

/// All processes of a cluster.
pub(crate) struct Processes {
    cluster: String,
    state: Mutex<State>,
    /// Held while a process starts and while a pod is being stopped: neither may miss the other.
    gate: tokio::sync::Mutex<()>,
    continued: watch::Sender<u64>,
    watchdog: Mutex<Option<std::process::Child>>,
}

#[derive(Default)]
struct State {
    roots: BTreeMap<i32, Owner>,
    stopped: HashMap<String, Stopped>,
    closed: bool,
}

#[derive(Default)]
struct Stopped {
    holders: usize,
    pids: BTreeSet<i32>,
}

/// Ends everything when its standard input ends, which is when its owner dies. It learns the roots line by line and
/// finds the rest by parentage and by the marker.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
pids=" "
while read -r verb pid; do
  case $verb in
    +) pids="$pids$pid " ;;
    -) case $pids in *" $pid "*) pids="${pids%%" $pid "*} ${pids#*" $pid "}" ;; esac ;;
  esac
done
pass=0
while [ $pass -lt 4 ]; do
  pass=$((pass + 1))
  found=$pids
  for e in /proc/[0-9]*/environ; do
    if tr '\0' '\n' <"$e" 2>/dev/null | grep -q "^$MARKED=$CLUSTER/"; then
      p=${e#/proc/}; found="$found${p%/environ} "
    fi
  done 2>/dev/null
  grown=1
  while [ $grown = 1 ]; do
    grown=0
    for s in /proc/[0-9]*/stat; do
      read -r line <"$s" || continue
      p=${line%% *}; rest=${line##*) }; rest=${rest#* }; parent=${rest%% *}
      case $found in *" $p "*) continue ;; esac
      case $found in *" $parent "*) found="$found$p "; grown=1 ;; esac
    done 2>/dev/null
  done
  [ "$found" = " " ] && exit 0
  kill -STOP $found 2>/dev/null
  for p in $pids; do kill -KILL -- -"$p" 2>/dev/null; done
  kill -KILL $found 2>/dev/null
  pids=" "
done
"#;

impl Processes {
    pub(crate) fn start(cluster: &str) -> Result<Self, SimError> {
        let watchdog = std::process::Command::new("/bin/sh")
            .args(["-c", WATCHDOG])
            .env_clear()
            .env("PATH", DEFAULT_PATH)
            .env("MARKED", MARKER)
            .env("CLUSTER", cluster)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(SimError::Watchdog)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            state: Mutex::default(),
            gate: tokio::sync::Mutex::new(()),
            continued: watch::channel(0).0,
            watchdog: Mutex::new(Some(watchdog)),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_watchdog(&self, verb: char, pid: i32) {
        let mut watchdog = self.watchdog.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(input) = watchdog.as_mut().and_then(|child| child.stdin.as_mut()) {
            let _ = input.write_all(format!("{verb} {pid}\n").as_bytes());
        }
    }

    /// Starts a process; waits while its pod is stopped.
    pub(crate) async fn launch(
        &self,
        at: &Surroundings,
        argv: &[String],
        wire: impl FnOnce(&mut Command),
    ) -> Result<Child, LaunchError> {
        let path = at.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let named = argv.first().cloned().unwrap_or_default();
        let executable = find_executable(&named, path, &at.directory)
            .ok_or_else(|| LaunchError::NotFound(named.clone()))?;
        let mut command = match at.user {
            None => Command::new(&executable),
            Some((uid, gid)) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
                command.arg("--").arg(&executable);
                command
            }
        };
        command.args(argv.iter().skip(1)).env_clear().env("PATH", DEFAULT_PATH).envs(&at.env);
        command.env(MARKER, format!("{}/{}/{}/", self.cluster, at.owner.pod, at.owner.container));
        command.current_dir(&at.directory).process_group(0);
        wire(&mut command);
        let mut continued = self.continued.subscribe();
        loop {
            let gate = self.gate.lock().await;
            if self.state().closed {
                return Err(LaunchError::Closed);
            }
            if self.state().stopped.contains_key(&at.owner.pod) {
                drop(gate);
                let _ = continued.changed().await;
                continue;
            }
            let child = command.spawn().map_err(|error| LaunchError::Start(named, error))?;
            if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                self.state().roots.insert(pid, at.owner.clone());
                self.tell_watchdog('+', pid);
            }
            return Ok(child);
        }
    }

    /// A root was reaped.
    pub(crate) fn ended(&self, pid: Option<u32>) {
        if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok())
            && self.state().roots.remove(&pid).is_some()
        {
            self.tell_watchdog('-', pid);
        }
    }

    /// Every living process of a pod, or of one of its containers: the trees below its roots, their groups, and
    /// whatever carries the marker although its parent has gone.
    pub(crate) fn members(&self, pod: &str, container: Option<&str>) -> BTreeSet<i32> {
        let mut members: BTreeSet<i32> = {
            let ours =
                |owner: &Owner| owner.pod == pod && container.is_none_or(|name| owner.container == name);
            self.state().roots.iter().filter(|(_, owner)| ours(owner)).map(|(pid, _)| *pid).collect()
        };
        let mark = match container {
            Some(container) => format!("{MARKER}={}/{pod}/{container}/", self.cluster),
            None => format!("{MARKER}={}/{pod}/", self.cluster),
        };
        let table = process_table();
        let groups = members.clone();
        for row in &table {
            if groups.contains(&row.group) || carries(row.pid, &mark) {
                members.insert(row.pid);
            }
        }
        loop {
            let before = members.len();
            for row in &table {
                if members.contains(&row.parent) {
                    members.insert(row.pid);
                }
            }
            if members.len() == before {
                break;
            }
        }
        members.retain(|pid| table.iter().any(|row| row.pid == *pid && !row.is_dead()));
        members
    }

    /// SIGTERM to the groups of a pod's roots, SIGKILL to whatever is left after `grace`; returns when nothing lives.
    pub(crate) async fn end(
        &self,
        pod: &str,
        container: Option<&str>,
        grace: Duration,
    ) -> Result<(), SimError> {
        let mut known = self.members(pod, container);
        let roots: Vec<i32> = {
            let ours =
                |owner: &Owner| owner.pod == pod && container.is_none_or(|name| owner.container == name);
            self.state().roots.iter().filter(|(_, owner)| ours(owner)).map(|(pid, _)| *pid).collect()
        };
        if !grace.is_zero() {
            for root in &roots {
                signal_group(*root, Signal::TERM);
            }
            let gone = async {
                while roots.iter().any(|root| is_alive(*root)) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let _ = tokio::time::timeout(grace, gone).await;
        }
        let mut left = BTreeSet::new();
        // A SIGKILL takes effect within milliseconds unless the process hangs in the kernel.
        for _ in 0..1000 {
            known.extend(self.members(pod, container));
            left = known.iter().copied().filter(|pid| is_alive(*pid)).collect();
            if left.is_empty() {
                break;
            }
            for pid in &left {
                signal(*pid, Signal::KILL);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for root in roots {
            self.ended(u32::try_from(root).ok());
        }
        if left.is_empty() { Ok(()) } else { Err(SimError::Survivors(left.into_iter().collect())) }
    }

    /// Stops every process of these pods; they continue when the answer is dropped. Returns when all of their
    /// threads were seen stopped and no new process appeared.
    pub(crate) async fn stop(self: &Arc<Self>, pods: &[String]) -> Result<StoppedPods, String> {
        let _gate = self.gate.lock().await;
        let guard = StoppedPods { processes: Arc::clone(self), pods: pods.to_vec() };
        for pod in pods {
            self.state().stopped.entry(pod.clone()).or_default().holders += 1;
        }
        for _ in 0..5000 {
            let mut settled = true;
            for pod in pods {
                for pid in self.members(pod, None) {
                    let new = self.state().stopped.entry(pod.clone()).or_default().pids.insert(pid);
                    if new {
                        signal(pid, Signal::STOP);
                    }
                    settled &= !new && is_stopped(pid);
                }
            }
            if settled {
                return Ok(guard);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(format!("the processes of pods {pods:?} did not stop within 5 s"))
    }

    /// From now on nothing is started.
    pub(crate) async fn close(&self) {
        let _gate = self.gate.lock().await;
        self.state().closed = true;
    }

    /// Ends whatever is left and the watchdog itself.
    pub(crate) async fn shutdown(&self) -> Result<(), SimError> {
        let pods: BTreeSet<String> = self.state().roots.values().map(|owner| owner.pod.clone()).collect();
        let mut outcome = Ok(());
        for pod in pods {
            outcome = self.end(&pod, None, Duration::ZERO).await.and(outcome);
        }
        let watchdog = self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut watchdog) = watchdog {
            drop(watchdog.stdin.take());
            let _ = tokio::task::spawn_blocking(move || watchdog.wait()).await;
        }
        outcome
    }
}

/// Pods whose processes are stopped for as long as this lives.
pub(crate) struct StoppedPods {
    processes: Arc<Processes>,
    pods: Vec<String>,
}

impl Drop for StoppedPods {
    fn drop(&mut self) {
        for pod in &self.pods {
            let pids = {
                let mut state = self.processes.state();
                let Some(stopped) = state.stopped.get_mut(pod) else { continue };
                stopped.holders = stopped.holders.saturating_sub(1);
                if stopped.holders > 0 {
                    continue;
                }
                state.stopped.remove(pod).map(|stopped| stopped.pids).unwrap_or_default()
            };
            for pid in pids {
                signal(pid, Signal::CONT);
            }
        }
        self.processes.continued.send_modify(|round| *round += 1);
    }
}

struct Row {
    pid: i32,
    parent: i32,
    group: i32,
    state: char,
}

impl Row {
    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

fn process_table() -> Vec<Row> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(read_row).collect()
}

fn read_row(pid: i32) -> Option<Row> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state parent group …`; the name may contain anything, so the last parenthesis counts.
fn parse_stat(stat: &str) -> Option<Row> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some(Row { pid, state, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
}

fn carries(pid: i32, mark: &str) -> bool {
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.split(|byte| *byte == 0).any(|variable| variable.starts_with(mark.as_bytes()))
}

pub(crate) fn is_alive(pid: i32) -> bool {
    read_row(pid).is_some_and(|row| !row.is_dead())
}

fn is_stopped(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok())
        .all(|stat| parse_stat(&stat).is_none_or(|row| matches!(row.state, 'T' | 't') || row.is_dead()))
}

fn signal(pid: i32, signal: Signal) {
    // 1 and below address init, groups or everybody.
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 1) {
        let _ = kill_process(pid, signal);
    }
}

fn signal_group(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 1) {
        let _ = kill_process_group(pid, signal);
    }
}

fn find_executable(name: &str, path: &str, directory: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(directory.join(name)).filter(runs);
    }
    path.split(':').filter(|_| !name.is_empty()).map(|entry| Path::new(entry).join(name)).find(runs)
}
