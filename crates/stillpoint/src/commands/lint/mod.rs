//! `stillpoint lint`: everything that can be known about files without a cluster.
//!
//! Guarantees: all findings of all files in one run, each with file, object, path and rule; the rules are those of
//! the controller (one validator, one schedule parser), so what passes here is accepted there, as far as it does not
//! depend on objects that are not in the files.

pub mod documents;
mod references;

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use stillpoint_api::clock::Clock;
use stillpoint_api::validate::explain::Explained;
use stillpoint_api::validate::{self, Finding};
use stillpoint_api::{BackupPolicy, ClusterHookTemplate, HookTemplate, ProtectionRule};
use stillpoint_scheduler::{accept, rules};

use self::documents::Documents;
use self::references::References;
use crate::cli::LintArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, length};

include!(concat!(env!("OUT_DIR"), "/library.rs"));

/// One finding in one file; the JSON form is a contract with scripts.
#[derive(Debug, Serialize)]
struct Located {
    file: String,
    /// `Kind/name`, empty where it is not known.
    object: String,
    path: String,
    rule: String,
    message: String,
}

/// One document of one file.
#[derive(Debug)]
struct Source {
    file: String,
    value: Value,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Report {
    findings: Vec<Located>,
    warnings: Vec<String>,
    /// Objects of our group.
    checked: usize,
    /// Objects of others.
    passed_over: usize,
}

/// Checks files.
///
/// # Errors
/// A file cannot be read.
pub fn run(args: &LintArgs, clock: &dyn Clock) -> Result<Exit, Failure> {
    if let Some(rule) = &args.explain {
        return explain(rule, args.output);
    }
    let mut report = Report::default();
    let mut sources = Vec::new();
    for file in &args.files {
        let text = read(file)?;
        report.parse(&file.display().to_string(), &text, &mut sources);
    }
    report.check(&sources, clock);
    for warning in &report.warnings {
        output::tell(&format!("warning: {warning}"));
    }
    match args.output {
        Format::Json => output::print_json(&report.findings)?,
        Format::Text => output::print(&text(&report.findings))?,
    }
    output::tell(&report.summary());
    Ok(if report.findings.is_empty() { Exit::Success } else { Exit::Failed })
}

/// Why a rule is there.
fn explain(rule: &str, format: Format) -> Result<Exit, Failure> {
    let Some(found) = validate::explain(rule) else {
        let known: Vec<&str> = validate::explain::EXPLAINED.iter().map(|one| one.rule).collect();
        return Err(Failure::new(
            format!("there is no rule {rule:?} about templates"),
            format!("known are {}", known.join(", ")),
            "name one as a finding has it in parentheses",
        )
        .exiting(Exit::Usage));
    };
    let Explained { rule, what, why, instead } = found;
    match format {
        Format::Json => output::print_json(&serde_json::json!({
            "rule": rule, "what": what, "why": why, "instead": instead,
        }))?,
        Format::Text => {
            output::print(&format!("{rule}\n\n  {what}\n\nWhy\n  {why}\n\nInstead\n  {instead}\n"))?
        }
    }
    Ok(Exit::Success)
}

pub(super) fn read(file: &Path) -> Result<String, Failure> {
    let read = if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|error| {
        Failure::new(
            format!("cannot read {}", file.display()),
            error.to_string(),
            "name files, or `-` for stdin",
        )
        .exiting(Exit::Usage)
    })
}

fn text(findings: &[Located]) -> String {
    let mut text = String::new();
    for found in findings {
        let object = if found.object.is_empty() { String::new() } else { format!("{}: ", found.object) };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}: {object}{}: {} ({})", found.file, found.path, found.message, found.rule);
    }
    text
}

impl Report {
    fn parse(&mut self, file: &str, text: &str, sources: &mut Vec<Source>) {
        let Documents { values, faults } = documents::parse(text);
        for fault in faults {
            self.add(file, String::new(), fault);
        }
        sources.extend(values.into_iter().map(|value| Source { file: file.to_owned(), value }));
    }

    fn add(&mut self, file: &str, object: String, found: Finding) {
        let Finding { path, rule, message } = found;
        self.findings.push(Located { file: file.to_owned(), object, path, rule: rule.to_owned(), message });
    }

    fn check(&mut self, sources: &[Source], clock: &dyn Clock) {
        let mut references = References::with_library(LIBRARY);
        for source in sources {
            if let Some(found) = references.learn(&source.value) {
                self.add(&source.file, object(&source.value), found);
            }
        }
        for Source { file, value } in sources {
            // What is no object of Kubernetes at all is reported: it may be one of ours without its head.
            if value
                .get("apiVersion")
                .and_then(Value::as_str)
                .is_some_and(|group| !group.starts_with("stillpoint.dev/"))
            {
                self.passed_over += 1;
                continue;
            }
            self.checked += 1;
            let mut found = validate::document(value);
            // Rules about the typed object say nothing sensible about a misshapen one.
            if let Some(policy) = typed::<BackupPolicy>(value, "BackupPolicy") {
                found.extend(self.schedule(file, &policy, clock));
                let (more, unknown) = references.check(&policy);
                found.extend(more);
                self.warnings
                    .extend(unknown.into_iter().map(|text| format!("{file}: {}: {text}", object(value))));
            }
            if let Some(rule) = typed::<ProtectionRule>(value, "ProtectionRule") {
                found.extend(rules::schedule_findings(&rule, clock.wall()));
            }
            let recipe = typed::<HookTemplate>(value, "HookTemplate")
                .map(|template| template.spec.0)
                .or(typed::<ClusterHookTemplate>(value, "ClusterHookTemplate")
                    .map(|template| template.spec.0));
            for advice in recipe.iter().flat_map(validate::advice) {
                self.warnings.push(format!("{file}: {}: {advice}", object(value)));
            }
            for finding in found {
                self.add(file, object(value), finding);
            }
        }
    }

    /// Expression, zone and jitter, as the scheduler reads them; an objective they cannot meet is a warning.
    fn schedule(&mut self, file: &str, policy: &BackupPolicy, clock: &dyn Clock) -> Option<Finding> {
        let analysis = match accept::intervals(policy, clock.wall()) {
            Ok(analysis) => analysis?,
            Err(finding) => return Some(finding),
        };
        let rpo = policy.spec.objectives.and_then(|set| set.rpo)?;
        if analysis.max_interval > rpo.get() {
            let name = policy.metadata.name.as_deref().unwrap_or_default();
            self.warnings.push(format!(
                "{file}: BackupPolicy/{name}: spec.objectives.rpo: {rpo} cannot be met: the longest interval of the schedule is {}",
                length(analysis.max_interval)
            ));
        }
        None
    }

    fn summary(&self) -> String {
        let count = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
        let mut text = format!(
            "{} in {}",
            count(self.findings.len(), "finding", "findings"),
            count(self.checked, "object", "objects")
        );
        if self.passed_over > 0 {
            text +=
                &format!("; {} of other groups passed over", count(self.passed_over, "object", "objects"));
        }
        text
    }
}

/// The object as its type, if it is of this kind and its shape is right.
pub(super) fn typed<T: serde::de::DeserializeOwned>(value: &Value, kind: &str) -> Option<T> {
    if value.get("kind").and_then(Value::as_str) != Some(kind) {
        return None;
    }
    serde_json::from_value(value.clone()).ok()
}

/// `Kind/name`, as far as it is known.
fn object(value: &Value) -> String {
    let kind = value.get("kind").and_then(Value::as_str);
    let name = value.pointer("/metadata/name").and_then(Value::as_str);
    match (kind, name) {
        (Some(kind), Some(name)) => format!("{kind}/{name}"),
        (Some(kind), None) => kind.to_owned(),
        (None, _) => String::new(),
    }
}
