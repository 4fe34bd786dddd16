//! `stillpoint backup verify-evidence`: the verdict once more, from the stored evidence alone.
//!
//! A verdict that cannot be recomputed is a claim. Here is the executor's own function, run where the reader trusts.

use std::fmt::Write as _;

use kube::ResourceExt as _;
use serde::Serialize;
use stillpoint_api::backup::{Backup, BackupStatus};
use stillpoint_api::evidence::Verdict;
use stillpoint_executor::verdict::{Evidence, Judgement, judge};

use super::describe::draw_verdict;
use crate::cli::BackupDescribeArgs;
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};

/// What was compared; the JSON form is a contract with scripts.
#[derive(Debug, Serialize)]
struct Comparison {
    backup: String,
    /// Nothing differs.
    agrees: bool,
    differences: Vec<String>,
    /// The verdict as recomputed.
    verdict: Verdict,
}

/// Recomputes the verdict of a backup: exit code 0 when it agrees with the stored one, 1 when it does not.
///
/// # Errors
/// It does not exist, or holds no evidence.
pub async fn run(cluster: &Cluster, args: &BackupDescribeArgs) -> Result<Exit, Failure> {
    let backup: Backup = cluster.get(&args.name).await?;
    let status = backup.status.clone().unwrap_or_default();
    let Some(evidence) = Evidence::of(&status) else {
        return Err(Failure::new(
            format!("backup {} holds no evidence to verify", args.name),
            format!("it is {:?} and never reached a freeze window", status.phase),
            format!("see `stillpoint backup describe {}`", args.name),
        ));
    };
    let judgement = judge(&evidence);
    let differences = compare(&status, &judgement);
    let agrees = differences.is_empty();
    let comparison =
        Comparison { backup: backup.name_any(), agrees, differences, verdict: judgement.verdict };
    match args.output {
        Format::Json => output::print_json(&comparison)?,
        Format::Text => output::print(&text(&comparison))?,
    }
    Ok(if agrees { Exit::Success } else { Exit::Failed })
}

fn text(comparison: &Comparison) -> String {
    let mut text = draw_verdict(&comparison.verdict);
    if comparison.agrees {
        let _ = writeln!(text, "{}: the recomputed verdict is the stored one", comparison.backup);
    }
    for difference in &comparison.differences {
        let _ = writeln!(text, "{}: DIFFERS: {difference}", comparison.backup);
    }
    text
}

/// What the stored verdict says otherwise than the recomputed one.
fn compare(stored: &BackupStatus, computed: &Judgement) -> Vec<String> {
    let mut differences = Vec::new();
    let mut field = |name: &str, stored: String, computed: String| {
        if stored != computed {
            differences.push(format!("{name}: stored {stored}, recomputed {computed}"));
        }
    };
    let consistency = stored.consistency.map_or("nothing".to_owned(), |worth| format!("{worth:?}"));
    field("consistency", consistency, format!("{:?}", computed.consistency));
    let grade = |grade: Option<_>| grade.map_or("none".to_owned(), |grade| format!("{grade:?}"));
    field("continuity", grade(stored.continuity), grade(computed.continuity));
    field("crossConsistent", stored.cross_consistent.to_string(), computed.cross_consistent.to_string());
    let verdict = stored.verdict.clone().unwrap_or_default();
    let rules = |verdict: &Verdict| {
        let list = |found: &[stillpoint_api::evidence::RuleFinding]| {
            let mut rules: Vec<String> =
                found.iter().map(|found| format!("{}/{}", found.rule, found.application)).collect();
            rules.sort();
            rules.join(" ")
        };
        (list(&verdict.proved), list(&verdict.missing))
    };
    let ((proved, missing), (now_proved, now_missing)) = (rules(&verdict), rules(&computed.verdict));
    field("rules proven", proved, now_proved);
    field("rules missing", missing, now_missing);
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_api::evidence::{Consistency, RuleFinding};

    #[test]
    fn a_verdict_that_claims_more_than_its_evidence_is_found() {
        let finding = |rule| RuleFinding { rule, application: "db".into(), finding: String::new() };
        let stored = BackupStatus {
            consistency: Some(Consistency::Application),
            verdict: Some(Verdict { proved: vec![finding(1), finding(2)], ..Verdict::default() }),
            ..BackupStatus::default()
        };
        let mut computed = Judgement {
            consistency: Consistency::Application,
            continuity: None,
            cross_consistent: false,
            verdict: stored.verdict.clone().unwrap(),
            violations: Default::default(),
        };
        assert_eq!(compare(&stored, &computed), Vec::<String>::new());
        computed.consistency = Consistency::None;
        let moved = computed.verdict.proved.pop().unwrap();
        computed.verdict.missing.push(moved);
        assert_eq!(compare(&stored, &computed).len(), 3);
    }
}
