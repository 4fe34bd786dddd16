//! Which claims are members, how each is cut, and whether that can become what is asked for. Pure.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use stillpoint_api::evidence::{CutKind, CutSignal, HoldKind, MemberEvidence};
use stillpoint_api::policy::{CutSignalChoice, Requirement};
use stillpoint_api::snapshot::{DEFAULT_CLASS_ANNOTATION, VolumeSnapshotClass};
use stillpoint_api::template::{Layout, Recipe};

use super::decide::One;
use super::pods::volume_claims;
use super::{Refusal, SNAPSHOT_IN_FLIGHT};

impl One<'_> {
    /// Every claim of the pod that is not excluded, with its class.
    pub(super) fn members(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<Vec<(MemberEvidence, String)>, Refusal> {
        let excluded = self
            .application
            .spec
            .volumes
            .as_ref()
            .map(|volumes| volumes.exclude.as_slice())
            .unwrap_or_default();
        let mut members = Vec::new();
        for (volume, claim) in volume_claims(pod) {
            if excluded.contains(&volume) || excluded.contains(&claim) {
                continue;
            }
            members.push(self.member(pod, container, &volume, &claim)?);
        }
        Ok(members)
    }

    fn member(
        &self,
        pod: &Pod,
        container: &Container,
        volume: &str,
        claim_name: &str,
    ) -> Result<(MemberEvidence, String), Refusal> {
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
        let mounts = container.volume_mounts.iter().flatten().filter(|mount| mount.name == volume);
        let spec = claim.spec.as_ref();
        let capacity = claim
            .status
            .as_ref()
            .and_then(|status| status.capacity.as_ref())
            .or_else(|| spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()))
            .and_then(|capacity| capacity.get("storage"))
            .map(|quantity| quantity.0.clone())
            .unwrap_or_default();
        let index = self.given.nonce.as_str().chars().take(10).collect::<String>();
        let name: String = self.given.backup.name_any().chars().take(200).collect();
        Ok((
            MemberEvidence {
                application: self.name().to_owned(),
                pod_name: pod.name_any(),
                pod_uid: pod.uid().unwrap_or_default(),
                claim_name: claim_name.to_owned(),
                mount_paths: mounts.map(|mount| mount.mount_path.clone()).collect(),
                volume_handle: csi.volume_handle.clone(),
                driver: csi.driver.clone(),
                storage_class,
                capacity,
                access_modes: spec.and_then(|spec| spec.access_modes.clone()).unwrap_or_default(),
                storage,
                // Never reused: it carries the attempt's nonce (docs/design/freeze.md §1).
                volume_snapshot: format!("{name}-{index}-{:08x}", short_hash(claim_name)),
                ..MemberEvidence::default()
            },
            class,
        ))
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

    /// What cannot become `Application` is refused before anything is frozen for nothing.
    pub(super) fn storage_fits(
        &self,
        recipe: &Recipe,
        hold: HoldKind,
        members: &[(MemberEvidence, String)],
    ) -> Result<(), Refusal> {
        if self.options.requirement != Requirement::Required {
            return Ok(());
        }
        if let Some((member, _)) = members.iter().find(|(member, _)| member.storage.cut == CutKind::Copy)
            && !(hold.locks() && recipe.copy_safe.is_some())
        {
            return Err(Refusal::stands(
                "StorageNotTrusted",
                format!(
                    "application {}: claim {} is on driver {}, which is not known to cut at one instant, and the \
                     template is not proven for copies: an operator who knows the driver adds it to the controller's \
                     --storage-trust file, with a reason; consistency: BestEffort keeps what can be had",
                    self.name(),
                    member.claim_name,
                    member.driver
                ),
            ));
        }
        if members.len() > 1 && !(hold.locks() && recipe.layout == Layout::AnyUnderLock) {
            let names =
                members.iter().map(|(member, _)| member.claim_name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Refusal::stands(
                "SeveralVolumes",
                format!(
                    "application {}: it has {} volumes ({names}) and the template is proven for one: exclude those \
                     that the server does not write (volumes.exclude)",
                    self.name(),
                    members.len()
                ),
            ));
        }
        Ok(())
    }
}

/// Tells the members of one attempt apart in a bounded name.
fn short_hash(text: &str) -> u32 {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().take(4).fold(0, |hash, byte| (hash << 8) | u32::from(*byte))
}
