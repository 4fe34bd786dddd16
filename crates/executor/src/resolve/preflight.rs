//! The last checks before sessions are opened: what only the API server can tell, and the watch that must be open.

use std::time::Duration;

use futures::future::join_all;
use kube::Api;
use kube::api::PostParams;
use stillpoint_api::snapshot::VolumeSnapshot;

use super::{Refusal, Resolution};
use crate::context::{Context, bounded};
use crate::snapshot_request;

/// How long the watch may take to show the present state.
const WATCH_PATIENCE: Duration = Duration::from_secs(15);

/// Sends every snapshot request with `dryRun=All`, all at once, and makes sure that the watch is open.
///
/// It finds missing rights, quota, admission and schema errors while nothing is frozen, and it leaves one warm
/// connection per member for the real requests (docs/design/freeze.md §1).
///
/// # Errors
/// The first request that would have failed inside the window.
pub async fn check(context: &Context, resolution: &Resolution, nonce: &str) -> Result<(), Refusal> {
    if !context.contents.listed(WATCH_PATIENCE).await {
        return Err(Refusal::may_pass(
            "SnapshotWatchClosed",
            "the watch on VolumeSnapshotContents is not open, so a cut could not be seen: check the snapshot CRDs and \
             the controller's rights on volumesnapshotcontents",
        ));
    }
    let api: Api<VolumeSnapshot> = Api::namespaced(context.client.clone(), &resolution.namespace);
    let rehearsal = PostParams { dry_run: true, ..PostParams::default() };
    let requests = resolution.plan.members.iter().zip(&resolution.classes).map(|(member, class)| {
        let snapshot = snapshot_request::build(resolution, member, class, nonce);
        let (api, rehearsal) = (api.clone(), rehearsal.clone());
        async move {
            let what = format!("rehearse the snapshot of claim {}", member.claim_name);
            bounded(what, api.create(&rehearsal, &snapshot)).await
        }
    });
    for answer in join_all(requests).await {
        if let Err(error) = answer {
            return Err(if error.is_not_found() {
                Refusal::stands("SnapshotApiMissing", error.to_string())
            } else if error.code().is_some_and(|code| (400..500).contains(&code)) {
                Refusal::stands("SnapshotRefused", format!("{error}; nothing was frozen"))
            } else {
                Refusal::request(&error)
            });
        }
    }
    Ok(())
}
