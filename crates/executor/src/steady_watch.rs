//! A watch that says when it shows the present state again, however it broke.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// Pause before a watch that broke is opened again, where nothing is waited for in a budget.
pub(crate) const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Objects per page of a list: Backups with their evidence take tens of KiB each in memory, and a page is there whole.
const PAGE: u32 = 100;

/// Events of everything in `api`. After an error the watch is opened anew, a `pause` later, so that it lists again: kube's own, when it has
/// listed and cannot open the watch that follows, never says when it is open at last.
pub(crate) fn steady_watch<K>(api: Api<K>, pause: Duration) -> BoxStream<'static, watcher::Result<Event<K>>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let open = move || watcher(api.clone(), watcher::Config::default().page_size(PAGE)).boxed();
    let events = stream::unfold((open(), false), move |(mut events, broken)| {
        let open = open.clone();
        async move {
            if broken {
                tokio::time::sleep(pause).await;
                events = open();
            }
            let event = events.next().await?;
            let broken = event.is_err();
            Some((event, (events, broken)))
        }
    });
    events.boxed()
}
