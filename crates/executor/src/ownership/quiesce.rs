//! Makes sure that what a run froze is thawed when nobody heard it say so (docs/design/freeze.md §5).
//!
//! Unknown counts as frozen until it is proven thawed or its pod is gone. What is undone is at most what the journal says
//! that this run did; somebody else's freeze is left alone. It waits for no leadership, no permit and no window, and it
//! does not give up.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use stillpoint_api::backup::{Backup, BackupStatus, JournalEntry, LEFT_QUIESCED};
use stillpoint_api::conditions;
use stillpoint_api::evidence::{HoldEvidence, HoldKind};
use stillpoint_api::template::{Freeze, Recipe, Recover};
use tokio::sync::Mutex;
use tracing::{error, info};

use super::templates_kept::{self, KeptError};
use crate::context::{Context, bounded};
use crate::exec::{ExecTarget, OneShot, Outcome, run_once};
use crate::happenings::Happenings;
use crate::hold::trial;
use crate::journal::{Journal, JournalError};
use crate::observer::RunLabels;

/// Longest time of one probe or recovery.
const COMMAND_WITHIN: Duration = Duration::from_secs(30);
/// How long a condition is tried to be written: the API server may be restarting.
const WRITE_WITHIN: Duration = Duration::from_secs(600);
/// Exit codes of a shell that did not run the command, or of a command that was killed: no answer.
const NO_ANSWER: std::ops::RangeInclusive<i32> = 126..=255;
/// Name of the fact with which a hold says that somebody else had frozen the application before.
pub const FOREIGN_FREEZE: &str = "foreign_freeze";

/// How an application is brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// Not at all: what is frozen there is somebody else's.
    LeaveForeign,
    /// The server ends the session by itself: it is gone when its lease has passed.
    EndsWithLease,
    /// Its lock was never seen to be acquired: whether writers are stuck behind it can be asked (§3).
    AskStuck {
        /// Prints nothing or `none` when nobody is stuck.
        probe: Vec<String>,
    },
    /// The holder in the pod thaws by its own deadline, and nothing can be asked.
    EndsWithHolder,
    /// The holder in the pod thaws by its own deadline; whether it did can be asked.
    AskOnly {
        /// Succeeds while it is frozen.
        probe: Vec<String>,
    },
    /// The template says how, with a value that the journal does not have.
    NotKnown {
        /// Which.
        why: String,
    },
    /// The template says how.
    Command {
        /// Succeeds while it is frozen; empty: nothing can be asked.
        probe: Vec<String>,
        /// Undoes it; idempotent.
        command: Vec<String>,
        /// Whether a server's lease must pass first.
        after_lease: bool,
    },
}

/// How a hold that was not proven thawed is brought back.
pub fn undo(hold: &HoldEvidence, kind: HoldKind, recipe: Option<&Recipe>) -> Undo {
    if hold.facts.get(FOREIGN_FREEZE).is_some_and(|value| value != "0") {
        return Undo::LeaveForeign;
    }
    let session = match kind {
        HoldKind::Session | HoldKind::Observer => true,
        HoldKind::Commands | HoldKind::Direct | HoldKind::None => false,
    };
    if let Some(recover) = recipe.and_then(|recipe| recipe.recover.as_ref()) {
        return match recover.filled(&hold.facts) {
            Ok(Recover { probe, command, .. }) => Undo::Command { probe, command, after_lease: session },
            Err(why) => Undo::NotKnown { why },
        };
    }
    let stall = recipe.and_then(|recipe| recipe.stall_probe.as_ref()).filter(|_| hold.frozen.is_none());
    match stall {
        Some(stall) if session => return Undo::AskStuck { probe: stall.command.clone() },
        None if session => return Undo::EndsWithLease,
        Some(_) | None => {}
    }
    let (thaw, probe) = recipe.map(commands).unwrap_or_default();
    match (kind, thaw.is_empty(), probe.is_empty()) {
        // Nothing in the pod thaws it: its own thaw is the only way back.
        (HoldKind::Direct, false, _) => Undo::Command { probe, command: thaw, after_lease: false },
        (_, _, false) => Undo::AskOnly { probe },
        (_, _, true) => Undo::EndsWithHolder,
    }
}

/// Thaw and probe of a template of two commands, in either form.
fn commands(recipe: &Recipe) -> (Vec<String>, Vec<String>) {
    match (&recipe.freeze, &recipe.post_hook) {
        (Some(Freeze::Commands(commands)), _) => (commands.thaw.clone(), commands.probe.clone()),
        (None, Some(hook)) => (hook.command.clone(), Vec::new()),
        (Some(Freeze::Session(_) | Freeze::None {}), _) | (None, None) => Default::default(),
    }
}

/// What a command said about the freeze.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It succeeded.
    Yes,
    /// It ran and did not succeed.
    No(i32),
    /// It did not run, or its end is unknown.
    Unknown(String),
}

/// Reads how a command ended.
pub fn answer(outcome: &Outcome) -> Answer {
    match outcome {
        Outcome::Exited(0) => Answer::Yes,
        Outcome::Exited(code) if NO_ANSWER.contains(code) => {
            Answer::Unknown(format!("exit code {code}: it did not run, or was killed"))
        }
        Outcome::Exited(code) => Answer::No(*code),
        Outcome::Failed(_) | Outcome::Unknown(_) => Answer::Unknown(format!("{outcome:?}")),
    }
}

/// Nonces of holds that count as frozen when a run is found in its window: every one that locks.
pub fn suspects(status: &BackupStatus) -> Vec<String> {
    let holds = status.holds.iter().filter(|hold| kind_of(status, &hold.application).locks());
    holds.map(|hold| hold.nonce.clone()).collect()
}

/// Holds that the last entry of the present attempt does not call thawed.
pub fn not_proven(status: &BackupStatus) -> Vec<HoldEvidence> {
    let of_attempt = |entry: &&JournalEntry| entry.attempt == status.attempt;
    let Some(last) = status.journal.iter().rev().find(of_attempt) else { return Vec::new() };
    let holds = status.holds.iter().filter(|hold| last.not_proven_thawed.contains(&hold.nonce));
    holds.cloned().collect()
}

fn kind_of(status: &BackupStatus, application: &str) -> HoldKind {
    let all = status.resolved.iter().flat_map(|resolved| &resolved.applications);
    all.into_iter().find(|one| one.name == application).map_or(HoldKind::Session, |one| one.hold)
}

/// The work of making sure, for one Backup.
pub struct Quiesce<'a> {
    /// What adapters work with.
    pub context: &'a Context,
    /// Where events go.
    pub happenings: &'a Happenings,
    /// The Backup.
    pub journal: &'a Arc<Mutex<Journal>>,
    /// Whose run it is.
    pub labels: &'a RunLabels,
    /// Whether every lease and every holder's deadline has had its time already.
    pub waited: bool,
}

/// How one try ended.
enum Try {
    Proven(String),
    NotYet(String),
}

impl Quiesce<'_> {
    /// Returns when every hold of the present attempt is proven thawed or gone. Dropping it loses nothing: whoever goes
    /// on begins again.
    ///
    /// # Errors
    /// The run was lost to another replica, which goes on.
    pub async fn until_proven(&self) -> Result<(), JournalError> {
        let status = self.journal.lock().await.status();
        let holds = not_proven(&status);
        if holds.is_empty() {
            return self.all_clear().await;
        }
        let kinds = holds.iter().map(|hold| kind_of(&status, &hold.application));
        let each = holds.iter().zip(kinds).map(|(hold, kind)| self.one(&status, hold, kind));
        for ended in join_all(each).await {
            ended?;
        }
        self.all_clear().await
    }

    async fn one(
        &self,
        status: &BackupStatus,
        hold: &HoldEvidence,
        kind: HoldKind,
    ) -> Result<(), JournalError> {
        let timing = self.context.ownership.timing();
        let place = format!("{}/{}", hold.pod_name, hold.container);
        let mut pause = timing.recover_first;
        let mut waited = self.waited;
        loop {
            let tried = if self.pod_is_gone(hold).await {
                Try::Proven("its pod is gone".to_owned())
            } else {
                match self.undo_of(status, hold, kind).await {
                    Ok(undo) => {
                        let needs_lease = match &undo {
                            Undo::EndsWithLease | Undo::AskStuck { .. } => true,
                            Undo::Command { after_lease, .. } => *after_lease,
                            Undo::LeaveForeign
                            | Undo::EndsWithHolder
                            | Undo::AskOnly { .. }
                            | Undo::NotKnown { .. } => false,
                        };
                        if needs_lease && !waited {
                            waited = true;
                            tokio::time::sleep(timing.session_lease).await;
                        }
                        self.carry_out(status, hold, &undo).await
                    }
                    Err(why) => Try::NotYet(why),
                }
            };
            match tried {
                Try::Proven(how) => {
                    info!(namespace = self.labels.namespace, pod = hold.pod_name, how, "proven thawed");
                    return Ok(());
                }
                Try::NotYet(why) => self.alarm(&place, &why).await?,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(timing.recover_at_most);
        }
    }

    /// How to undo it, by the copy of the template that the run used. Without one, what ends by itself still does.
    async fn undo_of(
        &self,
        status: &BackupStatus,
        hold: &HoldEvidence,
        kind: HoldKind,
    ) -> Result<Undo, String> {
        let all = status.resolved.iter().flat_map(|resolved| &resolved.applications);
        let Some(application) = all.into_iter().find(|one| one.name == hold.application) else {
            return Ok(undo(hold, kind, None));
        };
        match templates_kept::read(self.context, &self.labels.namespace, &application.digest).await {
            Ok(recipe) => Ok(undo(hold, kind, Some(&recipe))),
            Err(KeptError::Request(error)) => Err(error.to_string()),
            Err(error @ (KeptError::Gone(_) | KeptError::Changed { .. })) => {
                let note =
                    format!("application {}: {error}; its recovery command is not known", application.name);
                self.warn("TemplateCopyLost", &note).await;
                Ok(undo(hold, kind, None))
            }
        }
    }

    async fn carry_out(&self, status: &BackupStatus, hold: &HoldEvidence, undo: &Undo) -> Try {
        match undo {
            Undo::LeaveForeign => {
                let note = format!(
                    "{}/{} was frozen by somebody else before this run: it is left as it is",
                    hold.pod_name, hold.container
                );
                self.warn("ForeignFreezeLeftAlone", &note).await;
                Try::Proven("the freeze is somebody else's".to_owned())
            }
            Undo::EndsWithLease => Try::Proven("its session's lease has passed".to_owned()),
            Undo::EndsWithHolder => {
                if !self.waited {
                    // From here, not from t0, which another process knew: longer than needed, never shorter.
                    let most = status.resolved.as_ref().map_or(0, |resolved| resolved.max_hold_millis);
                    let past = self.context.ownership.timing().past_promise;
                    tokio::time::sleep(Duration::from_millis(most) + past).await;
                }
                Try::Proven("its holder's deadline has passed".to_owned())
            }
            Undo::AskStuck { probe } => match self.run(hold, probe).await {
                Ok(done) if done.outcome != Outcome::Exited(0) => {
                    Try::NotYet(format!("its stall probe gave no answer ({:?})", done.outcome))
                }
                Ok(done) if trial::stuck(&done.stdout).is_none() => {
                    Try::Proven("nobody is stuck behind its lock".to_owned())
                }
                Ok(_) => Try::NotYet("writers are stuck behind the lock that it asked for".to_owned()),
                Err(why) => Try::NotYet(format!("its stall probe gave no answer ({why})")),
            },
            Undo::AskOnly { probe } => match self.ask(hold, probe).await {
                Answer::No(_) => Try::Proven("its probe says that it is not frozen".to_owned()),
                Answer::Yes => Try::NotYet("its probe says that it is still frozen".to_owned()),
                Answer::Unknown(why) => Try::NotYet(format!("its probe gave no answer ({why})")),
            },
            Undo::NotKnown { why } => Try::NotYet(why.clone()),
            Undo::Command { probe, command, .. } => self.recover(hold, probe, command).await,
        }
    }

    async fn recover(&self, hold: &HoldEvidence, probe: &[String], command: &[String]) -> Try {
        if !probe.is_empty() {
            match self.ask(hold, probe).await {
                Answer::No(_) => return Try::Proven("its probe says that it is not frozen".to_owned()),
                // A probe without an answer does not keep a recovery from being tried: it is idempotent.
                Answer::Yes | Answer::Unknown(_) => {}
            }
        }
        match self.ask(hold, command).await {
            Answer::Yes if probe.is_empty() => Try::Proven("the recovery succeeded".to_owned()),
            Answer::Yes => match self.ask(hold, probe).await {
                Answer::No(_) => Try::Proven("the recovery succeeded, and its probe agrees".to_owned()),
                Answer::Yes => Try::NotYet("it is still frozen after its recovery".to_owned()),
                Answer::Unknown(why) => Try::NotYet(format!("its probe gave no answer ({why})")),
            },
            Answer::No(code) => Try::NotYet(format!("its recovery failed with exit code {code}")),
            Answer::Unknown(why) => Try::NotYet(format!("its recovery did not run to its end ({why})")),
        }
    }

    async fn ask(&self, hold: &HoldEvidence, argv: &[String]) -> Answer {
        match self.run(hold, argv).await {
            Ok(done) => answer(&done.outcome),
            Err(why) => Answer::Unknown(why),
        }
    }

    /// Runs a command as the hooks account. Its output stays where it is: it may quote data.
    async fn run(&self, hold: &HoldEvidence, argv: &[String]) -> Result<OneShot, String> {
        let namespace = self.labels.namespace.clone();
        let target = ExecTarget {
            impersonate: self.context.impersonate.then(|| ExecTarget::hooks_user(&namespace)),
            namespace,
            pod: hold.pod_name.clone(),
            pod_uid: hold.pod_uid.clone(),
            container: hold.container.clone(),
            argv: argv.to_vec(),
            stdin: false,
        };
        let done = run_once(&*self.context.exec, &target, None, COMMAND_WITHIN).await;
        let done = done.map_err(|error| error.to_string())?;
        match done.refusal() {
            Some(error) => Err(error.to_string()),
            None => Ok(done),
        }
    }

    /// Whether the pod that was held is gone, or will run nothing any more. Not knowing is no.
    async fn pod_is_gone(&self, hold: &HoldEvidence) -> bool {
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &self.labels.namespace);
        match bounded("read the pod that was held", pods.get_opt(&hold.pod_name)).await {
            Ok(None) => true,
            Ok(Some(pod)) => {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                pod.uid().as_deref() != Some(hold.pod_uid.as_str())
                    || matches!(phase, Some("Succeeded" | "Failed"))
            }
            Err(_) => false,
        }
    }

    async fn backup(&self) -> Backup {
        self.journal.lock().await.backup().clone()
    }

    async fn warn(&self, reason: &str, note: &str) {
        self.happenings.warning(&self.backup().await, reason, note).await;
    }

    /// Says that an application may be frozen and is not getting better by itself.
    async fn alarm(&self, place: &str, why: &str) -> Result<(), JournalError> {
        let note = format!(
            "{place} may still be frozen: {why}. It is tried again until it succeeds or the pod is gone; thaw it by hand if \
             it cannot wait"
        );
        error!(namespace = self.labels.namespace, policy = self.labels.policy, place, why, "{LEFT_QUIESCED}");
        let backup = self.backup().await;
        let told =
            conditions::is_true(backup.status.iter().flat_map(|status| &status.conditions), LEFT_QUIESCED);
        self.happenings.warning(&backup, LEFT_QUIESCED, &note).await;
        if told { Ok(()) } else { self.set(true, "NotProvenThawed", &note).await }
    }

    async fn all_clear(&self) -> Result<(), JournalError> {
        let backup = self.backup().await;
        if !conditions::is_true(backup.status.iter().flat_map(|status| &status.conditions), LEFT_QUIESCED) {
            return Ok(());
        }
        let note = "every hold of the attempt is proven thawed or gone";
        self.happenings.normal(&backup, "ApplicationReleased", note).await;
        self.set(false, "Released", note).await
    }

    async fn set(&self, frozen: bool, reason: &str, note: &str) -> Result<(), JournalError> {
        let at = self.context.clock.wall();
        let mut journal = self.journal.lock().await;
        let generation = journal.backup().metadata.generation;
        let condition = conditions::condition(LEFT_QUIESCED, frozen, reason, note, generation, at);
        journal.write(WRITE_WITHIN, |status| conditions::set(&mut status.conditions, condition.clone())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_api::backup::JournalKind;
    use stillpoint_api::evidence::{Resolved, ResolvedApplication};

    fn recipe(text: serde_json::Value) -> Recipe {
        serde_json::from_value(text).unwrap()
    }

    fn two_commands(probe: &[&str]) -> Recipe {
        recipe(serde_json::json!({"freeze": {"commands": {"freeze": ["f"], "thaw": ["t"], "probe": probe}}}))
    }

    #[test]
    fn a_session_without_a_recovery_is_gone_with_its_lease() {
        let hold = HoldEvidence::default();
        assert_eq!(undo(&hold, HoldKind::Session, None), Undo::EndsWithLease);
        let with = recipe(serde_json::json!({"recover": {"command": ["r"], "probe": ["p"]}}));
        let (probe, command) = (vec!["p".to_owned()], vec!["r".to_owned()]);
        assert_eq!(
            undo(&hold, HoldKind::Session, Some(&with)),
            Undo::Command { probe, command, after_lease: true }
        );
    }

    #[test]
    fn a_recovery_gets_the_old_value_from_the_journal_and_is_not_run_without_it() {
        let with = recipe(serde_json::json!({
            "recover": {"command": ["set", "{{old}}"], "probe": ["is", "{{old}}"], "needs": ["old"]}
        }));
        let told =
            HoldEvidence { facts: [("old".to_owned(), "90".to_owned())].into(), ..HoldEvidence::default() };
        let words = |name: &str| vec![name.to_owned(), "90".to_owned()];
        assert_eq!(
            undo(&told, HoldKind::Session, Some(&with)),
            Undo::Command { probe: words("is"), command: words("set"), after_lease: true }
        );
        let untold = undo(&HoldEvidence::default(), HoldKind::Session, Some(&with));
        assert!(matches!(untold, Undo::NotKnown { why } if why.contains("old")));
    }

    #[test]
    fn two_commands_are_asked_about_where_they_can_be_and_end_with_their_holder_where_not() {
        let hold = HoldEvidence::default();
        let asked = undo(&hold, HoldKind::Commands, Some(&two_commands(&["p"])));
        assert_eq!(asked, Undo::AskOnly { probe: vec!["p".to_owned()] });
        assert_eq!(undo(&hold, HoldKind::Commands, Some(&two_commands(&[]))), Undo::EndsWithHolder);
        assert_eq!(undo(&hold, HoldKind::Commands, None), Undo::EndsWithHolder);
    }

    #[test]
    fn two_commands_without_a_holder_are_undone_by_their_own_thaw() {
        let direct = undo(&HoldEvidence::default(), HoldKind::Direct, Some(&two_commands(&["p"])));
        let (probe, command) = (vec!["p".to_owned()], vec!["t".to_owned()]);
        assert_eq!(direct, Undo::Command { probe, command, after_lease: false });
    }

    #[test]
    fn a_freeze_that_is_somebody_elses_is_never_undone() {
        let foreign = |value: &str| HoldEvidence {
            facts: [(FOREIGN_FREEZE.to_owned(), value.to_owned())].into(),
            ..HoldEvidence::default()
        };
        let recipe = recipe(serde_json::json!({"recover": {"command": ["r"]}}));
        assert_eq!(undo(&foreign("1"), HoldKind::Commands, Some(&recipe)), Undo::LeaveForeign);
        assert_ne!(undo(&foreign("0"), HoldKind::Commands, Some(&recipe)), Undo::LeaveForeign);
    }

    #[test]
    fn a_lock_that_was_never_seen_is_asked_about_until_nobody_is_stuck_behind_it() {
        let recipe = recipe(serde_json::json!({"stallProbe": {"command": ["s"]}}));
        let asked = undo(&HoldEvidence::default(), HoldKind::Session, Some(&recipe));
        assert_eq!(asked, Undo::AskStuck { probe: vec!["s".to_owned()] });
        let frozen = HoldEvidence { frozen: Some(Default::default()), ..HoldEvidence::default() };
        assert_eq!(undo(&frozen, HoldKind::Session, Some(&recipe)), Undo::EndsWithLease);
    }

    #[test]
    fn only_a_command_that_ran_is_an_answer() {
        assert_eq!(answer(&Outcome::Exited(0)), Answer::Yes);
        assert_eq!(answer(&Outcome::Exited(1)), Answer::No(1));
        assert!(matches!(answer(&Outcome::Exited(127)), Answer::Unknown(_)));
        assert!(matches!(answer(&Outcome::Exited(137)), Answer::Unknown(_)));
    }

    fn status(kind: HoldKind, not_proven_thawed: &[&str]) -> BackupStatus {
        let hold = |nonce: &str| HoldEvidence {
            application: "db".into(),
            nonce: nonce.into(),
            ..HoldEvidence::default()
        };
        let application =
            ResolvedApplication { name: "db".into(), hold: kind, ..ResolvedApplication::default() };
        BackupStatus {
            attempt: 1,
            holds: vec![hold("a"), hold("b")],
            resolved: Some(Resolved { applications: vec![application], ..Resolved::default() }),
            journal: vec![JournalEntry {
                entry: JournalKind::Aborted,
                attempt: 1,
                nonce: "n".into(),
                executor: "x".into(),
                at: k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(jiff::Timestamp::UNIX_EPOCH),
                max_hold_millis: None,
                reason: None,
                message: None,
                not_proven_thawed: not_proven_thawed.iter().map(|one| (*one).to_owned()).collect(),
            }],
            ..BackupStatus::default()
        }
    }

    #[test]
    fn in_a_window_that_was_left_every_hold_that_locks_counts_as_frozen() {
        assert_eq!(suspects(&status(HoldKind::Session, &[])), ["a", "b"]);
        assert!(suspects(&status(HoldKind::Observer, &[])).is_empty());
    }

    #[test]
    fn what_the_journal_calls_thawed_is_not_touched() {
        let held = not_proven(&status(HoldKind::Session, &["b"]));
        assert_eq!(held.iter().map(|hold| hold.nonce.as_str()).collect::<Vec<_>>(), ["b"]);
        let mut next = status(HoldKind::Session, &["b"]);
        next.attempt = 2;
        assert!(not_proven(&next).is_empty(), "an earlier attempt was recovered before this one began");
    }
}
