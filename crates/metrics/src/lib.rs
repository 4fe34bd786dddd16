//! What Prometheus sees: true events as histograms and counters, facts about objects as they are at the scrape.
//!
//! Two sources and no third (docs/metrics.md): [`Metrics`] counts what happened and is the only thing that has a
//! memory; [`collector`] computes everything else from a [`facts::Facts`] at each scrape, so that nothing is stale
//! after a delete and everything is right after a restart. [`server`] answers over HTTP.

pub mod collector;
pub mod facts;
mod families;
pub mod labels;
pub mod meters;
mod points;
pub mod process;
pub mod registry;
mod restores;
mod series;
pub mod server;
pub mod watch;

pub use facts::{Calendar, Facts, FactsStore, Found, PolicyFacts, PolicyProjection};
pub use labels::DeletionResult;
pub use meters::{Meters, WorkKind, WorkResult};
pub use process::{ProcessFacts, RuleFacts};
pub use registry::{BuildInfo, Metrics};
pub use server::{DEFAULT_ADDRESS, Endpoints, Part, Process, Readiness, bind, serve};
pub use watch::{feed, feed_with};
