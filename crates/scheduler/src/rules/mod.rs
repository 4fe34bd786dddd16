//! What ProtectionRules mean for the scheduler: which of them hold where, and what they make happen.
//!
//! [`book`] remembers rules and namespaces, [`watch`] keeps it in step; a change wakes exactly the policies of the
//! namespaces that it is about. What is outside a rule is decided by `stillpoint_api::rule::judge` and told by
//! [`accept`](crate::accept). [`steward`] is the part that only the leader has: it
//! writes the rules' status and stamps default policies ([`detect`], [`stamp`]).

pub mod book;
pub mod detect;
pub mod orphans;
pub mod stamp;
mod stamping;
pub mod status;
mod steward;
mod watch;

use std::sync::Arc;

use jiff::Timestamp;
use kube::{Client, ResourceExt as _};
use stillpoint_api::BackupPolicy;
use stillpoint_api::clock::SharedClock;
use stillpoint_api::rule::{ProtectionRule, judge};
use stillpoint_api::validate::{self, Finding};

pub use book::{Glance, Known, RuleBook};

use crate::accept;
use crate::election::Leadership;

/// Everything that keeps a rule from being in force: the API's own rules, then what its schedules are. For `lint` too.
pub fn findings(rule: &ProtectionRule, now: Timestamp) -> Vec<Finding> {
    let mut found = validate::rule(rule);
    found.extend(schedule_findings(rule, now));
    found
}

/// What is wrong with the schedules of a rule: its blackouts, and its default's.
pub fn schedule_findings(rule: &ProtectionRule, now: Timestamp) -> Vec<Finding> {
    let mut found = Vec::new();
    let created = rule.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    found.extend(accept::rule_blackouts(&rule.spec.blackouts, created, now).err());
    let Some(default) = &rule.spec.default else { return found };
    let policy = BackupPolicy::new(&rule.name_any(), default.policy(None, Vec::new()));
    let in_default =
        |finding: Finding| Finding { path: finding.path.replacen("spec.", "spec.default.", 1), ..finding };
    match accept::intervals(&policy, now) {
        Err(finding) => found.push(in_default(finding)),
        Ok(analysis) => {
            let interval = analysis.map(|analysis| analysis.min_interval);
            let outside = judge::policy(&policy.spec, interval, [rule]);
            let outside = outside.iter().find(|outside| outside.asks == "allow.minInterval");
            found.extend(outside.map(|outside| {
                let message =
                    format!("it is {}, and {} asks for {}", outside.found, outside.asks, outside.required);
                Finding::new("spec.default.schedule.cron", "DefaultViolatesRule", message)
            }));
        }
    }
    found
}

/// Keeps `book` in step, and while this replica leads writes what the rules come to. Never ends.
pub(crate) async fn run(client: Client, clock: SharedClock, leadership: Leadership, book: Arc<RuleBook>) {
    let mut steward = steward::Steward::new(client.clone(), clock.clone(), leadership, book.clone());
    tokio::join!(watch::rules(&client, &clock, &book), watch::namespaces(&client, &book), steward.run());
}
