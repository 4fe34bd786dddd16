//! The `stillpoint` binary: the controller, and the command line beside it.
//!
//! Guarantees: exit codes are those of docs/cli.md; errors go to stderr and say what failed, why and what to do.

mod backups;
mod cli;
mod cluster;
mod commands;
mod controller;
#[cfg(feature = "demo")]
mod demo;
mod failure;
mod output;
mod state;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Cli;
use crate::failure::Exit;

fn main() -> ExitCode {
    // kube is built with one TLS provider and without a default: a second one in the tree must not decide.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider is installed already");
        return Exit::Failed.into();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(shown) => {
            // `--help` and `--version` are errors to clap; only real ones are usage errors.
            let wrong = shown.use_stderr();
            // Nobody is left to tell when the terminal is gone.
            let _ = shown.print();
            return if wrong { Exit::Usage.into() } else { Exit::Success.into() };
        }
    };
    match commands::run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit.into()
        }
    }
}
