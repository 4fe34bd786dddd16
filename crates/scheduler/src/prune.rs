//! Deletes what retention let go: a few at a time, never during a freeze, nothing that a Restore reads.
//!
//! A delete names the UID and the version that was read just before, so that a hold or a successor of the same name that
//! the watch did not show yet is safe. What fails or hangs here is told and tried again later; it never keeps a slot from
//! starting (docs/design/schedule.md §5).

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::SignedDuration;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Resource as _, ResourceExt as _};
use stillpoint_api::backup::Backup;
use stillpoint_api::policy::BackupPolicy;
use stillpoint_api::restore::{Restore, RestoreSource};

use crate::apply::{Apply, ApplyError, api};
use crate::projection::{BackupView, PolicyKey};
use crate::reconciler::points;
use crate::retention::{self, DELETES_AT_ONCE, Point};

/// Longest time that deletes may take of a pass: the policy's next slot waits for it. A list, two reads and two deletes
/// take a second.
pub(crate) const BOUND: Duration = Duration::from_secs(10);

/// When deletes that could not be made are tried again: nothing tells when a Restore ends.
pub(crate) const AGAIN: SignedDuration = SignedDuration::from_secs(60);

/// On whose behalf is deleted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cause<'a> {
    /// The policy's `spec.retention`.
    Retention,
    /// A rule's `orphans`; the words are told about each Backup.
    Orphans(&'a str),
}

/// Event on a Backup that a rule's `orphans` deletes.
pub(crate) const ORPHAN_DELETED: &str = "OrphanDeleted";

/// What became of the deletes of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pruned {
    /// Nothing is left to do until a Backup changes.
    Done,
    /// Something was in use, changed meanwhile, or could not be deleted.
    Again,
    /// A freeze is open.
    Frozen,
}

/// Deletes the next ones of `delete`.
pub(crate) async fn prune(
    context: &Apply,
    policy: &BackupPolicy,
    key: &PolicyKey,
    backups: &[BackupView],
    delete: &[String],
) -> Pruned {
    let going = backups.iter().filter(|backup| backup.deleting).count();
    if delete.is_empty() {
        return Pruned::Done;
    }
    if context.frozen() {
        return Pruned::Frozen;
    }
    if going >= DELETES_AT_ONCE {
        // Their end brings the next pass.
        return Pruned::Done;
    }
    let deletes = delete_some(context, key, backups, delete, Cause::Retention);
    let why = match tokio::time::timeout(context.deletes_bound, deletes).await {
        Ok(Ok(pruned)) => return pruned,
        // The replica that leads now takes it up.
        Ok(Err(ApplyError::Deposed)) => return Pruned::Again,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the API server did not answer within {:?}", context.deletes_bound),
    };
    context.deletions.asked(key, false);
    tracing::warn!(policy = %key, why, "retention could not delete; it is tried again, and backups go on");
    let note = format!("retention could not delete, and tries again in a minute; backups go on: {why}");
    context.tell(policy, "DeletionFailed", note).await;
    Pruned::Again
}

/// Deletes the next ones of `delete`, `backups` being all of the policy's, unless a freeze begins meanwhile.
///
/// # Errors
/// A request failed, or this replica does not lead any more: what is left stays.
pub(crate) async fn delete_some(
    context: &Apply,
    key: &PolicyKey,
    backups: &[BackupView],
    delete: &[String],
    cause: Cause<'_>,
) -> Result<Pruned, ApplyError> {
    let going = backups.iter().filter(|backup| backup.deleting).count();
    let restores: Api<Restore> = Api::namespaced(context.client.clone(), &key.namespace);
    let restores = restores.list(&ListParams::default()).await.map_err(api("list the restores"))?;
    let points = points(backups);
    let running = restores.iter().filter(|restore| !finished(restore));
    let used: BTreeSet<String> = running.filter_map(|restore| source(restore, key, &points)).collect();
    let mut again = delete.iter().any(|name| used.contains(name));
    let api_backups: Api<Backup> = Api::namespaced(context.client.clone(), &key.namespace);
    for name in retention::now(delete, &used, going) {
        let fresh = api_backups.get_opt(&name).await.map_err(api("read a Backup"))?;
        let (Some(fresh), Some(view)) = (fresh, backups.iter().find(|backup| backup.name == name)) else {
            continue;
        };
        // A hold, a deletion, another object: it is decided anew when the watch shows it.
        if BackupView::of(&fresh) != *view {
            again = true;
            continue;
        }
        if context.frozen() {
            return Ok(Pruned::Frozen);
        }
        let preconditions = Preconditions { uid: fresh.uid(), resource_version: fresh.resource_version() };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        context.fence()?;
        match api_backups.delete(&name, &parameters).await {
            Ok(_) => match cause {
                Cause::Retention => {
                    context.deletions.asked(key, true);
                    tracing::info!(policy = %key, backup = name, "a backup was deleted by retention");
                }
                Cause::Orphans(note) => {
                    context.deletions.orphan(key, true);
                    tracing::info!(policy = %key, backup = name, note, "a backup of a policy that is gone was deleted");
                    context.tell_about(&fresh.object_ref(&()), ORPHAN_DELETED, note.to_owned()).await;
                }
            },
            // Gone already.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            // Changed since it was read.
            Err(kube::Error::Api(status)) if status.code == 409 => again = true,
            Err(error) => return Err(api("delete a Backup")(error)),
        }
    }
    Ok(if again { Pruned::Again } else { Pruned::Done })
}

/// The Backup that a Restore reads, or will read.
fn source(restore: &Restore, key: &PolicyKey, points: &[Point]) -> Option<String> {
    let chosen = restore.status.as_ref().and_then(|status| status.backup.clone());
    chosen.or_else(|| match &restore.spec.source {
        RestoreSource::BackupRef(backup) => Some(backup.name.clone()),
        RestoreSource::Latest(latest) if *latest.policy_ref.name == *key.name => {
            let before = latest.before.as_ref().map(|before| before.0);
            retention::newest_before(points, before).map(|point| point.name.clone())
        }
        RestoreSource::Latest(_) | RestoreSource::Handles(_) => None,
    })
}

fn finished(restore: &Restore) -> bool {
    let conditions = restore.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Finished" && condition.status == "True")
}
