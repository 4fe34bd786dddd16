//! A proven recovery point compared with the truth: its window holds the true cut, its snapshots are kept and labelled.

use jiff::{SignedDuration, Timestamp};
use kube::{Api, ResourceExt as _};
use stillpoint_api::Backup;
use stillpoint_api::backup::{
    BACKUP_LABEL, BACKUP_UID_LABEL, CONSISTENCY_ANNOTATION, FINISHED, NAMESPACE_LABEL, POLICY_LABEL, Phase,
    SUCCEEDED,
};
use stillpoint_api::evidence::{Consistency, MemberEvidence, Offset};
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};

use crate::cluster::Cluster;
use crate::ledger::TrueCut;
use crate::{Outcome, Present as _, ensure};

/// The instants of one point; microseconds since 1970 where bare.
#[derive(Clone, Copy, Debug)]
pub struct Instants {
    /// When the cut really happened, by the ledger.
    pub cut: TrueCut,
    /// When the last FROZEN was received.
    pub frozen: i64,
    /// When the first THAW was handed to its stream.
    pub thaw_sent: i64,
}

/// Reason and message of a Backup's condition `Succeeded`.
pub fn outcome_of(backup: &Backup) -> String {
    let conditions = backup.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    conditions
        .iter()
        .find(|condition| condition.type_ == SUCCEEDED)
        .map_or("no condition".to_owned(), |condition| format!("{}: {}", condition.reason, condition.message))
}

/// Checks a point against the ledger and its snapshot objects.
///
/// # Errors
/// What does not hold.
pub async fn verify(cluster: &Cluster, backup: &Backup) -> Outcome<Instants> {
    let name = backup.name_any();
    let status = backup.status.as_ref().present("the Backup's status")?;
    ensure!(status.phase == Phase::Succeeded, "{name} is {:?}: {}", status.phase, outcome_of(backup));
    ensure!(status.consistency == Some(Consistency::Application), "{name} is {:?}", status.consistency);
    for type_ in [SUCCEEDED, FINISHED] {
        let there = status.conditions.iter().any(|one| one.type_ == type_ && one.status == "True");
        ensure!(there, "{name} has no condition {type_}=True");
    }
    let verdict = status.verdict.as_ref().present("the verdict")?;
    ensure!(verdict.missing.is_empty(), "{name} is Application and yet misses {:?}", verdict.missing);
    let mut rules: Vec<u8> = verdict.proved.iter().map(|finding| finding.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    ensure!(rules == (1..=10).collect::<Vec<u8>>(), "{name} proves the rules {rules:?}, not all ten");

    let window = status.window.as_ref().present("the window")?;
    let begun = window.started_at.as_ref().present("window.startedAt")?.0;
    let at = |offset: Option<Offset>, what: &str| -> Outcome<Timestamp> {
        Ok(begun.checked_add(SignedDuration::from_micros(offset.present(what)?.0))?)
    };
    let cut_start = at(window.cut_start, "window.cutStart")?;
    let cut_end = at(window.cut_end, "window.cutEnd")?;
    let thaw_sent = at(window.thaw_sent, "window.thawSent")?;
    let frozen = at(window.locked, "window.locked")?;
    ensure!(!status.members.is_empty(), "{name} has no member");
    let mut cuts = Vec::new();
    for member in &status.members {
        let cut = cluster.ledger.cut_of_member(member)?;
        ensure!(
            cut_start <= cut.from && cut.to <= thaw_sent,
            "{name}: the true cut {}..{} of {} is outside of [{cut_start}, {thaw_sent}]",
            cut.from,
            cut.to,
            member.claim_name
        );
        cuts.push(cut);
    }
    let point = status.cut.as_ref().present("status.cut")?.0;
    ensure!(
        cut_start <= point && point <= cut_end,
        "{name}: status.cut {point} is outside of [{cut_start}, {cut_end}]"
    );

    for member in &status.members {
        objects(cluster, backup, member).await?;
    }
    let cut = cuts.into_iter().next().present("the cut of a member")?;
    Ok(Instants { cut, frozen: frozen.as_microsecond(), thaw_sent: thaw_sent.as_microsecond() })
}

/// Checks the snapshot objects of one member.
async fn objects(cluster: &Cluster, backup: &Backup, member: &MemberEvidence) -> Outcome {
    let name = backup.name_any();
    let namespace = backup.namespace().unwrap_or_default();
    let contents: Api<VolumeSnapshotContent> = Api::all(cluster.client.clone());
    let content = contents.get(member.content.as_deref().present("content of a member")?).await?;
    ensure!(
        content.spec.deletion_policy == "Retain",
        "{name}: the content is {}",
        content.spec.deletion_policy
    );
    let backup_uid = backup.uid().unwrap_or_default();
    let labels = content.labels();
    for (label, value) in [
        (NAMESPACE_LABEL, namespace.as_str()),
        (BACKUP_LABEL, name.as_str()),
        (BACKUP_UID_LABEL, backup_uid.as_str()),
        (POLICY_LABEL, backup.policy_name().unwrap_or_default()),
    ] {
        ensure!(
            labels.get(label).map(String::as_str) == Some(value),
            "{name}: the content's label {label} is {:?}, not {value}",
            labels.get(label)
        );
    }
    let verdict = content.annotations().get(CONSISTENCY_ANNOTATION).map(String::as_str);
    ensure!(verdict == Some("Application"), "{name}: the content's verdict is {verdict:?}");
    let handle = content.status.as_ref().and_then(|status| status.snapshot_handle.clone());
    ensure!(
        handle.is_some() && handle == member.handle,
        "{name}: the content has handle {handle:?}, the evidence {:?}",
        member.handle
    );
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(cluster.client.clone(), &namespace);
    let snapshot = snapshots.get(&member.volume_snapshot).await?;
    let labelled = snapshot.labels().get(BACKUP_LABEL);
    ensure!(labelled == Some(&name), "{name}: the snapshot's label {BACKUP_LABEL} is {labelled:?}");
    Ok(())
}
