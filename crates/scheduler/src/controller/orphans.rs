//! Carries out what [`decide`] says about the Backups of policies that are gone.
//!
//! Guarantees: only the leader writes; that a policy is gone is never believed from a watch alone; nothing is noted or deleted
//! in a namespace that ends, while the clocks differ, while any request fails, or when the policy may have gone with the
//! definition of policies: what is older than that definition stays. Deletes take the way of retention
//! ([`prune`](crate::prune)): a few at a time, with UID and version, never during a freeze (docs/rules.md).

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use stillpoint_api::backup::{Backup, ORPHANED_SINCE_ANNOTATION};
use stillpoint_api::policy::BackupPolicy;
use tokio::task::JoinSet;

use super::Scheduler;
use crate::apply::{Apply, ApplyError, api};
use crate::heap::DueHeap;
use crate::projection::{BackupView, PolicyKey};
use crate::prune::{self, Cause, Pruned, delete_some};
use crate::rules::book::Said;
use crate::rules::orphans::{Asked, Fate, Pause, decide};

/// Policies whose Backups are looked after at once: with the deletes of each this is how many go at the same time.
const AT_ONCE: usize = 2;

/// Notes that are written in one look; the watch shows them, and that brings the next.
const NOTES_AT_ONCE: usize = 32;

/// Name of the definition of policies: when it is deleted every policy goes, and none was meant.
const DEFINITION: &str = "backuppolicies.stillpoint.dev";

/// Event on a Backup whose policy is gone, where a rule says what becomes of it.
const ORPHANED: &str = "Orphaned";

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing more is to be done until something changes.
    Done,
    /// Something stood in the way.
    Again,
}

/// What is known and under way.
#[derive(Default)]
pub(super) struct Orphanage {
    pub(super) looks: JoinSet<(PolicyKey, Result<Look, ApplyError>)>,
    /// Policies that are to be judged.
    due: DueHeap<PolicyKey>,
    /// Policies with something to do.
    ready: BTreeSet<PolicyKey>,
    looking: HashSet<PolicyKey>,
    /// Those of them that changed meanwhile.
    changed: HashSet<PolicyKey>,
    /// Policies that are gone and have Backups.
    gone: HashSet<PolicyKey>,
    /// Those of them whose Backups go at some time.
    expiring: HashSet<PolicyKey>,
    paused: Option<Pause>,
}

/// One look at the Backups of a policy.
struct Case {
    key: PolicyKey,
    backups: Vec<BackupView>,
    asked: Option<Asked>,
    fate: Fate,
}

impl Orphanage {
    pub(super) fn next_due(&mut self) -> Option<Timestamp> {
        self.due.next_due()
    }

    /// Another replica looks after them. What was begun meets the fence.
    pub(super) fn forget(&mut self) {
        self.due = DueHeap::default();
        self.ready.clear();
        self.gone.clear();
        self.expiring.clear();
        self.changed.clear();
        self.paused = None;
    }
}

impl Scheduler {
    /// Something happened that the fate of this policy's Backups may depend on.
    pub(super) fn touch_orphans(&mut self, key: &PolicyKey) {
        let concerned = !self.projection.has_policy(key)
            || self.orphans.gone.contains(key)
            || self.projection.noted_as_orphan(key);
        if self.term.is_none() || key.name.is_empty() || !concerned {
            return;
        }
        if self.orphans.looking.contains(key) {
            self.orphans.changed.insert(key.clone());
        } else {
            let now = self.now();
            self.orphans.due.set(key.clone(), now);
        }
    }

    pub(super) fn touch_orphans_in(&mut self, namespaces: &BTreeSet<Arc<str>>) {
        let keys = self.projection.policies_of_backups().filter(|key| namespaces.contains(&key.namespace));
        let keys: Vec<PolicyKey> = keys.cloned().collect();
        keys.iter().for_each(|key| self.touch_orphans(key));
    }

    /// At the begin of a term of lead.
    pub(super) fn touch_all_orphans(&mut self) {
        let keys: Vec<PolicyKey> = self.projection.policies_of_backups().cloned().collect();
        keys.iter().for_each(|key| self.touch_orphans(key));
    }

    /// Judges what changed, all of it, before anything is done: how many policies are gone says whether they were meant to.
    pub(super) fn look_after_orphans(&mut self) {
        if self.term.is_none() || !self.listed() {
            return;
        }
        let now = self.now();
        let mut judged = false;
        while let Some(key) = self.orphans.due.pop_due(now) {
            self.judge_orphans(&key, now);
            judged = true;
        }
        if judged {
            self.judge_pause(now);
        }
        while self.orphans.looks.len() < AT_ONCE {
            let Some(key) = self.orphans.ready.pop_first() else { return };
            let Some(case) = self.orphan_case(&key, now) else { continue };
            if case.fate.is_idle() {
                continue;
            }
            self.orphans.looking.insert(key.clone());
            let context = self.context.clone();
            self.orphans.looks.spawn(async move {
                let result = look(&context, &case).await;
                (key, result)
            });
        }
    }

    fn judge_orphans(&mut self, key: &PolicyKey, now: Timestamp) {
        self.orphans.ready.remove(key);
        let case = self.orphan_case(key, now);
        let orphaned = case.as_ref().map(|case| case.fate.orphaned).filter(|orphaned| orphaned.backups > 0);
        if orphaned.is_some() {
            self.orphans.gone.insert(key.clone());
        } else {
            self.orphans.gone.remove(key);
        }
        if orphaned.is_some_and(|orphaned| orphaned.expiring > 0) {
            self.orphans.expiring.insert(key.clone());
        } else {
            self.orphans.expiring.remove(key);
        }
        self.context.rules.note_orphans(key, orphaned);
        let Some(case) = case else { return };
        if let Some(wake_at) = case.fate.wake_at {
            self.orphans.due.set(key.clone(), wake_at);
        }
        if !case.fate.is_idle() && !self.orphans.looking.contains(key) {
            self.orphans.ready.insert(key.clone());
        }
    }

    fn judge_pause(&mut self, now: Timestamp) {
        let paused = Pause::of(self.orphans.expiring.len(), self.projection.policies().count());
        if paused == self.orphans.paused {
            return;
        }
        if self.orphans.paused.is_some() && paused.is_none() {
            let waiting: Vec<PolicyKey> = self.orphans.expiring.iter().cloned().collect();
            waiting.into_iter().for_each(|key| self.orphans.due.set(key, now));
        }
        self.orphans.paused = paused;
        self.context.rules.note_pause(paused);
    }

    /// What is to be done about the Backups of a policy; nothing is known of a namespace that ends.
    fn orphan_case(&self, key: &PolicyKey, now: Timestamp) -> Option<Case> {
        let asked = match self.context.rules.said_of_orphans(&key.namespace) {
            Said::Unknown => return None,
            Said::Nothing => None,
            Said::Orphans(asked) => Some(asked),
        };
        let backups = self.projection.backups(key);
        let mut fate = decide(asked.as_ref(), self.projection.has_policy(key), &backups, now);
        if self.orphans.paused.is_some() && !asked.as_ref().is_some_and(|asked| asked.agreed) {
            fate.delete.clear();
        }
        // Ages are computed from times that another clock may have written; when they agree all are looked at.
        if self.server_ahead.borrow().is_some() {
            fate.mark.clear();
            fate.delete.clear();
        }
        Some(Case { key: key.clone(), backups, asked, fate })
    }

    pub(super) fn orphans_looked(&mut self, key: PolicyKey, result: Result<Look, ApplyError>) {
        self.orphans.looking.remove(&key);
        let changed = self.orphans.changed.remove(&key);
        if self.term.is_none() {
            return;
        }
        let again = match result {
            Ok(Look::Done) => false,
            Ok(Look::Again) => true,
            // Whoever leads now looks at everything.
            Err(ApplyError::Deposed) => return,
            Err(error) => {
                tracing::warn!(policy = %key, %error,
                    "the Backups of a policy that is gone could not be looked after; it is tried again in a minute");
                true
            }
        };
        let now = self.now();
        if changed {
            self.orphans.due.set(key, now);
        } else if again {
            self.orphans.due.set(key, now.saturating_add(prune::AGAIN).unwrap_or(Timestamp::MAX));
        }
    }
}

/// Notes, takes notes away, and deletes.
async fn look(context: &Apply, case: &Case) -> Result<Look, ApplyError> {
    let backups: Api<Backup> = Api::namespaced(context.client.clone(), &case.key.namespace);
    for view in case.named(&case.fate.unmark) {
        note(context, &backups, view, Value::Null).await?;
    }
    let Some(asked) =
        case.asked.as_ref().filter(|_| !(case.fate.mark.is_empty() && case.fate.delete.is_empty()))
    else {
        return Ok(Look::Done);
    };
    let Some(defined) = truly_gone(context, &case.key).await? else { return Ok(Look::Again) };
    // What is older than the definition had a policy that perhaps went with an earlier one, and was not meant to.
    let meant = |view: &&BackupView| view.created > defined;
    let now = context.clock.wall();
    for view in case.named(&case.fate.mark).filter(meant).take(NOTES_AT_ONCE) {
        let since = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
        if !note(context, &backups, view, json!(since)).await? {
            continue;
        }
        tracing::info!(policy = %case.key, backup = view.name, "the policy of a backup is gone");
        context.tell_about(&case.reference(view), ORPHANED, asked.marked(&case.key.name, now)).await;
    }
    let delete: Vec<String> =
        case.named(&case.fate.delete).filter(meant).map(|view| view.name.clone()).collect();
    if delete.is_empty() {
        return Ok(Look::Done);
    }
    if context.frozen() {
        return Ok(Look::Again);
    }
    let words = asked.deleted(&case.key.name);
    let deletes = delete_some(context, &case.key, &case.backups, &delete, Cause::Orphans(&words));
    let why = match tokio::time::timeout(context.deletes_bound, deletes).await {
        Ok(Ok(Pruned::Done)) => return Ok(Look::Done),
        Ok(Ok(Pruned::Again | Pruned::Frozen)) => return Ok(Look::Again),
        Ok(Err(ApplyError::Deposed)) => return Err(ApplyError::Deposed),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the API server did not answer within {:?}", context.deletes_bound),
    };
    context.deletions.orphan(&case.key, false);
    tracing::warn!(policy = %case.key, why, "a backup whose policy is gone could not be deleted; it is tried again");
    if let Some(view) = case.named(&delete).next() {
        let words = format!("{words}; that failed and is tried again in a minute: {why}");
        context.tell_about(&case.reference(view), "DeletionFailed", words).await;
    }
    Ok(Look::Again)
}

impl Case {
    /// The Backups of these names.
    fn named<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a BackupView> {
        names.iter().filter_map(|name| self.backups.iter().find(|backup| backup.name == *name))
    }

    fn reference(&self, view: &BackupView) -> ObjectReference {
        ObjectReference {
            api_version: Some(Backup::api_version(&()).into_owned()),
            kind: Some(Backup::kind(&()).into_owned()),
            namespace: Some(self.key.namespace.to_string()),
            name: Some(view.name.clone()),
            uid: Some(view.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

/// Writes since when the policy of a Backup is known to be gone, or removes it. `false` when the Backup is not any more as it
/// was watched: the watch will show it, and it is decided anew.
async fn note(
    context: &Apply,
    backups: &Api<Backup>,
    view: &BackupView,
    since: Value,
) -> Result<bool, ApplyError> {
    let fresh = backups.get_opt(&view.name).await.map_err(api("read a Backup"))?;
    let Some(fresh) = fresh.filter(|fresh| BackupView::of(fresh) == *view) else { return Ok(false) };
    let patch = json!({"metadata": {
        "uid": fresh.uid(),
        "resourceVersion": fresh.resource_version(),
        "annotations": {ORPHANED_SINCE_ANNOTATION: since},
    }});
    context.fence()?;
    match backups.patch(&view.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(true),
        // Gone already, changed, or another object by now.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(api("note on a Backup that its policy is gone")(error)),
    }
}

/// Since when policies are defined, when this one is not there and nothing but its own deletion explains it.
async fn truly_gone(context: &Apply, key: &PolicyKey) -> Result<Option<Timestamp>, ApplyError> {
    let spaces: Api<Namespace> = Api::all(context.client.clone());
    let space = spaces.get_metadata_opt(&key.namespace).await.map_err(api("read the namespace"))?;
    if space.is_none_or(|space| space.metadata.deletion_timestamp.is_some()) {
        return Ok(None);
    }
    let definitions: Api<CustomResourceDefinition> = Api::all(context.client.clone());
    let definition = definitions.get_metadata_opt(DEFINITION).await;
    let Some(definition) = definition.map_err(api("read the definition of policies"))? else {
        return Ok(None);
    };
    if definition.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    // A list fails where the kind is not served; a read would say that the object is not there.
    let policies: Api<BackupPolicy> = Api::namespaced(context.client.clone(), &key.namespace);
    let named = ListParams::default().fields(&format!("metadata.name={}", key.name));
    let found = policies.list_metadata(&named).await.map_err(api("list the policies"))?;
    if found.items.iter().any(|policy| policy.name_any() == *key.name) {
        return Ok(None);
    }
    Ok(definition.metadata.creation_timestamp.map(|created| created.0))
}
