//! The executor's adapters on the embedded cluster: real requests, real sessions, real processes.
//!
//! Each test has a cluster of its own with one database that is a small script (`database.sh`); what the database
//! went through is read from its volume, never from our own evidence alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod authority;
mod blockers;
mod commands;
mod controller;
mod drivers;
mod groups;
mod interruption;
mod ownership;
mod points;
mod restores;
mod rules;
mod sessions;
mod several;
mod stage;
mod status_writes;
mod storage;
