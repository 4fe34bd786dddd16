//! The sidecar and the driver: one CreateSnapshot after the other until a content is cut, and how both misbehave when a
//! test asks for it.
//!
//! Guarantees: a call that was begun is carried out to its end, whoever has stopped waiting for it; after a code that is
//! not final the sidecar goes on until it knows what became of the cut, also for a content that is being deleted.

use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};

use crate::snapshots::{CONTENTS, CutTime, Knobs, RETRY, SIDECAR_POLL, Snapshots, quantity_of, text};

/// What CreateSnapshot answered.
struct Cut {
    handle: String,
    time: i64,
    size: u64,
}

/// How it failed.
struct Failed {
    why: String,
    /// A code after which the sidecar knows that nothing was cut.
    is_final: bool,
}

impl Snapshots {
    pub(crate) async fn cut_until_done(self: Arc<Self>, content: Arc<Value>) {
        let name = text(&content["metadata"]["name"]);
        // Set once a call ended with a code that is not final: from then on the sidecar must find out what became of it.
        let mut begun = false;
        loop {
            let done = match self.cut(&content, begun).await {
                Ok(()) => true,
                Err(failed) => {
                    begun |= !failed.is_final;
                    self.show_error(&content, &failed.why);
                    false
                }
            };
            if done || !(begun || self.is_wanted(&content)) {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        let uid = text(&content["metadata"]["uid"]);
        self.cutting.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
        // Something to see for the loop: a content that was deleted meanwhile can go now.
        self.store.collect.notify_one();
        if let Some(now) = self.store.find(CONTENTS, "", &name)
            && !now["metadata"]["deletionTimestamp"].is_null()
        {
            self.release_content(&now).await;
        }
    }

    fn show_error(&self, content: &Value, why: &str) {
        let why = format!("Failed to check and update snapshot content: {why}");
        let now = self.store.now();
        self.change(CONTENTS, content, |content| {
            content["status"]["error"] = json!({"message": why, "time": now});
            content["status"]["readyToUse"] = json!(false);
        });
    }

    async fn cut(&self, content: &Value, begun: bool) -> Result<(), Failed> {
        while self.knobs().sidecar_down {
            tokio::time::sleep(SIDECAR_POLL).await;
        }
        if !begun && !self.is_wanted(content) {
            return Ok(());
        }
        let knobs = self.knobs();
        if !knobs.ok_before_cut.is_zero() {
            let uid = text(&content["spec"]["volumeSnapshotRef"]["uid"]);
            let now = self.nanos();
            self.change(CONTENTS, content, |content| {
                content["status"] =
                    json!({"snapshotHandle": format!("snap-{uid}"), "creationTime": now, "readyToUse": false});
            });
            tokio::time::sleep(knobs.ok_before_cut).await;
        }
        let mut call = std::pin::pin!(self.call(content, &knobs));
        let cut = match knobs.sidecar_timeout {
            None => call.await,
            Some(limit) => match tokio::time::timeout(limit, &mut call).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.show_error(
                        content,
                        "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
                    );
                    // The driver goes on meanwhile; the retry gets its answer.
                    let (answer, ()) = tokio::join!(call, tokio::time::sleep(RETRY));
                    answer
                }
            },
        }?;
        let write = |ready: bool| {
            self.change(CONTENTS, content, |content| {
                content["status"] = json!({
                    "snapshotHandle": cut.handle, "creationTime": cut.time, "readyToUse": ready,
                    "restoreSize": cut.size,
                });
            });
        };
        if !knobs.ready_delay.is_zero() {
            write(false);
            tokio::time::sleep(knobs.ready_delay).await;
        }
        write(true);
        Ok(())
    }

    /// One CreateSnapshot, as the driver carries it out: nobody can stop it.
    async fn call(&self, content: &Value, knobs: &Knobs) -> Result<Cut, Failed> {
        let _turn = if knobs.one_at_a_time { Some(self.turn.lock().await) } else { None };
        tokio::time::sleep(knobs.pre_cut_delay).await;
        self.refuse_if_told()?;
        let uid = text(&content["spec"]["volumeSnapshotRef"]["uid"]);
        let volume = text(&content["spec"]["source"]["volumeHandle"]);
        let (name, handle) = (format!("snapshot-{uid}"), format!("snap-{uid}"));
        let failed = |why: String| Failed { why, is_final: true };
        if knobs.repeats_handle
            && let Some(oldest) = self.oldest_of(&volume)
        {
            return Ok(oldest);
        }
        let target = self.root.join("snapshots").join(&handle);
        let (object, cut) = self.copy_stopped(&volume, &handle, &name, target).await.map_err(failed)?;
        let size = quantity_of(&object);
        tokio::time::sleep(knobs.post_cut_delay).await;
        let time = match knobs.cut_time {
            CutTime::True => cut,
            CutTime::Missing => 0,
            CutTime::Early(by) => cut - i64::try_from(by.as_nanos()).unwrap_or(i64::MAX),
        };
        Ok(Cut { handle, time, size })
    }

    /// What the driver answered for the first snapshot of a volume that is still there.
    fn oldest_of(&self, volume: &str) -> Option<Cut> {
        let of_volume = |content: &Arc<Value>| {
            content["spec"]["source"]["volumeHandle"] == volume
                && content["status"]["snapshotHandle"].is_string()
        };
        let contents = self.store.all(CONTENTS);
        let answered = contents.iter().filter(|content| of_volume(content));
        let oldest = answered.min_by_key(|content| content["status"]["creationTime"].as_i64())?;
        Some(Cut {
            handle: text(&oldest["status"]["snapshotHandle"]),
            time: oldest["status"]["creationTime"].as_i64().unwrap_or(0),
            size: oldest["status"]["restoreSize"].as_u64().unwrap_or(0),
        })
    }

    /// One of the failures that were asked for, if any is left; the final ones first.
    fn refuse_if_told(&self) -> Result<(), Failed> {
        self.fail_if_told().map_err(|why| Failed { why, is_final: true })?;
        let mut knobs = self.knobs.lock().unwrap_or_else(PoisonError::into_inner);
        if knobs.unavailable_next == 0 {
            return Ok(());
        }
        knobs.unavailable_next -= 1;
        Err(Failed {
            why: format!("rpc error: code = Unavailable desc = {}", knobs.failure),
            is_final: false,
        })
    }
}
