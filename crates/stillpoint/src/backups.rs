//! One watch of all Backups for every part of the controller: with their evidence they are the most of what it reads, and each
//! is parsed once.
//!
//! Guarantees: every reader is shown every event in order; a reader that does not take its events holds the others up and loses
//! nothing, so that no more than [`AHEAD`] Backups are in memory for it; one that has ended holds nobody up.

use futures::stream::{self, StreamExt as _};
use stillpoint_api::backup_events::BackupEvent;
use stillpoint_executor::controller::BackupEvents;
use tokio::sync::mpsc;

/// Events that a reader may be behind. A Backup with its evidence takes some tens of KiB in memory.
const AHEAD: usize = 16;

/// Shows `events` to `READERS` readers for as long as it is polled; completes when the events end or every reader has ended.
pub fn share<const READERS: usize>(
    mut events: BackupEvents,
) -> (impl Future<Output = ()> + Send, [BackupEvents; READERS]) {
    let pairs = [(); READERS].map(|()| mpsc::channel::<BackupEvent>(AHEAD));
    let mut senders = Vec::with_capacity(READERS);
    let readers = pairs.map(|(sender, receiver)| {
        senders.push(sender);
        stream::unfold(receiver, |mut events| async { Some((events.recv().await?, events)) }).boxed()
    });
    let sharing = async move {
        while let Some(event) = events.next().await {
            for sender in &senders {
                // The object is not copied. An error of sending: it has ended.
                let _ = sender.send(event.clone()).await;
            }
            if senders.iter().all(mpsc::Sender::is_closed) {
                return;
            }
        }
    };
    (sharing, readers)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;
    use kube::core::DeserializeGuard;
    use kube::runtime::watcher::{self, Event};
    use serde_json::json;
    use stillpoint_api::Backup;

    use super::*;

    fn backup(number: usize) -> Arc<DeserializeGuard<Backup>> {
        let object = json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": format!("b{number}"), "namespace": "shop"},
            "spec": {"trigger": "Manual", "run": {"policyRef": {"name": "nightly"}}},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn many(count: usize) -> BackupEvents {
        let list = (0..count).map(|number| Ok(Event::InitApply(backup(number))));
        let first = [Err(Arc::new(watcher::Error::NoResourceVersion)), Ok(Event::Init)];
        stream::iter(first.into_iter().chain(list).chain([Ok(Event::InitDone)])).boxed()
    }

    fn told(event: &BackupEvent) -> String {
        match event {
            Err(error) => error.to_string(),
            Ok(Event::Init) => "init".to_owned(),
            Ok(Event::InitDone) => "done".to_owned(),
            Ok(Event::InitApply(backup) | Event::Apply(backup) | Event::Delete(backup)) => {
                backup.0.as_ref().unwrap().metadata.name.clone().unwrap()
            }
        }
    }

    #[tokio::test]
    async fn every_reader_is_shown_everything_in_order_and_one_that_ended_holds_nobody_up() {
        let count = 5 * AHEAD;
        let (sharing, [first, second, third]) = share(many(count));
        drop(third);
        let read = |events: BackupEvents| async move {
            events.map(|event| told(&event)).collect::<Vec<String>>().await
        };
        let ((), first, second) = tokio::join!(sharing, read(first), read(second));
        assert_eq!(first, second);
        assert_eq!(first.len(), count + 3);
        assert_eq!(first[1..4], ["init", "b0", "b1"]);
        assert_eq!(first[count + 2], "done");
    }

    #[test]
    fn a_reader_that_waits_holds_the_watch_up_and_loses_nothing() {
        let count = 5 * AHEAD;
        let (sharing, [mut first, mut second]) = share(many(count));
        let mut sharing = Box::pin(sharing);
        let mut taken = 0;
        // `second` takes nothing.
        while sharing.as_mut().now_or_never().is_none()
            && let Some(Some(_)) = first.next().now_or_never()
        {
            taken += 1;
        }
        assert!((AHEAD..=AHEAD + 1).contains(&taken), "{taken}");
        let mut late = 0;
        loop {
            let ended = sharing.as_mut().now_or_never().is_some();
            while let Some(Some(_)) = first.next().now_or_never() {
                taken += 1;
            }
            while let Some(Some(_)) = second.next().now_or_never() {
                late += 1;
            }
            if ended {
                break;
            }
        }
        assert_eq!((taken, late), (count + 3, count + 3));
    }
}
