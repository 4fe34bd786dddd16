//! `stillpoint backup run`, `backup cancel` and `backup list`.

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use stillpoint_api::BackupPolicy;
use stillpoint_api::backup::{
    Backup, BackupSpec, BackupStatus, POLICY_LABEL, Phase, PolicyRef, RunSpec, SUCCEEDED, Trigger,
};
use stillpoint_api::clock::Clock;
use stillpoint_api::evidence::Consistency;
use stillpoint_api::policy::Requirement;

use super::timed_name;
use crate::cli::{BackupCancelArgs, BackupListArgs, BackupRunArgs};
use crate::cluster::{Cluster, Waited};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, length, seconds, table};

/// Longest label value.
const LABEL_MAX: usize = 63;

/// Runs a backup of a policy now.
///
/// # Errors
/// It could not be created or watched.
pub async fn run(cluster: &Cluster, args: &BackupRunArgs, clock: &dyn Clock) -> Result<Exit, Failure> {
    let policy: BackupPolicy = cluster.get(&args.policy).await?;
    if let Some(reason) = not_accepted(&policy) {
        output::tell(&format!("warning: policy {} is not accepted: {reason}", args.policy));
    }
    let name = args.name.clone().unwrap_or_else(|| timed_name(&args.policy, "manual-", clock.wall()));
    let what = format!("cannot create Backup {name:?}");
    let api = cluster.api::<Backup>();
    let created =
        cluster.call(&what, api.create(&PostParams::default(), &on_demand(&name, &args.policy))).await?;
    let Some(limit) = args.wait.limit() else {
        return match args.output {
            Format::Json => output::print_json(&created),
            Format::Text => output::print(&format!("backup.stillpoint.dev/{name} created\n")),
        }
        .map(|()| Exit::Success);
    };
    output::tell(&format!("backup {name} created in namespace {}", cluster.namespace));
    let begun = clock.mono();
    let mut progress = Progress::default();
    let waited = cluster
        .wait::<Backup>(&name, limit, |backup| {
            if let Some(line) = progress.line(backup) {
                output::tell(&format!("{:>8}  {line}", length(clock.mono().since(begun))));
            }
            backup.finished()
        })
        .await?;
    match waited {
        Waited::Done(backup) => {
            match args.output {
                Format::Json => output::print_json(&backup)?,
                Format::Text => output::print(&summary(&backup))?,
            }
            Ok(outcome(&backup, policy.spec.consistency))
        }
        Waited::Gone => Err(Failure::new(
            format!("backup {name} was deleted before it finished"),
            "",
            "look for who did it: `kubectl events`, the audit log",
        )),
        Waited::TimedOut => Err(Failure::new(
            format!("backup {name} did not finish within {}", args.wait.timeout),
            progress.stuck(),
            format!("it goes on: `stillpoint backup describe {name} -n {}`", cluster.namespace),
        )
        .exiting(Exit::TimedOut)),
    }
}

/// Cancels a run.
///
/// # Errors
/// It does not exist, is over already, or does not end in time.
pub async fn cancel(cluster: &Cluster, args: &BackupCancelArgs) -> Result<Exit, Failure> {
    let name = &args.name;
    let backup: Backup = cluster.get(name).await?;
    if backup.finished() {
        return Err(Failure::new(
            format!("backup {name} cannot be cancelled"),
            "it is over",
            format!("delete it to remove its snapshots: `kubectl delete backups.stillpoint.dev {name}`"),
        ));
    }
    let patch = Patch::Merge(serde_json::json!({"spec": {"cancel": true}}));
    let api = cluster.api::<Backup>();
    let what = format!("cannot cancel Backup {name:?}");
    cluster.call(&what, api.patch(name, &PatchParams::default(), &patch)).await?;
    output::tell(&format!("backup {name} is being cancelled"));
    let Some(limit) = args.wait.limit() else { return Ok(Exit::Success) };
    match cluster.wait::<Backup>(name, limit, Backup::finished).await? {
        Waited::Done(backup) => {
            output::print(&summary(&backup))?;
            let cancelled = backup.status.is_some_and(|status| status.phase == Phase::Failed);
            // It may have ended on its own just before.
            Ok(if cancelled { Exit::Success } else { Exit::Failed })
        }
        Waited::Gone => Ok(Exit::Success),
        Waited::TimedOut => Err(Failure::new(
            format!("backup {name} did not end within {}", args.wait.timeout),
            "an application that is not proven thawed keeps it from ending",
            format!("`stillpoint backup describe {name} -n {}`", cluster.namespace),
        )
        .exiting(Exit::TimedOut)),
    }
}

/// Lists backups, newest first.
///
/// # Errors
/// They cannot be listed.
pub async fn list(cluster: &Cluster, args: &BackupListArgs, clock: &dyn Clock) -> Result<Exit, Failure> {
    let api = cluster.api::<Backup>();
    let listed = cluster.call("cannot list Backups", api.list(&ListParams::default())).await?;
    let mut backups = listed.items;
    backups.retain(|backup| args.policy.as_deref().is_none_or(|policy| backup.policy_name() == Some(policy)));
    backups.sort_by_key(|backup| {
        std::cmp::Reverse((backup.metadata.creation_timestamp.as_ref().map(|time| time.0), backup.name_any()))
    });
    match args.output {
        Format::Json => output::print_json(&backups)?,
        Format::Text if backups.is_empty() => {
            let of = args.policy.as_ref().map(|policy| format!(" of policy {policy}")).unwrap_or_default();
            output::tell(&format!("no backups{of} in namespace {}", cluster.namespace));
        }
        Format::Text => output::print(&table(&rows(&backups, clock.wall())))?,
    }
    Ok(Exit::Success)
}

/// What a run on demand is.
fn on_demand(name: &str, policy: &str) -> Backup {
    let labels = (policy.len() <= LABEL_MAX)
        .then(|| [(POLICY_LABEL.to_owned(), policy.to_owned())].into_iter().collect());
    let policy_ref = Some(PolicyRef { name: policy.to_owned(), uid: None });
    Backup {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels, ..ObjectMeta::default() },
        spec: BackupSpec {
            run: RunSpec { policy_ref, ..RunSpec::default() },
            trigger: Trigger::Manual,
            cancel: false,
            hold: None,
        },
        status: None,
    }
}

/// Why a policy is not accepted, if it is not.
fn not_accepted(policy: &BackupPolicy) -> Option<&str> {
    let conditions = &policy.status.as_ref()?.conditions;
    let accepted = conditions.iter().find(|condition| condition.type_ == "Accepted")?;
    (accepted.status == "False").then_some(accepted.message.as_str())
}

/// The exit code of a finished run. Under `Required`, what is not proven has failed, whatever its phase says.
fn outcome(backup: &Backup, requirement: Requirement) -> Exit {
    let empty = BackupStatus::default();
    let status = backup.status.as_ref().unwrap_or(&empty);
    match status.phase {
        Phase::Succeeded => match (status.consistency.unwrap_or_default(), requirement) {
            (Consistency::Application, _) => Exit::Success,
            (Consistency::Crash | Consistency::None, Requirement::Required) => Exit::Failed,
            (Consistency::Crash, Requirement::BestEffort) => Exit::Crash,
            (Consistency::None, Requirement::BestEffort) => Exit::Unproven,
        },
        Phase::Pending
        | Phase::Preparing
        | Phase::Freezing
        | Phase::Settling
        | Phase::Failed
        | Phase::Deleting => Exit::Failed,
    }
}

/// One line about a finished run.
fn summary(backup: &Backup) -> String {
    let empty = BackupStatus::default();
    let status = backup.status.as_ref().unwrap_or(&empty);
    let name = backup.name_any();
    if status.phase == Phase::Succeeded {
        let frozen = status.window.as_ref().and_then(|window| window.frozen_seconds);
        // An observer stops nobody: its window is no freeze.
        let word = if stops_commits(status) { "frozen" } else { "watched, nobody stopped," };
        let frozen = frozen.map(|frozen| format!(", {word} for {}", seconds(frozen))).unwrap_or_default();
        let cut = status.cut.as_ref().map(|cut| format!(", cut at {}", output::precise(cut.0)));
        return format!("{name}: {}{frozen}{}\n", worth(status), cut.unwrap_or_default());
    }
    let condition = status.conditions.iter().find(|condition| condition.type_ == SUCCEEDED);
    let why = condition.map(|condition| format!("{}: {}", condition.reason, condition.message));
    format!("{name}: {:?}: {}\n", status.phase, why.unwrap_or_else(|| "no reason was recorded".to_owned()))
}

/// Whether any application of the run was locked.
pub fn stops_commits(status: &BackupStatus) -> bool {
    status
        .resolved
        .iter()
        .flat_map(|resolved| &resolved.applications)
        .any(|application| application.hold.locks())
}

/// `Application (Lock)`.
pub fn worth(status: &BackupStatus) -> String {
    match (status.consistency, status.continuity) {
        (Some(consistency), Some(continuity)) => format!("{consistency:?} ({continuity:?})"),
        (Some(consistency), None) => format!("{consistency:?}"),
        (None, _) => String::new(),
    }
}

fn rows(backups: &[Backup], now: Timestamp) -> Vec<Vec<String>> {
    let heading = ["NAME", "POLICY", "PHASE", "CONSISTENCY", "FROZEN", "CUT", "AGE", "REASON"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for backup in backups {
        let empty = BackupStatus::default();
        let status = backup.status.as_ref().unwrap_or(&empty);
        let frozen = status.window.as_ref().and_then(|window| window.frozen_seconds);
        let condition = status.conditions.iter().find(|condition| condition.type_ == SUCCEEDED);
        let created = backup.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let age = created.and_then(|created| now.duration_since(created).try_into().ok());
        rows.push(vec![
            backup.name_any(),
            backup.policy_name().unwrap_or("-").to_owned(),
            format!("{:?}", status.phase),
            worth(status),
            frozen.map(seconds).unwrap_or_default(),
            status.cut.as_ref().map(|cut| output::instant(cut.0)).unwrap_or_default(),
            age.map(length).unwrap_or_default(),
            condition.map(|condition| condition.reason.clone()).unwrap_or_default(),
        ]);
    }
    rows
}

/// Turns the states of a run into lines, one per change.
#[derive(Debug, Default)]
struct Progress {
    last: Option<(Phase, u32)>,
}

impl Progress {
    fn line(&mut self, backup: &Backup) -> Option<String> {
        let empty = BackupStatus::default();
        let status = backup.status.as_ref().unwrap_or(&empty);
        let now = (status.phase, status.attempt);
        if self.last.replace(now) == Some(now) {
            return None;
        }
        let again = if status.attempt > 1 { format!(" (attempt {})", status.attempt) } else { String::new() };
        let meaning = match status.phase {
            Phase::Pending => "waiting for an executor",
            Phase::Preparing => "resolving, checking and preparing; nothing is frozen",
            Phase::Freezing => "freezing, cutting, thawing",
            Phase::Settling => "thawed; waiting for the snapshots to be ready",
            Phase::Succeeded => "finished",
            Phase::Failed => "failed",
            Phase::Deleting => "being deleted",
        };
        Some(format!("{:<10} {meaning}{again}", format!("{:?}", status.phase)))
    }

    /// Why a run is perhaps not going on.
    fn stuck(&self) -> String {
        match self.last {
            None => "it was never seen: the API server could not be watched".to_owned(),
            Some((Phase::Pending, _)) => "it is still Pending: is the controller running?".to_owned(),
            Some((phase, attempt)) => format!("it is {phase:?}, attempt {attempt}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(phase: Phase, consistency: Option<Consistency>) -> Backup {
        let status = BackupStatus { phase, consistency, ..BackupStatus::default() };
        Backup { status: Some(status), ..on_demand("b", "p") }
    }

    #[test]
    fn the_exit_code_is_the_verdict() {
        use Consistency::{Application, Crash, None as Nothing};
        let kept =
            |consistency| outcome(&ended(Phase::Succeeded, Some(consistency)), Requirement::BestEffort);
        assert_eq!(
            [kept(Application), kept(Crash), kept(Nothing)],
            [Exit::Success, Exit::Crash, Exit::Unproven]
        );
    }

    #[test]
    fn under_required_what_is_not_proven_has_failed() {
        use Consistency::{Application, Crash, None as Nothing};
        let kept = |consistency| outcome(&ended(Phase::Succeeded, Some(consistency)), Requirement::Required);
        assert_eq!(
            [kept(Application), kept(Crash), kept(Nothing)],
            [Exit::Success, Exit::Failed, Exit::Failed]
        );
        let failed = ended(Phase::Failed, Some(Consistency::Application));
        assert_eq!(outcome(&failed, Requirement::BestEffort), Exit::Failed);
    }

    #[test]
    fn progress_tells_each_state_once() {
        let mut progress = Progress::default();
        assert!(progress.line(&ended(Phase::Pending, None)).is_some());
        assert!(progress.line(&ended(Phase::Pending, None)).is_none());
        assert!(progress.line(&ended(Phase::Freezing, None)).is_some());
    }

    #[test]
    fn a_run_on_demand_is_found_by_its_policy() {
        let backup = on_demand("b", "nightly");
        assert_eq!(backup.policy_name(), Some("nightly"));
        assert_eq!(backup.labels().get(POLICY_LABEL).map(String::as_str), Some("nightly"));
        assert!(on_demand("b", &"p".repeat(64)).labels().is_empty());
    }

    #[test]
    fn a_failed_run_says_why_in_one_line() {
        let mut backup = ended(Phase::Failed, None);
        if let Some(status) = &mut backup.status {
            status.conditions = serde_json::from_value(serde_json::json!([{
                "type": "Succeeded", "status": "False", "reason": "NoPods", "message": "no pod matches",
                "lastTransitionTime": "2026-11-21T00:00:00Z"}]))
            .unwrap();
        }
        assert_eq!(summary(&backup), "b: Failed: NoPods: no pod matches\n");
    }
}
