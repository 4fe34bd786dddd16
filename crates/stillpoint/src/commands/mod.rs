//! One module per command; each ends with an [`Exit`] or a [`Failure`].

mod backup;
mod crd;
pub mod describe;
mod doctor;
mod explain;
mod hooks;
pub mod lint;
mod plan;
mod restore;
mod restore_check;
mod templates;
mod verify;

use stillpoint_api::clock::SystemClock;

use crate::cli::{BackupCommand, Cli, Command, HooksCommand, RestoreCommand};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::output;

/// Runs what the command line says.
///
/// # Errors
/// What the command could not do.
pub fn run(cli: Cli) -> Result<Exit, Failure> {
    let clock = SystemClock::new();
    // Commands that need no cluster start no runtime.
    match cli.command {
        Command::Crd => crd::run(),
        Command::Lint(args) => lint::run(&args, &clock),
        Command::Templates(args) => templates::run(&args),
        Command::Explain(args) => explain::run(&args, &clock),
        Command::Version => {
            output::print(concat!("stillpoint ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| Exit::Success)
        }
        #[cfg(feature = "demo")]
        Command::Demo(args) => crate::demo::command(args),
        Command::Controller(args) => crate::controller::command(&cli.cluster, &args),
        Command::Doctor(args) => connected(async {
            let cluster = Cluster::connect(&cli.cluster).await?;
            doctor::run(&cluster, &args, &clock).await
        }),
        Command::Backup(command) => connected(async {
            let cluster = Cluster::connect(&cli.cluster).await?;
            match command {
                BackupCommand::Run(args) => backup::run(&cluster, &args, &clock).await,
                BackupCommand::Cancel(args) => backup::cancel(&cluster, &args).await,
                BackupCommand::List(args) => backup::list(&cluster, &args, &clock).await,
                BackupCommand::Describe(args) => describe::run(&cluster, &args).await,
                BackupCommand::VerifyEvidence(args) => verify::run(&cluster, &args).await,
            }
        }),
        Command::Hooks(HooksCommand::Test(args)) => connected(hooks::test(&cli.cluster, &args)),
        Command::Plan(args) => connected(plan::run(&cli.cluster, &args)),
        Command::Restore(RestoreCommand::Run(args)) => connected(async {
            let cluster = Cluster::connect(&cli.cluster).await?;
            restore::run(&cluster, &args, &clock).await
        }),
        Command::Restore(RestoreCommand::Check(args)) => connected(restore_check::run(&cli.cluster, &args)),
    }
}

/// Runs a command that talks to the cluster, on this thread.
fn connected(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("cannot start the asynchronous runtime", error.to_string(), ""))?;
    runtime.block_on(command)
}

/// `<subject, at most 40>-<infix><milliseconds since 1970, base 36>`: also fit for a label value (63).
fn timed_name(subject: &str, infix: &str, at: jiff::Timestamp) -> String {
    // What is cut must not leave `.` or `-` beside the next `-`.
    let prefix: String = subject.chars().take(40).collect();
    let prefix = prefix.trim_end_matches(['-', '.']);
    let mut millis = at.as_millisecond().max(0).unsigned_abs();
    let mut digits = Vec::new();
    while millis > 0 || digits.is_empty() {
        digits.push(char::from_digit(u32::try_from(millis % 36).unwrap_or(0), 36).unwrap_or('0'));
        millis /= 36;
    }
    format!("{prefix}-{infix}{}", digits.iter().rev().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timed_name_fits_a_label_and_sorts_by_time() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let name = timed_name(&"x.".repeat(60), "manual-", at(1_795_000_000));
        assert!(name.len() <= 63 && !name.contains(".-"), "{name}");
        assert!(timed_name("p", "", at(1_795_000_000)) < timed_name("p", "", at(1_795_000_001)));
    }
}
