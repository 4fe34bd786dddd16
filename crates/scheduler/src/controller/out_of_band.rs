//! Notices that somebody else deleted a snapshot of a point, and says so in the Backup: `Ready=False, SnapshotDeleted`.
//!
//! Guarantees: from the write on, the point counts nowhere as a proven one; nothing is believed that only a watch says: the
//! snapshot, its content, its Backup and the namespace are read, and what is being deleted with its Backup or its namespace
//! is no news. One shared watch on the metadata of each kind. Only the leader looks and writes; a status that changed
//! meanwhile is looked at again. That snapshots cannot be watched keeps no slot from starting (docs/retention.md).

use std::collections::HashSet;
use std::sync::Arc;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use stillpoint_api::backup::{
    BACKUP_UID_LABEL, Backup, NAMESPACE_LABEL, POLICY_LABEL, Phase, READY, SNAPSHOT_DELETED,
};
use stillpoint_api::conditions;
use stillpoint_api::evidence::MemberEvidence;
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use tokio::task::JoinSet;

use super::Scheduler;
use crate::apply::{Apply, ApplyError, api};
use crate::heap::DueHeap;
use crate::projection::PolicyKey;
use crate::snapshots::{Kind, SnapshotIndex};

/// Backups that are looked at once: each look is some reads.
const AT_ONCE: usize = 8;

/// How long a Backup that was just shown may be ahead of the watches on its snapshots: they are told within a second, and a
/// busy API server takes some more.
const LAG: SignedDuration = SignedDuration::from_secs(5);

/// When a look is repeated that came in between something, or failed.
const AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// Snapshots that a message names; the status has all of them.
const NAMED: usize = 3;

/// A Backup: its place in the projection and its name.
type Id = (PolicyKey, String);

/// What a watch showed.
pub(super) enum News {
    Listing(Kind),
    Listed(Kind),
    There(Kind, ObjectMeta),
    Gone(Kind, ObjectMeta),
}

/// What a look at a Backup came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Nothing more is to be done until something changes.
    Done,
    /// Something changed meanwhile.
    Again,
}

/// What is known and under way.
pub(super) struct OutOfBand {
    pub(super) news: BoxStream<'static, News>,
    pub(super) looks: JoinSet<(Id, Result<(), ApplyError>, bool)>,
    index: SnapshotIndex,
    /// Backups that seem to lack a snapshot, and when they are looked at.
    doubtful: DueHeap<Id>,
    looking: HashSet<Id>,
}

impl Default for OutOfBand {
    fn default() -> Self {
        Self {
            news: stream::pending().boxed(),
            looks: JoinSet::new(),
            index: SnapshotIndex::default(),
            doubtful: DueHeap::default(),
            looking: HashSet::new(),
        }
    }
}

impl OutOfBand {
    /// Watches the snapshots and contents of every Backup.
    pub(super) fn watching(client: &Client) -> Self {
        let ours = || watcher::Config::default().labels(BACKUP_UID_LABEL);
        let snapshots = watcher(Api::<PartialObjectMeta<VolumeSnapshot>>::all(client.clone()), ours());
        let contents = watcher(Api::<PartialObjectMeta<VolumeSnapshotContent>>::all(client.clone()), ours());
        let snapshots = news(Kind::Snapshot, "volumesnapshots", snapshots.default_backoff());
        let contents = news(Kind::Content, "volumesnapshotcontents", contents.default_backoff());
        Self { news: stream::select(snapshots, contents).boxed(), ..Self::default() }
    }

    pub(super) fn next_due(&mut self) -> Option<Timestamp> {
        // Without room the end of a look wakes the loop.
        if self.looks.len() < AT_ONCE { self.doubtful.next_due() } else { None }
    }
}

fn news<K: 'static>(
    kind: Kind,
    what: &'static str,
    events: impl Stream<Item = Result<Event<PartialObjectMeta<K>>, watcher::Error>> + Send + 'static,
) -> impl Stream<Item = News> + Send + 'static
where
    PartialObjectMeta<K>: Send,
{
    events.filter_map(move |event| {
        let told = match event {
            Ok(Event::Init) => Some(News::Listing(kind)),
            Ok(Event::InitDone) => Some(News::Listed(kind)),
            Ok(Event::InitApply(object) | Event::Apply(object)) => Some(News::There(kind, object.metadata)),
            Ok(Event::Delete(object)) => Some(News::Gone(kind, object.metadata)),
            Err(error) => {
                tracing::warn!(%error, "the watch of {what} failed and is retried; deleted ones are not noticed");
                None
            }
        };
        std::future::ready(told)
    })
}

impl Scheduler {
    pub(super) fn snapshot_news(&mut self, news: News) {
        match news {
            News::Listing(kind) => self.out_of_band.index.listing(kind),
            News::Listed(kind) => {
                self.out_of_band.index.listed(kind);
                self.doubt_all();
            }
            News::There(kind, object) if object.deletion_timestamp.is_some() => {
                self.snapshot_gone(kind, &object)
            }
            News::There(kind, object) => {
                if let (Some(uid), Some(owner)) = (&object.uid, label(&object, BACKUP_UID_LABEL)) {
                    self.out_of_band.index.present(kind, uid, owner);
                }
            }
            News::Gone(kind, object) => self.snapshot_gone(kind, &object),
        }
    }

    fn snapshot_gone(&mut self, kind: Kind, object: &ObjectMeta) {
        let news = object.uid.as_ref().is_some_and(|uid| self.out_of_band.index.gone(kind, uid));
        let Some(owner) = label(object, BACKUP_UID_LABEL).filter(|_| news) else { return };
        let namespace = match kind {
            Kind::Snapshot => object.namespace.as_deref(),
            Kind::Content => label(object, NAMESPACE_LABEL),
        };
        let policy = label(object, POLICY_LABEL).unwrap_or_default();
        if let Some(id) = self.projection.find(namespace.unwrap_or_default(), policy, owner) {
            let now = self.now();
            self.doubt(id, now);
        }
    }

    /// A Backup was shown: it may have come before its snapshots, or after their end.
    pub(super) fn doubt_backup(&mut self, backup: &Backup) {
        let later = self.now().saturating_add(LAG).unwrap_or(Timestamp::MAX);
        self.doubt((crate::projection::Projection::key_of(backup), backup.name_any()), later);
    }

    /// Every Backup, after a list or at the begin of a term of lead.
    pub(super) fn doubt_all(&mut self) {
        if !self.listed() {
            return;
        }
        let later = self.now().saturating_add(LAG).unwrap_or(Timestamp::MAX);
        let every: Vec<Id> =
            self.projection.every_backup().map(|(key, view)| (key.clone(), view.name.clone())).collect();
        every.into_iter().for_each(|id| self.doubt(id, later));
    }

    fn doubt(&mut self, id: Id, due: Timestamp) {
        if self.term.is_some() && self.seems_short(&id) {
            self.out_of_band.doubtful.set(id, due);
        }
    }

    fn seems_short(&self, (key, name): &Id) -> bool {
        self.projection.backup(key, name).is_some_and(|view| {
            view.may_lose_snapshots() && self.out_of_band.index.is_short(&view.uid, view.snapshots)
        })
    }

    /// Looks at what still seems to lack something when its time has come.
    pub(super) fn look_at_doubtful(&mut self) {
        if self.term.is_none() {
            self.out_of_band.doubtful = DueHeap::default();
            return;
        }
        let now = self.now();
        while self.out_of_band.looks.len() < AT_ONCE {
            let Some(id) = self.out_of_band.doubtful.pop_due(now) else { return };
            if !self.seems_short(&id) {
                continue;
            }
            if !self.out_of_band.looking.insert(id.clone()) {
                let again = now.saturating_add(AGAIN).unwrap_or(Timestamp::MAX);
                self.out_of_band.doubtful.set(id, again);
                continue;
            }
            let Some(uid) = self.projection.backup(&id.0, &id.1).map(|view| view.uid.clone()) else {
                continue;
            };
            let context = self.context.clone();
            self.out_of_band.looks.spawn(async move {
                let found = look(&context, &id.0.namespace, &id.1, &uid).await;
                let again = !matches!(found, Ok(Look::Done));
                (id, found.map(drop), again)
            });
        }
    }

    pub(super) fn looked(&mut self, (id, result, again): (Id, Result<(), ApplyError>, bool)) {
        self.out_of_band.looking.remove(&id);
        if let Err(error) = result {
            let (key, name) = &id;
            tracing::warn!(namespace = %key.namespace, backup = name, %error,
                "whether the snapshots of a Backup were deleted could not be found out; it is tried again");
        }
        if again {
            let due = self.now().saturating_add(AGAIN).unwrap_or(Timestamp::MAX);
            self.doubt(id, due);
        }
    }
}

fn label<'a>(object: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    object.labels.as_ref()?.get(name).map(String::as_str)
}

/// Reads what is there, and writes when a snapshot of a point that stays is not.
async fn look(context: &Arc<Apply>, namespace: &str, name: &str, uid: &str) -> Result<Look, ApplyError> {
    let backups: Api<Backup> = Api::namespaced(context.client.clone(), namespace);
    let Some(backup) = backups.get_opt(name).await.map_err(api("read a Backup"))? else {
        return Ok(Look::Done);
    };
    let status = backup.status.clone().unwrap_or_default();
    let stays = backup.metadata.deletion_timestamp.is_none() && backup.uid().as_deref() == Some(uid);
    if !stays || status.phase != Phase::Succeeded || status.snapshot_deleted() {
        return Ok(Look::Done);
    }
    let spaces: Api<Namespace> = Api::all(context.client.clone());
    let space = spaces.get_opt(namespace).await.map_err(api("read the namespace"))?;
    // A namespace takes its snapshots along; the contents, and the data, stay.
    if space.is_none_or(|space| space.metadata.deletion_timestamp.is_some()) {
        return Ok(Look::Done);
    }
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(context.client.clone(), namespace);
    let contents: Api<VolumeSnapshotContent> = Api::all(context.client.clone());
    let mut gone = Vec::new();
    for member in status.kept_members() {
        let snapshot = snapshots.get_metadata_opt(&member.volume_snapshot).await;
        let snapshot = snapshot.map_err(api("read a VolumeSnapshot"))?;
        let staying = |metadata: &ObjectMeta| metadata.deletion_timestamp.is_none();
        let same = snapshot.filter(|found| found.metadata.uid == member.volume_snapshot_uid);
        if !same.is_some_and(|found| staying(&found.metadata)) {
            gone.push((Kind::Snapshot, member));
            continue;
        }
        let content = member.content.as_deref().unwrap_or_default();
        let content = contents.get_metadata_opt(content).await;
        if !content
            .map_err(api("read a VolumeSnapshotContent"))?
            .is_some_and(|found| staying(&found.metadata))
        {
            gone.push((Kind::Content, member));
        }
    }
    if gone.is_empty() {
        return Ok(Look::Done);
    }
    let message = message(&gone);
    let mut wanted = backup.clone();
    let mut marked = status.clone();
    let lost = conditions::condition(
        READY,
        false,
        SNAPSHOT_DELETED,
        &message,
        backup.metadata.generation,
        context.clock.wall(),
    );
    conditions::set(&mut marked.conditions, lost);
    wanted.status = Some(marked);
    context.fence()?;
    match backups.replace_status(name, &PostParams::default(), &wanted).await {
        Ok(_) => {}
        // Changed meanwhile, perhaps deleted: so its snapshots may go with it.
        Err(kube::Error::Api(refused)) if refused.code == 409 => return Ok(Look::Again),
        Err(kube::Error::Api(refused)) if refused.code == 404 => return Ok(Look::Done),
        Err(error) => return Err(api("write that a point lost its snapshot")(error)),
    }
    tracing::warn!(namespace, backup = name, message, "a recovery point cannot be used any more");
    context.tell_about(&backup.object_ref(&()), SNAPSHOT_DELETED, message).await;
    Ok(Look::Done)
}

/// What is gone, what is left, and what to do.
fn message(gone: &[(Kind, &MemberEvidence)]) -> String {
    let one = |(kind, member): &(Kind, &MemberEvidence)| {
        let claim = &member.claim_name;
        let content = member.content.as_deref().unwrap_or_default();
        match kind {
            Kind::Snapshot => format!("VolumeSnapshot {} of claim {claim}", member.volume_snapshot),
            Kind::Content => format!("VolumeSnapshotContent {content} of claim {claim}"),
        }
    };
    let mut names: Vec<String> = gone.iter().take(NAMED).map(one).collect();
    if gone.len() > NAMED {
        names.push(format!("{} more", gone.len() - NAMED));
    }
    format!(
        "deleted, and not by Stillpoint: {}. The point does not count any more. The storage system keeps the data: its \
         handle is in status.members; to read it, make a VolumeSnapshotContent with that handle and a VolumeSnapshot for it \
         (docs/retention.md). Deleting this Backup deletes what is left of the data",
        names.join(", ")
    )
}
