//! `stillpoint restore check`: what the template says of a restored copy, run in it.

use serde::Serialize;
use stillpoint_api::template::restored::DrillSafe;
use stillpoint_executor::restore::copy::{Copy, Done, Kind, Wish};
use stillpoint_executor::storage::StorageTable;

use super::hooks::context;
use crate::cli::RestoreCheckArgs;
use crate::cluster::{Cluster, ClusterArgs};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, seconds, table};

/// What was run and what came of it; the JSON form is a contract with scripts.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    backup: String,
    application: String,
    template: String,
    place: String,
    drill_safe: DrillSafe,
    passed: bool,
    steps: Vec<Done>,
}

/// Runs the steps and checks of a copy.
///
/// # Errors
/// The pod is no copy, or nothing can be run in it.
pub async fn run(cluster_args: &ClusterArgs, args: &RestoreCheckArgs) -> Result<Exit, Failure> {
    let cluster = Cluster::connect(cluster_args).await?;
    // Nothing is cut here, so that nothing is asked of the storage table.
    let context = context(cluster_args, !args.as_me, StorageTable::default()).await?;
    let wish = Wish { application: args.application.clone(), container: args.container.clone() };
    let copy = Copy::find(&context, &cluster.namespace, &args.pod, &wish).await.map_err(|refusal| {
        Failure::new(format!("cannot check pod {} ({})", args.pod, refusal.reason), refusal.message, "")
    })?;
    let recipe = &copy.recipe;
    if recipe.after_restore.is_empty() && recipe.checks.is_empty() {
        return Err(Failure::new(
            format!("there is nothing to check in pod {}", args.pod),
            format!(
                "template {} of backup {} has neither afterRestore nor checks",
                copy.template, copy.backup
            ),
            "look at the data yourself, and write checks into a template of your own",
        ));
    }
    let drill_safe = recipe.drill_safe.unwrap_or_default();
    output::tell(&format!(
        "{} is a copy of backup {}, template {}",
        copy.place(),
        copy.backup,
        copy.template
    ));
    if drill_safe == DrillSafe::Never {
        output::tell("a copy of this kind must not reach its original or its peers (drillSafe: Never)");
    }
    let steps = copy.check(&context, |done| output::tell(&line(done))).await;
    let report = Report {
        passed: steps.iter().all(|step| step.failure.is_none()),
        place: copy.place(),
        backup: copy.backup,
        application: copy.application,
        template: copy.template,
        drill_safe,
        steps,
    };
    match args.output {
        Format::Json => output::print_json(&report)?,
        Format::Text => output::print(&text(&report, recipe.checks.len()))?,
    }
    Ok(if report.passed { Exit::Success } else { Exit::Failed })
}

fn line(done: &Done) -> String {
    let said = done.failure.as_ref().map_or_else(|| "passed".to_owned(), |why| format!("FAILED: {why}"));
    format!("{:>8}  {}: {said}", seconds(done.seconds), done.name)
}

fn text(report: &Report, checks: usize) -> String {
    let mut rows = vec![["NAME", "KIND", "TOOK", "RESULT"].map(str::to_owned).to_vec()];
    rows.extend(report.steps.iter().map(|step| {
        let kind = match step.kind {
            Kind::AfterRestore => "step",
            Kind::Check => "check",
        };
        let result =
            step.failure.as_deref().map_or_else(|| "passed".to_owned(), |why| format!("FAILED: {why}"));
        vec![step.name.clone(), kind.to_owned(), seconds(step.seconds), result]
    }));
    let mut text = table(&rows);
    let run = report.steps.iter().filter(|step| step.kind == Kind::Check).count();
    if run < checks {
        text.push_str("\nA step failed, so that no check was run.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(steps: Vec<Done>) -> Report {
        Report {
            backup: "b".to_owned(),
            application: "db".to_owned(),
            template: "db2".to_owned(),
            place: "copy".to_owned(),
            drill_safe: DrillSafe::Standalone,
            passed: steps.iter().all(|step| step.failure.is_none()),
            steps,
        }
    }

    fn done(name: &str, kind: Kind, failure: Option<&str>) -> Done {
        Done { name: name.to_owned(), kind, seconds: 0.25, failure: failure.map(str::to_owned) }
    }

    #[test]
    fn a_report_says_what_passed_and_why_something_did_not() {
        let all = [
            done("write-resume", Kind::AfterRestore, None),
            done("pages", Kind::Check, Some("expected nothing, got \"page 7\"")),
        ];
        let expected = "\
NAME          KIND   TOOK      RESULT
write-resume  step   250.0 ms  passed
pages         check  250.0 ms  FAILED: expected nothing, got \"page 7\"
";
        assert_eq!(text(&report(all.to_vec()), 1), expected);
    }

    #[test]
    fn checks_that_were_not_run_are_not_kept_silent() {
        let failed = report(vec![done("write-resume", Kind::AfterRestore, Some("it ended with 4"))]);
        assert!(text(&failed, 2).ends_with("A step failed, so that no check was run.\n"));
    }
}
