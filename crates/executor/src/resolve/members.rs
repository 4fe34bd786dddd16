//! Which claims are members, and how each is cut. Pure.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use stillpoint_api::evidence::{CutSignal, MemberEvidence, MemberMount};
use stillpoint_api::policy::CutSignalChoice;
use stillpoint_api::snapshot::{DEFAULT_CLASS_ANNOTATION, VolumeSnapshotClass};

use super::decide::{HeldPod, One, Picked};
use super::shared::Owners;
use super::{Refusal, SNAPSHOT_IN_FLIGHT};
use crate::snapshot_name;
use crate::verdict::lies_on;

/// A claim that will be cut.
pub(super) struct Planned {
    /// The member.
    pub(super) member: MemberEvidence,
    /// Its snapshot class.
    pub(super) class: String,
}

impl Picked<'_> {
    /// Every claim that belongs to this application and is not excluded, once, with every held pod that mounts it.
    pub(super) fn members(&self, index: usize, owners: &Owners) -> Result<Vec<Planned>, Refusal> {
        let mut members: Vec<Planned> = Vec::new();
        for held in &self.held {
            for (volume, claim) in self.claims_of(held.pod) {
                if owners.get(&claim) != Some(&index) {
                    continue;
                }
                let paths = mount_paths(held.container, &volume);
                match members.iter_mut().find(|planned| planned.member.claim_name == claim) {
                    None => members.push(self.one.member(held, &claim, paths)?),
                    Some(known) => also_mounted(&mut known.member, held.pod, paths),
                }
            }
        }
        Ok(members)
    }
}

/// Adds another mount of a claim that is a member already.
fn also_mounted(member: &mut MemberEvidence, pod: &Pod, paths: Vec<String>) {
    let uid = pod.uid().unwrap_or_default();
    if member.pod_uid == uid {
        member.mount_paths.extend(paths);
        return;
    }
    match member.also_mounted.iter_mut().find(|mount| mount.pod_uid == uid) {
        Some(mount) => mount.mount_paths.extend(paths),
        None => member.also_mounted.push(MemberMount {
            pod_name: pod.name_any(),
            pod_uid: uid,
            mount_paths: paths,
        }),
    }
}

/// Where a container mounts a pod volume.
fn mount_paths(container: &Container, volume: &str) -> Vec<String> {
    let mounts = container.volume_mounts.iter().flatten().filter(|mount| mount.name == volume);
    mounts.map(|mount| mount.mount_path.clone()).collect()
}

/// Mounts of a container below its members' that are no members themselves: what the server writes there is not in the
/// copy, however its path begins.
pub(super) fn foreign_mounts(container: &Container, members: &[String]) -> Vec<String> {
    let mounts = container.volume_mounts.iter().flatten().map(|mount| &mount.mount_path);
    mounts
        .filter(|path| !members.contains(*path) && members.iter().any(|member| lies_on(path, member)))
        .cloned()
        .collect()
}

impl One<'_> {
    fn member(&self, held: &HeldPod<'_>, claim_name: &str, paths: Vec<String>) -> Result<Planned, Refusal> {
        let pod = held.pod;
        let at = || format!("application {}: claim {claim_name}", self.name());
        let (claim, bound) = self
            .application
            .claims
            .get(claim_name)
            .ok_or_else(|| Refusal::may_pass("ClaimNotFound", format!("{} does not exist", at())))?;
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        let Some(bound) = bound.as_ref().filter(|_| phase == "Bound") else {
            return Err(Refusal::may_pass("ClaimNotBound", format!("{} is {phase}, not Bound", at())));
        };
        let Some(csi) = bound.spec.as_ref().and_then(|spec| spec.csi.as_ref()) else {
            return Err(Refusal::stands(
                "NotCsi",
                format!(
                    "{} is on volume {}, which no CSI driver made: it cannot be snapshotted; exclude it \
                     (volumes.exclude) or move the data to a CSI class",
                    at(),
                    bound.name_any()
                ),
            ));
        };
        if let Some(other) = self.observed.in_flight.get(claim_name) {
            return Err(Refusal::may_pass(
                SNAPSHOT_IN_FLIGHT,
                format!(
                    "{} has a snapshot in flight ({other}): another one now would wait behind it while frozen; if it \
                     does not go away, check the snapshot controller and the sidecar of {}",
                    at(),
                    csi.driver
                ),
            ));
        }
        let class = self.class(&csi.driver, claim_name)?;
        let storage_class =
            claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
        let mut storage = self.given.storage.look_up(&csi.driver, &storage_class);
        if self.options.snapshot.cut_signal == CutSignalChoice::Ready {
            storage.signal = CutSignal::Ready;
        } else if self.options.snapshot.cut_signal == CutSignalChoice::Handle
            && storage.signal != CutSignal::Handle
        {
            return Err(Refusal::stands(
                "StorageNotTrusted",
                format!(
                    "{} is on driver {}, whose handle is not known to mean that it cut: snapshot.cutSignal Handle needs \
                     an entry in the controller's --storage-trust file",
                    at(),
                    csi.driver
                ),
            ));
        }
        let spec = claim.spec.as_ref();
        let capacity = claim
            .status
            .as_ref()
            .and_then(|status| status.capacity.as_ref())
            .or_else(|| spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()))
            .and_then(|capacity| capacity.get("storage"))
            .map(|quantity| quantity.0.clone())
            .unwrap_or_default();
        let nonce = self.given.nonce.as_str();
        Ok(Planned {
            member: MemberEvidence {
                application: self.name().to_owned(),
                pod_name: pod.name_any(),
                pod_uid: pod.uid().unwrap_or_default(),
                claim_name: claim_name.to_owned(),
                mount_paths: paths,
                volume_handle: csi.volume_handle.clone(),
                driver: csi.driver.clone(),
                storage_class,
                capacity,
                access_modes: spec.and_then(|spec| spec.access_modes.clone()).unwrap_or_default(),
                storage,
                // Never reused: it carries the attempt's nonce (docs/design/freeze.md §1).
                volume_snapshot: snapshot_name::of_claim(&self.given.backup.name_any(), nonce, claim_name),
                ..MemberEvidence::default()
            },
            class,
        })
    }

    fn class(&self, driver: &str, claim: &str) -> Result<String, Refusal> {
        let of_driver: Vec<&VolumeSnapshotClass> =
            self.classes.iter().filter(|class| class.driver == driver).collect();
        let listed = || {
            let names: Vec<&str> =
                of_driver.iter().filter_map(|class| class.metadata.name.as_deref()).collect();
            if names.is_empty() {
                "there is none for it".to_owned()
            } else {
                format!("there is {}", names.join(", "))
            }
        };
        if let Some(asked) = &self.options.snapshot.volume_snapshot_class_name {
            return match self.classes.iter().find(|class| class.metadata.name.as_ref() == Some(asked)) {
                None => Err(Refusal::stands(
                    "SnapshotClassMissing",
                    format!(
                        "claim {claim}: there is no VolumeSnapshotClass {asked}; for driver {driver} {}",
                        listed()
                    ),
                )),
                Some(class) if class.driver != driver => Err(Refusal::stands(
                    "SnapshotClassMismatch",
                    format!(
                        "claim {claim} is on driver {driver}, and class {asked} is for {}; {}",
                        class.driver,
                        listed()
                    ),
                )),
                Some(_) => Ok(asked.clone()),
            };
        }
        let is_default = |class: &&&VolumeSnapshotClass| {
            let annotations = class.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(DEFAULT_CLASS_ANNOTATION)).is_some_and(|value| value == "true")
        };
        let chosen = match of_driver.as_slice() {
            [only] => Some(*only),
            several => several.iter().find(is_default).copied(),
        };
        chosen.and_then(|class| class.metadata.name.clone()).ok_or_else(|| {
            Refusal::stands(
                "SnapshotClassMissing",
                format!(
                    "claim {claim} is on driver {driver}, which has no default VolumeSnapshotClass; {}: name one in \
                     snapshot.volumeSnapshotClassName",
                    listed()
                ),
            )
        })
    }
}
