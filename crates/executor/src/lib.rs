//! The backup run: a pure machine that decides, and the adapters that carry its effects out.
//!
//! Read in this order: [`run`] (how a freeze goes and how it ends), [`verdict`] (what a recovery point is worth),
//! [`hold`] (what a held session says), [`exec`] (how it is reached), then the adapters.

pub mod exec;
pub mod hold;
pub mod run;
pub mod storage;
pub mod verdict;
