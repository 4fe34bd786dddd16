//! The one validator: what the reconciler, `stillpoint lint` and the tests refuse, with the same words.
//!
//! It answers with data and never fails. Rules that CEL can express are also in the definitions, so that most faults
//! never reach the cluster's store; here are all of them, because `lint` has no API server and an object may be older
//! than its rule. A field that is documented *Not supported yet* is refused when it is set to anything but its
//! default: it is never ignored. Cron expressions and time zones are judged by the scheduler.

mod application;
mod document;
pub mod explain;
mod policy;
mod recipe;
mod rule;
mod run;

use std::fmt;

use serde::Serialize;

pub use application::application_against_template;
pub use document::document;
pub use explain::explain;
pub use policy::policy;
pub use recipe::{advice, recipe};
pub use rule::rule;
pub use run::{backup, restore};

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The field, as `kubectl explain` writes it: `spec.schedule.jitter`, `spec.applications[orders-db].order`.
    pub path: String,
    /// Bounded reason in CamelCase, fit for conditions, events and metric labels.
    pub rule: &'static str,
    /// What is wrong, why, and what to do about it.
    pub message: String,
}

impl Finding {
    /// A finding.
    pub fn new(path: impl Into<String>, rule: &'static str, message: impl Into<String>) -> Self {
        Self { path: path.into(), rule, message: message.into() }
    }

    /// A field whose behaviour is still to come; `instead` says what to write meanwhile.
    pub(crate) fn not_yet(path: impl Into<String>, what: &str, instead: &str) -> Self {
        Self::new(path, "NotSupportedYet", format!("{what} is not supported yet: {instead}"))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.path, self.message, self.rule)
    }
}

/// Whether a name is a DNS label (RFC 1123), as names of applications and pods' containers are.
fn is_dns_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}
