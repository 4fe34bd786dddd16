//! The leader's work for rules: their status, and default policies ([`super::stamping`]). One writer at a time; every write is a PUT with the version that was read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource};
use stillpoint_api::clock::SharedClock;
use stillpoint_api::rule::{ACCEPTED, ORPHANS_PAUSED, ProtectionRule};
use tokio::time::MissedTickBehavior;

use super::book::{RuleBook, View};
use super::status::status;
use crate::election::Leadership;

/// How long changes are gathered before they are looked at: many policies are judged at once when a rule changes.
const GATHER: Duration = Duration::from_millis(200);

/// Longest time between two looks: nothing tells that a pod came that a default policy is for.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Longest note of an event; the limit is 1 kB.
const MAX_NOTE: usize = 900;

pub(super) struct Steward {
    pub(super) client: Client,
    pub(super) clock: SharedClock,
    pub(super) leadership: Leadership,
    pub(super) book: Arc<RuleBook>,
    recorder: Recorder,
    /// By namespace: the rule, and why its default is not stamped there.
    problems: BTreeMap<Arc<str>, (String, String)>,
}

impl Steward {
    pub fn new(client: Client, clock: SharedClock, leadership: Leadership, book: Arc<RuleBook>) -> Self {
        let reporter = Reporter { controller: "stillpoint-scheduler".to_owned(), instance: None };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, clock, leadership, book, recorder, problems: BTreeMap::new() }
    }

    /// Looks at everything when something changed, at least once a minute, while this replica leads.
    pub async fn run(&mut self) {
        let mut lead = self.leadership.follow();
        let book = self.book.clone();
        let mut whole = tokio::time::interval(LOOK_AGAIN);
        whole.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let everywhere = tokio::select! {
                () = book.stirred() => {
                    tokio::time::sleep(GATHER).await;
                    false
                }
                () = lead.changed() => true,
                _ = whole.tick() => true,
            };
            if self.leadership.leads() && self.book.listed() {
                self.look(everywhere).await;
            }
        }
    }

    async fn look(&mut self, everywhere: bool) {
        let places = if everywhere {
            self.problems.clear();
            self.book.all_places()
        } else {
            self.book.take_dirty()
        };
        self.stamp(&places).await;
        for view in self.book.views() {
            self.tell_status(&view).await;
        }
    }

    /// Notes why a rule's default is not stamped in a namespace, or that nothing keeps it.
    pub(super) fn note_problem(&mut self, namespace: &Arc<str>, rule: Option<&str>, problem: Option<String>) {
        match rule.zip(problem) {
            Some((rule, why)) => self.problems.insert(namespace.clone(), (rule.to_owned(), why)),
            None => self.problems.remove(namespace),
        };
    }

    async fn tell_status(&self, view: &View) {
        let rule = view.known.rule();
        let of_rule = self.problems.iter().filter(|(_, (rule, _))| rule == view.known.name());
        let problems: Vec<String> =
            of_rule.map(|(namespace, (_, why))| format!("{namespace}: {why}")).collect();
        let wanted = status(view, &problems, self.clock.wall());
        if rule.status.as_ref() == Some(&wanted) || !self.leadership.leads() {
            return;
        }
        let rules: Api<ProtectionRule> = Api::all(self.client.clone());
        let written = ProtectionRule { status: Some(wanted.clone()), ..rule.clone() };
        match rules.replace_status(view.known.name(), &PostParams::default(), &written).await {
            Ok(_) => {}
            // Changed or gone: the watch shows it, and it is looked at again.
            Err(kube::Error::Api(answer)) if answer.code == 409 || answer.code == 404 => return,
            Err(error) => {
                tracing::warn!(rule = view.known.name(), %error, "the status of a ProtectionRule was not written");
                return;
            }
        }
        let before = rule.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        for (kind, bad) in [(ACCEPTED, "False"), (ORPHANS_PAUSED, "True")] {
            let said = |conditions: &[Condition]| {
                conditions.iter().find(|known| known.type_ == kind && known.status == bad).cloned()
            };
            let Some(now) = said(&wanted.conditions) else { continue };
            let news = match said(before) {
                None => true,
                // How many policies are gone changes with each of them.
                Some(before) => kind == ACCEPTED && before.message != now.message,
            };
            if news {
                self.tell(rule, EventType::Warning, &now.reason, now.message).await;
            }
        }
    }

    /// An event is for people: when it cannot be written, a status still says the same.
    pub(super) async fn tell<K>(&self, object: &K, type_: EventType, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: "Rule".to_owned(),
            secondary: None,
        };
        let reference: ObjectReference = object.object_ref(&());
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::debug!(%error, reason, "an event could not be written");
        }
    }
}
