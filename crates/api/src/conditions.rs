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

/// Puts a condition in the place of the one of its type. The time of the last change stays while the status does.
pub fn set(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// Whether a condition of this type is there and true.
pub fn is_true<'a>(conditions: impl IntoIterator<Item = &'a Condition>, type_: &str) -> bool {
    conditions.into_iter().any(|one| one.type_ == type_ && one.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut all = vec![condition("A", true, "R", "m", None, at(1))];
        set(&mut all, condition("A", true, "S", "n", None, at(2)));
        assert_eq!((all.len(), all[0].reason.as_str(), all[0].last_transition_time.0), (1, "S", at(1)));
        set(&mut all, condition("A", false, "S", "n", None, at(3)));
        assert_eq!(all[0].last_transition_time.0, at(3));
        assert!(!is_true(&all, "A"));
        set(&mut all, condition("B", true, "S", "n", None, at(3)));
        assert!(is_true(&all, "B"));
    }
}
