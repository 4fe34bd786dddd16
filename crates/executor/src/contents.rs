//! What is watched of snapshots: VolumeSnapshotContents, and VolumeGroupSnapshotContents from the first run that needs
//! them.

use kube::{Client, ResourceExt};
use stillpoint_api::backup::BACKUP_UID_LABEL;
use stillpoint_api::group_snapshot::VolumeGroupSnapshotContent;
use stillpoint_api::snapshot::{SnapshotRef, VolumeSnapshotContent};

use crate::cut_watch::{CutContent, CutStatus, CutWatch};
use crate::run::CutSeen;
use crate::snapshot_name;

/// The shared watches.
#[derive(Clone)]
pub struct ContentWatch {
    singles: CutWatch<VolumeSnapshotContent>,
    groups: CutWatch<VolumeGroupSnapshotContent>,
}

impl Default for ContentWatch {
    fn default() -> Self {
        Self::new()
    }
}

impl ContentWatch {
    /// Watches that are not running yet; [`ContentWatch::run`] feeds them.
    pub fn new() -> Self {
        Self { singles: CutWatch::new(true), groups: CutWatch::new(false) }
    }

    /// The watch on the contents of single snapshots, which is open from the start.
    pub const fn singles(&self) -> &CutWatch<VolumeSnapshotContent> {
        &self.singles
    }

    /// The watch on the contents of groups, which nobody opens before a run needs it.
    pub const fn groups(&self) -> &CutWatch<VolumeGroupSnapshotContent> {
        &self.groups
    }

    /// Keeps the watches open until the future is dropped.
    pub async fn run(self, client: Client) {
        tokio::join!(self.groups.run(client.clone()), self.singles.run(client));
    }
}

impl CutContent for VolumeSnapshotContent {
    const BEING_CREATED: &'static str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";

    fn asked_as(&self) -> &SnapshotRef {
        &self.spec.volume_snapshot_ref
    }

    fn driver(&self) -> &str {
        &self.spec.driver
    }

    fn cut_status(&self) -> Option<CutStatus<'_>> {
        self.status.as_ref().map(|status| CutStatus {
            handle: status.snapshot_handle.as_deref(),
            ready: status.ready_to_use == Some(true),
            error: status.error.as_ref().and_then(|error| error.message.as_deref()),
        })
    }

    fn cut_seen(&self, handle: &str) -> CutSeen {
        CutSeen {
            snapshot_uid: self.spec.volume_snapshot_ref.uid.clone().unwrap_or_default(),
            content: self.metadata.name.clone().unwrap_or_default(),
            handle: handle.to_owned(),
            creation_time: self.status.as_ref().and_then(|status| status.creation_time),
            volume_handles: self.spec.source.volume_handle.iter().cloned().collect(),
            parts: Vec::new(),
        }
    }

    /// The snapshot controller makes a content without labels of ours; it gets them when its point is kept.
    fn unnamed(&self) -> Option<&SnapshotRef> {
        let of = &self.spec.volume_snapshot_ref;
        let ours = of.name.as_deref().is_some_and(|name| snapshot_name::nonce_part(name).is_some());
        // One that somebody made for data that was there before is theirs.
        let cut_for_it = self.spec.source.volume_handle.is_some();
        (ours && cut_for_it && !self.labels().contains_key(BACKUP_UID_LABEL)).then_some(of)
    }

    /// A driver answers with a snapshot that it had when it takes two names for one.
    fn not_new(&self, other: &str) -> String {
        format!(
            "driver {} answered with a snapshot that VolumeSnapshotContent {other} has already, so it did not cut: \
             snapshot names collide; check --snapshot-name-uuid-length of its csi-snapshotter and whether the driver \
             truncates names",
            self.spec.driver
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cut_watch::{ContentNews, news_of};
    use kube::runtime::watcher::Event;
    use stillpoint_api::evidence::CutSignal;
    use stillpoint_api::snapshot::{
        SnapshotError, VolumeSnapshotContentSource, VolumeSnapshotContentSpec, VolumeSnapshotContentStatus,
    };
    use tokio::sync::mpsc;

    fn content(status: Option<VolumeSnapshotContentStatus>) -> VolumeSnapshotContent {
        let mut content = VolumeSnapshotContent::new(
            "c",
            VolumeSnapshotContentSpec {
                source: VolumeSnapshotContentSource {
                    volume_handle: Some("v".into()),
                    snapshot_handle: None,
                },
                volume_snapshot_ref: SnapshotRef {
                    namespace: Some("ns".into()),
                    name: Some("s".into()),
                    uid: Some("u".into()),
                },
                ..VolumeSnapshotContentSpec::default()
            },
        );
        content.status = status;
        content
    }

    fn with_handle(ready: bool) -> VolumeSnapshotContent {
        content(Some(VolumeSnapshotContentStatus {
            snapshot_handle: Some("h".into()),
            ready_to_use: Some(ready),
            ..VolumeSnapshotContentStatus::default()
        }))
    }

    fn is_cut(news: &[ContentNews]) -> bool {
        news.iter().any(|one| matches!(one, ContentNews::Cut(_)))
    }

    #[test]
    fn the_handle_is_the_cut_signal_and_an_upload_is_not_waited_for() {
        assert!(is_cut(&news_of(&with_handle(false), CutSignal::Handle, None, false)));
    }

    #[test]
    fn a_driver_that_answers_before_it_cuts_is_waited_for_until_ready() {
        assert!(!is_cut(&news_of(&with_handle(false), CutSignal::Ready, None, false)));
        assert!(is_cut(&news_of(&with_handle(true), CutSignal::Ready, None, false)));
    }

    #[test]
    fn a_handle_that_was_shown_before_is_no_signal() {
        assert!(!is_cut(&news_of(&with_handle(true), CutSignal::Handle, Some("h"), false)));
        assert!(is_cut(&news_of(&with_handle(true), CutSignal::Handle, Some("older"), false)));
    }

    #[test]
    fn a_content_without_status_does_not_show_that_the_sidecar_lives() {
        assert!(news_of(&content(None), CutSignal::Handle, None, false).is_empty());
    }

    #[test]
    fn an_error_without_a_handle_is_a_failure() {
        let failed = content(Some(VolumeSnapshotContentStatus {
            error: Some(SnapshotError { message: Some("quota".into()), time: None }),
            ..VolumeSnapshotContentStatus::default()
        }));
        let news = news_of(&failed, CutSignal::Handle, None, true);
        assert_eq!(news, vec![ContentNews::Failed("quota".into())]);
    }

    #[test]
    fn news_reaches_only_who_asked_and_once() {
        let watch = CutWatch::new(true);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let subscription = watch.subscribe("ns", "s", CutSignal::Handle, 4, sender);
        watch.take(Event::Apply(with_handle(false)));
        watch.take(Event::Apply(with_handle(true)));
        let mut got = Vec::new();
        while let Ok((token, news)) = receiver.try_recv() {
            got.push((token, is_cut(&[news])));
        }
        assert_eq!(got, vec![(4, false), (4, true)]);
        drop(subscription);
        assert_eq!(watch.waiting(), 0);
    }

    #[test]
    fn a_handle_that_another_content_has_is_a_failure_and_never_a_cut() {
        let watch = CutWatch::new(true);
        let mut older = with_handle(true);
        older.metadata.name = Some("older".into());
        older.spec.volume_snapshot_ref.name = Some("older".into());
        watch.take(Event::InitApply(older.clone()));
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let _subscription = watch.subscribe("ns", "s", CutSignal::Handle, 0, sender);
        watch.take(Event::Apply(with_handle(true)));
        let Ok((0, ContentNews::Failed(why))) = receiver.try_recv() else { panic!("no failure was told") };
        assert!(why.contains("older") && why.contains("--snapshot-name-uuid-length"), "{why}");
        assert_eq!(watch.shares_handle(&with_handle(true)).as_deref(), Some("older"));
        // Another driver may well have the same handle.
        let mut foreign = with_handle(true);
        foreign.spec.driver = "other".into();
        assert_eq!(watch.shares_handle(&foreign), None);
        watch.take(Event::Delete(older));
        assert_eq!(watch.shares_handle(&with_handle(true)), None);
    }

    #[test]
    fn a_handle_listed_before_the_snapshot_was_asked_for_is_never_reported() {
        let watch = CutWatch::new(true);
        watch.take(Event::InitApply(with_handle(true)));
        watch.take(Event::InitDone);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let _subscription = watch.subscribe("ns", "s", CutSignal::Handle, 0, sender);
        watch.take(Event::Apply(with_handle(true)));
        while let Ok((_, news)) = receiver.try_recv() {
            assert!(!is_cut(&[news]));
        }
    }

    #[test]
    fn a_content_of_ours_is_known_by_name_until_it_carries_our_label_or_goes() {
        let watch = CutWatch::new(true);
        let mut left = content(None);
        left.spec.volume_snapshot_ref.name = Some(snapshot_name::of_claim("b", "abcdefghijklmnop", "data"));
        let mut provisioned = left.clone();
        provisioned.spec.source.volume_handle = None;
        provisioned.metadata.name = Some("provisioned".into());
        for shown in [content(None), provisioned, left.clone()] {
            watch.take(Event::InitApply(shown));
        }
        let names = || watch.unnamed().into_iter().map(|one| one.content).collect::<Vec<_>>();
        assert_eq!(names(), ["c"]);
        let mut kept = left.clone();
        kept.metadata.labels = Some([(BACKUP_UID_LABEL.to_owned(), "u".to_owned())].into());
        watch.take(Event::Apply(kept));
        assert!(names().is_empty());
        watch.take(Event::Apply(left.clone()));
        watch.take(Event::Delete(left.clone()));
        assert!(names().is_empty());
        // It went while the watch was broken.
        watch.take(Event::Apply(left));
        watch.take(Event::Init);
        watch.take(Event::InitDone);
        assert!(names().is_empty());
    }
}
