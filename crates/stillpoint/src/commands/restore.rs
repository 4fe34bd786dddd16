//! `stillpoint restore run`: new claims from a recovery point, and how long it took.

use std::fmt::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt as _;
use kube::api::{ObjectMeta, PostParams};
use stillpoint_api::backup::SUCCEEDED;
use stillpoint_api::clock::Clock;
use stillpoint_api::policy::NameRef;
use stillpoint_api::restore::{
    CloneTarget, Restore, RestorePhase, RestoreSource, RestoreSpec, RestoreStatus, RestoreTarget,
    RestoreTrigger, SourceBackup, SourceLatest,
};
use stillpoint_api::{Backup, BackupPolicy};

use super::timed_name;
use crate::cli::RestoreRunArgs;
use crate::cluster::{Cluster, Waited};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, length, precise, seconds};

/// Restores a point as new claims.
///
/// # Errors
/// The point does not exist, or the Restore could not be created or watched.
pub async fn run(cluster: &Cluster, args: &RestoreRunArgs, clock: &dyn Clock) -> Result<Exit, Failure> {
    let (subject, source) = source(cluster, args).await?;
    let name = args.name.clone().unwrap_or_else(|| timed_name(&subject, "", clock.wall()));
    let restore = Restore {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        spec: RestoreSpec {
            source,
            target: RestoreTarget::Clone(CloneTarget {
                prefix: args.prefix.clone(),
                ..CloneTarget::default()
            }),
            trigger: RestoreTrigger::Manual,
            policy_ref: None,
        },
        status: None,
    };
    let what = format!("cannot create Restore {name:?}");
    let api = cluster.api::<Restore>();
    let created = cluster.call(&what, api.create(&PostParams::default(), &restore)).await?;
    let Some(limit) = args.wait.limit() else {
        return match args.output {
            Format::Json => output::print_json(&created),
            Format::Text => output::print(&format!("restore.stillpoint.dev/{name} created\n")),
        }
        .map(|()| Exit::Success);
    };
    output::tell(&format!("restore {name} created in namespace {}", cluster.namespace));
    let begun = clock.mono();
    let mut last = None;
    let waited = cluster
        .wait::<Restore>(&name, limit, |restore| {
            let phase = restore.status.as_ref().map(|status| status.phase).unwrap_or_default();
            if last.replace(phase) != Some(phase) {
                output::tell(&format!("{:>8}  {phase:?}", length(clock.mono().since(begun))));
            }
            match phase {
                RestorePhase::Succeeded | RestorePhase::Failed => true,
                RestorePhase::Pending | RestorePhase::Restoring => false,
            }
        })
        .await?;
    match waited {
        Waited::Done(restore) => {
            match args.output {
                Format::Json => output::print_json(&restore)?,
                Format::Text => output::print(&summary(&restore))?,
            }
            match restore.status.map(|status| status.phase).unwrap_or_default() {
                RestorePhase::Succeeded => Ok(Exit::Success),
                RestorePhase::Pending | RestorePhase::Restoring | RestorePhase::Failed => Ok(Exit::Failed),
            }
        }
        Waited::Gone => Err(Failure::new(
            format!("restore {name} was deleted before it finished"),
            "",
            format!("claims it made carry the label stillpoint.dev/restore={name}"),
        )),
        Waited::TimedOut => Err(Failure::new(
            format!("restore {name} did not finish within {}", args.wait.timeout),
            format!("it is {:?}", last.unwrap_or_default()),
            format!("it goes on: `kubectl get restores.stillpoint.dev {name} -n {} -w`", cluster.namespace),
        )
        .exiting(Exit::TimedOut)),
    }
}

/// The source, after a look that it exists: a mistyped name should not become an object that fails.
async fn source(cluster: &Cluster, args: &RestoreRunArgs) -> Result<(String, RestoreSource), Failure> {
    match (&args.source.backup, &args.source.policy) {
        (Some(name), _) => {
            let _: Backup = cluster.get(name).await?;
            let source = SourceBackup { name: name.clone(), namespace: None };
            Ok((name.clone(), RestoreSource::BackupRef(source)))
        }
        (None, Some(name)) => {
            let _: BackupPolicy = cluster.get(name).await?;
            let before = args.before.map(MicroTime);
            let source = SourceLatest { policy_ref: NameRef { name: name.clone() }, before, namespace: None };
            Ok((name.clone(), RestoreSource::Latest(source)))
        }
        (None, None) => {
            Err(Failure::new("nothing to restore", "", "say --backup NAME or --policy NAME")
                .exiting(Exit::Usage))
        }
    }
}

fn summary(restore: &Restore) -> String {
    let empty = RestoreStatus::default();
    let status = restore.status.as_ref().unwrap_or(&empty);
    let name = restore.name_any();
    match status.phase {
        RestorePhase::Succeeded => {
            let from = status.backup.as_deref().unwrap_or("?");
            let worth = status.consistency.map(|worth| format!(" ({worth:?})")).unwrap_or_default();
            let data = status.data_time.as_ref().map(|at| format!(", data of {}", precise(at.0)));
            let took = status.rto_seconds.map(|took| format!(", took {}", seconds(took)));
            let (data, took) = (data.unwrap_or_default(), took.unwrap_or_default());
            let mut text = format!("{name}: restored from {from}{worth}{data}{took}\n");
            for claim in &status.claims {
                let bound = if claim.bound { "" } else { " (binds when a pod uses it)" };
                // Writing to a String cannot fail.
                let _ = writeln!(text, "  {} -> {}{bound}", claim.source_claim, claim.claim_name);
            }
            text
        }
        RestorePhase::Pending | RestorePhase::Restoring | RestorePhase::Failed => {
            let condition = status.conditions.iter().find(|condition| condition.type_ == SUCCEEDED);
            let why = condition.map(|condition| format!("{}: {}", condition.reason, condition.message));
            format!(
                "{name}: {:?}: {}\n",
                status.phase,
                why.unwrap_or_else(|| "no reason was recorded".to_owned())
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restore(status: serde_json::Value) -> Restore {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore", "metadata": {"name": "r"},
            "spec": {"source": {"backupRef": {"name": "b"}}, "target": {"clone": {}}}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_restore_ends_with_its_claims_and_its_time() {
        let status = serde_json::json!({
            "phase": "Succeeded", "backup": "b", "consistency": "Application", "rtoSeconds": 4.25,
            "dataTime": "2026-11-21T02:00:00.123456Z",
            "claims": [{"sourceClaim": "data-db-0", "claimName": "r-data-db-0", "bound": false}],
        });
        assert_eq!(
            summary(&restore(status)),
            "r: restored from b (Application), data of 2026-11-21T02:00:00.123Z, took 4.2 s\n  \
             data-db-0 -> r-data-db-0 (binds when a pod uses it)\n"
        );
    }

    #[test]
    fn a_restore_that_failed_says_why() {
        let status = serde_json::json!({
            "phase": "Failed",
            "conditions": [{"type": "Succeeded", "status": "False", "reason": "NoPoint", "message": "there is none",
                            "lastTransitionTime": "2026-11-21T00:00:00Z"}],
        });
        assert_eq!(summary(&restore(status)), "r: Failed: NoPoint: there is none\n");
    }
}
