//! Runs one command in one container over one websocket, and never says more about it than was seen.
//!
//! Guarantees, whatever the server, the network or the caller does (docs/design/freeze.md §8):
//! - a request is sent **once**: no retry layer, no second upgrade ([`exec_client_config`]);
//! - a close without a status is [`Outcome::Unknown`], never success;
//! - no channel holds up another: output that nobody reads is dropped and counted, pings, the status and the
//!   deadline go on;
//! - at its hard deadline a stream closes its socket by its own timer ([`ExecSender::set_close_at`]), and a
//!   deadline once set can only move to an earlier instant (docs/design/freeze.md §3);
//! - memory per stream is bounded, also against a flood.
//!
//! The pure parts are [`wire`] (frames and status), [`target`] (the request) and [`error`] (what a refusal
//! means); [`stream`] holds the handle and its queue, `drive` the task on the socket, [`run`] the
//! one-shot used by prepare commands. Code that needs an exec takes `&dyn` [`Exec`]; tests and the simulation
//! answer it with [`stream::pair`] and no socket.

mod drive;
pub mod error;
mod kube_exec;
mod output;
pub mod run;
pub mod stream;
pub mod target;
pub mod wire;

#[cfg(test)]
mod tests;

pub use error::{ExecCategory, ExecError};
pub use kube_exec::{KubeExec, exec_client_config};
pub use run::{OneShot, run_once};
pub use stream::{Ending, ExecEvent, ExecEvents, ExecHandle, ExecLimits, ExecSender, SendError, StdoutMode};
pub use target::ExecTarget;
pub use wire::{Failure, Outcome, Unknown};

use futures::future::BoxFuture;
use stillpoint_api::clock::SharedClock;

/// Opens streams to containers.
///
/// The seam between the run's adapters and the sockets: the real one is [`KubeExec`].
pub trait Exec: Send + Sync {
    /// Sends the request once and waits for the upgrade.
    ///
    /// # Errors
    /// [`ExecError`] when the upgrade was refused or did not come in time. After
    /// [`ExecError::may_have_run`] errors the command may be running all the same.
    fn open<'a>(
        &'a self,
        target: &'a ExecTarget,
        limits: ExecLimits,
    ) -> BoxFuture<'a, Result<ExecHandle, ExecError>>;

    /// The clock that deadlines and events of its streams are on.
    fn clock(&self) -> SharedClock;
}
