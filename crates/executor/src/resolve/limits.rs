//! How large a run may become: what the Backup will have to hold must fit into one object. Pure.

use stillpoint_api::evidence::Verdict;

use super::{Refusal, Resolution};

/// Most members of one run (docs/api.md, limits).
pub const MAX_MEMBERS: usize = 256;
/// Most holds of one run (docs/api.md, limits).
pub const MAX_HOLDS: usize = 128;
/// Largest Backup, in bytes: half of what etcd takes, with room for metadata and managed fields (docs/api.md, limits).
const MAX_OBJECT: usize = 768 * 1024;
/// What a hold adds to its plan while it runs: three answers with identity, position and clock, and its times.
const PER_HOLD: usize = 2 * 1024;
/// Longest value of one fact (docs/api.md, limits).
const PER_FACT: usize = 1024;
/// What a member adds to its plan: names, UIDs and handles of its snapshot and content, times, and what settles.
const PER_MEMBER: usize = 1536;
/// Journal, conditions, window, and the spec.
const REST: usize = 32 * 1024;
/// One finding for each rule of the verdict, of usual length.
const PER_APPLICATION: usize = 10 * 256;

/// Refuses a run whose evidence would not fit.
///
/// # Errors
/// `TooLarge`, with what to split.
pub(super) fn check(resolution: &Resolution) -> Result<(), Refusal> {
    let plan = &resolution.plan;
    if plan.members.len() > MAX_MEMBERS {
        return Err(too_large(format!("it has {} volumes, more than {MAX_MEMBERS}", plan.members.len())));
    }
    if plan.holds.len() > MAX_HOLDS {
        return Err(too_many_holds());
    }
    if resolution.resolved.applications.iter().any(|one| one.pods_at_ready.len() > MAX_HOLDS) {
        return Err(too_large(format!("a selector finds more than {MAX_HOLDS} pods")));
    }
    let size = estimate(resolution);
    if size > MAX_OBJECT {
        return Err(too_large(format!(
            "its record may become {} KiB, more than {} KiB",
            size.div_ceil(1024),
            MAX_OBJECT / 1024
        )));
    }
    Ok(())
}

/// There are more pods to hold than one run may.
pub(super) fn too_many_holds() -> Refusal {
    too_large(format!("it has more than {MAX_HOLDS} pods to hold"))
}

fn too_large(what: String) -> Refusal {
    Refusal::stands(
        "TooLarge",
        format!(
            "the run is too large for one Backup: {what}; split it into several policies, by narrower selectors"
        ),
    )
}

/// Bytes of the finished Backup in the worst case: what is known now, and what each part may still grow by.
fn estimate(resolution: &Resolution) -> usize {
    let plan = &resolution.plan;
    let members: usize = plan.members.iter().map(|member| json_len(member) + PER_MEMBER).sum();
    let holds: usize = resolution.holds.iter().map(|hold| PER_HOLD + hold.facts * PER_FACT).sum();
    let applications: usize = resolution
        .resolved
        .applications
        .iter()
        .map(|application| {
            // The pods are listed twice.
            let pods = [&application.pods_at_ready, &application.chosen_at_ready];
            let again: usize = pods.into_iter().flatten().map(String::len).sum();
            json_len(application) + again + PER_APPLICATION
        })
        .sum();
    json_len(&Verdict::default()) + REST + members + holds + applications
}

fn json_len(value: &impl serde::Serialize) -> usize {
    // What cannot be written is refused by the API server later; it has no size here.
    serde_json::to_string(value).map_or(0, |text| text.len())
}
