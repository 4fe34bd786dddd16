//! Which policies are worked on, and what becomes of the result: passes and planned starts, within their limits.
//!
//! Guarantees: a policy is worked on by one task at a time, and what changed meanwhile is looked at again; a plan is carried out
//! once; nothing is begun without the lead, and a result that comes after the lead is gone changes nothing here.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::Scheduler;
use crate::apply::{Applied, ApplyError, Seen, Started, apply, start};
use crate::meter::{Work, WorkEnd};
use crate::projection::PolicyKey;

/// Policies that are worked on at once: enough to hide the API server's latency, few enough for one connection each.
const IN_FLIGHT: usize = 16;

/// Planned starts that are carried out at once: one request each.
const STARTS_IN_FLIGHT: usize = 32;

/// Most tasks there are at once.
pub const WORKERS: usize = IN_FLIGHT + STARTS_IN_FLIGHT;

/// Policies that are worked on at once while starts wait: a herd comes first, and an edit still gets through.
const BESIDE_STARTS: usize = 1;

/// Within this time the watch shows a Backup that was created; else its policy is looked at without.
const SHOWN_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// First and longest wait before a failed policy is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How a task ended.
pub(super) enum Done {
    /// A whole pass.
    Looked(Result<Applied, ApplyError>),
    /// A planned start.
    Started(Result<Started, ApplyError>),
}

impl Scheduler {
    /// Starts work while there is room.
    pub(super) fn dispatch(&mut self) {
        if !self.listed() || self.term.is_none() {
            return;
        }
        let now = self.now();
        while let Some(key) = self.due.pop_due(now) {
            if self.planned(&key, now).is_some() {
                self.starts.push(key);
            } else {
                self.enqueue(key);
            }
        }
        while self.starting < STARTS_IN_FLIGHT {
            let Some(key) = self.starts.pop() else { break };
            match self.planned(&key, now) {
                Some((slot, uid)) => self.start(key, slot, uid),
                None => self.enqueue(key),
            }
        }
        let room = if self.starting == 0 { IN_FLIGHT } else { BESIDE_STARTS };
        while self.busy.len() - self.starting < room {
            let Some(key) = self.queue.pop() else { return };
            if !self.projection.has_policy(&key) {
                continue;
            }
            self.busy.insert(key.clone(), false);
            let context = self.context.clone();
            let backups = self.projection.backups(&key);
            let fresh_failures = self.projection.fresh_failures(&key);
            let server_ahead = *self.server_ahead.borrow();
            self.tasks.spawn(async move {
                let seen = Seen { backups: &backups, fresh_failures, server_ahead };
                let began = context.clock.mono();
                let result = apply(&context, &key, &seen).await;
                context.work.worked(Work::Policy, how_it_ended(&result), context.clock.mono().since(began));
                (key, Done::Looked(result))
            });
        }
    }

    /// Slot and UID of a policy whose planned start may be carried out now. Whatever else is to be decided about the policy
    /// decides the start as well.
    pub(super) fn planned(&self, key: &PolicyKey, now: Timestamp) -> Option<(Timestamp, String)> {
        if self.queue.contains(key) || self.busy.contains_key(key) {
            return None;
        }
        let (plan, uid) = self.projection.planned(key)?;
        plan.holds(now).then_some((plan.slot, uid))
    }

    pub(super) fn start(&mut self, key: PolicyKey, slot: Timestamp, uid: String) {
        self.starting += 1;
        self.busy.insert(key.clone(), false);
        let due = self.projection.planned(&key).map(|(plan, _)| plan.due);
        // One plan, one start.
        self.projection.plan(&key, None);
        let context = self.context.clone();
        self.tasks.spawn(async move {
            let began = context.clock.mono();
            let result = start(&context, &key, &uid, slot).await;
            context.work.worked(Work::Start, how_it_ended(&result), context.clock.mono().since(began));
            if matches!(result, Ok(Started::Created)) {
                context.tell_start(due);
            }
            (key, Done::Started(result))
        });
    }

    pub(super) fn enqueue(&mut self, key: PolicyKey) {
        if self.term.is_none() {
            return;
        }
        if let Some(dirty) = self.busy.get_mut(&key) {
            *dirty = true;
        } else {
            let key = self.projection.own_key(&key);
            self.queue.push(key);
        }
    }

    /// Takes the result of a task.
    pub(super) fn done(&mut self, key: PolicyKey, done: Done) {
        let dirty = self.busy.remove(&key).unwrap_or(false);
        let result = match done {
            Done::Looked(result) => result,
            Done::Started(result) => {
                self.starting -= 1;
                return self.started(key, result, dirty);
            }
        };
        match result {
            // Whoever leads now, or we in our next term, looks at everything.
            Err(ApplyError::Deposed) => {}
            Ok(_) | Err(_) if self.term.is_none() => {}
            Ok(applied) => {
                self.failures.remove(&key);
                self.projection.failures_noted(&key, applied.failures_noted);
                self.projection.plan(&key, applied.plan);
                match applied.wake_at {
                    Some(due) => self.due.set(key.clone(), due),
                    None => self.due.remove(&key),
                }
                if applied.deletes_wait {
                    self.deletes_wait.insert(key.clone());
                }
            }
            Err(error) => {
                let failures = self.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                let wait = RETRY.0.saturating_mul(1 << (*failures - 1).min(6)).min(RETRY.1);
                tracing::warn!(policy = %key, %error, ?wait, "a policy could not be worked on and is retried");
                let now = self.now();
                self.due.set(key.clone(), now.saturating_add(wait).unwrap_or(Timestamp::MAX));
            }
        }
        if dirty {
            self.enqueue(key);
        }
        self.resume_deletes();
    }

    /// Takes the result of a planned start.
    pub(super) fn started(&mut self, key: PolicyKey, result: Result<Started, ApplyError>, dirty: bool) {
        if self.term.is_none() {
            return;
        }
        match result {
            Ok(Started::Created) if !dirty => {
                let shown = self.now().saturating_add(SHOWN_WITHIN).unwrap_or(Timestamp::MAX);
                self.due.set(key, shown);
            }
            Ok(Started::Created | Started::Exists) => self.enqueue(key),
            Err(ApplyError::Deposed) => {}
            Err(error) => {
                tracing::warn!(policy = %key, %error, "a backup could not be started at once; its policy is looked at");
                self.enqueue(key);
            }
        }
    }

    pub(super) fn resume_deletes(&mut self) {
        if self.deletes_wait.is_empty() || self.projection.anything_frozen() {
            return;
        }
        for key in std::mem::take(&mut self.deletes_wait) {
            self.enqueue(key);
        }
    }
}

fn how_it_ended<T>(result: &Result<T, ApplyError>) -> WorkEnd {
    match result {
        Ok(_) => WorkEnd::Succeeded,
        Err(ApplyError::Deposed) => WorkEnd::Deposed,
        Err(ApplyError::Api { .. } | ApplyError::Conflict | ApplyError::NamesTaken { .. }) => WorkEnd::Failed,
    }
}
