//! The shipped templates against real servers on this machine, without a cluster: `stillpoint-servers ROOTS [NAME…]`.
//!
//! Guarantees: what is run is what a hold runs (the rendered argv and texts of `config/templates`, by the executor's own code),
//! in the root directory that has the server; every check can fail, and one that cannot be run is a failure. Ends with 0 only
//! when every row is good. What a kubelet, a snapshot controller and storage below the page cache add is for tests/cluster.

#![allow(clippy::disallowed_methods)]

mod checks;
mod container;
mod held;
mod library;
mod literals;
mod logins;
mod servers;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;

/// Why a check failed, in words.
pub type Outcome<T> = Result<T, String>;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(roots) = arguments.next().map(PathBuf::from) else {
        println!(
            "usage: stillpoint-servers ROOTS [NAME…]   ROOTS has the root directories that the README tells how to make"
        );
        return ExitCode::from(64);
    };
    let names: Vec<String> = arguments.collect();
    let rows: Vec<_> = servers::all()
        .into_iter()
        .filter(|row| names.is_empty() || names.iter().any(|name| row.template == name || row.name == name))
        .collect();
    println!("| template | server | check | result |\n|---|---|---|---|");
    let mut bad = usize::from(rows.is_empty());
    for row in &rows {
        let (version, results) = checks::run(row, &roots);
        for (check, result) in results {
            let said = match &result {
                Ok(said) => format!("ok: {said}"),
                Err(why) => format!("**FAILED**: {why}"),
            };
            bad += usize::from(result.is_err());
            println!("| {} | {version} | {check} | {} |", row.template, said.replace(['|', '\n'], " "));
        }
    }
    println!("\n{} rows, {bad} failures", rows.len());
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
