//! `stillpoint doctor`: what of a cluster would make backups fail, or freezes long, before one does.
//!
//! Guarantees: nothing is written; every check says something, also when it could not look; what is found follows from
//! [`observed::Observed`] alone ([`diagnose`]).

mod component;
mod diagnose;
mod finding;
mod observe;
mod observed;

use std::fmt::Write as _;

use serde::Serialize;
use stillpoint_api::clock::Clock;

use self::finding::{Finding, Severity};
use crate::cli::DoctorArgs;
use crate::cluster::Cluster;
use crate::controller::storage_table;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};

/// The JSON form; a contract with scripts.
#[derive(Debug, Serialize)]
struct Report<'f> {
    errors: usize,
    warnings: usize,
    findings: &'f [Finding],
}

/// Looks at the cluster and says what it found.
///
/// # Errors
/// The cluster cannot be reached at all, or the trust file is wrong.
pub async fn run(cluster: &Cluster, args: &DoctorArgs, clock: &dyn Clock) -> Result<Exit, Failure> {
    let storage = storage_table(args.storage_trust.as_deref())?;
    let observed = observe::observe(cluster, clock).await?;
    let findings = diagnose::diagnose(&observed, &storage);
    match args.output {
        Format::Json => output::print_json(&report(&findings))?,
        Format::Text => output::print(&text(&findings))?,
    }
    Ok(exit(&findings, args.strict))
}

fn report(findings: &[Finding]) -> Report<'_> {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    Report { errors: count(Severity::Error), warnings: count(Severity::Warning), findings }
}

fn exit(findings: &[Finding], strict: bool) -> Exit {
    let report = report(findings);
    if report.errors > 0 || (strict && report.warnings > 0) { Exit::Failed } else { Exit::Success }
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        // Nobody can fail to write into a String.
        let _ = writeln!(text, "{finding}");
    }
    let Report { errors, warnings, .. } = report(findings);
    let _ = writeln!(text, "{} checks: {errors} errors, {warnings} warnings", findings.len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(severities: &[Severity]) -> Vec<Finding> {
        let one = |severity: &Severity| Finding {
            check: "clock",
            severity: *severity,
            what: "w".into(),
            why: "y".into(),
            cure: "c".into(),
        };
        severities.iter().map(one).collect()
    }

    #[test]
    fn warnings_fail_only_when_asked_to_and_errors_always() {
        let warned = findings(&[Severity::Ok, Severity::Warning]);
        assert_eq!((exit(&warned, false), exit(&warned, true)), (Exit::Success, Exit::Failed));
        let wrong = findings(&[Severity::Error]);
        assert_eq!((exit(&wrong, false), exit(&wrong, true)), (Exit::Failed, Exit::Failed));
        assert_eq!(exit(&findings(&[Severity::Ok]), true), Exit::Success);
    }

    #[test]
    fn each_check_is_one_line_with_what_why_and_what_to_do() {
        let text = text(&findings(&[Severity::Ok, Severity::Error]));
        assert_eq!(text, "ok       w — y — c\nerror    w — y — c\n2 checks: 1 errors, 0 warnings\n");
    }
}
