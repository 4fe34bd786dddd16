//! The end-to-end suite: ordered cases on one real cluster (docs/testing.md).
//!
//! `cargo test -p stillpoint-e2e --test e2e [-- WORD…]` runs the cases whose names contain one of the words, all
//! without; with `CONTROLLER=in-cluster` the controller is the Deployment of deploy/base. A failing case prints objects, events and the controller's log; the others still run. Exit 1 when one
//! failed.

#![allow(missing_docs, reason = "a test binary has no readers of its API")]

mod alerts;
mod blockers;
mod drivers;
mod election;
mod faults;
mod figures;
mod groups;
mod incluster;
mod install;
mod interruption;
mod mariadb;
mod own_rights;
mod permissions;
mod postgres;
mod retention;
mod rules;

use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use stillpoint_api::clock::{Clock as _, SystemClock};
use stillpoint_e2e::controller::Place;
use stillpoint_e2e::explain::explain;
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Problem, program};

/// No case may hang the suite. The longest waits four minutes for a page and two for its end.
const CASE_WITHIN: Duration = Duration::from_secs(480);

type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

struct Case {
    name: &'static str,
    run: for<'a> fn(&'a mut World) -> Running<'a>,
    /// Where alone it can run, and why.
    only: Option<(Place, &'static str)>,
}

macro_rules! cases {
    ($($name:literal => $run:path $([$place:ident: $why:literal])?,)+) => {
        &[$(Case { name: $name, run: |world| Box::pin($run(world)), only: cases!(@only $($place: $why)?) }),+]
    };
    (@only) => { None };
    (@only $place:ident: $why:literal) => { Some((Place::$place, $why)) };
}

/// The story of `make demo-cluster` is those whose names begin with `story`. In this order: what is installed first is used later, and databases that start slowly start early.
const CASES: &[Case] = cases![
    "crds-install-and-samples-are-not-pruned" => install::definitions_and_samples,
    "the-server-refuses-an-unknown-field" => install::unknown_field,
    "alerts-a-policy-begins-to-miss-its-objective" => alerts::begin [Process: "Prometheus runs on the machine and scrapes a process there"],
    "story-postgres-under-load-is-application-consistent" => postgres::proven_under_load,
    "story-postgres-restored-copy-is-exact" => postgres::restored_copy_is_exact,
    "story-mariadb-default-settings-grade-lock" => mariadb::grade_lock,
    "story-mariadb-synced-binlog-grade-position" => mariadb::grade_position,
    "two-disks-in-one-write-ordered-group-are-exact" => groups::write_ordered,
    "a-sequential-group-is-several-volumes" => groups::sequential,
    "a-statement-in-the-way-is-reported-and-lives-on" => blockers::reported,
    "a-statement-in-the-way-is-ended-where-the-policy-asks" => blockers::ended,
    "control-a-late-cut-is-seen" => mariadb::late_cut_is_seen,
    "story-postgres-every-minute-and-rpo-on-metrics" => postgres::every_minute,
    "permissions-table" => permissions::table,
    "permissions-of-the-controller" => own_rights::controller,
    "refused-schedules" => faults::refused_schedules,
    "missing-template-parameter" => faults::missing_parameter,
    "selector-without-pods" => faults::no_pods,
    "missing-snapshot-class" => faults::missing_class,
    "claim-not-csi" => faults::not_csi,
    "namespace-not-opted-in" => faults::not_opted_in,
    "exec-forbidden" => faults::exec_forbidden,
    "client-missing-in-container" => faults::client_missing,
    "login-refused-mariadb" => faults::login_refused_mariadb,
    "login-refused-postgres" => faults::login_refused_postgres,
    "snapshot-controller-down" => faults::snapshot_controller_down,
    "snapshot-sidecar-down" => faults::sidecar_down,
    "driver-ready-late-is-thawed-at-its-cut" => drivers::ready_late,
    "driver-answers-before-it-cuts-is-held-until-ready" => drivers::ready_signal,
    "driver-without-cut-time" => drivers::no_cut_time,
    "driver-unfinal-error-late-cut-is-deleted" => drivers::unfinal_error,
    "doctor-names-the-throttle-that-runs-measured" => drivers::doctor_names_the_throttle,
    "storage-refuses-the-snapshot" => faults::storage_refuses,
    "freeze-windows" => figures::freeze_windows [Process: "it measures the memory of one process"],
    "alerts-a-day-of-25-hours-pages-nobody" => alerts::long_day [Process: "it needs no controller"],
    "alerts-the-page-arrives-and-is-resolved" => alerts::paged_and_resolved [Process: "Prometheus runs on the machine and scrapes a process there"],
    "sigkill-while-held" => interruption::killed_while_held,
    "sigterm-while-held-thaws-first" => interruption::terminated_while_held,
    "election-the-leader-is-killed" => election::killed_leader [Process: "it starts a second controller; of the Deployment the leader is killed by in-cluster-…"],
    "in-cluster-what-runs-is-restricted" => incluster::restricted [InCluster: "it looks at the Deployment's pods"],
    "in-cluster-the-leader-is-drained-in-mid-freeze" => incluster::drained [InCluster: "a process is on no node"],
    "in-cluster-the-leader-is-killed" => incluster::killed [InCluster: "election-… kills a process that leads"],
    "retention-deletes-data" => retention::retention_deletes_data,
    "deleting-a-backup-deletes-its-data" => retention::deletion,
    "data-stays-and-the-objective-moves-back-when-a-snapshot-is-deleted" => retention::deletion_of_a_snapshot,
    "data-stays-when-a-policy-is-deleted-and-its-successor-prunes" => retention::deletion_of_a_policy,
    "data-stays-when-a-held-backup-is-deleted" => retention::deletion_of_a_held_backup,
    "a-content-without-its-snapshot-is-swept" => retention::orphaned_content,
    "an-abandoned-backup-leaves-its-data" => retention::abandon,
    "rules-refuse-pace-and-stamp" => rules::decide,
    "storage-not-trusted" => faults::storage_not_trusted [Process: "it starts a controller that trusts no storage"],
    "data-stays-when-a-namespace-is-deleted" => retention::deletion_of_a_namespace,
    "data-stays-when-the-definition-is-deleted" => retention::deletion_of_the_definition,
];

fn main() -> ExitCode {
    program::main("e2e", async |words| suite(words).await)
}

async fn suite(words: &[String]) -> Outcome<bool> {
    let clock = SystemClock::new();
    let mut world = World::begin().await?;
    let chosen =
        |case: &&Case| words.is_empty() || words.iter().any(|word| case.name.contains(word.as_str()));
    let (mut passed, mut failed) = (0, Vec::new());
    let mut elsewhere = 0;
    install::prepare(&mut world).await?;
    for case in CASES.iter().filter(chosen) {
        if let Some((place, why)) = case.only.filter(|(place, _)| *place != world.place) {
            println!("elsewhere {:<53} {place:?} only: {why}", case.name);
            elsewhere += 1;
            continue;
        }
        let begun = clock.mono();
        let outcome = match tokio::time::timeout(CASE_WITHIN, (case.run)(&mut world)).await {
            Ok(outcome) => outcome.and_then(|()| world.still_runs()),
            Err(_) => Err(Problem(format!("not finished within {CASE_WITHIN:?}"))),
        };
        let took = clock.mono().since(begun).as_secs_f64();
        match outcome {
            Ok(()) => {
                println!("ok      {:<55} {took:>6.1} s", case.name);
                passed += 1;
            }
            Err(problem) => {
                println!(
                    "FAILED  {:<55} {took:>6.1} s\n{}\n{}",
                    case.name,
                    problem.0,
                    explain(&world, case.name).await
                );
                failed.push(case.name);
            }
        }
        if let Err(problem) = world.heal().await {
            println!("the cluster cannot be healed: {}", problem.0);
            failed.push("heal");
            break;
        }
    }
    match world.end().await {
        Ok(()) => println!("ok      nothing is left: no object, no snapshot, no data"),
        Err(problem) => {
            println!("FAILED  clean-up: {}\n{}", problem.0, explain(&world, "clean-up").await);
            failed.push("clean-up");
        }
    }
    // Not chosen is not skipped, and what runs elsewhere is not either: .ci/run runs both.
    let others = CASES.len() - CASES.iter().filter(chosen).count();
    println!(
        "{passed} passed, {} failed, 0 skipped ({others} not chosen, {elsewhere} only with the other CONTROLLER)",
        failed.len()
    );
    Ok(failed.is_empty())
}
