//! Removes what is left of runs that are gone: snapshots, contents whose snapshot went before them, workload locks, kept
//! templates, Leases of dead replicas (docs/design/freeze.md §5).
//!
//! Guarantees: nothing that a run still needs is removed, and nothing while a freeze of this process may be under way;
//! a snapshot that carries a verdict is data and is never swept, whatever became of its Backup (docs/api.md, what deletes
//! data). What is ours is listed first and the Backups after it: whatever a snapshot or lock stands for was journalled
//! before it was made, so a Backup that is read later shows it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::api::{DeleteParams, ListParams, PartialObjectMeta, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use stillpoint_api::backup::{
    ATTEMPT_LABEL, BACKUP_UID_LABEL, Backup, BackupStatus, CONSISTENCY_ANNOTATION, JournalEntry, Phase,
};
use stillpoint_api::clock::Mono;
use stillpoint_api::group_snapshot::VolumeGroupSnapshot;
use stillpoint_api::snapshot::VolumeSnapshot;
use tracing::{info, warn};

use super::templates_kept::{KEPT_LABEL, KEPT_TEMPLATE, kept_digest};
use super::workload::{Lock, Locks, RunOfLock, left_over};
use crate::cleanup::{self, LOOK_AT_MOST, Scope};
use crate::context::{Context, RequestError, bounded};
use crate::cut_watch::Unnamed;
use crate::snapshot_name;

/// Objects per request: a page of Backups with all their evidence is a few megabytes at most.
const PAGE: u32 = 100;

/// A snapshot of ours, as its metadata says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ours {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// UID of its Backup.
    pub backup_uid: String,
    /// Nonce of its attempt.
    pub attempt: String,
    /// Whether it carries a verdict: it was kept as a recovery point.
    pub kept: bool,
    /// Whether it is being deleted already.
    pub going: bool,
}

/// What is known about a run whose snapshots or locks were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFacts {
    /// Nonce of the present attempt, once it was journalled.
    pub current: Option<String>,
    /// How it ended, if it did.
    pub ended: Option<Ended>,
    /// Names of the snapshots and group snapshots in its evidence.
    pub members: BTreeSet<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With a recovery point.
    Kept,
    /// Without one.
    Nothing,
}

/// Why a snapshot is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    /// Its Backup does not exist.
    BackupGone,
    /// Its attempt is not the present one.
    OtherAttempt,
    /// Its run ended without a recovery point.
    RunFailed,
    /// It is no member of the stored evidence.
    NoMember,
}

/// Whether a snapshot is left over, and why.
pub fn stray(snapshot: &Ours, run: Option<&RunFacts>) -> Option<Stray> {
    if snapshot.kept || snapshot.going {
        return None;
    }
    let Some(run) = run else { return Some(Stray::BackupGone) };
    match run.ended {
        Some(Ended::Nothing) => Some(Stray::RunFailed),
        Some(Ended::Kept) if run.members.contains(&snapshot.name) => None,
        Some(Ended::Kept) => Some(Stray::NoMember),
        // While it runs, what belongs to its present attempt is its owner's business.
        None if run.current.as_ref() == Some(&snapshot.attempt) => None,
        None => Some(Stray::OtherAttempt),
    }
}

/// What a Backup says to the sweeper.
pub fn run_facts(backup: &Backup) -> RunFacts {
    backup.status.as_ref().map(facts_of).unwrap_or_default()
}

/// The same of a status. What no 201 of ours named was never adopted: it is no member, whatever its name
/// (docs/design/freeze.md §1).
pub fn facts_of(status: &BackupStatus) -> RunFacts {
    let of_attempt = |entry: &&JournalEntry| entry.attempt == status.attempt;
    let current = status.journal.iter().rev().find(of_attempt).map(|entry| entry.nonce.clone());
    let ended = match status.phase {
        Phase::Pending | Phase::Preparing | Phase::Freezing | Phase::Settling => None,
        Phase::Succeeded | Phase::Deleting => Some(Ended::Kept),
        Phase::Failed => Some(Ended::Nothing),
    };
    let adopted = status.members.iter().filter(|member| match &member.group {
        Some(group) => group.uid.is_some(),
        None => member.volume_snapshot_uid.is_some(),
    });
    let names = adopted.flat_map(|member| {
        let group = member.group.as_ref().map(|group| group.volume_group_snapshot.clone());
        std::iter::once(member.volume_snapshot.clone()).chain(group)
    });
    let members = names.collect();
    RunFacts { current, ended, members }
}

/// What a sweep found of one kind.
type ByBackup<T> = BTreeMap<String, Vec<T>>;

/// Sweeps one cluster, again and again.
pub struct Sweeper {
    context: Context,
    /// Locks whose Backup does not exist, and since when we know.
    orphans: BTreeMap<String, Mono>,
}

impl Sweeper {
    /// A sweeper that has seen nothing.
    pub const fn new(context: Context) -> Self {
        Self { context, orphans: BTreeMap::new() }
    }

    /// Sweeps at once and then at every interval while this replica is the one that does, until the future is dropped.
    pub async fn run(mut self) {
        let ownership = self.context.ownership.clone();
        loop {
            ownership.sweeps(true).await;
            tokio::select! {
                () = ownership.sweeps(false) => self.orphans.clear(),
                () = self.sweep_again_and_again() => {}
            }
        }
    }

    async fn sweep_again_and_again(&mut self) {
        loop {
            if let Err(error) = self.sweep().await {
                warn!(%error, "what earlier runs left behind was not removed; it is tried again");
            }
            tokio::time::sleep(self.context.ownership.timing().sweep).await;
        }
    }

    /// Removes everything that is left over now.
    ///
    /// # Errors
    /// A request failed; nothing is lost by sweeping again.
    pub async fn sweep(&mut self) -> Result<(), RequestError> {
        self.context.ownership.windows_closed().await;
        let locks = Locks::new(&self.context);
        let (mut snapshots, mut groups, mut held) = (ByBackup::new(), ByBackup::new(), ByBackup::new());
        for snapshot in self.ours::<VolumeSnapshot>().await? {
            snapshots.entry(snapshot.backup_uid.clone()).or_insert_with(Vec::new).push(snapshot);
        }
        for group in self.ours::<VolumeGroupSnapshot>().await? {
            groups.entry(group.backup_uid.clone()).or_insert_with(Vec::new).push(group);
        }
        for lock in locks.all().await? {
            held.entry(lock.holder.backup_uid.clone()).or_insert_with(Vec::new).push(lock);
        }
        let kept = self.kept_templates().await?;
        let unnamed = self.context.contents.singles().unnamed();
        let nothing = snapshots.is_empty() && groups.is_empty() && held.is_empty() && kept.is_empty();
        if !(nothing && unnamed.is_empty()) {
            let wanted = Wanted {
                uids: snapshots.keys().chain(groups.keys()).chain(held.keys()).cloned().collect(),
                attempts: unnamed.iter().filter_map(attempt_of).collect(),
            };
            let seen = self.backups(&wanted).await?;
            self.sweep_unnamed(&unnamed, &seen).await?;
            self.sweep_snapshots(&snapshots, &groups, &seen.runs).await?;
            self.sweep_locks(&locks, &held, &seen.runs).await?;
            self.sweep_templates(&kept, &seen).await?;
        }
        self.context.ownership.sweep_replicas(&self.context.client).await
    }

    /// Snapshots with our labels, as metadata. A resource that is not served has none.
    async fn ours<K>(&self) -> Result<Vec<Ours>, RequestError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let listed = metadata::<K>(&self.context, BACKUP_UID_LABEL).await;
        let found = match listed {
            Ok(found) => found,
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(found.iter().map(ours).collect())
    }

    async fn kept_templates(&self) -> Result<Vec<PartialObjectMeta<ControllerRevision>>, RequestError> {
        metadata::<ControllerRevision>(&self.context, &format!("{KEPT_LABEL}={KEPT_TEMPLATE}")).await
    }

    async fn backups(&self, wanted: &Wanted) -> Result<SeenBackups, RequestError> {
        let api: Api<Backup> = Api::all(self.context.client.clone());
        let mut seen = SeenBackups::default();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = bounded("list Backups", api.list(&params)).await?;
            for backup in &page.items {
                seen.take(backup, wanted);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(seen),
            }
        }
    }

    async fn sweep_snapshots(
        &self,
        snapshots: &ByBackup<Ours>,
        groups: &ByBackup<Ours>,
        runs: &BTreeMap<String, RunFacts>,
    ) -> Result<(), RequestError> {
        // A group goes with everything of its attempt, so it stays while any of that is data.
        let data: BTreeSet<&str> = snapshots
            .values()
            .chain(groups.values())
            .flatten()
            .filter(|one| one.kept)
            .map(|one| one.attempt.as_str())
            .collect();
        for (backup_uid, group) in groups {
            for one in group.iter().filter(|one| !data.contains(one.attempt.as_str())) {
                if let Some(why) = stray(one, runs.get(backup_uid)) {
                    self.context.ownership.windows_closed().await;
                    info!(
                        namespace = one.namespace,
                        snapshot = one.name,
                        ?why,
                        "removing a left-over group snapshot"
                    );
                    // Its members carry no label of ours: the scope removes them with it.
                    let scope = Scope::Attempt(one.attempt.clone());
                    cleanup::remove(&self.context, &one.namespace, &scope, LOOK_AT_MOST).await?;
                }
            }
        }
        for (backup_uid, ours) in snapshots {
            for one in ours {
                if let Some(why) = stray(one, runs.get(backup_uid)) {
                    self.context.ownership.windows_closed().await;
                    info!(
                        namespace = one.namespace,
                        snapshot = one.name,
                        ?why,
                        "removing a left-over snapshot"
                    );
                    cleanup::remove_one(&self.context, &one.namespace, &one.name, &one.attempt).await?;
                }
            }
        }
        Ok(())
    }

    /// Contents whose snapshot is gone, where the journal of a Backup proves that the snapshot was ours.
    async fn sweep_unnamed(&self, unnamed: &[Unnamed], seen: &SeenBackups) -> Result<(), RequestError> {
        for one in unnamed {
            let Some((attempt, run)) = attempt_of(one).and_then(|of| seen.attempts.get(&of)) else {
                continue;
            };
            let snapshot = Ours {
                namespace: one.namespace.clone(),
                name: one.snapshot.clone(),
                attempt: attempt.clone(),
                ..Ours::default()
            };
            if let Some(why) = stray(&snapshot, Some(run)) {
                self.context.ownership.windows_closed().await;
                if cleanup::remove_unnamed(&self.context, one).await? {
                    info!(
                        namespace = one.namespace,
                        snapshot = one.snapshot,
                        content = one.content,
                        ?why,
                        "removing a content whose snapshot is gone"
                    );
                }
            }
        }
        Ok(())
    }

    async fn sweep_locks(
        &mut self,
        locks: &Locks,
        held: &ByBackup<Lock>,
        runs: &BTreeMap<String, RunFacts>,
    ) -> Result<(), RequestError> {
        let now = self.context.clock.mono();
        let orphan = self.context.ownership.timing().orphan;
        let mut orphans = BTreeMap::new();
        for (backup_uid, locked) in held {
            for lock in locked {
                let run = match runs.get(backup_uid) {
                    Some(facts) if facts.ended.is_some() => RunOfLock::Finished,
                    Some(_) => RunOfLock::Active,
                    None => {
                        let since = self.orphans.get(&lock.uid()).copied().unwrap_or(now);
                        orphans.insert(lock.uid(), since);
                        RunOfLock::Absent { long: now.since(since) >= orphan }
                    }
                };
                if left_over(run) {
                    info!(
                        lease = lock.name(),
                        backup = lock.holder.backup,
                        ?run,
                        "removing a left-over workload lock"
                    );
                    locks.remove(lock).await?;
                }
            }
        }
        self.orphans = orphans;
        Ok(())
    }

    async fn sweep_templates(
        &self,
        kept: &[PartialObjectMeta<ControllerRevision>],
        seen: &SeenBackups,
    ) -> Result<(), RequestError> {
        for copy in kept {
            let (namespace, name) = (copy.namespace().unwrap_or_default(), copy.name_any());
            let Some(digest) = kept_digest(&name) else { continue };
            if seen.unfinished.contains(&namespace)
                || seen.digests.contains(&(namespace.clone(), digest.to_owned()))
            {
                continue;
            }
            let api: Api<ControllerRevision> = Api::namespaced(self.context.client.clone(), &namespace);
            // A run that relies on it meanwhile has changed it.
            let exactly = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: copy.uid(),
                    resource_version: copy.resource_version(),
                }),
                ..DeleteParams::default()
            };
            match bounded("remove a kept template", api.delete(&name, &exactly)).await {
                Ok(_) => info!(namespace, name, "removed a template that no Backup refers to"),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Namespace of an attempt, and the part of its nonce that is in names.
type AttemptPart = (String, String);

fn attempt_of(one: &Unnamed) -> Option<AttemptPart> {
    Some((one.namespace.clone(), snapshot_name::nonce_part(&one.snapshot)?.to_owned()))
}

/// Which runs are asked for.
#[derive(Debug, Default)]
struct Wanted {
    /// By the UIDs of their Backups.
    uids: BTreeSet<String>,
    /// By their attempts.
    attempts: BTreeSet<AttemptPart>,
}

/// What the Backups say, as little as is needed of each.
#[derive(Debug, Default)]
struct SeenBackups {
    /// Runs whose snapshots or locks were found, by UID.
    runs: BTreeMap<String, RunFacts>,
    /// Attempts that were asked for: the whole nonce, and the run.
    attempts: BTreeMap<AttemptPart, (String, RunFacts)>,
    /// Templates that a Backup refers to: namespace and digest.
    digests: BTreeSet<(String, String)>,
    /// Namespaces with a run that is not over: it may rely on a copy that its status does not name yet.
    unfinished: BTreeSet<String>,
}

impl SeenBackups {
    fn take(&mut self, backup: &Backup, wanted: &Wanted) {
        let (namespace, uid) = (backup.namespace().unwrap_or_default(), backup.uid().unwrap_or_default());
        if wanted.uids.contains(&uid) {
            self.runs.insert(uid, run_facts(backup));
        }
        for of in wanted.attempts.iter().filter(|(space, _)| *space == namespace) {
            let mut journal = backup.status.iter().flat_map(|status| &status.journal);
            if let Some(entry) = journal.find(|entry| snapshot_name::is_part_of(&of.1, &entry.nonce)) {
                self.attempts.insert(of.clone(), (entry.nonce.clone(), run_facts(backup)));
            }
        }
        let resolved = backup.status.iter().flat_map(|status| &status.resolved);
        for application in resolved.flat_map(|resolved| &resolved.applications) {
            self.digests.insert((namespace.clone(), application.digest.clone()));
        }
        if !backup.finished() {
            self.unfinished.insert(namespace);
        }
    }
}

async fn metadata<K>(context: &Context, selector: &str) -> Result<Vec<PartialObjectMeta<K>>, RequestError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::all(context.client.clone());
    let mut found = Vec::new();
    let mut params = ListParams::default().labels(selector).limit(PAGE);
    loop {
        let page = bounded(format!("list our {}", K::plural(&())), api.list_metadata(&params)).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn ours<K: Resource<DynamicType = ()>>(found: &PartialObjectMeta<K>) -> Ours {
    let label = |name: &str| found.metadata.labels.iter().flatten().find(|(key, _)| *key == name);
    let value = |name: &str| label(name).map(|(_, value)| value.clone()).unwrap_or_default();
    Ours {
        namespace: found.metadata.namespace.clone().unwrap_or_default(),
        name: found.metadata.name.clone().unwrap_or_default(),
        backup_uid: value(BACKUP_UID_LABEL),
        attempt: value(ATTEMPT_LABEL),
        kept: found.metadata.annotations.iter().flatten().any(|(key, _)| key == CONSISTENCY_ANNOTATION),
        going: found.metadata.deletion_timestamp.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(attempt: &str) -> Ours {
        Ours { name: "s".into(), attempt: attempt.into(), ..Ours::default() }
    }

    fn facts(current: &str, ended: Option<Ended>, members: &[&str]) -> RunFacts {
        RunFacts {
            current: Some(current.into()),
            ended,
            members: members.iter().map(|one| (*one).to_owned()).collect(),
        }
    }

    #[test]
    fn what_a_running_attempt_asked_for_is_its_owners_and_what_an_earlier_one_did_is_swept() {
        let run = facts("n2", None, &[]);
        assert_eq!(stray(&snapshot("n2"), Some(&run)), None);
        assert_eq!(stray(&snapshot("n1"), Some(&run)), Some(Stray::OtherAttempt));
        // The present attempt has no entry yet, so nothing that exists is its.
        let preparing = RunFacts { current: None, ..run };
        assert_eq!(stray(&snapshot("n1"), Some(&preparing)), Some(Stray::OtherAttempt));
    }

    #[test]
    fn of_a_run_that_ended_only_the_members_of_its_evidence_stay() {
        let kept = facts("n", Some(Ended::Kept), &["s"]);
        assert_eq!(stray(&snapshot("n"), Some(&kept)), None);
        let other = facts("n", Some(Ended::Kept), &["t"]);
        assert_eq!(stray(&snapshot("n"), Some(&other)), Some(Stray::NoMember));
        let failed = facts("n", Some(Ended::Nothing), &["s"]);
        assert_eq!(stray(&snapshot("n"), Some(&failed)), Some(Stray::RunFailed));
    }

    #[test]
    fn a_snapshot_without_its_backup_is_swept_unless_it_carries_a_verdict() {
        assert_eq!(stray(&snapshot("n"), None), Some(Stray::BackupGone));
        assert_eq!(stray(&Ours { kept: true, ..snapshot("n") }, None), None, "data outlives its Backup");
        assert_eq!(stray(&Ours { going: true, ..snapshot("n") }, None), None);
    }
}
