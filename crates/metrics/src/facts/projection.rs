//! What one object says, and what the Backups of a policy say together.
//!
//! Guarantees: pure; every phase of a Backup has a state, and an object that says nothing yields the facts of an empty one.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use stillpoint_api::backup::{
    BackupStatus, JournalKind, LEFT_QUIESCED, NEEDS_NO_BACKUP_ANNOTATION, PACED, Phase,
};
use stillpoint_api::evidence::Consistency;
use stillpoint_api::template::DataTime;
use stillpoint_api::{Backup, BackupPolicy};

use super::{Key, PointFacts, PointState, PolicyProjection};
use crate::points::{BackupProjection, Shared};

/// Annotation that the binder sets on a claim it has bound.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// Bound, staying, and not said to need none. The binder writes the annotation when it has bound a claim.
pub(super) fn wants_protection(claim: &ObjectMeta) -> bool {
    let says = |name: &str, value: &str| {
        claim.annotations.as_ref().and_then(|all| all.get(name)).is_some_and(|found| found == value)
    };
    says(BIND_COMPLETED, "yes")
        && !says(NEEDS_NO_BACKUP_ANNOTATION, "true")
        && claim.deletion_timestamp.is_none()
}

/// What the Backups of a policy say together.
pub(super) fn summarise(backups: impl Iterator<Item = BackupProjection>) -> PointFacts {
    let mut facts = PointFacts::default();
    let (mut newest_freeze, mut newest_run) = (None, None);
    for backup in backups {
        facts.counts[backup.state.index()] += 1;
        facts.counts[PointState::Held.index()] += u32::from(backup.held);
        match backup.state {
            PointState::Ready => {
                if facts.newest.is_none() || backup.point > facts.newest {
                    facts.cut_spread_seconds = backup.cut_spread.map(f64::from);
                }
                facts.restore_bytes = facts.restore_bytes.saturating_add(backup.restore_bytes);
                facts.newest = facts.newest.max(backup.point);
                facts.oldest = [facts.oldest, backup.point].into_iter().flatten().min();
            }
            PointState::Pending => {
                facts.active_since = [facts.active_since, backup.started].into_iter().flatten().min();
            }
            PointState::Failed
            | PointState::Inconsistent
            | PointState::Deleting
            | PointState::SnapshotDeleted
            | PointState::Held => {}
        }
        // Of several, the one that is frozen longest.
        facts.frozen_since = [facts.frozen_since, backup.frozen_since].into_iter().flatten().min();
        facts.left_quiesced += u32::from(backup.left_quiesced);
        if let (Some(started), Some(finished)) = (backup.started, backup.finished)
            && newest_run.is_none_or(|newest| finished > newest)
        {
            newest_run = Some(finished);
            facts.last_run_seconds = Some(finished.duration_since(started).as_secs_f64().max(0.0));
        }
        if let Some((at, length)) = backup.freeze
            && newest_freeze.is_none_or(|newest| at > newest)
        {
            newest_freeze = Some(at);
            facts.last_freeze_seconds = Some(length.as_secs_f64());
        }
    }
    facts
}

pub(super) fn backup_key(backup: &Backup) -> Key {
    (backup.namespace().unwrap_or_default(), backup.policy_name().unwrap_or_default().to_owned())
}

pub(super) fn project_policy(
    policy: &BackupPolicy,
    texts: &mut Shared<str>,
    conditions: &mut Shared<[(String, String)]>,
) -> PolicyProjection {
    use stillpoint_api::policy::{CatchUp, Concurrency};
    let schedule = &policy.spec.schedule;
    let status = policy.status.clone().unwrap_or_default();
    PolicyProjection {
        created: policy.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        schedule: texts.one(schedule.cron.as_str().into()),
        time_zone: texts.one(schedule.time_zone.as_deref().unwrap_or("Etc/UTC").into()),
        concurrency: match schedule.concurrency {
            Concurrency::Forbid => "Forbid",
            Concurrency::Queue => "Queue",
            Concurrency::Replace => "Replace",
        },
        catch_up: match schedule.catch_up {
            CatchUp::Latest => "Latest",
            CatchUp::None => "None",
        },
        suspended: policy.spec.suspend,
        rpo_seconds: policy.spec.objectives.and_then(|set| set.rpo).map(|rpo| rpo.get().as_secs_f64()),
        next_slot: status.next_slots.first().and_then(|slot| slot.parse().ok()),
        last_slot: status.last_slot.map(|time| time.0),
        max_interval_seconds: status.max_interval_seconds,
        min_interval_seconds: status.min_interval_seconds,
        consecutive_failures: status.consecutive_failures,
        missed: status.missed,
        slots: status.slots.map_or((0, 0), |counts| (counts.met, counts.failed)),
        retention_overdue: status.retention.as_ref().map_or(0, |retention| retention.expiring),
        retention_blocked: status.retention.map(|retention| retention.blocked).unwrap_or_default(),
        conditions: conditions
            .one(status.conditions.into_iter().map(|found| (found.type_, found.status)).collect()),
        blackouts: schedule.blackouts.clone().into_boxed_slice(),
    }
}

pub(super) fn project_backup(backup: &Backup) -> BackupProjection {
    let empty = BackupStatus::default();
    let status = backup.status.as_ref().unwrap_or(&empty);
    let state = match status.phase {
        Phase::Deleting => PointState::Deleting,
        Phase::Pending | Phase::Preparing | Phase::Freezing | Phase::Settling
            if backup.metadata.deletion_timestamp.is_none() =>
        {
            PointState::Pending
        }
        Phase::Failed if backup.metadata.deletion_timestamp.is_none() => PointState::Failed,
        Phase::Succeeded if backup.metadata.deletion_timestamp.is_none() && status.snapshot_deleted() => {
            PointState::SnapshotDeleted
        }
        Phase::Succeeded if backup.metadata.deletion_timestamp.is_none() => match status.consistency {
            Some(Consistency::Application) => PointState::Ready,
            Some(Consistency::Crash | Consistency::None) | None => PointState::Inconsistent,
        },
        Phase::Pending
        | Phase::Preparing
        | Phase::Freezing
        | Phase::Settling
        | Phase::Succeeded
        | Phase::Failed => PointState::Deleting,
    };
    let window = status.window.as_ref();
    let cuts = || status.members.iter().filter_map(|member| member.cut.as_ref()).map(|cut| cut.0);
    let spread = cuts().min().zip(cuts().max()).map(|(first, last)| last.duration_since(first));
    let sizes = status.kept_members().filter_map(|member| member.settled.as_ref()?.restore_size);
    BackupProjection {
        state,
        held: backup.spec.hold.is_some() && state != PointState::Deleting,
        point: point_time(status),
        started: status.started_at.as_ref().map(|time| time.0).or(backup
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0)),
        frozen_since: frozen_since(status),
        left_quiesced: stillpoint_api::conditions::is_true(&status.conditions, LEFT_QUIESCED),
        waits: status.finished_at.is_none() && stillpoint_api::conditions::is_true(&status.conditions, PACED),
        finished: status.finished_at.as_ref().map(|time| time.0),
        cut_spread: spread.map(|spread| spread.as_secs_f32()),
        restore_bytes: sizes.filter_map(|size| u64::try_from(size).ok()).sum(),
        claims: status.kept_members().map(|member| member.claim_name.clone()).collect(),
        freeze: window.and_then(|window| {
            let length = Duration::try_from_secs_f64(window.frozen_seconds?).ok()?;
            Some((window.started_at.as_ref()?.0, length))
        }),
    }
}

/// The instant a point stands for: its earliest cut, or the beginning of prepare where the server acknowledges before it
/// is durable (docs/design/freeze.md §4 rule 9).
fn point_time(status: &BackupStatus) -> Option<Timestamp> {
    let applications = status.resolved.iter().flat_map(|resolved| &resolved.applications);
    let prepared = applications.filter_map(|application| match application.data_time {
        DataTime::Prepare => application.prepared_at.as_ref().map(|time| time.0),
        DataTime::Cut => None,
    });
    let cut = status.cut.as_ref()?.0;
    Some(prepared.fold(cut, Timestamp::min))
}

/// From the journal: after `Freezing` an application must be taken to be frozen until the journal says otherwise
/// (docs/design/freeze.md §5).
fn frozen_since(status: &BackupStatus) -> Option<Timestamp> {
    match (status.phase, status.journal.last()) {
        (Phase::Freezing, Some(entry)) if entry.entry == JournalKind::Freezing => Some(entry.at.0),
        (
            Phase::Pending
            | Phase::Preparing
            | Phase::Freezing
            | Phase::Settling
            | Phase::Succeeded
            | Phase::Failed
            | Phase::Deleting,
            _,
        ) => None,
    }
}
