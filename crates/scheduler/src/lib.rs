//! When backups are taken, which recovery points are kept and where objectives stand.
//!
//! Pure: [`cron`] (expressions, zones), [`slots`] (what is due), [`blackouts`] (when nothing
//! starts), [`heap`] (who is due next), [`retention`] (what may
//! go), [`objectives`] (RPO), [`snapshots`] (which of ours exist), [`rules`] (what operations decide), [`accept`] and
//! [`reconciler`] (one policy as a whole). They take `now` as an argument
//! and touch nothing. [`election`] says which replica schedules. [`run`] watches, keeps the timer and acts; what it did is in the objects.

pub mod accept;
mod apply;
pub mod blackouts;
mod controller;
pub mod cron;
mod dispatch;
pub mod election;
pub mod heap;
pub mod meter;
pub mod objectives;
mod packed;
pub mod projection;
mod prune;
pub mod quiet_times;
pub mod reconciler;
pub mod retention;
pub mod rules;
mod server_clock;
pub mod slots;
pub mod snapshots;
mod templates;

pub use controller::{
    BackupEvents, DeletionObserver, Progress, SchedulerContext, SchedulerError, WORKERS, run, run_with,
};
pub use meter::{Work, WorkEnd, WorkObserver};
pub use quiet_times::QuietTimes;
