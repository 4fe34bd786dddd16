//! `stillpoint plan`: what a run of each policy of a namespace would detect, freeze and cut, and what is missing.
//!
//! Guarantees: nothing is changed and nothing is held. What is said comes from the resolver and the verdict of the executor
//! ([`stillpoint_executor::preview`]); here it is only asked for and shown ([`report`], [`text`]). What cannot be known
//! without a run is listed as not known.

mod report;
mod text;

use std::collections::BTreeSet;

use kube::ResourceExt as _;
use kube::api::{ListParams, ObjectMeta};
use stillpoint_api::BackupPolicy;
use stillpoint_api::backup::{Backup, BackupSpec, PolicyRef, RunSpec, Trigger};
use stillpoint_api::policy::Requirement;
use stillpoint_executor::context::Context;
use stillpoint_executor::preview::{Asking, preview, unprotected};
use stillpoint_executor::resolve::{Refusal, pods};

use self::report::{Planned, Report, Subject};
use super::hooks;
use crate::cli::PlanArgs;
use crate::cluster::{Cluster, ClusterArgs};
use crate::controller::storage_table;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};

/// Plans one policy, or all of the namespace and the workloads that none selects.
///
/// # Errors
/// The cluster cannot be read, or there is no such policy.
pub async fn run(cluster_args: &ClusterArgs, args: &PlanArgs) -> Result<Exit, Failure> {
    let storage = storage_table(args.storage_trust.as_deref())?;
    let cluster = Cluster::connect(cluster_args).await?;
    let context = hooks::context(cluster_args, !args.as_me, storage).await?;
    let asking = if args.ask_nothing { Asking::Nothing } else { Asking::AsARun };
    let planner = Planner { cluster: &cluster, context: &context, asking };
    let report = match &args.policy {
        Some(name) => {
            let policy: BackupPolicy = cluster.get(name).await?;
            Report { plans: vec![planner.policy(&policy).await?.0], unlabelled: Vec::new() }
        }
        None => planner.namespace().await?,
    };
    match args.output {
        Format::Json => output::print_json(&report)?,
        Format::Text => output::print(&text::text(&report, &cluster.namespace))?,
    }
    Ok(report.exit())
}

struct Planner<'c> {
    cluster: &'c Cluster,
    context: &'c Context,
    asking: Asking,
}

impl Planner<'_> {
    async fn namespace(&self) -> Result<Report, Failure> {
        let api = self.cluster.api::<BackupPolicy>();
        let listed =
            self.cluster.call("cannot list BackupPolicies", api.list(&ListParams::default())).await?;
        let (mut plans, mut protected) = (Vec::new(), BTreeSet::new());
        for policy in &listed.items {
            let (plan, pods) = self.policy(policy).await?;
            plans.push(plan);
            protected.extend(pods);
        }
        let all = pods::list_all(self.context, &self.cluster.namespace).await;
        let all = all.map_err(|error| refused(&Refusal::request(&error)))?;
        let (applications, unlabelled) = unprotected(&all, &protected);
        for application in applications {
            let subject = Subject::Workload {
                name: application.name.clone(),
                selector: pods::selector_text(&application.selector),
            };
            // Nothing is demanded: what its point would be worth is what is asked.
            let run = RunSpec {
                applications: Some(vec![application]),
                consistency: Some(Requirement::BestEffort),
                ..RunSpec::default()
            };
            plans.push(self.plan(subject, Requirement::BestEffort, run).await?.0);
        }
        Ok(Report { plans, unlabelled })
    }

    /// The plan of a policy, and the UIDs of the pods that it selects.
    async fn policy(&self, policy: &BackupPolicy) -> Result<(Planned, Vec<String>), Failure> {
        let name = policy.name_any();
        let run = RunSpec {
            policy_ref: Some(PolicyRef { name: name.clone(), uid: policy.uid() }),
            ..RunSpec::default()
        };
        self.plan(Subject::Policy { name }, policy.spec.consistency, run).await
    }

    async fn plan(
        &self,
        subject: Subject,
        demanded: Requirement,
        run: RunSpec,
    ) -> Result<(Planned, Vec<String>), Failure> {
        let backup = Backup {
            metadata: ObjectMeta {
                name: Some("plan".to_owned()),
                namespace: Some(self.cluster.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: BackupSpec { run, trigger: Trigger::Manual, cancel: false, hold: None },
            status: None,
        };
        let seen = preview(self.context, &backup, self.asking).await.map_err(|refusal| refused(&refusal))?;
        let pods = seen.found.iter().flat_map(|found| found.pod_uids.clone()).collect();
        Ok((Planned::of(subject, demanded, &seen), pods))
    }
}

/// The words of a refusal are the controller's; what is asked here is asked with the rights of who asks.
fn refused(refusal: &Refusal) -> Failure {
    let (why, cure) = match refusal.message.split_once("; the controller's ClusterRole") {
        Some((why, _)) => {
            (why, "your account needs the right to read what a run reads: docs/authority.md lists it")
        }
        None => (refusal.message.as_str(), ""),
    };
    Failure::new(format!("cannot look ({}); nothing was changed", refusal.reason), why, cure)
}
