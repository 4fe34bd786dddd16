//! The leader's work for rules: their status. One writer at a time; every write is a PUT with the version that was read.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource};
use stillpoint_api::clock::SharedClock;
use stillpoint_api::rule::{ACCEPTED, ProtectionRule};

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
    client: Client,
    clock: SharedClock,
    leadership: Leadership,
    book: Arc<RuleBook>,
    recorder: Recorder,
}

impl Steward {
    pub fn new(client: Client, clock: SharedClock, leadership: Leadership, book: Arc<RuleBook>) -> Self {
        let reporter = Reporter { controller: "stillpoint-scheduler".to_owned(), instance: None };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, clock, leadership, book, recorder }
    }

    /// Looks at everything when something changed, at least once a minute, while this replica leads.
    pub async fn run(&self) {
        let mut lead = self.leadership.follow();
        loop {
            if self.leadership.leads() && self.book.listed() {
                self.look().await;
            }
            tokio::select! {
                () = self.book.stirred() => tokio::time::sleep(GATHER).await,
                () = lead.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    async fn look(&self) {
        for view in self.book.views() {
            self.tell_status(&view).await;
        }
    }

    async fn tell_status(&self, view: &View) {
        let rule = view.known.rule();
        let wanted = status(view, self.clock.wall());
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
        let said = |status: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]| {
            status.iter().find(|known| known.type_ == ACCEPTED && known.status == "False").cloned()
        };
        let before = rule.status.as_ref().and_then(|status| said(&status.conditions));
        if let Some(refused) = said(&wanted.conditions)
            && before.is_none_or(|before| before.message != refused.message)
        {
            self.tell(rule, EventType::Warning, &refused.reason, refused.message).await;
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
