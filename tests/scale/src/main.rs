//! Figures of many policies (docs/figures.md, Scale): the real controller as a process of its own, so that its memory is its
//! own, against an API server in another process.
//!
//! `make bench-scale POLICIES='1000 10000 100000'`.
//! Nothing is asserted about time; bounds that the design promises are told as kept or missed, and a slot that was lost or ran
//! twice makes the exit code 1.

mod controller;
mod failure;
mod herd;
mod measure;
mod population;
mod raw;
mod report;
mod server;
mod stand_in;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use stillpoint_api::clock::SystemClock;

use crate::controller::{Controller, Options};
use crate::failure::{Outcome, Present as _, Problem};
use crate::measure::Bench;
use crate::report::Report;
use crate::target::Target;

fn main() -> ExitCode {
    // As in the product: which provider TLS uses is decided once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let work = async {
        match arguments.first().map(String::as_str) {
            Some("serve") => stand_in::serve().await,
            Some(_) | None => run().await,
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .present("start the asynchronous runtime");
    match runtime.and_then(|runtime| runtime.block_on(work)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("bench-scale: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}

async fn run() -> Outcome<bool> {
    let sizes: Vec<usize> = variable("POLICIES", "1000 10000 100000")
        .split_whitespace()
        .map(|size| size.parse().map_err(|error| Problem(format!("POLICIES: {size}: {error}"))))
        .collect::<Outcome<_>>()?;
    let binary = PathBuf::from(
        std::env::var("STILLPOINT_BIN").present("read STILLPOINT_BIN: the controller to measure")?,
    );
    let work = std::env::temp_dir().join(format!("stillpoint-scale-{}", std::process::id()));
    std::fs::create_dir_all(&work).present("make a directory for logs")?;
    let clock = SystemClock::shared();
    let mut report = Report::default();
    let empty = {
        let target = Target::start(&work, &clock).await?;
        let controller =
            Controller::start(Options::new(&binary, target.kubeconfig(), &work, "empty"), &clock)?;
        controller.until_settled(0).await?;
        let memory = controller.memory()?;
        controller.kill();
        target.end().await;
        memory
    };
    report.note(format!("controller without policies: {} KiB resident", empty.resident / 1024));
    let mut exact = true;
    for size in sizes {
        let bench = Bench { size, binary: &binary, work: &work, empty, clock: clock.clone() };
        exact &= bench.measure(&mut report).await?;
        println!("{}", report.table());
    }
    println!("{}", report.notes());
    if exact {
        // Logs are for those who ask why.
        let _ = std::fs::remove_dir_all(&work);
    }
    Ok(exact)
}
