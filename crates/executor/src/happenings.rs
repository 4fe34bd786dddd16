//! Kubernetes events about runs: one per decision that a person wants to see, never output of hooks.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tracing::debug;

use crate::context::bounded;

/// Longest note of an event (API limit: 1 kB).
const MAX_NOTE: usize = 1000;

/// Tells events; failures to tell are logged and cost nothing else.
#[derive(Clone)]
pub struct Happenings {
    recorder: Recorder,
}

impl Happenings {
    /// Events of one replica. One recorder for all, so that repeated events are counted, not piled up.
    pub fn new(client: Client, replica: &str) -> Self {
        let reporter = Reporter { controller: "stillpoint".into(), instance: Some(replica.to_owned()) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Something went as it should.
    pub async fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, note: &str) {
        self.tell(&about.object_ref(&()), EventType::Normal, reason, note).await;
    }

    /// Somebody may have to act.
    pub async fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, note: &str) {
        self.tell(&about.object_ref(&()), EventType::Warning, reason, note).await;
    }

    async fn tell(&self, about: &ObjectReference, type_: EventType, reason: &str, note: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: "Backup".to_owned(),
            secondary: None,
        };
        if let Err(error) = bounded("write an event", self.recorder.publish(&event, about)).await {
            debug!(%error, reason, "an event was not written");
        }
    }
}
