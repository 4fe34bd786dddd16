//! `stillpoint hooks test`: prepare, freeze and thaw against live pods, without a snapshot.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{ListParams, ObjectMeta};
use serde_json::json;
use stillpoint_api::backup::{Backup, BackupSpec, Phase, PolicyRef, RunSpec, Trigger};
use stillpoint_api::clock::SystemClock;
use stillpoint_api::evidence::{HoldEvidence, HoldKind, Offset};
use stillpoint_api::policy::{
    Application, FreezeBounds, PodChoice, Requirement, TemplateKind, TemplateRef, WhenNoPods,
};
use stillpoint_executor::api_client::api_client;
use stillpoint_executor::contents::ContentWatch;
use stillpoint_executor::context::Context;
use stillpoint_executor::exec::{KubeExec, exec_client_config};
use stillpoint_executor::hold::SystemEntropy;
use stillpoint_executor::observer::Unobserved;
use stillpoint_executor::ownership::Ownership;
use stillpoint_executor::rehearsal::{FENCE, Rehearsal, rehearse};
use stillpoint_executor::run::{Abort, Reason};
use stillpoint_executor::storage::StorageTable;
use tokio::sync::watch;

use crate::cli::HooksTestArgs;
use crate::cluster::{self, Cluster, ClusterArgs, chain};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, seconds, table};

/// Rehearses a policy or one application.
///
/// # Errors
/// It could not begin, was given up, or something is not proven thawed.
pub async fn test(cluster_args: &ClusterArgs, args: &HooksTestArgs) -> Result<Exit, Failure> {
    let cluster = Cluster::connect(cluster_args).await?;
    alone(&cluster).await?;
    let backup = run_of(args, &cluster.namespace);
    // Without cuts nothing is asked of the storage table.
    let context = context(cluster_args, !args.as_me, StorageTable::default()).await?;
    let (stop, stopping) = watch::channel(None);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.send_replace(Some(Abort::new(Reason::Cancelled, "interrupted; what was frozen is thawed")));
        }
        // An end of this task would look like a stop.
        std::future::pending::<()>().await;
    });
    let rehearsed = rehearse(&context, backup, stopping).await.map_err(|refusal| {
        Failure::new(format!("cannot begin ({}); nothing was frozen", refusal.reason), refusal.message, "")
    })?;
    match args.output {
        Format::Json => output::print_json(&json!({
            "reason": rehearsed.end.as_ref().err().map(|why| why.reason.as_str()),
            "message": rehearsed.end.as_ref().err().map(|why| why.message.clone()),
            "prepared": rehearsed.prepared.iter()
                .map(|(application, seconds)| json!({"application": application, "seconds": seconds}))
                .collect::<Vec<_>>(),
            "holds": rehearsed.record.holds,
            "window": rehearsed.record.window,
        }))?,
        Format::Text => output::print(&report(&rehearsed))?,
    }
    verdict(&rehearsed)
}

/// A run that holds the same application would take our lock for somebody else's, and we its.
async fn alone(cluster: &Cluster) -> Result<(), Failure> {
    let listed =
        cluster.call("cannot list Backups", cluster.api::<Backup>().list(&ListParams::default())).await?;
    let running = listed.items.into_iter().find(|backup| {
        let phase = backup.status.as_ref().map(|status| status.phase);
        matches!(phase, Some(Phase::Preparing | Phase::Freezing))
    });
    match running.and_then(|backup| backup.metadata.name) {
        None => Ok(()),
        Some(name) => Err(Failure::new(
            "a backup runs in this namespace",
            format!("Backup {name} is being prepared or frozen"),
            format!("try again when it is finished: `kubectl get backup {name} -w`"),
        )),
    }
}

/// A Backup that is never created: what it would hold.
fn run_of(args: &HooksTestArgs, namespace: &str) -> Backup {
    let run = match (&args.policy, &args.selector) {
        (Some(policy), _) => {
            RunSpec { policy_ref: Some(PolicyRef { name: policy.clone(), uid: None }), ..RunSpec::default() }
        }
        (None, selector) => {
            let labels = selector.iter().flat_map(|pairs| pairs.0.clone()).collect();
            let kind =
                if args.namespaced { TemplateKind::HookTemplate } else { TemplateKind::ClusterHookTemplate };
            let application = Application {
                name: "test".to_owned(),
                selector: LabelSelector { match_labels: Some(labels), ..LabelSelector::default() },
                template_ref: args.template.clone().map(|name| TemplateRef { kind, name }),
                parameters: args.param.iter().cloned().collect(),
                container: args.container.clone(),
                pods: PodChoice::default(),
                volumes: None,
                order: 0,
                when_no_pods: WhenNoPods::default(),
            };
            RunSpec {
                applications: Some(vec![application]),
                freeze: args
                    .max_hold
                    .map(|max_hold| FreezeBounds { max_hold: Some(max_hold), ..FreezeBounds::default() }),
                consistency: Some(Requirement::BestEffort),
                ..RunSpec::default()
            }
        }
    };
    Backup {
        metadata: ObjectMeta {
            name: Some("hooks-test".to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        spec: BackupSpec { run, trigger: Trigger::Manual, cancel: false, hold: None },
        status: None,
    }
}

/// A context of the command line: it claims no run, and asks with the rights of who asks, except for hooks.
///
/// # Errors
/// No usable kubeconfig.
pub(super) async fn context(
    args: &ClusterArgs,
    impersonate: bool,
    storage: StorageTable,
) -> Result<Context, Failure> {
    let failed =
        |what: &str, why: String| Failure::new(what, why, "check the kubeconfig and that the cluster is up");
    let clock = SystemClock::shared();
    let config = exec_client_config(cluster::config(args).await?);
    let exec = KubeExec::from_config(config.clone(), Arc::clone(&clock))
        .map_err(|error| failed("cannot make the exec client", error.to_string()))?;
    let client = api_client(config).map_err(|error| failed("cannot make the client", chain(&error)))?;
    let ownership = Ownership::unclaimed("stillpoint", clock.mono(), FENCE);
    Ok(Context {
        client,
        exec: Arc::new(exec),
        clock,
        entropy: Arc::new(SystemEntropy),
        storage: Arc::new(storage),
        observer: Arc::new(Unobserved),
        contents: ContentWatch::new(),
        ownership,
        impersonate,
    })
}

/// What each step took.
fn report(rehearsed: &Rehearsal) -> String {
    let mut rows = vec![
        ["APPLICATION", "POD", "HOLD", "PREPARE", "FREEZE", "LAST BEAT", "THAW", "RESULT"]
            .map(ToOwned::to_owned)
            .to_vec(),
    ];
    let prepared = |application: &str| {
        let found = rehearsed.prepared.iter().find(|(name, _)| name == application);
        found.map_or_else(|| "-".to_owned(), |(_, took)| seconds(*took))
    };
    for hold in &rehearsed.record.holds {
        let frozen = hold.frozen.as_ref().map(|answer| answer.at);
        let held = hold.held.as_ref().map(|answer| answer.at);
        rows.push(vec![
            hold.application.clone(),
            format!("{}/{}", hold.pod_name, hold.container),
            kind(rehearsed, hold).map_or_else(String::new, |kind| format!("{kind:?}")),
            prepared(&hold.application),
            took(hold.freeze_sent, frozen),
            took(hold.closing_sent, held),
            took(held.or(hold.thaw_sent), hold.thawed),
            result(rehearsed, hold).to_owned(),
        ]);
    }
    // An application that is not held has nothing but its prepare.
    for application in &rehearsed.resolved.applications {
        if application.hold == HoldKind::None {
            let mut row = vec![application.name.clone(), "-".to_owned(), "None".to_owned()];
            row.push(prepared(&application.name));
            row.extend(["-", "-", "-", "prepared"].map(ToOwned::to_owned));
            rows.push(row);
        }
    }
    let mut text = table(&rows);
    let window = rehearsed.record.window.as_ref();
    if let Some(frozen) = window.and_then(|window| window.frozen_seconds) {
        let promised = f64::from(u32::try_from(rehearsed.resolved.max_hold_millis).unwrap_or(u32::MAX)) / 1e3;
        text.push_str(&format!(
            "\nFrozen for {} (promised: at most {}); a backup adds the time of its cuts. No snapshot was made.\n",
            seconds(frozen),
            seconds(promised)
        ));
    }
    text
}

fn kind(rehearsed: &Rehearsal, hold: &HoldEvidence) -> Option<HoldKind> {
    let mut all = rehearsed.resolved.applications.iter();
    all.find(|application| application.name == hold.application).map(|application| application.hold)
}

fn took(from: Option<Offset>, to: Option<Offset>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => seconds((to.seconds() - from.seconds()).max(0.0)),
        (None, _) | (_, None) => "-".to_owned(),
    }
}

/// Frozen until proven thawed; a stream that ends without a word frees it too, but says nothing.
fn result(rehearsed: &Rehearsal, hold: &HoldEvidence) -> &'static str {
    let observes = kind(rehearsed, hold) == Some(HoldKind::Observer);
    let foreign = rehearsed.end.as_ref().is_err_and(|why| why.reason == Reason::ForeignFreeze);
    match (hold.freeze_sent, hold.thawed) {
        (None, _) => "not frozen",
        (Some(_), Some(_)) => "thawed",
        (Some(_), None) if foreign => "frozen by somebody else",
        (Some(_), None) if observes => "ended",
        (Some(_), None) => "NOT PROVEN THAWED",
    }
}

fn verdict(rehearsed: &Rehearsal) -> Result<Exit, Failure> {
    let unproven: Vec<String> = rehearsed
        .record
        .holds
        .iter()
        .filter(|hold| result(rehearsed, hold) == "NOT PROVEN THAWED")
        .map(|hold| format!("{}/{}", hold.pod_name, hold.container))
        .collect();
    let cure = if unproven.is_empty() {
        String::new()
    } else {
        format!("look at {} now: whether it is thawed is not proven", unproven.join(", "))
    };
    match &rehearsed.end {
        Ok(()) => Ok(Exit::Success),
        Err(why) => Err(Failure::new(format!("given up: {}", why.reason), why.message.clone(), cure)),
    }
}
