//! The fault simulation: the real run machine, verdict and recovery in a world that is drawn from one seed.
//!
//! One seed is one execution: virtual time, no threads, no clocks, no randomness but the seed's. The replicas' glue
//! ([`replica`], [`attempt`], [`journal`]) is written as the adapters are, with futures that wait for the world instead
//! of the network. After every event the world is checked ([`invariants`]): no application stays frozen past what
//! docs/design/freeze.md §3 promises, `Application` is said only where the world's own record agrees (§4), nothing is
//! left behind, the journal only advances, every run ends.
//!
//! Read in this order: [`faults`] (what may go wrong), [`scenario`] (what a world consists of), [`world`] (time and
//! events), [`pod`], [`exec`] with [`clients`] and [`holders`], [`storage`], [`api`] (what is out there), [`replica`],
//! [`tasks`], [`conductor`], [`attempt`] (what we do), [`invariants`] (what must hold), then [`shrink`], [`mutations`]
//! and [`saga`], which use it all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod api;
pub mod attempt;
pub mod clients;
pub mod conductor;
pub mod coverage;
pub mod exec;
pub mod faults;
pub mod holders;
pub mod invariants;
pub mod journal;
pub mod mutations;
pub mod ownership;
pub mod pod;
pub mod processes;
pub mod replica;
pub mod resolve;
pub mod runtime;
pub mod saga;
pub mod scenario;
pub mod settle;
pub mod shrink;
pub mod storage;
pub mod tasks;
#[cfg(test)]
mod tests;
pub mod truth;
pub mod watches;
pub mod world;

use coverage::Coverage;
use invariants::Violation;
use mutations::Mutation;
use saga::Injection;
use scenario::{Scenario, Size};

/// Microseconds since the world began.
pub type Micros = u64;
/// One millisecond.
pub const MS: Micros = 1_000;
/// One second.
pub const S: Micros = 1_000_000;

/// What is asked of one world besides its seed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kinds of faults that it may have, as bits.
    pub mask: u64,
    /// How large it may get.
    pub size: Size,
    /// What is broken on purpose.
    pub mutation: Option<Mutation>,
    /// A scenario instead of the seed's.
    pub scenario: Option<Scenario>,
    /// A fault at one effect of the first attempt.
    pub injection: Option<Injection>,
    /// Whether a line is kept for everything that happens.
    pub log: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { mask: u64::MAX, size: Size::FULL, mutation: None, scenario: None, injection: None, log: false }
    }
}

/// How a world ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first invariant that was broken.
    pub violation: Option<Violation>,
    /// What happened how often.
    pub coverage: Coverage,
    /// How many events there were.
    pub events: u64,
    /// Effects that the first attempt had carried out: the places at which [`Injection`] can strike.
    pub effects: usize,
    /// What happened, if it was asked for.
    pub log: Vec<String>,
}

/// Runs the world of a seed to its end.
pub fn run(seed: u64, options: &Options) -> Outcome {
    runtime::run(seed, options)
}
