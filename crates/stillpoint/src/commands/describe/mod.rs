//! `stillpoint backup describe`: everything a person needs to know about one run.
//!
//! [`describe`] is pure: the same Backup gives the same text, without a clock and without a cluster.

mod timeline;
mod verdict;

use std::fmt::Write as _;

use kube::ResourceExt as _;
use stillpoint_api::backup::{Backup, BackupStatus, JournalKind, Phase, SUCCEEDED};
use stillpoint_api::evidence::{Consistency, HoldKind, ResolvedApplication};
use stillpoint_api::policy::TemplateKind;

#[cfg(feature = "demo")]
pub use self::timeline::draw as draw_window;
pub use self::verdict::draw as draw_verdict;
use super::backup::worth;
use crate::cli::BackupDescribeArgs;
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, precise, table};

/// Leading characters of a digest that are shown: as many as git shows.
const DIGEST_SHOWN: usize = 12;

/// Shows one backup.
///
/// # Errors
/// It does not exist or cannot be read.
pub async fn run(cluster: &Cluster, args: &BackupDescribeArgs) -> Result<Exit, Failure> {
    let backup: Backup = cluster.get(&args.name).await?;
    match args.output {
        Format::Json => output::print_json(&backup)?,
        Format::Text => output::print(&describe(&backup))?,
    }
    Ok(Exit::Success)
}

/// The whole story of a run as text.
pub fn describe(backup: &Backup) -> String {
    let empty = BackupStatus::default();
    let status = backup.status.as_ref().unwrap_or(&empty);
    let sections = [
        head(backup, status),
        applications(status),
        holds(status),
        members(status),
        timeline::draw(status),
        status.verdict.as_ref().map(verdict::draw).unwrap_or_default(),
        attempts(status),
        next(backup, status),
    ];
    let sections: Vec<String> = sections.into_iter().filter(|section| !section.is_empty()).collect();
    sections.join("\n")
}

fn head(backup: &Backup, status: &BackupStatus) -> String {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![format!("{name}:"), value]);
        }
    };
    let run = &backup.spec.run;
    row("Backup", format!("{}/{}", backup.namespace().unwrap_or_default(), backup.name_any()));
    row("Policy", backup.policy_name().unwrap_or("none: applications inline").to_owned());
    let slot = run.slot.as_ref().map(|slot| format!(", slot {}", output::instant(slot.0)));
    row("Trigger", format!("{:?}{}", backup.spec.trigger, slot.unwrap_or_default()));
    let attempt = if status.attempt > 1 { format!(" (attempt {})", status.attempt) } else { String::new() };
    row("Phase", format!("{:?}{attempt}", status.phase));
    let cross = if status.cross_consistent { ", all applications at one point" } else { "" };
    let worth = worth(status);
    row("Consistency", if worth.is_empty() { worth } else { worth + cross });
    row("Cut", status.cut.as_ref().map(|at| precise(at.0)).unwrap_or_default());
    row("Started", status.started_at.as_ref().map(|at| precise(at.0)).unwrap_or_default());
    row("Finished", status.finished_at.as_ref().map(|at| precise(at.0)).unwrap_or_default());
    row("Executor", status.executor.clone().unwrap_or_default());
    let mut text = table(&rows);
    if !status.conditions.is_empty() {
        let mut rows = vec![["CONDITION", "STATUS", "REASON", "MESSAGE"].map(str::to_owned).to_vec()];
        rows.extend(status.conditions.iter().map(|found| {
            vec![
                found.type_.clone(),
                found.status.clone(),
                found.reason.clone(),
                // A message of several lines stays in its column.
                found.message.replace('\n', "; "),
            ]
        }));
        text += &format!("\n{}", table(&rows));
    }
    text
}

fn applications(status: &BackupStatus) -> String {
    let Some(resolved) = status.resolved.as_ref().filter(|resolved| !resolved.applications.is_empty()) else {
        return String::new();
    };
    let mut rows = vec![["APPLICATION", "TEMPLATE", "DIGEST", "HELD BY"].map(str::to_owned).to_vec()];
    rows.extend(resolved.applications.iter().map(|application| {
        vec![
            application.name.clone(),
            template(application),
            application.digest.chars().take(DIGEST_SHOWN).collect(),
            match application.hold {
                HoldKind::Session => "a session whose lock stops commits",
                HoldKind::Observer => "an observer session; nobody is stopped",
                HoldKind::Commands => "two commands under the holder",
                HoldKind::Direct => "two separate commands, without a process that holds",
                HoldKind::None => "nothing; the engine recovers from an atomic cut",
            }
            .to_owned(),
        ]
    }));
    table(&rows)
}

fn template(application: &ResolvedApplication) -> String {
    match &application.template {
        Some(template) => match template.kind {
            TemplateKind::ClusterHookTemplate => template.name.clone(),
            TemplateKind::HookTemplate => format!("{} (of the namespace)", template.name),
        },
        None => "-".to_owned(),
    }
}

fn holds(status: &BackupStatus) -> String {
    if status.holds.is_empty() {
        return String::new();
    }
    let mut rows = vec![["HOLD", "POD", "CONTAINER", "BEATS", "ENDED"].map(str::to_owned).to_vec()];
    for hold in &status.holds {
        let ended = match (&hold.lost, hold.thawed) {
            (Some(lost), _) => format!("lost: {}", lost.replace('\n', "; ")),
            (None, Some(_)) => "THAWED".to_owned(),
            (None, None) => "not known to be thawed".to_owned(),
        };
        rows.push(vec![
            hold.application.clone(),
            hold.pod_name.clone(),
            hold.container.clone(),
            hold.beats.to_string(),
            ended,
        ]);
    }
    let mut text = table(&rows);
    for hold in status.holds.iter().filter(|hold| !hold.facts.is_empty()) {
        let facts: Vec<String> = hold.facts.iter().map(|(name, value)| format!("{name}={value}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  read by {}: {}", hold.application, facts.join("  "));
    }
    for hold in &status.holds {
        for ended in &hold.ended_blockers {
            let how = match (&ended.failed, ended.answered) {
                (Some(why), _) => format!("could not be ended ({})", why.replace('\n', "; ")),
                (None, Some(_)) => "was ended".to_owned(),
                (None, None) => "was being ended; how that went is not known".to_owned(),
            };
            let _ = writeln!(
                text,
                "  in the way of {}: statement {} {how}; the stall probe said: {}",
                hold.application, ended.id, ended.named_by
            );
        }
    }
    text
}

fn members(status: &BackupStatus) -> String {
    if status.members.is_empty() {
        return String::new();
    }
    let mut rows =
        vec![["MEMBER", "APPLICATION", "SNAPSHOT", "DRIVER", "CUT", "READY"].map(str::to_owned).to_vec()];
    for member in &status.members {
        let ready = member.settled.as_ref().and_then(|settled| settled.ready_at.as_ref());
        rows.push(vec![
            member.claim_name.clone(),
            member.application.clone(),
            member.volume_snapshot.clone(),
            member.driver.clone(),
            member.cut.as_ref().map_or_else(|| "-".to_owned(), |at| precise(at.0)),
            ready.map_or_else(|| "no".to_owned(), |at| precise(at.0)),
        ]);
    }
    let mut text = table(&rows);
    for member in &status.members {
        if let Some(error) = &member.error {
            let _ = writeln!(text, "  error of {}: {}", member.claim_name, error.replace('\n', "; "));
        }
    }
    text
}

/// Attempts that were given up; one that went well needs no list.
fn attempts(status: &BackupStatus) -> String {
    let mut text = String::new();
    for entry in status.journal.iter().filter(|entry| entry.entry == JournalKind::Aborted) {
        let reason = entry.reason.as_deref().unwrap_or("no reason recorded");
        let message = entry.message.as_deref().unwrap_or_default().replace('\n', "; ");
        let _ = writeln!(text, "  attempt {} at {}: {reason}: {message}", entry.attempt, precise(entry.at.0));
        if !entry.not_proven_thawed.is_empty() {
            let _ =
                writeln!(text, "    holds that were not proven thawed: {}", entry.not_proven_thawed.len());
        }
    }
    if text.is_empty() { text } else { format!("Attempts given up:\n{text}") }
}

/// What to do next.
fn next(backup: &Backup, status: &BackupStatus) -> String {
    let name = backup.name_any();
    let namespace = backup.namespace().unwrap_or_default();
    let reason = status.conditions.iter().find(|found| found.type_ == SUCCEEDED);
    let reason = reason.map(|found| found.reason.as_str()).unwrap_or_default();
    let restore = format!("stillpoint restore run --backup {name} -n {namespace} --wait");
    let events = format!("kubectl events -n {namespace} --for backups.stillpoint.dev/{name}");
    let lines: Vec<String> = match (status.phase, status.consistency.unwrap_or_default()) {
        (Phase::Succeeded, Consistency::Application) => vec![format!("restore it: {restore}")],
        (Phase::Succeeded, Consistency::Crash) => vec![
            "it does not count for the RPO: see what is missing above".to_owned(),
            format!("restore it all the same, as after a power failure: {restore}"),
        ],
        (Phase::Succeeded, Consistency::None) => vec![
            "it does not count for the RPO and nothing about it is proven: see what is missing above"
                .to_owned(),
            format!("restore it only if there is nothing better: {restore}"),
        ],
        (Phase::Failed, _) => {
            let mut lines = vec![format!("its events: {events}")];
            if !reason.is_empty() {
                lines.insert(0, format!("cure what the condition above says: {reason}"));
            }
            if let Some(policy) = backup.policy_name() {
                lines.push(format!(
                    "when it is cured: stillpoint backup run --policy {policy} -n {namespace} --wait"
                ));
            }
            lines
        }
        (Phase::Pending, _) => vec![
            format!("nothing yet; wait: {}", wait(&name, &namespace)),
            "if it stays Pending, no controller is running or it cannot reach this namespace".to_owned(),
        ],
        (Phase::Preparing | Phase::Freezing | Phase::Settling, _) => {
            vec![format!("nothing; wait: {}", wait(&name, &namespace)), format!("its events: {events}")]
        }
        (Phase::Deleting, _) => {
            vec![format!("nothing; its snapshots are being deleted. Its events: {events}")]
        }
    };
    let lines: String = lines.iter().map(|line| format!("  {line}\n")).collect();
    format!("What to do next:\n{lines}")
}

fn wait(name: &str, namespace: &str) -> String {
    format!(
        "kubectl wait -n {namespace} --for=condition=Finished backups.stillpoint.dev/{name} --timeout=15m"
    )
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
