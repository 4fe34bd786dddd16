//! The shipped templates in pods of a real cluster: every row of the table on both kinds of volume, under writers whose every
//! acknowledged commit is known, with the failures that a person meets, and with copies that must not pass.
//!
//! `cargo test -p stillpoint-e2e --test templates [-- WORD…]`: the rows whose names or storage are among the words (`redis disk`), all
//! without; `short` is what `make e2e` has time for. Markdown goes to `target/templates/templates.md`. Exit 1 when a check failed.

#![allow(missing_docs, reason = "a test binary has no readers of its API")]

mod controls;
mod failures;
mod lines;
mod manifest;
mod proof;
mod row;
mod rows;
mod servers;
mod site;
mod table;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use stillpoint_api::clock::{Clock as _, SystemClock};
use stillpoint_e2e::controller::Place;
use stillpoint_e2e::explain::explain;
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Problem, ensure, install, program};

use crate::row::{Control, Row, Storage};
use crate::rows::ROWS;
use crate::site::Site;
use crate::table::Ran;

/// No row may hang the suite: five copies of a server that is slow to start are the longest part.
const ROW_WITHIN: Duration = Duration::from_secs(1800);

fn main() -> ExitCode {
    program::main("the suite of templates", async |words| suite(words).await)
}

/// The rows that the words choose, each with a namespace of its own.
fn chosen(words: &[String]) -> Outcome<Vec<(Row, Storage, &'static str)>> {
    let storages: Vec<Storage> =
        Storage::ALL.into_iter().filter(|storage| words.iter().any(|word| word == storage.name())).collect();
    let short = words.iter().any(|word| word == "short");
    let names: Vec<&String> = words
        .iter()
        .filter(|word| *word != "short" && !Storage::ALL.iter().any(|one| one.name() == *word))
        .collect();
    for name in &names {
        let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        ensure!(
            known.contains(&name.as_str()),
            "there is no row {name}; there are {known:?}, disk, btrfs and short"
        );
    }
    let mut found = Vec::new();
    for row in ROWS {
        for storage in Storage::ALL {
            let by_name = names.is_empty() || names.iter().any(|name| *name == row.name);
            let by_storage = storages.is_empty() || storages.contains(&storage);
            if by_name && by_storage && (!short || (row.short && storage == Storage::Disk)) {
                // Once per row and program: the world wants names that live as long.
                let namespace: &'static str = format!("templates-{}-{}", row.name, storage.name()).leak();
                found.push((*row, storage, namespace));
            }
        }
    }
    Ok(found)
}

/// The templates of the rows and of what must fail there.
fn templates(chosen: &[(Row, Storage, &'static str)]) -> BTreeSet<&'static str> {
    let of = |row: &Row| {
        let others = row.failures.iter().filter_map(|failure| failure.template);
        std::iter::once(row.template).chain(others).collect::<Vec<_>>()
    };
    chosen.iter().flat_map(|(row, ..)| of(row)).collect()
}

async fn suite(words: &[String]) -> Outcome<bool> {
    let chosen = chosen(words)?;
    let namespaces: &'static [&'static str] =
        chosen.iter().map(|(.., name)| *name).collect::<Vec<_>>().leak();
    let mut world = World::begin_in(namespaces, "templates").await?;
    install::product(&world.cluster, Place::Process).await?;
    for name in templates(&chosen) {
        let text = world.cluster.read(&format!("config/templates/{name}.yaml"))?;
        install::template(&world.cluster, &text).await?;
    }
    world.controller().await?;
    let clock = SystemClock::new();
    let mut all = Vec::new();
    for (row, storage, namespace) in chosen {
        let begun = clock.mono();
        let mut ran = Ran::begun(row, storage);
        let done = tokio::time::timeout(ROW_WITHIN, run(&mut world, namespace, &mut ran)).await;
        if done.is_err() {
            ran.note("in time", Err::<(), _>(Problem(format!("not finished within {ROW_WITHIN:?}"))), |()| {
                String::new()
            });
        }
        if ran.counts().1 > 0 {
            println!("{}", explain(&world, namespace).await);
        }
        // A row that was broken off may have left its server.
        let gone = ["-n", namespace, "delete", "statefulset,pod", "--all", "--wait=true", "--timeout=90s"];
        let ended = world.cluster.kubectl(&gone, None).await?.good("delete the server").map(|_| ());
        ran.note("let go", ended, |()| "the server ended".to_owned());
        ran.seconds = clock.mono().since(begun).as_secs();
        println!("        {} on {}: {} s", ran.row.name, ran.storage.name(), ran.seconds);
        all.push(ran);
        std::fs::write(world.out.join("templates.md"), table::markdown(&all))?;
        world.heal().await?;
    }
    let ended = world.end().await;
    match &ended {
        Ok(()) => println!("ok      nothing is left: no object, no snapshot, no data"),
        Err(problem) => println!("FAILED  clean-up: {}\n{}", problem.0, explain(&world, "clean-up").await),
    }
    println!("\n{}", table::markdown(&all));
    let (good, bad) =
        all.iter().map(Ran::counts).fold((0, 0), |(good, bad), (more, worse)| (good + more, bad + worse));
    let (good, bad) = if ended.is_ok() { (good + 1, bad) } else { (good, bad + 1) };
    println!("templates: {good} passed, {bad} failed, 0 skipped");
    Ok(bad == 0 && !all.is_empty())
}

/// Everything about one row. A check that failed does not keep the next one from being made, unless there is nothing to check.
async fn run(world: &mut World, namespace: &'static str, ran: &mut Ran) {
    let begun = Site::begin(world, ran.row, ran.storage, namespace).await;
    let Some(site) = ran.note("under load", begun, |site| site.version.clone()) else { return };
    ran.version = site.version.clone();
    let proved = proof::prove(world, &site).await;
    let proved = ran.note("claim", proved, |found| {
        format!(
            "{}, continuity {}, longest stall {:.0} ms, {} commits in the window, {} compared; checks of the copy: {}",
            found.verdict, found.continuity, found.stall_ms, found.inside, found.expected, found.steps
        )
    });
    let holds = proved.is_some();
    ran.proved = proved;
    for failure in ran.row.failures {
        let failed = failures::fails(world, &site, failure).await;
        ran.note(failure.name, failed, Clone::clone);
    }
    if !ran.row.client.is_empty() {
        let killed = failures::client_killed(world, &site).await;
        ran.freed = ran.note("client killed", killed, |freed| freed.words.clone());
    }
    if ran.row.settings.is_some() {
        let killed = failures::all_killed(world, &site).await;
        ran.note("all killed", killed, Clone::clone);
    }
    if holds && (!ran.row.failures.is_empty() || !ran.row.client.is_empty()) {
        let again = proof::works_again(world, &site).await;
        ran.note("afterwards", again, Clone::clone);
    }
    match ran.row.control(ran.storage) {
        Control::Nothing(why) => {
            println!("        {} on {}: no control: {why}", ran.row.name, ran.storage.name())
        }
        // A server that does not run on a good copy shows nothing on a bad one.
        _ if !holds => println!("        no control without the claim"),
        control => {
            let seen = controls::seen(world, &site, control).await;
            // What takes its lock is a program.
            let name = match control {
                Control::Apart(_) => "control Apart".to_owned(),
                Control::Disordered { .. } => "control Disordered".to_owned(),
                Control::Unheld | Control::Undurable | Control::Nothing(_) => format!("control {control:?}"),
            };
            ran.bad = ran.note(&name, seen, |bad| format!("{}; {}", bad.short, bad.words));
        }
    }
}
