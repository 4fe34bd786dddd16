//! Which claims a Restore makes. Pure.

use jiff::Timestamp;
use kube::ResourceExt;
use stillpoint_api::backup::{Backup, Phase};
use stillpoint_api::evidence::MemberEvidence;
use stillpoint_api::restore::{CloneTarget, Restore, RestoreTarget};

use crate::resolve::Refusal;

/// The claims to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePlan {
    /// One per member.
    pub claims: Vec<NewClaim>,
}

/// One claim to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClaim {
    /// Name of the new claim.
    pub name: String,
    /// Claim the data came from.
    pub source: String,
    /// The snapshot.
    pub snapshot: String,
    /// Its UID.
    pub snapshot_uid: String,
    /// Its content.
    pub content: String,
    /// Its handle.
    pub handle: String,
    /// Class of the new claim.
    pub storage_class: String,
    /// Access modes of the new claim.
    pub access_modes: Vec<String>,
    /// Size: the source's, or what the snapshot needs where that is more.
    pub size: String,
}

/// Plans a Restore from a Backup.
///
/// # Errors
/// The Backup is no recovery point, or the target does not fit it.
pub fn plan(restore: &Restore, backup: &Backup) -> Result<RestorePlan, Refusal> {
    let target = match &restore.spec.target {
        RestoreTarget::Clone(target) => target,
        RestoreTarget::InPlace(_) | RestoreTarget::Drill(_) => {
            return Err(Refusal::stands("RestoreNotAccepted", "only spec.target.clone is supported yet"));
        }
    };
    let status = backup.status.clone().unwrap_or_default();
    if status.phase != Phase::Succeeded || backup.metadata.deletion_timestamp.is_some() {
        return Err(Refusal::stands(
            "NotARecoveryPoint",
            format!("Backup {} is {:?}: only a Succeeded one holds data", backup.name_any(), status.phase),
        ));
    }
    let known: Vec<&str> = status.members.iter().map(|member| member.application.as_str()).collect();
    if let Some(unknown) = target.applications.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Refusal::stands(
            "ApplicationNotFound",
            format!("Backup {} has no application {unknown}; it has {}", backup.name_any(), known.join(", ")),
        ));
    }
    let mut claims = Vec::new();
    for member in &status.members {
        if !target.applications.is_empty() && !target.applications.contains(&member.application) {
            continue;
        }
        claims.push(new_claim(restore, target, backup, member)?);
    }
    let mut names: Vec<&str> = claims.iter().map(|claim| claim.name.as_str()).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Refusal::stands(
            "NamesCollide",
            "two claims would get the same name: correct target.clone.names",
        ));
    }
    Ok(RestorePlan { claims })
}

fn new_claim(
    restore: &Restore,
    target: &CloneTarget,
    backup: &Backup,
    member: &MemberEvidence,
) -> Result<NewClaim, Refusal> {
    // A group whose cut list was not seen shows the handle of a member only when it is settled.
    let settled = member.settled.as_ref().and_then(|settled| settled.handle.as_ref());
    let handle = member.handle.as_ref().or(settled.filter(|_| member.group.is_some()));
    let (Some(uid), Some(content), Some(handle)) = (&member.volume_snapshot_uid, &member.content, handle)
    else {
        return Err(Refusal::stands(
            "NotARecoveryPoint",
            format!("Backup {} has no snapshot of claim {}", backup.name_any(), member.claim_name),
        ));
    };
    let name = target.names.get(&member.claim_name).cloned().unwrap_or_else(|| {
        let prefix = target.prefix.clone().unwrap_or_else(|| format!("{}-", restore.name_any()));
        format!("{prefix}{}", member.claim_name)
    });
    let least = member.settled.as_ref().and_then(|settled| settled.restore_size).unwrap_or(0);
    let size = match bytes(&member.capacity) {
        // The source's own text where it is enough: a person recognises it.
        Some(capacity) if capacity >= i128::from(least) => member.capacity.clone(),
        Some(_) | None => least.to_string(),
    };
    Ok(NewClaim {
        name,
        source: member.claim_name.clone(),
        snapshot: member.volume_snapshot.clone(),
        snapshot_uid: uid.clone(),
        content: content.clone(),
        handle: handle.clone(),
        storage_class: member.storage_class.clone(),
        access_modes: member.access_modes.clone(),
        size,
    })
}

/// Bytes of a quantity such as `1Gi`, `500M` or `1073741824`.
fn bytes(quantity: &str) -> Option<i128> {
    let split = quantity.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(split);
    let factor: i128 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    match number.parse::<i128>() {
        Ok(whole) => whole.checked_mul(factor),
        // 1.5Gi: quantities may have a fraction.
        Err(_) => number.parse::<f64>().ok().map(|fraction| (fraction * factor as f64) as i128),
    }
}

/// The newest proven point of a policy, cut before an instant where one is given.
pub fn newest_proven(backups: Vec<Backup>, policy: &str, before: Option<Timestamp>) -> Option<Backup> {
    let cut =
        |backup: &Backup| backup.status.as_ref().and_then(|status| status.cut.as_ref()).map(|cut| cut.0);
    backups
        .into_iter()
        .filter(|backup| backup.policy_name() == Some(policy) && backup.proven())
        .filter(|backup| backup.metadata.deletion_timestamp.is_none())
        .filter(|backup| before.is_none_or(|before| cut(backup).is_some_and(|cut| cut < before)))
        .max_by_key(cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use stillpoint_api::backup::{BackupSpec, BackupStatus, PolicyRef, RunSpec, Trigger};
    use stillpoint_api::evidence::{Consistency, SettledMember};
    use stillpoint_api::restore::{RestoreSource, RestoreSpec, RestoreTrigger, SourceBackup};

    fn backup(name: &str, cut: i64, consistency: Consistency) -> Backup {
        let spec = BackupSpec {
            run: RunSpec {
                policy_ref: Some(PolicyRef { name: "p".into(), uid: None }),
                ..RunSpec::default()
            },
            trigger: Trigger::Manual,
            cancel: false,
            hold: None,
        };
        let mut backup = Backup::new(name, spec);
        backup.status = Some(BackupStatus {
            phase: Phase::Succeeded,
            consistency: Some(consistency),
            cut: Some(MicroTime(Timestamp::from_second(cut).unwrap())),
            members: vec![MemberEvidence {
                application: "db".into(),
                claim_name: "data".into(),
                capacity: "1Gi".into(),
                volume_snapshot: "s".into(),
                volume_snapshot_uid: Some("u".into()),
                content: Some("c".into()),
                handle: Some("h".into()),
                settled: Some(SettledMember { restore_size: Some(1 << 30), ..SettledMember::default() }),
                ..MemberEvidence::default()
            }],
            ..BackupStatus::default()
        });
        backup
    }

    fn restore(target: CloneTarget) -> Restore {
        Restore::new(
            "r",
            RestoreSpec {
                source: RestoreSource::BackupRef(SourceBackup { name: "b".into(), namespace: None }),
                target: RestoreTarget::Clone(target),
                trigger: RestoreTrigger::Manual,
                policy_ref: None,
            },
        )
    }

    #[test]
    fn a_clone_is_named_after_its_restore_unless_told_otherwise() {
        let point = backup("b", 10, Consistency::Application);
        let name = |target| plan(&restore(target), &point).unwrap().claims[0].name.clone();
        assert_eq!(name(CloneTarget::default()), "r-data");
        assert_eq!(name(CloneTarget { prefix: Some("x-".into()), ..CloneTarget::default() }), "x-data");
        let names = [("data".to_owned(), "mine".to_owned())].into();
        assert_eq!(name(CloneTarget { names, ..CloneTarget::default() }), "mine");
    }

    #[test]
    fn a_clone_is_at_least_as_large_as_its_snapshot() {
        let mut point = backup("b", 10, Consistency::Application);
        let size =
            |point: &Backup| plan(&restore(CloneTarget::default()), point).unwrap().claims[0].size.clone();
        assert_eq!(size(&point), "1Gi");
        let member = &mut point.status.as_mut().unwrap().members[0];
        member.settled.as_mut().unwrap().restore_size = Some(2 << 30);
        assert_eq!(size(&point), "2147483648");
    }

    #[test]
    fn what_holds_no_data_is_refused() {
        let mut failed = backup("b", 10, Consistency::None);
        failed.status.as_mut().unwrap().phase = Phase::Failed;
        assert_eq!(plan(&restore(CloneTarget::default()), &failed).unwrap_err().reason, "NotARecoveryPoint");
        let unknown = CloneTarget { applications: vec!["web".into()], ..CloneTarget::default() };
        let refusal = plan(&restore(unknown), &backup("b", 10, Consistency::Application)).unwrap_err();
        assert_eq!(refusal.reason, "ApplicationNotFound");
    }

    #[test]
    fn the_latest_point_is_the_newest_proven_one_before_the_instant() {
        let all = || {
            vec![
                backup("old", 10, Consistency::Application),
                backup("new", 30, Consistency::Application),
                backup("unproven", 40, Consistency::Crash),
            ]
        };
        assert_eq!(newest_proven(all(), "p", None).unwrap().name_any(), "new");
        let before = Some(Timestamp::from_second(30).unwrap());
        assert_eq!(newest_proven(all(), "p", before).unwrap().name_any(), "old");
        assert!(newest_proven(all(), "other", None).is_none());
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        assert_eq!(bytes("1Gi"), Some(1 << 30));
        assert_eq!(bytes("1073741824"), Some(1 << 30));
        assert_eq!(bytes("1.5Ki"), Some(1536));
        assert_eq!(bytes("1parsec"), None);
    }
}
