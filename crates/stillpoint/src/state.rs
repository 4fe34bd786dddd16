//! What a running controller tells about itself: `/debug/state`, and what the metrics say of the process.

use std::sync::Arc;

use serde_json::{Value, json};
use stillpoint_executor::ownership::Ownership;
use stillpoint_metrics::{Process, ProcessFacts, RuleFacts};
use stillpoint_scheduler::election::Leadership;
use stillpoint_scheduler::rules::{Glance, RuleBook};
use stillpoint_scheduler::{Progress, WORKERS};
use tokio::sync::watch;

/// Where the answers come from.
#[derive(Debug)]
pub struct Inside {
    /// The election.
    pub leadership: Leadership,
    /// What this replica works on.
    pub ownership: Ownership,
    /// The scheduler's loop.
    pub progress: watch::Receiver<Progress>,
    /// The ProtectionRules.
    pub rules: Arc<RuleBook>,
}

impl Inside {
    /// The whole state, names only.
    fn value(&self) -> Value {
        let progress = self.progress.borrow();
        let frozen: Vec<String> =
            progress.frozen.iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
        let next = progress
            .next
            .as_ref()
            .map(|(policy, at)| json!({"policy": policy.to_string(), "at": at.to_string()}));
        json!({
            "replica": self.ownership.identity(),
            "leads": self.leadership.leads(),
            "leader": self.leadership.holder(),
            "works": self.ownership.works(),
            "frozen": frozen,
            "schedule": {
                "waiting": progress.waiting,
                "queued": progress.queued,
                "busy": progress.busy,
                "next": next,
            },
        })
    }
}

impl Process for Inside {
    fn facts(&self) -> ProcessFacts {
        let leads = self.leadership.leads();
        let rules = self.rules.glances().into_iter().map(|rule| {
            let Glance { name, in_force, policies, outside } = rule;
            RuleFacts { name, in_force, policies, outside }
        });
        let progress = self.progress.borrow();
        ProcessFacts {
            leads,
            // A loop that stopped in an earlier term says nothing about the leader's.
            last_tick: progress.ticked_at.filter(|_| leads),
            queued: progress.queued,
            busy: progress.busy,
            workers: WORKERS,
            rules: rules.collect(),
        }
    }

    fn state(&self) -> String {
        format!("{:#}\n", self.value())
    }
}

#[cfg(test)]
mod tests {
    use stillpoint_api::clock::ManualClock;
    use stillpoint_executor::ownership::Timing;
    use stillpoint_scheduler::projection::PolicyKey;

    use super::*;

    #[test]
    fn the_state_names_leader_runs_freezes_and_what_is_due_first() {
        let clock = Arc::new(ManualClock::at("2026-11-21T01:00:00Z".parse().unwrap()));
        let ownership = Ownership::new("a_1", "here", Timing::default());
        let _work = ownership.works_on("backups", "shop", "b");
        let tick = "2026-11-21T01:59:30Z".parse().unwrap();
        let progress = watch::Sender::new(Progress {
            ticked_at: Some(tick),
            waiting: 2,
            queued: 0,
            busy: 1,
            next: Some((PolicyKey::new("shop", "nightly"), "2026-11-21T02:00:00Z".parse().unwrap())),
            frozen: vec![("shop".into(), "b".into())],
        });
        let inside = Inside {
            leadership: Leadership::alone(clock.clone()),
            ownership: ownership.clone(),
            progress: progress.subscribe(),
            rules: Arc::default(),
        };
        let expected = json!({
            "replica": "a_1", "leads": true, "leader": null, "works": ["backups/shop/b"], "frozen": ["shop/b"],
            "schedule": {
                "waiting": 2, "queued": 0, "busy": 1,
                "next": {"policy": "shop/nightly", "at": "2026-11-21T02:00:00Z"},
            },
        });
        assert_eq!(inside.value(), expected);
        assert_eq!(inside.facts().last_tick, Some(tick));
        let idle = Inside { leadership: Leadership::none(clock), ..inside };
        let facts = idle.facts();
        assert!(facts.last_tick.is_none() && !facts.leads && facts.busy == 1, "{facts:?}");
        drop(_work);
        assert!(ownership.works().is_empty());
    }
}
