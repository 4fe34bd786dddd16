//! Figures of many policies (docs/figures.md, Scale): the real controller as a process of its own, so that its memory is its
//! own, against an API server in another process: the embedded one, and as a check of it kube-apiserver with etcd.
//!
//! `make bench-scale POLICIES='1000 10000 100000' PARTS='steady restart missed herd failover'`, `make bench-scale REAL=2000`.
//! Nothing is asserted about time; bounds that the design promises are told as kept or missed, and a slot that was lost or ran
//! twice makes the exit code 1.

mod controller;
mod failure;
mod herd;
mod measure;
mod population;
mod raw;
mod real;
mod report;
mod server;
mod stand_in;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use stillpoint_api::clock::SystemClock;

use crate::controller::{Controller, Options};
use crate::failure::{Outcome, Present as _, Problem};
use crate::measure::{Bench, Part};
use crate::report::Report;
use crate::target::{Target, Which};

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

fn sizes(name: &str, default: &str) -> Outcome<Vec<usize>> {
    variable(name, default)
        .split_whitespace()
        .map(|size| size.parse().map_err(|error| Problem(format!("{name}: {size}: {error}"))))
        .collect()
}

fn parts() -> Outcome<Vec<Part>> {
    let all = Part::ALL.map(Part::word).join(" ");
    let part = |word: &str| {
        let found = Part::ALL.into_iter().find(|part| part.word() == word);
        found.ok_or_else(|| Problem(format!("PARTS: there is no {word}, but {all}")))
    };
    variable("PARTS", &all).split_whitespace().map(part).collect()
}

async fn run() -> Outcome<bool> {
    // The real API server is a check of the embedded one: the same size of both, unless it is said otherwise.
    let real = sizes("REAL", "")?;
    let written: Vec<String> = real.iter().map(ToString::to_string).collect();
    let default = if real.is_empty() { "1000 10000 100000".to_owned() } else { written.join(" ") };
    let embedded = sizes("POLICIES", &default)?;
    let populations: Vec<(Which, usize)> = embedded
        .into_iter()
        .map(|size| (Which::Embedded, size))
        .chain(real.into_iter().map(|size| (Which::Real, size)))
        .collect();
    let parts = parts()?;
    let binary = PathBuf::from(
        std::env::var("STILLPOINT_BIN").present("read STILLPOINT_BIN: the controller to measure")?,
    );
    let work = std::env::temp_dir().join(format!("stillpoint-scale-{}", std::process::id()));
    std::fs::create_dir_all(&work).present("make a directory for logs")?;
    let clock = SystemClock::shared();
    let mut report = Report::default();
    let empty = {
        let target = Target::start(Which::Embedded, &work, &clock).await?;
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
    for (which, size) in populations {
        let label = match which {
            Which::Embedded => size.to_string(),
            Which::Real => format!("{size}, kube-apiserver"),
        };
        let clock = clock.clone();
        let bench = Bench { size, label, which, parts: &parts, binary: &binary, work: &work, empty, clock };
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
