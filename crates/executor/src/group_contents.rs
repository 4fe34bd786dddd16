//! What a VolumeGroupSnapshotContent says of its group's cut.
//!
//! The signal is the group's own; members are made afterwards and are never waited for.

use stillpoint_api::group_snapshot::VolumeGroupSnapshotContent;
use stillpoint_api::snapshot::SnapshotRef;

use crate::cut_watch::{CutContent, CutStatus};
use crate::run::{CutPart, CutSeen};

impl CutContent for VolumeGroupSnapshotContent {
    const BEING_CREATED: &'static str =
        "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created";

    fn asked_as(&self) -> &SnapshotRef {
        &self.spec.volume_group_snapshot_ref
    }

    fn driver(&self) -> &str {
        &self.spec.driver
    }

    fn cut_status(&self) -> Option<CutStatus<'_>> {
        self.status.as_ref().map(|status| CutStatus {
            handle: status.volume_group_snapshot_handle.as_deref(),
            ready: status.ready_to_use == Some(true),
            error: status.error.as_ref().and_then(|error| error.message.as_deref()),
        })
    }

    fn cut_seen(&self, handle: &str) -> CutSeen {
        let status = self.status.clone().unwrap_or_default();
        let parts: Vec<CutPart> = status
            .volume_snapshot_info_list
            .iter()
            .map(|one| CutPart {
                volume_handle: one.volume_handle.clone(),
                handle: one.snapshot_handle.clone(),
                creation_time: one.creation_time,
            })
            .collect();
        CutSeen {
            snapshot_uid: self.spec.volume_group_snapshot_ref.uid.clone().unwrap_or_default(),
            content: self.metadata.name.clone().unwrap_or_default(),
            handle: handle.to_owned(),
            creation_time: status.creation_time.and_then(|time| i64::try_from(time.0.as_nanosecond()).ok()),
            // What was cut, where the sidecar lists it; else what was asked for.
            volume_handles: if parts.is_empty() {
                self.spec.source.volume_handles.clone()
            } else {
                parts.iter().map(|part| part.volume_handle.clone()).collect()
            },
            parts,
        }
    }

    /// A driver answers with a group that it had when it takes two names for one.
    fn not_new(&self, other: &str) -> String {
        format!(
            "driver {} answered with a group that VolumeGroupSnapshotContent {other} has already, so it did not cut: \
             group names collide",
            self.spec.driver
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::cut_watch::{ContentNews, CutWatch};
    use kube::runtime::watcher::Event;
    use stillpoint_api::evidence::CutSignal;
    use stillpoint_api::group_snapshot::{
        VolumeGroupSnapshotContentSource, VolumeGroupSnapshotContentSpec, VolumeGroupSnapshotContentStatus,
        VolumeSnapshotInfo,
    };
    use stillpoint_api::snapshot::SnapshotError;
    use tokio::sync::mpsc;

    fn content(name: &str, handle: Option<&str>, ready: bool) -> VolumeGroupSnapshotContent {
        let mut content = VolumeGroupSnapshotContent::new(
            name,
            VolumeGroupSnapshotContentSpec {
                driver: "d".into(),
                source: VolumeGroupSnapshotContentSource { volume_handles: vec!["v".into(), "w".into()] },
                volume_group_snapshot_ref: SnapshotRef {
                    namespace: Some("ns".into()),
                    name: Some("g".into()),
                    uid: Some("u".into()),
                },
                ..VolumeGroupSnapshotContentSpec::default()
            },
        );
        content.status = Some(VolumeGroupSnapshotContentStatus {
            volume_group_snapshot_handle: handle.map(Into::into),
            ready_to_use: Some(ready),
            volume_snapshot_info_list: vec![VolumeSnapshotInfo {
                volume_handle: "v".into(),
                snapshot_handle: "sv".into(),
                creation_time: Some(7),
                ..VolumeSnapshotInfo::default()
            }],
            ..VolumeGroupSnapshotContentStatus::default()
        });
        content
    }

    /// What a run that waits for `g` is told when the watch shows these states.
    fn told(signal: CutSignal, states: Vec<VolumeGroupSnapshotContent>) -> Vec<ContentNews> {
        let watch = CutWatch::new(false);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let _subscription = watch.subscribe("ns", "g", signal, 3, sender);
        states.into_iter().for_each(|state| watch.take(Event::Apply(state)));
        let mut news = Vec::new();
        while let Ok((3, one)) = receiver.try_recv() {
            news.push(one);
        }
        news
    }

    fn cuts(news: &[ContentNews]) -> usize {
        news.iter().filter(|one| matches!(one, ContentNews::Cut(_))).count()
    }

    #[test]
    fn the_groups_handle_is_the_signal_and_says_which_volumes_were_cut() {
        let news = told(CutSignal::Handle, vec![content("c", None, false), content("c", Some("h"), false)]);
        let [ContentNews::Seen, ContentNews::Cut(seen)] = &news[..] else { panic!("{news:?}") };
        assert_eq!((seen.handle.as_str(), seen.snapshot_uid.as_str()), ("h", "u"));
        assert_eq!(seen.volume_handles, ["v"], "what was cut, not what was asked for");
        assert_eq!((seen.parts[0].handle.as_str(), seen.parts[0].creation_time), ("sv", Some(7)));
    }

    #[test]
    fn a_driver_that_answers_early_is_waited_for_until_the_group_is_ready() {
        let early = vec![content("c", Some("h"), false)];
        assert_eq!(cuts(&told(CutSignal::Ready, early.clone())), 0);
        assert_eq!(cuts(&told(CutSignal::Ready, [early, vec![content("c", Some("h"), true)]].concat())), 1);
    }

    #[test]
    fn a_signal_is_told_once_and_a_handle_from_before_never() {
        let twice = vec![content("c", Some("h"), false), content("c", Some("h"), true)];
        assert_eq!(cuts(&told(CutSignal::Handle, twice)), 1);
        let watch = CutWatch::new(false);
        watch.take(Event::InitApply(content("c", Some("h"), true)));
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let _subscription = watch.subscribe("ns", "g", CutSignal::Handle, 0, sender);
        watch.take(Event::Apply(content("c", Some("h"), true)));
        while let Ok((_, news)) = receiver.try_recv() {
            assert_eq!(cuts(&[news]), 0);
        }
        // The same handle on another content: the driver did not cut.
        watch.take(Event::Apply(content("c2", Some("h"), true)));
        assert!(matches!(receiver.try_recv(), Ok((_, ContentNews::Failed(why))) if why.contains("c has")));
    }

    #[test]
    fn an_error_without_a_handle_is_a_failure() {
        let mut failed = content("c", None, false);
        failed.status.as_mut().unwrap().error =
            Some(SnapshotError { message: Some("quota".into()), time: None });
        let news = told(CutSignal::Handle, vec![failed]);
        assert_eq!(news, [ContentNews::Seen, ContentNews::Failed("quota".into())]);
    }

    #[tokio::test]
    async fn nothing_is_watched_until_somebody_needs_a_group() {
        let watch = CutWatch::<VolumeGroupSnapshotContent>::new(false);
        assert!(!watch.is_wanted());
        assert!(!watch.listed(Duration::ZERO).await);
        assert!(watch.is_wanted());
    }
}
