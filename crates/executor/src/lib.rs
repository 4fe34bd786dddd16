//! The backup run: a pure machine that decides, and the adapters that carry its effects out.
//!
//! Read in this order: [`run`] (how a freeze goes and how it ends), [`verdict`] (what a recovery point is worth),
//! [`hold`] (what a held session says), [`exec`] (how it is reached), [`resolve`] (what is held and cut, and why not),
//! then the adapters: [`attempt`] carries the machine's effects out, [`backup_run`] makes attempts of one Backup,
//! [`controller`] finds the Backups.

pub mod api_client;
pub mod api_clock;
pub mod attempt;
pub mod backup_run;
pub mod cleanup;
pub mod client_words;
pub mod contents;
pub mod context;
pub mod controller;
pub mod cut_watch;
pub mod exec;
mod group_contents;
mod group_labels;
pub mod happenings;
pub mod hold;
pub mod hook_results;
pub mod journal;
pub mod observer;
pub mod ownership;
pub mod pace;
mod pod_watch;
pub mod preview;
pub mod recovery;
pub mod rehearsal;
pub mod request_meter;
pub mod resolve;
pub mod restore;
mod rules;
pub mod run;
pub mod session;
pub mod settle;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod snapshot_name;
mod snapshot_request;
mod steady_watch;
pub mod storage;
pub mod storage_path;
pub mod verdict;
