//! What is known of rules, of the namespaces they select, and of the policies in them.
//!
//! One lock, held for lookups only. A namespace that was not seen yet has no labels; when it is seen its policies are
//! looked at again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use stillpoint_api::policy::BackupPolicy;
use stillpoint_api::rule::{DEFAULT_POLICY_ANNOTATION, OPT_OUT, ProtectionRule, ProtectionRuleSpec};
use stillpoint_api::validate::Finding;
use tokio::sync::Notify;

use super::orphans::{Asked, Orphaned, Pause};
use crate::projection::PolicyKey;

/// A rule as it was last seen, judged.
#[derive(Clone, Debug)]
pub struct Known {
    rule: ProtectionRule,
    findings: Vec<Finding>,
}

/// A namespace as far as rules look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    pub labels: BTreeMap<String, String>,
    /// It wants no default policy.
    pub opted_out: bool,
    /// It is being deleted.
    pub ends: bool,
}

/// What a rule comes to.
#[derive(Clone, Debug)]
pub struct View {
    /// The rule.
    pub known: Arc<Known>,
    /// Namespaces that it selects.
    pub namespaces: usize,
    /// Policies in them.
    pub policies: usize,
    /// Policies that are refused because of it, sorted.
    pub violating: Vec<PolicyKey>,
    /// Policies that it stamped, wherever they are.
    pub stamped: usize,
    /// Backups of policies that are gone, in the namespaces that it selects.
    pub orphans: Orphaned,
    /// So many policies are gone that none of their Backups is deleted.
    pub paused: Option<Pause>,
}

/// What rules say about the Backups of a namespace whose policies are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The namespace is not known or ends: nothing is done, and nothing undone.
    Unknown,
    /// No rule that is in force says anything: they stay.
    Nothing,
    /// This.
    Orphans(Asked),
}

/// A rule in a few words; the numbers are those of its status, so that every replica says the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glance {
    /// Its name.
    pub name: String,
    /// Whether it decides anything.
    pub in_force: bool,
    /// Policies in the namespaces that it selects.
    pub policies: u32,
    /// Policies that are refused because of it.
    pub outside: u32,
}

/// A namespace in which default policies may have to be looked after.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub namespace: Arc<str>,
    /// The rule whose default is for it: of several the first by name.
    pub asked: Option<Arc<Known>>,
    /// It wants no default policy.
    pub opted_out: bool,
}

/// A policy as far as rules look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    /// UID of the rule that stamped it.
    stamped: Option<String>,
    generation: Option<i64>,
}

/// What is known, shared by the scheduler and the steward.
#[derive(Debug, Default)]
pub struct RuleBook {
    state: Mutex<State>,
    /// The policies of some namespaces are to be looked at.
    touched: Notify,
    /// Something that a rule's status or a stamped policy may depend on changed.
    stirred: Notify,
}

#[derive(Debug, Default)]
struct State {
    rules: BTreeMap<String, Arc<Known>>,
    spaces: HashMap<Arc<str>, Space>,
    /// Whether the rules, and the namespaces, are still to be listed.
    waits_for: (bool, bool),
    touched: BTreeSet<Arc<str>>,
    /// Namespaces whose default policies may have to change.
    dirty: BTreeSet<Arc<str>>,
    /// By namespace and name.
    policies: HashMap<Arc<str>, BTreeMap<Arc<str>, Mark>>,
    /// Policies that are refused, and the rules they are outside of.
    outside: HashMap<PolicyKey, Vec<String>>,
    /// Policies that are gone and have Backups, where rules say what becomes of them.
    orphans: BTreeMap<PolicyKey, Orphaned>,
    /// Why none of these Backups is deleted.
    paused: Option<Pause>,
}

impl Known {
    /// A rule, judged at `now`.
    pub fn new(rule: ProtectionRule, now: Timestamp) -> Self {
        Self { findings: super::findings(&rule, now), rule }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.rule.metadata.name.as_deref().unwrap_or_default()
    }

    /// The object.
    pub const fn rule(&self) -> &ProtectionRule {
        &self.rule
    }

    /// What it says.
    pub const fn spec(&self) -> &ProtectionRuleSpec {
        &self.rule.spec
    }

    /// Why it is not in force, if it is not.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// When it was created.
    pub fn created(&self) -> Timestamp {
        self.rule.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
    }

    /// Whether it decides anything.
    pub fn in_force(&self) -> bool {
        self.findings.is_empty() && self.rule.metadata.deletion_timestamp.is_none()
    }

    fn holds_for(&self, labels: &BTreeMap<String, String>) -> bool {
        self.in_force() && self.rule.selects(labels)
    }

    /// Whether it decides as `other` does; its status does not count.
    fn decides_as(&self, other: &Self) -> bool {
        self.in_force() == other.in_force()
            && self.rule.spec == other.rule.spec
            && self.rule.deletions_agreed() == other.rule.deletions_agreed()
            && self.rule.metadata.uid == other.rule.metadata.uid
    }
}

impl Space {
    pub fn of(namespace: &Namespace) -> Self {
        let opted_out = namespace.annotations().get(DEFAULT_POLICY_ANNOTATION);
        Self {
            labels: namespace.labels().clone(),
            opted_out: opted_out.is_some_and(|value| value == OPT_OUT),
            ends: namespace.metadata.deletion_timestamp.is_some(),
        }
    }
}

/// UID of the rule that owns a policy: it stamped it.
pub(crate) fn stamped_by(policy: &BackupPolicy) -> Option<&str> {
    let owners = policy.metadata.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|owner| {
        owner.kind == "ProtectionRule"
            && owner.controller == Some(true)
            && owner.api_version.starts_with("stillpoint.dev/")
    });
    owner.map(|owner| owner.uid.as_str())
}

impl State {
    fn holding(&self, namespace: &str) -> Vec<Arc<Known>> {
        if self.rules.is_empty() {
            return Vec::new();
        }
        let none = BTreeMap::new();
        let labels = self.spaces.get(namespace).map_or(&none, |space| &space.labels);
        self.rules.values().filter(|known| known.holds_for(labels)).cloned().collect()
    }

    /// Touches every namespace that one of the two selects.
    fn replaced(&mut self, before: Option<&Known>, after: Option<&Known>) {
        let selected = self.spaces.iter().filter(|(_, space)| {
            [before, after].into_iter().flatten().any(|known| known.holds_for(&space.labels))
        });
        let selected: Vec<Arc<str>> = selected.map(|(name, _)| name.clone()).collect();
        self.dirty.extend(selected.iter().cloned());
        self.touched.extend(selected);
    }
}

impl RuleBook {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing is complete before rules and namespaces have been listed.
    pub fn expect_lists(&self) {
        self.state().waits_for = (true, true);
    }

    /// Whether everything has been listed that was to be.
    pub fn listed(&self) -> bool {
        self.state().waits_for == (false, false)
    }

    /// The rules that hold for a namespace, in the order of their names.
    pub fn holding(&self, namespace: &str) -> Vec<Arc<Known>> {
        self.state().holding(namespace)
    }

    /// Completes when policies are to be looked at: [`Self::take_touched`] says in which namespaces, or a list ended.
    pub async fn changed(&self) {
        self.touched.notified().await;
    }

    /// The namespaces for which other rules may hold than before.
    pub fn take_touched(&self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.state().touched)
    }

    /// Completes when a status or a stamped policy may have to change.
    pub(crate) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// The default policies of this namespace are to be looked at once more.
    pub(crate) fn look_again(&self, namespace: &Arc<str>) {
        self.state().dirty.insert(namespace.clone());
        self.stirred.notify_one();
    }

    /// Notes what became of a policy: the rules it is outside of, when it is refused.
    pub fn judged(&self, key: &PolicyKey, refused: Option<&[String]>) {
        let mut state = self.state();
        let rules = refused.filter(|rules| !rules.is_empty());
        let changed = match rules {
            Some(rules) => state.outside.insert(key.clone(), rules.to_vec()).as_deref() != Some(rules),
            None => state.outside.remove(key).is_some(),
        };
        drop(state);
        if changed {
            self.stirred.notify_one();
        }
    }

    /// What rules say about the Backups of this namespace whose policies are gone.
    pub(crate) fn said_of_orphans(&self, namespace: &str) -> Said {
        let state = self.state();
        match state.spaces.get(namespace) {
            None => Said::Unknown,
            Some(space) if space.ends => Said::Unknown,
            Some(_) => {
                let holding = state.holding(namespace);
                Asked::of(holding.iter().map(|known| known.rule())).map_or(Said::Nothing, Said::Orphans)
            }
        }
    }

    /// Notes what becomes of the Backups of a policy that is gone; nothing when it is there, or no rule says anything.
    pub(crate) fn note_orphans(&self, key: &PolicyKey, orphaned: Option<Orphaned>) {
        let mut state = self.state();
        let changed = match orphaned {
            Some(orphaned) => state.orphans.insert(key.clone(), orphaned) != Some(orphaned),
            None => state.orphans.remove(key).is_some(),
        };
        drop(state);
        if changed {
            self.stirred.notify_one();
        }
    }

    /// Forgets all that is noted of orphans: another replica looks after them.
    pub(crate) fn forget_orphans(&self) {
        let mut state = self.state();
        state.orphans.clear();
        state.paused = None;
    }

    /// Notes whether Backups of policies that are gone are deleted at all.
    pub(crate) fn note_pause(&self, paused: Option<Pause>) {
        self.state().paused = paused;
        self.stirred.notify_one();
    }

    /// Notes a policy.
    pub fn policy_applied(&self, policy: &BackupPolicy) {
        let key = PolicyKey::of(policy);
        let mark =
            Mark { stamped: stamped_by(policy).map(str::to_owned), generation: policy.metadata.generation };
        let mut state = self.state();
        let of_namespace = state.policies.entry(key.namespace.clone()).or_default();
        let changed = of_namespace.insert(key.name, mark.clone()) != Some(mark);
        let watched = changed && !state.rules.is_empty();
        if watched {
            state.dirty.insert(key.namespace);
        }
        drop(state);
        if watched {
            self.stirred.notify_one();
        }
    }

    /// Forgets a policy.
    pub fn policy_gone(&self, key: &PolicyKey) {
        let mut state = self.state();
        if let Some(of_namespace) = state.policies.get_mut(&key.namespace) {
            of_namespace.remove(&key.name);
            if of_namespace.is_empty() {
                state.policies.remove(&key.namespace);
            }
        }
        state.outside.remove(key);
        let watched = !state.rules.is_empty();
        if watched {
            state.dirty.insert(key.namespace.clone());
        }
        drop(state);
        if watched {
            self.stirred.notify_one();
        }
    }

    /// Notes a rule.
    pub(crate) fn rule_applied(&self, known: Known) {
        let mut state = self.state();
        let known = Arc::new(known);
        let before = state.rules.insert(known.name().to_owned(), known.clone());
        if before.as_ref().is_none_or(|before| !before.decides_as(&known)) {
            state.replaced(before.as_deref(), Some(&*known));
        }
        drop(state);
        self.news();
    }

    /// Forgets a rule.
    pub(crate) fn rule_gone(&self, name: &str) {
        let mut state = self.state();
        if let Some(before) = state.rules.remove(name) {
            state.replaced(Some(&*before), None);
        }
        drop(state);
        self.news();
    }

    /// Keeps only the rules of `listed`: this is all of them.
    pub(crate) fn rules_listed(&self, listed: &BTreeSet<String>) {
        let gone: Vec<String> =
            self.state().rules.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.rule_gone(name));
        self.state().waits_for.0 = false;
        self.news();
    }

    /// Notes a namespace.
    pub(crate) fn space_applied(&self, name: &str, space: Space) {
        let mut state = self.state();
        let key: Arc<str> = name.into();
        let before = state.spaces.insert(key.clone(), space.clone());
        let changed = before.as_ref() != Some(&space);
        if changed && !state.rules.is_empty() {
            state.dirty.insert(key.clone());
            state.touched.insert(key);
        }
        let watched = changed && !state.rules.is_empty();
        drop(state);
        if watched {
            self.news();
        }
    }

    /// Forgets a namespace.
    pub(crate) fn space_gone(&self, name: &str) {
        self.state().spaces.remove(name);
        self.stirred.notify_one();
    }

    /// Keeps only the namespaces of `listed`: these are all of them.
    pub(crate) fn spaces_listed(&self, listed: &BTreeSet<String>) {
        let mut state = self.state();
        state.spaces.retain(|name, _| listed.contains(&**name));
        state.waits_for.1 = false;
        drop(state);
        self.news();
    }

    /// Every rule and what it comes to.
    pub(crate) fn views(&self) -> Vec<View> {
        let state = self.state();
        let of_rule = |known: &Arc<Known>| {
            let uid = known.rule.metadata.uid.as_deref();
            let selected: BTreeSet<&Arc<str>> = state
                .spaces
                .iter()
                .filter(|(_, space)| known.holds_for(&space.labels))
                .map(|(name, _)| name)
                .collect();
            let policies = state.policies.iter().filter(|(namespace, _)| selected.contains(namespace));
            let marks = state.policies.values().flat_map(BTreeMap::values);
            let mut violating: Vec<PolicyKey> = state
                .outside
                .iter()
                .filter(|(_, rules)| rules.iter().any(|name| name == known.name()))
                .map(|(key, _)| key.clone())
                .collect();
            violating.sort();
            let gone = state.orphans.iter().filter(|(key, _)| selected.contains(&key.namespace));
            View {
                known: known.clone(),
                namespaces: selected.len(),
                policies: policies.map(|(_, policies)| policies.len()).sum(),
                violating,
                stamped: marks.filter(|mark| uid.is_some() && mark.stamped.as_deref() == uid).count(),
                orphans: gone.map(|(_, orphaned)| *orphaned).sum(),
                paused: state.paused,
            }
        };
        state.rules.values().map(of_rule).collect()
    }

    /// Every rule at a glance, in the order of their names.
    pub fn glances(&self) -> Vec<Glance> {
        let of_rule = |known: &Arc<Known>| {
            let status = known.rule.status.as_ref();
            Glance {
                name: known.name().to_owned(),
                in_force: known.in_force(),
                policies: status.map_or(0, |status| status.policies),
                outside: status.map_or(0, |status| status.violations),
            }
        };
        self.state().rules.values().map(of_rule).collect()
    }

    /// Whether the rule with this UID is in force.
    pub(crate) fn in_force(&self, uid: &str) -> bool {
        let state = self.state();
        state.rules.values().any(|known| known.rule.metadata.uid.as_deref() == Some(uid) && known.in_force())
    }

    /// Where default policies may have to change since this was asked last.
    pub(crate) fn take_dirty(&self) -> Vec<Place> {
        let dirty = std::mem::take(&mut self.state().dirty);
        self.places(|namespace| dirty.contains(namespace))
    }

    /// Everywhere that default policies are, or are asked for by a rule and kept away by no policy of the namespace's own.
    pub(crate) fn all_places(&self) -> Vec<Place> {
        self.state().dirty.clear();
        self.places(|_| true)
    }

    fn places(&self, wanted: impl Fn(&str) -> bool) -> Vec<Place> {
        let state = self.state();
        if state.rules.is_empty() {
            return Vec::new();
        }
        let place = |(namespace, space): (&Arc<str>, &Space)| {
            let asked = state.holding(namespace).into_iter().find(|known| known.spec().default.is_some());
            let marks = || state.policies.get(namespace).into_iter().flat_map(BTreeMap::values);
            let stamped = marks().any(|mark| mark.stamped.is_some());
            let missing = asked.is_some() && !space.opted_out && marks().all(|mark| mark.stamped.is_some());
            let place = Place { namespace: namespace.clone(), asked, opted_out: space.opted_out };
            (stamped || missing).then_some(place)
        };
        let living = state.spaces.iter().filter(|(namespace, space)| !space.ends && wanted(namespace));
        let mut places: Vec<Place> = living.filter_map(place).collect();
        places.sort_by(|a, b| a.namespace.cmp(&b.namespace));
        places
    }

    fn news(&self) {
        self.touched.notify_one();
        self.stirred.notify_one();
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
