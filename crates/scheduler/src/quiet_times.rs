//! Whether a blackout holds for a policy now, for whoever asks about very many policies at once.
//!
//! Guarantees: the same windows as those that decide about starts ([`accept`](crate::accept)); what is written the same is
//! parsed once and looked at once a second; windows that cannot be read hold never, as they are not accepted either.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use stillpoint_api::clock::SharedClock;
use stillpoint_api::policy::Blackout;

use crate::accept::{DEFAULT_ZONE, EVERY, parse_blackouts, written};
use crate::blackouts::Blackouts;
use crate::rules::RuleBook;

/// Distinct windows that are remembered; more than these are parsed each time. Some hundred bytes each.
const MAX_KNOWN: usize = 4096;

/// The blackouts of policies and rules.
pub struct QuietTimes {
    rules: Arc<RuleBook>,
    clock: SharedClock,
    known: Mutex<HashMap<String, Known>>,
}

/// Windows that were parsed, and what they came to in the second that was asked about last.
struct Known {
    windows: Arc<Blackouts>,
    second: i64,
    hold: bool,
}

impl std::fmt::Debug for QuietTimes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuietTimes").finish_non_exhaustive()
    }
}

impl QuietTimes {
    /// Those of policies, and of the rules in `rules`.
    pub fn new(rules: Arc<RuleBook>, clock: SharedClock) -> Self {
        Self { rules, clock, known: Mutex::default() }
    }

    /// Whether one holds now for a policy of `namespace` that was `created` then and has blackouts of its `own`, in `zone`
    /// unless they name one.
    pub fn hold(&self, namespace: &str, own: &[Blackout], zone: Option<&str>, created: Timestamp) -> bool {
        let now = self.clock.wall();
        self.holds(own, zone.unwrap_or(DEFAULT_ZONE), created, now)
            || self
                .rules
                .holding(namespace)
                .iter()
                .any(|rule| self.holds(&rule.spec().blackouts, DEFAULT_ZONE, rule.created(), now))
    }

    fn holds(&self, blackouts: &[Blackout], zone: &str, created: Timestamp, now: Timestamp) -> bool {
        if blackouts.is_empty() {
            return false;
        }
        let mut key = zone.to_owned();
        for blackout in blackouts {
            key.push_str("; ");
            key.push_str(&written(blackout));
        }
        if key.contains(EVERY) {
            key.push_str(&format!(" since {created}"));
        }
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let second = now.as_second();
        if let Some(known) = all.get_mut(&key) {
            if known.second != second {
                *known =
                    Known { windows: known.windows.clone(), second, hold: known.windows.at(now).is_some() };
            }
            return known.hold;
        }
        let windows = parse_blackouts(blackouts, zone, created, now, "").unwrap_or_default();
        let windows = Arc::new(Blackouts::new(windows));
        let hold = windows.at(now).is_some();
        if all.len() >= MAX_KNOWN {
            // Those that were not asked about lately are of policies that are gone or changed.
            all.retain(|_, known| second - known.second < 3600);
        }
        if all.len() < MAX_KNOWN {
            all.insert(key, Known { windows, second, hold });
        }
        hold
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use stillpoint_api::clock::ManualClock;

    use super::*;
    use crate::rules::Known as KnownRule;
    use crate::rules::book::Space;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn window(start: &str, zone: Option<&str>) -> Blackout {
        serde_json::from_value(json!({"start": start, "duration": "8h", "action": "Skip", "timeZone": zone}))
            .unwrap()
    }

    #[test]
    fn the_policy_s_own_windows_hold_in_its_zone_and_to_the_second() {
        let clock = Arc::new(ManualClock::at(at("2026-11-20T20:59:59Z")));
        let quiet = QuietTimes::new(Arc::default(), clock.clone());
        let night = [window("0 22 * * *", None)];
        let holds = || quiet.hold("shop", &night, Some("Europe/Berlin"), Timestamp::UNIX_EPOCH);
        assert!(!holds());
        clock.advance(Duration::from_secs(1));
        assert!(holds() && !quiet.hold("shop", &[], None, Timestamp::UNIX_EPOCH));
        assert!(!quiet.hold("shop", &night, None, Timestamp::UNIX_EPOCH), "22:00 in UTC comes an hour later");
        clock.advance(Duration::from_secs(8 * 3600 - 1));
        assert!(holds());
        clock.advance(Duration::from_secs(1));
        assert!(!holds(), "the end is outside");
        assert!(!quiet.hold("shop", &[window("no", None)], None, Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn a_rule_s_windows_hold_in_the_namespaces_that_it_selects() {
        let clock = Arc::new(ManualClock::at(at("2026-11-20T23:00:00Z")));
        let rules = Arc::new(RuleBook::default());
        let quiet = QuietTimes::new(rules.clone(), clock.clone());
        let holds = |namespace: &str| quiet.hold(namespace, &[], None, Timestamp::UNIX_EPOCH);
        assert!(!holds("shop"));
        let rule = json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule", "metadata": {"name": "night", "uid": "u"},
            "spec": {"namespaceSelector": {"matchLabels": {"tier": "gold"}},
                     "blackouts": [{"start": "0 22 * * *", "duration": "8h", "action": "Skip"}]},
        });
        rules.rule_applied(KnownRule::new(
            serde_json::from_value(rule).unwrap(),
            stillpoint_api::clock::Clock::wall(&*clock),
        ));
        assert!(!holds("shop"), "its labels are not known yet");
        let labels = [("tier".to_owned(), "gold".to_owned())].into();
        rules.space_applied("shop", Space { labels, ..Space::default() });
        assert!(holds("shop") && !holds("other"));
        rules.rule_gone("night");
        assert!(!holds("shop"));
    }
}
