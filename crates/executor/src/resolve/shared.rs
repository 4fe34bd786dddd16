//! Claims that several pods mount: one claim is one member, and whoever may write to it is held (docs/design/freeze.md
//! §2.7). Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::Refusal;
use super::decide::Picked;
use super::pods::{has_ended, writes};

/// Claim → the application whose member it is, by its place in the run.
pub(super) type Owners = BTreeMap<String, usize>;

/// Finds for every claim of the run the application that it belongs to: the first that may write to it, else the first
/// that mounts it. It is cut once.
pub(super) fn owners(picked: &[Picked<'_>]) -> Owners {
    let mut owners = Owners::new();
    for writers in [true, false] {
        for (index, application) in picked.iter().enumerate() {
            for held in &application.held {
                for (_, claim) in application.claims_of(held.pod) {
                    if !writers || writes(held.pod, &claim) {
                        owners.entry(claim).or_insert(index);
                    }
                }
            }
        }
    }
    owners
}

/// Refuses a run in which somebody may write to a member without being held with its application.
///
/// # Errors
/// The first such pod, by name.
pub(super) fn writers_are_held(pods: &[Pod], picked: &[Picked<'_>], owners: &Owners) -> Result<(), Refusal> {
    let held: Vec<BTreeSet<String>> =
        picked.iter().map(|one| one.held.iter().filter_map(|held| held.pod.uid()).collect()).collect();
    let mut all: Vec<&Pod> = pods.iter().filter(|pod| !has_ended(pod)).collect();
    all.sort_by_key(|pod| pod.name_any());
    for pod in all {
        let uid = pod.uid().unwrap_or_default();
        for (claim, owner) in owners {
            let Some(application) = picked.get(*owner) else { continue };
            let is_held = held.get(*owner).is_some_and(|held| held.contains(&uid));
            if is_held || !writes(pod, claim) {
                continue;
            }
            let name = application.name();
            let (pod, leaving) = (pod.name_any(), pod.metadata.deletion_timestamp.is_some());
            let elsewhere =
                picked.iter().zip(&held).find(|(_, held)| held.contains(&uid)).map(|(one, _)| one.name());
            return Err(match elsewhere {
                Some(other) => Refusal::stands(
                    "ClaimShared",
                    format!(
                        "claim {claim} is a member of application {name}, and pod {pod} of application {other} may write \
                         to it too: what writes to one claim is one application; select these pods together with \
                         pods: All, or mount the claim read-only in one of them"
                    ),
                ),
                None if leaving => Refusal::may_pass(
                    "PodNotHeld",
                    format!(
                        "application {name}: pod {pod} is being deleted and may still write to claim {claim}"
                    ),
                ),
                None => Refusal::stands(
                    "PodNotHeld",
                    format!(
                        "application {name}: pod {pod} mounts claim {claim} writable and is not held, so the copy could \
                         hold half of what it writes: let the selector find it and write pods: All, mount the claim \
                         read-only there, or exclude it (volumes.exclude) if nobody needs it in the copy"
                    ),
                ),
            });
        }
    }
    Ok(())
}
