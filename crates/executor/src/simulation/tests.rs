//! The simulation over many seeds, every script with every fault, and every mutation.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::coverage::Coverage;
use super::faults::Fault;
use super::mutations::{self, Mutation};
use super::saga::{self, Happens, Injection};
use super::shrink::shrink;
use super::{Options, Outcome, run};

/// Seeds of an ordinary test run; `make soak` has millions.
const SEEDS: u64 = 20_000;
/// Least number of times that every fault must have happened over them.
const EACH_FAULT: u64 = 10;
/// What else must have happened, and how often at least.
const OUTCOMES: &[(&str, u64)] = &[
    ("judged Application", 1_000),
    ("judged Crash", 20),
    ("judged None", 100),
    ("Application of a session", 300),
    ("Application of commands", 200),
    ("Application of an observer", 100),
    ("Application in stages", 20),
    ("Application of a group", 20),
    ("Application without a hold", 20),
    ("Application beside a rival", 100),
    ("found while it was prepared", 20),
    ("found while it was frozen", 20),
    ("found aborted", 20),
    ("found thawed", 5),
    ("run taken over", 100),
    ("workload busy", 100),
    ("disowned", 5),
    ("hold not proven thawed", 100),
    ("claim lost", 20),
    ("freeze refused behind its fence", 1),
    ("snapshot refused behind its fence", 1),
    ("stream closed by its own timer", 20),
    ("server ended a silent session", 20),
    ("holder let go at its deadline", 20),
    ("thaw statement failed without its lock", 10),
    ("writers stuck behind a waiting lock", 20),
    ("lock not acquired by the server", 20),
    ("handle that was shown before", 5),
    ("write whose answer was lost", 100),
    ("stray snapshot swept", 20),
    ("replica shut down", 100),
    ("ApplicationLeftQuiesced", 5),
    ("LockNotAcquired", 20),
    ("LeaseNotSet", 20),
    ("HoldNotLocal", 20),
    ("PathNotCovered", 20),
    ("ForeignFreeze", 20),
    ("HoldLost", 100),
    ("SnapshotPostFailed", 100),
    ("SnapshotFailed", 20),
    ("SnapshotStackSilent", 20),
    ("CutTimeout", 20),
    ("PodChanged", 20),
    ("ClaimLost", 5),
    ("Shutdown", 20),
    ("Cancelled", 20),
];
/// Seeds that once broke an invariant, and what it was.
const REGRESSIONS: &[(u64, &str)] = &[
    (213, "a workload lock whose request arrived after its run had released it stayed for ever"),
    (125, "a snapshot whose 201 was lost stayed beside a kept point"),
    (2495, "a restarted container took the freeze of a killed holder with it"),
    (5994, "a holder that was killed while its thaw failed"),
    (43_461, "a driver's old handle, shown to the watch, was replaced by a new one and taken for a cut"),
    (96_976, "snapshots that never became ready were waited for one after the other, each as long as all"),
    (
        288_407,
        "a sweeper that had asked for a run before it began removed the workload lock that it took since",
    ),
    (266_191, "what a stopped process judged after another had removed the snapshot was taken for a verdict"),
];

/// Runs something for every number on every core; answers what is not `None`, in order.
fn everywhere<T: Send>(count: u64, what: impl Fn(u64) -> Option<T> + Sync) -> Vec<(u64, T)> {
    let next = AtomicU64::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    if let Some(one) = what(number) {
                        found.lock().unwrap().push((number, one));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(number, _)| *number);
    found
}

fn explain(seed: u64) -> String {
    let Some(shrunk) = shrink(seed, &Options::default()) else {
        return format!("seed {seed} fails only sometimes: it is not deterministic");
    };
    let log = run(seed, &Options { log: true, ..shrunk.options.clone() }).log;
    format!("{}\n{shrunk}", log.join("\n"))
}

#[test]
fn one_seed_is_one_execution() {
    let options = Options { log: true, ..Options::default() };
    for seed in 0..40 {
        let (one, other) = (run(seed, &options), run(seed, &options));
        assert_eq!(one.log, other.log, "seed {seed}");
        assert_eq!(one.events, other.events, "seed {seed}");
        assert!(one.events > 10, "seed {seed}");
    }
}

#[test]
fn every_invariant_holds_over_every_seed_and_every_fault_happens() {
    let all = Mutex::new(Coverage::default());
    let failures = everywhere(SEEDS, |seed| {
        let outcome = run(seed, &Options::default());
        all.lock().unwrap().add(&outcome.coverage);
        outcome.violation
    });
    if let Some((seed, _)) = failures.first() {
        panic!("{}\n{} of {SEEDS} seeds fail", explain(*seed), failures.len());
    }
    let coverage = all.into_inner().unwrap();
    let mut rare: Vec<String> = Vec::new();
    for fault in Fault::ALL {
        if coverage.of(*fault) < EACH_FAULT {
            rare.push(format!("{fault:?} happened {} times", coverage.of(*fault)));
        }
    }
    for (outcome, least) in OUTCOMES {
        if coverage.count(outcome) < *least {
            rare.push(format!("{outcome:?}: {} of at least {least}", coverage.count(outcome)));
        }
    }
    for (name, count) in coverage.lines() {
        println!("{count:>10} {name}");
    }
    assert!(rare.is_empty(), "the simulation hardly shows: {rare:#?}\n{:#?}", coverage.lines());
}

#[test]
fn what_was_found_once_stays_away() {
    for (seed, what) in REGRESSIONS {
        assert!(run(*seed, &Options::default()).violation.is_none(), "{what}: {}", explain(*seed));
    }
}

#[test]
fn every_script_succeeds_without_a_fault() {
    for script in saga::scripts() {
        let outcome = saga::play(&script, None, true);
        assert!(outcome.violation.is_none(), "{}: {:?}", script.name, outcome.violation);
        let log = outcome.log.join("\n");
        assert_eq!(outcome.coverage.count("judged Application"), 1, "{}\n{log}", script.name);
    }
}

#[test]
fn every_script_ends_well_whatever_happens_at_any_of_its_effects() {
    let mut cases = Vec::new();
    for (index, script) in saga::scripts().iter().enumerate() {
        // Only the effects of the first attempt of a healthy run: what follows a fault is another run.
        for effect in 0..saga::play(script, None, false).effects {
            cases.extend(Happens::ALL.map(|happens| (index, Injection { effect, happens })));
        }
    }
    let scripts = saga::scripts();
    let count = cases.len() as u64;
    let failures = everywhere(count, |number| {
        let (script, injection) = cases[usize::try_from(number).unwrap()];
        let outcome: Outcome = saga::play(&scripts[script], Some(injection), true);
        let why = match &outcome.violation {
            Some(violation) => format!("{violation:?}"),
            // The slot allows two attempts and one fault was injected: one of them ends with a point.
            None if outcome.coverage.count("judged Application") == 0
                && injection.happens != Happens::Twice =>
            {
                "it has no recovery point".to_owned()
            }
            None => return None,
        };
        Some(format!("{} {injection:?}: {why}\n{}", scripts[script].name, outcome.log.join("\n")))
    });
    assert!(count > 200, "{count} cases");
    if let Some((_, first)) = failures.first() {
        let lines: Vec<&str> = failures.iter().filter_map(|(_, one)| one.lines().next()).collect();
        panic!("{first}\n{} of {count} cases fail:\n{}", failures.len(), lines.join("\n"));
    }
}

/// Seeds within which every mutation must be found. The figures are in docs/testing.md.
const MUTATION_SEEDS: u64 = 20_000;

#[test]
fn leaving_out_any_rule_end_fence_lock_or_entry_is_noticed() {
    let all = mutations::ALL;
    let mutation = |number: u64| -> Mutation { all[usize::try_from(number).unwrap()] };
    let found = everywhere(all.len() as u64, |number| mutations::find(mutation(number), 0, MUTATION_SEEDS));
    for (number, found) in &found {
        let what = mutation(*number).describe();
        println!("| {what} | {} | {} |", found.seed + 1, found.invariant);
    }
    let noticed = |number: &u64| found.iter().any(|(one, _)| one == number);
    let missed: Vec<Mutation> =
        (0..all.len() as u64).filter(|number| !noticed(number)).map(mutation).collect();
    assert!(missed.is_empty(), "not noticed in {MUTATION_SEEDS} seeds: {missed:?}");
}
