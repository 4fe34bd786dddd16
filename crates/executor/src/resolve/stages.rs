//! Which claim holds what, and in which stage it is cut (docs/design/freeze.md §2.5). Pure.
//!
//! A role's paths belong to the claim at the longest mount that covers them. A role on no member is a refusal, with or
//! without stages: what the server writes there would not be in the copy. Where all roles of a staged template lie on one
//! claim per pod there is nothing to order: it is one cut, and no text between stages is sent.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use stillpoint_api::template::{Freeze, Stage};

use super::Refusal;
use super::decide::{HeldPod, Picked};
use super::members::Planned;
use super::pods::volume_claims;
use crate::verdict::lies_on;

/// Paths that a role's command printed, or why it did not; by UID of the pod and name of the role.
pub type VolumePaths = BTreeMap<(String, String), Result<Vec<String>, Refusal>>;

/// Claim → its roles, for one pod.
type Roles = BTreeMap<String, BTreeSet<String>>;

impl Picked<'_> {
    /// Gives every member its stage; answers how many stages the hold has, 1 where nothing is ordered.
    ///
    /// # Errors
    /// A role could not be asked, lies on no member, or its claim cannot be cut in one stage.
    pub(super) fn stage(&self, members: &mut [Planned]) -> Result<u32, Refusal> {
        if self.recipe.volume_roles.is_empty() {
            return Ok(1);
        }
        let mut pods = Vec::new();
        for held in &self.held {
            pods.push(self.roles_of(held, members)?);
        }
        let stages: &[Stage] = match &self.recipe.freeze {
            Some(Freeze::Session(session)) => &session.stages,
            Some(Freeze::Commands(_) | Freeze::None {}) | None => &[],
        };
        if stages.is_empty() || pods.iter().all(|roles| roles.len() == 1) {
            return Ok(1);
        }
        for planned in members {
            let claim = &planned.member.claim_name;
            let of = |role: &String| stages.iter().position(|stage| stage.volumes.roles.contains(role));
            let roles: BTreeSet<&String> = pods.iter().filter_map(|pod| pod.get(claim)).flatten().collect();
            let places: BTreeSet<usize> = roles.iter().filter_map(|role| of(role)).collect();
            let mut places = places.into_iter();
            match (places.next(), places.next()) {
                (Some(stage), None) => planned.member.stage = u32::try_from(stage).unwrap_or(u32::MAX),
                (Some(_), Some(_)) => {
                    let roles = roles.into_iter().cloned().collect::<Vec<_>>().join(" and ");
                    return Err(self.refusal(
                        "StagesShareClaim",
                        format!(
                            "claim {claim} holds {roles}, which are cut one after the other, and a volume is cut once: \
                             give each a volume of its own, or all of them one"
                        ),
                    ));
                }
                (None, _) => {
                    return Err(self.refusal(
                        "VolumeWithoutRole",
                        format!(
                            "the template does not say what claim {claim} is for, so it has no place in the order of the \
                             cut: exclude it (volumes.exclude) if the server does not write to it"
                        ),
                    ));
                }
            }
        }
        Ok(u32::try_from(stages.len()).unwrap_or(u32::MAX))
    }

    fn roles_of(&self, held: &HeldPod<'_>, members: &[Planned]) -> Result<Roles, Refusal> {
        let mut roles = Roles::new();
        let uid = held.pod.uid().unwrap_or_default();
        for role in self.recipe.volume_roles.keys() {
            let told = self.one.application.volume_paths.get(&(uid.clone(), role.clone()));
            let paths = told.cloned().unwrap_or_else(|| {
                Err(Refusal::may_pass(
                    "VolumeRoleUnknown",
                    format!("where pod {} has its {role} was not asked", held.pod.name_any()),
                ))
            })?;
            for path in paths {
                let claim = claim_at(held, &path)
                    .filter(|claim| members.iter().any(|planned| planned.member.claim_name == *claim));
                let Some(claim) = claim else {
                    return Err(self.refusal(
                        "PathNotCovered",
                        format!(
                            "pod {} has its {role} in {path}, which lies on no volume that is snapshotted: stop excluding \
                             its claim, or move it to a claim",
                            held.pod.name_any()
                        ),
                    ));
                };
                roles.entry(claim).or_default().insert(role.clone());
            }
        }
        Ok(roles)
    }

    fn refusal(&self, reason: &'static str, message: String) -> Refusal {
        Refusal::stands(reason, format!("application {}: {message}", self.name()))
    }
}

/// The claim at the longest mount of the held container that covers a path; nothing where that mount is no claim.
fn claim_at(held: &HeldPod<'_>, path: &str) -> Option<String> {
    let mounts =
        held.container.volume_mounts.iter().flatten().filter(|mount| lies_on(path, &mount.mount_path));
    let mount = mounts.max_by_key(|mount| mount.mount_path.trim_end_matches('/').len())?;
    volume_claims(held.pod).remove(&mount.name)
}
