//! What the suite, the kill tests and the bench have in common as programs: words from the command line, a runtime, an exit code.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::{Outcome, Problem};

/// Runs a program's work with the words of its command line; exit code 0 if it answers true.
pub fn main(name: &str, work: impl AsyncFnOnce(&[String]) -> Outcome<bool>) -> ExitCode {
    match begin(work) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{name} cannot go on: {}", problem.0);
            ExitCode::FAILURE
        }
    }
}

fn begin(work: impl AsyncFnOnce(&[String]) -> Outcome<bool>) -> Outcome<bool> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return Err(Problem("a TLS provider is installed already".to_owned()));
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // Ended by hand, it must not leave its controller behind: that one would go on with the next program's runs.
    runtime.block_on(async {
        let mut told = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = work(&words) => outcome,
            _ = tokio::signal::ctrl_c() => Err(Problem("interrupted; its objects are still in the cluster".to_owned())),
            _ = told.recv() => Err(Problem("terminated; its objects are still in the cluster".to_owned())),
        }
    })
}
