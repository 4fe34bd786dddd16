//! The result of a campaign, for people and for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::plan::{Aim, Fault};
use crate::volley::Hit;

#[derive(Default)]
struct Row {
    faults: std::collections::BTreeSet<usize>,
    runs: usize,
    held: usize,
    longest: f64,
    freed: f64,
    outcomes: BTreeMap<String, usize>,
    wrong: usize,
}

/// One line about one run.
pub fn line(hit: &Hit) -> String {
    let shot = &hit.shot;
    let head = format!(
        "#{:<3} {:<20} {:<17} aimed at {}+{:.2} s",
        shot.number,
        shot.fault.name(),
        hit.namespace,
        shot.aim.name(),
        shot.delay.as_secs_f64()
    );
    match &hit.findings {
        Ok(found) => format!(
            "ok      {head}, came {}: {}longest stall {:.0} ms{}, {} at attempt {}",
            found.instant.name(),
            if found.held { "held, " } else { "" },
            found.longest_ms,
            found.freed_ms.map_or(String::new(), |freed| format!(", {freed:.0} ms after the fault")),
            found.outcome,
            found.attempts
        ),
        Err(problem) => format!("FAILED  {head}: {}", problem.0),
    }
}

/// Fault by instant: how often, the longest stall, how it ended, and whether the verdict was true.
pub fn table(hits: &[Hit]) -> String {
    let mut rows: BTreeMap<(Fault, Option<Aim>), Row> = BTreeMap::new();
    for hit in hits {
        let instant = hit.findings.as_ref().ok().map(|found| found.instant);
        let row = rows.entry((hit.shot.fault, instant)).or_default();
        row.faults.insert(hit.shot.number);
        row.runs += 1;
        match &hit.findings {
            Ok(found) => {
                row.held += usize::from(found.held);
                row.longest = row.longest.max(found.longest_ms);
                row.freed = row.freed.max(found.freed_ms.unwrap_or_default());
                let again = if found.attempts > 1 { ", 2nd attempt" } else { "" };
                *row.outcomes.entry(format!("{}{again}", found.outcome)).or_default() += 1;
            }
            Err(_) => row.wrong += 1,
        }
    }
    let mut text = String::from(
        "| fault | instant of the run | faults | runs hit | held then | longest stall | after the fault | outcome | true |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for ((fault, instant), row) in &rows {
        let outcomes: Vec<String> =
            row.outcomes.iter().map(|(what, count)| format!("{what} {count}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.2} s | {} | {} | {}/{} |",
            fault.name(),
            instant.map_or("not as promised", Aim::name),
            row.faults.len(),
            row.runs,
            row.held,
            row.longest / 1e3,
            if row.freed > 0.0 { format!("{:.2} s", row.freed / 1e3) } else { "–".to_owned() },
            outcomes.join("; "),
            row.runs - row.wrong,
            row.runs
        );
    }
    text
}

/// Every run, for machines.
pub fn json(hits: &[Hit], seed: u64) -> Value {
    let all: Vec<Value> = hits
        .iter()
        .map(|hit| {
            let found = hit.findings.as_ref().ok();
            json!({
                "fault": hit.shot.fault.name(), "shot": hit.shot.number, "database": hit.namespace,
                "aimedAt": hit.shot.aim.name(), "delayMs": hit.shot.delay.as_secs_f64() * 1e3,
                "downMs": hit.shot.down.as_secs_f64() * 1e3,
                "instant": found.map(|found| found.instant.name()), "held": found.map(|found| found.held),
                "longestStallMs": found.map(|found| found.longest_ms),
                "freedAfterMs": found.and_then(|found| found.freed_ms),
                "outcome": found.map(|found| found.outcome.clone()), "attempts": found.map(|found| found.attempts),
                "problem": hit.findings.as_ref().err().map(|problem| problem.0.clone()),
            })
        })
        .collect();
    json!({"seed": seed, "runs": all})
}
