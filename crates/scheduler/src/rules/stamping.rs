//! Carries out what [`super::stamp`] decides, namespace by namespace.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt as _};
use stillpoint_api::policy::BackupPolicy;
use stillpoint_api::template::{ClusterHookTemplate, Recipe};

use super::book::Place;
use super::detect::{Detected, detect};
use super::stamp::{Action, Asked, decide};
use super::steward::Steward;

/// Objects per request.
const PAGE: u32 = 500;

impl Steward {
    /// Looks at some places; a place that fails keeps no other from being looked at.
    pub(super) async fn stamp(&mut self, places: &[Place]) {
        if places.is_empty() {
            return;
        }
        let catalog = match self.catalog().await {
            Ok(catalog) => catalog,
            Err(error) => {
                tracing::warn!(%error, "the templates could not be listed; default policies are looked at again later");
                return;
            }
        };
        for place in places {
            let problem = match self.stamp_one(place, &catalog).await {
                Ok(detected) => detected.ambiguous.first().cloned(),
                Err(error) => {
                    tracing::warn!(namespace = %place.namespace, %error, "default policies could not be looked after");
                    Some(error.to_string())
                }
            };
            self.note_problem(&place.namespace, place.asked.as_ref().map(|known| known.name()), problem);
        }
    }

    async fn stamp_one(&self, place: &Place, catalog: &[(String, Recipe)]) -> Result<Detected, kube::Error> {
        let policies: Api<BackupPolicy> = Api::namespaced(self.client.clone(), &place.namespace);
        let present = policies.list(&ListParams::default()).await?.items;
        let default =
            place.asked.as_ref().and_then(|known| Some((known.rule(), known.spec().default.as_ref()?)));
        let asked = match default {
            _ if place.opted_out => Err("the namespace opted out"),
            Some((rule, default)) => Ok(Asked { rule, default }),
            None => Err("no rule with a default selects the namespace any more"),
        };
        let detected = match asked {
            Ok(_) => detect(&self.pods(&place.namespace).await?, catalog),
            Err(_) => Detected::default(),
        };
        let in_force = |uid: &str| self.book.in_force(uid);
        for action in decide(&place.namespace, asked, &present, &detected, in_force) {
            if !self.leadership.leads() {
                break;
            }
            self.act(&policies, place, action).await?;
        }
        Ok(detected)
    }

    async fn act(
        &self,
        policies: &Api<BackupPolicy>,
        place: &Place,
        action: Action,
    ) -> Result<(), kube::Error> {
        let done = match &action {
            Action::Create(policy) => policies.create(&PostParams::default(), policy).await.map(Some),
            Action::Update { policy, .. } => {
                policies.replace(&policy.name_any(), &PostParams::default(), policy).await.map(Some)
            }
            Action::Delete { policy, .. } => {
                let preconditions =
                    Preconditions { uid: policy.uid(), resource_version: policy.resource_version() };
                let parameters =
                    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                policies.delete(&policy.name_any(), &parameters).await.map(|_| None)
            }
        };
        let written = match done {
            Ok(written) => written,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                // Somebody was faster, perhaps with a status only, which no watch tells of here. Of a policy that is there
                // already it does.
                if !matches!(action, Action::Create(_)) {
                    self.book.look_again(&place.namespace);
                }
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(error),
        };
        let namespace = &place.namespace;
        match (action, written) {
            (Action::Create(policy), Some(written)) => {
                tracing::info!(%namespace, policy = policy.name_any(), "a default policy was stamped");
                let note = "stamped by a ProtectionRule, because the namespace has no policy of its own";
                self.tell(&written, EventType::Normal, "PolicyStamped", note.to_owned()).await;
            }
            (Action::Update { edited: true, .. }, Some(written)) => {
                tracing::info!(%namespace, policy = written.name_any(), "a stamped policy was edited and put back");
                let note = "this policy follows its ProtectionRule, and the edit was put back: edit the rule, or write a \
                            policy of your own, for which this one steps back";
                self.tell(&written, EventType::Warning, "StampedPolicyRestored", note.to_owned()).await;
            }
            (Action::Delete { policy, why }, _) => {
                tracing::info!(%namespace, policy = policy.name_any(), why, "a stamped policy was removed");
                let note = format!("{namespace}/{} was removed, its Backups stay: {why}", policy.name_any());
                if let Some(rule) = &place.asked {
                    self.tell(rule.rule(), EventType::Normal, "StampedPolicyRemoved", note).await;
                }
            }
            (Action::Create(_) | Action::Update { .. }, _) => {}
        }
        Ok(())
    }

    async fn catalog(&self) -> Result<Vec<(String, Recipe)>, kube::Error> {
        let templates: Api<ClusterHookTemplate> = Api::all(self.client.clone());
        let listed = templates.list(&ListParams::default()).await?;
        Ok(listed.items.into_iter().map(|template| (template.name_any(), template.spec.0)).collect())
    }

    async fn pods(&self, namespace: &str) -> Result<Vec<Pod>, kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut parameters = ListParams::default().limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = api.list(&parameters).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return Ok(all),
            }
        }
    }
}
