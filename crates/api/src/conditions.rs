//! Conditions as the field writes them (kstatus, Gateway): one entry per type, stable reasons, words for people.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::backup::{FINISHED, SUCCEEDED};

/// Longest message of a condition; the schema of meta/v1 allows 32 768.
const MAX_MESSAGE: usize = 4096;

/// A condition that turned true or false at an instant.
pub fn condition(
    type_: &str,
    status: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    at: Timestamp,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(MAX_MESSAGE).collect(),
        observed_generation: generation,
        last_transition_time: Time(at),
    }
}

/// Both conditions of something that ran and ended: `Succeeded` tells how, `Finished` that it did, so that waiting
/// for `Finished` returns on failure too.
pub fn finished(
    good: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    at: Timestamp,
) -> Vec<Condition> {
    vec![
        condition(SUCCEEDED, good, reason, message, generation, at),
        condition(FINISHED, true, reason, message, generation, at),
    ]
}
