//! One watch of Backups for several readers: each event can be shown again without copying its object.

use std::sync::Arc;

use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};

use crate::backup::Backup;

/// One thing that a watch of Backups shows. A Backup that cannot be read is shown as such.
pub type BackupEvent = Result<Event<Arc<DeserializeGuard<Backup>>>, Arc<watcher::Error>>;

/// What a watch shows, for several readers.
pub fn shared(event: watcher::Result<Event<DeserializeGuard<Backup>>>) -> BackupEvent {
    event.map_err(Arc::new).map(|event| match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(backup) => Event::InitApply(Arc::new(backup)),
        Event::Apply(backup) => Event::Apply(Arc::new(backup)),
        Event::Delete(backup) => Event::Delete(Arc::new(backup)),
    })
}
