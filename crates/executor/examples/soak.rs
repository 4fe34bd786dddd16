//! Runs the fault simulation over many seeds, on every core.
//!
//! `soak --seeds N [--first S]` prints a rate and what happened how often, and exits with 1 at the first seed that breaks
//! an invariant, shrunk. `soak --seed S` tells what happens in one world. `soak --mutations` prints the mutation table.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stillpoint_api::clock::{Clock, SystemClock};
use stillpoint_executor::simulation::coverage::Coverage;
use stillpoint_executor::simulation::mutations;
use stillpoint_executor::simulation::shrink::shrink;
use stillpoint_executor::simulation::{Options, run};

/// Pause between two lines of progress.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Most seeds that a mutation may take to be found.
const MUTATION_SEEDS: u64 = 20_000;

fn number(args: &[String], name: &str) -> Option<u64> {
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1)?.parse().ok()
}

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(seeds) = number(&args, "--survey") {
        return survey(number(&args, "--first").unwrap_or(0), seeds);
    }
    if args.iter().any(|arg| arg == "--mutations") {
        return table();
    }
    if let Some(seed) = number(&args, "--seed") {
        return tell(seed, args.iter().any(|arg| arg == "--shrink"));
    }
    let seeds = number(&args, "--seeds").unwrap_or(100_000);
    soak(number(&args, "--first").unwrap_or(0), seeds)
}

fn soak(first: u64, seeds: u64) -> std::process::ExitCode {
    let clock = SystemClock::new();
    let begun = clock.mono();
    let (next, done, failed) = (AtomicU64::new(first), AtomicU64::new(0), AtomicBool::new(false));
    let coverage = Mutex::new(Coverage::default());
    let failure = Mutex::new(None::<u64>);
    let rate = |count: u64| count as f64 / clock.mono().since(begun).as_secs_f64().max(1e-9);
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores {
            scope.spawn(|| {
                let mut mine = Coverage::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || failed.load(Ordering::Relaxed) {
                        break;
                    }
                    let outcome = run(seed, &Options::default());
                    mine.add(&outcome.coverage);
                    done.fetch_add(1, Ordering::Relaxed);
                    if outcome.violation.is_some() {
                        failed.store(true, Ordering::Relaxed);
                        let mut failure = failure.lock().unwrap();
                        *failure = Some(failure.map_or(seed, |earlier: u64| earlier.min(seed)));
                    }
                }
                coverage.lock().unwrap().add(&mine);
            });
        }
        let mut told = clock.mono();
        while done.load(Ordering::Relaxed) < seeds && !failed.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(100));
            if clock.mono().since(told) >= TELL_EVERY {
                told = clock.mono();
                let count = done.load(Ordering::Relaxed);
                println!("{count} of {seeds} seeds, {:.0} seeds/s", rate(count));
            }
        }
    });
    for (name, count) in coverage.lock().unwrap().lines() {
        println!("{count:>12} {name}");
    }
    let count = done.load(Ordering::Relaxed);
    println!("{count} seeds from {first} on, {:.0} seeds/s", rate(count));
    let failed = *failure.lock().unwrap();
    match failed.and_then(|seed| shrink(seed, &Options::default())) {
        Some(shrunk) => {
            println!("{shrunk}");
            std::process::ExitCode::FAILURE
        }
        None => {
            println!("every invariant held");
            std::process::ExitCode::SUCCESS
        }
    }
}

/// Every kind of failure among some seeds: how often, and its first seed.
fn survey(first: u64, seeds: u64) -> std::process::ExitCode {
    let mut found = std::collections::BTreeMap::new();
    for seed in first..first + seeds {
        if let Some(violation) = run(seed, &Options::default()).violation {
            found.entry(violation.invariant).or_insert_with(Vec::new).push(seed);
        }
    }
    for (invariant, seeds) in &found {
        let shown: Vec<String> = seeds.iter().take(8).map(u64::to_string).collect();
        println!("{:>6} {invariant}: {}", seeds.len(), shown.join(" "));
    }
    if found.is_empty() { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}

fn tell(seed: u64, small: bool) -> std::process::ExitCode {
    let mut options = Options::default();
    if small && let Some(shrunk) = shrink(seed, &options) {
        println!("{shrunk}");
        options = shrunk.options;
    }
    let outcome = run(seed, &Options { log: true, ..options });
    for line in outcome.log {
        println!("{line}");
    }
    if outcome.violation.is_some() {
        std::process::ExitCode::FAILURE
    } else {
        std::process::ExitCode::SUCCESS
    }
}

fn table() -> std::process::ExitCode {
    let mut missed = 0;
    println!("| left out | seeds until found | what it breaks |");
    println!("|---|---|---|");
    for mutation in mutations::ALL {
        match mutations::find(*mutation, 0, MUTATION_SEEDS) {
            Some(found) => {
                println!("| {} | {} | {} |", mutation.describe(), found.seed + 1, found.invariant);
            }
            None => {
                missed += 1;
                println!("| {} | not in {MUTATION_SEEDS} | |", mutation.describe());
            }
        }
    }
    if missed == 0 { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}
