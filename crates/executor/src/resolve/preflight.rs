//! The last checks before sessions are opened: what only the API server can tell, and the watch that must be open.

use std::time::Duration;

use futures::future::join_all;
use kube::api::PostParams;
use stillpoint_api::backup::GROUP_LABEL;
use tracing::warn;

use super::{Refusal, Resolution};
use crate::api_clock;
use crate::context::{Context, RequestError};
use crate::group_labels;
use crate::run::{ApiClockReading, CutId};
use crate::snapshot_request::SnapshotRequest;

/// How long the watch may take to show the present state.
const WATCH_PATIENCE: Duration = Duration::from_secs(15);

/// Labels the claims of groups, sends every snapshot request with `dryRun=All`, all at once, and makes sure that the
/// watches are open.
///
/// It finds missing rights, quota, admission and schema errors while nothing is frozen, and it leaves one warm
/// connection per member for the real requests (docs/design/freeze.md §1). Beside them the API server's clock is read,
/// for rule 6.
///
/// # Errors
/// The first request that would have failed inside the window.
pub async fn check(
    context: &Context,
    resolution: &Resolution,
    nonce: &str,
) -> Result<Option<ApiClockReading>, Refusal> {
    if !context.contents.singles().listed(WATCH_PATIENCE).await {
        return Err(Refusal::may_pass(
            "SnapshotWatchClosed",
            "the watch on VolumeSnapshotContents is not open, so a cut could not be seen: check the snapshot CRDs and \
             the controller's rights on volumesnapshotcontents",
        ));
    }
    let labelled = label_groups(context, resolution).await;
    let checked = match labelled {
        Ok(()) => {
            let clock = api_clock::read(&context.client, &*context.clock);
            let (rehearsed, clock) = tokio::join!(rehearse(context, resolution, nonce), clock);
            rehearsed.map(|()| clock)
        }
        Err(refusal) => Err(refusal),
    };
    if checked.is_err() && !resolution.groups.is_empty() {
        let namespace = &resolution.namespace;
        if let Err(error) = group_labels::remove(context, namespace, &resolution.backup_uid).await {
            warn!(namespace, %error, "the labels of a group stay on its claims; the next attempt takes them away");
        }
    }
    checked
}

/// Labels the claims of every group and reads back who carries the label; opens the watch on groups.
async fn label_groups(context: &Context, resolution: &Resolution) -> Result<(), Refusal> {
    if resolution.groups.is_empty() {
        return Ok(());
    }
    if !context.contents.groups().listed(WATCH_PATIENCE).await {
        return Err(Refusal::may_pass(
            "SnapshotWatchClosed",
            "the watch on VolumeGroupSnapshotContents is not open, so a cut could not be seen: check the group snapshot \
             CRDs and the controller's rights on volumegroupsnapshotcontents",
        ));
    }
    for group in &resolution.groups {
        let set = group_labels::set(context, &resolution.namespace, group).await;
        let Err(mismatch) = set.map_err(|error| Refusal::request(&error))? else { continue };
        let (foreign, missing) = (mismatch.foreign.join(", "), mismatch.missing.join(", "));
        let what = if missing.is_empty() {
            format!("claims {foreign} carry its label and are no members")
        } else {
            format!("claims {missing} did not keep its label")
        };
        return Err(Refusal::may_pass(
            "GroupLabelMismatch",
            format!(
                "the group of claims {} cannot be told by its label {GROUP_LABEL}={}: {what}; find out who writes labels \
                 of claims, or use snapshot.group: Never",
                group.claims.iter().cloned().collect::<Vec<_>>().join(", "),
                group.label
            ),
        ));
    }
    Ok(())
}

async fn rehearse(context: &Context, resolution: &Resolution, nonce: &str) -> Result<(), Refusal> {
    let refused = rehearse_all(context, resolution, nonce).await;
    refused.first().map_or(Ok(()), |error| Err(refusal_of(error)))
}

/// Sends every snapshot request with `dryRun=All`, all at once; why each that was refused was refused.
pub(crate) async fn rehearse_all(
    context: &Context,
    resolution: &Resolution,
    nonce: &str,
) -> Vec<RequestError> {
    let rehearsal = PostParams { dry_run: true, ..PostParams::default() };
    let cuts = (0..resolution.plan.cuts.len()).map(CutId);
    let requests = cuts.filter_map(|cut| SnapshotRequest::of(resolution, cut, nonce)).map(|request| {
        let rehearsal = rehearsal.clone();
        async move { request.post(&context.client, &resolution.namespace, "rehearse", &rehearsal).await }
    });
    join_all(requests).await.into_iter().filter_map(Result::err).collect()
}

/// What a refused rehearsal means for the run.
pub(crate) fn refusal_of(error: &RequestError) -> Refusal {
    if error.is_not_found() {
        Refusal::stands("SnapshotApiMissing", error.to_string())
    } else if error.code().is_some_and(|code| (400..500).contains(&code)) {
        Refusal::stands("SnapshotRefused", format!("{error}; nothing was frozen"))
    } else {
        Refusal::request(error)
    }
}
