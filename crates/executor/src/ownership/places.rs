//! Takes the places of a freeze, as [`crate::pace`] decides: Leases beside the workload locks, which end as those do.
//!
//! A place is a Lease with the scope and a number in its name, so that two replicas which decided on what they read at the
//! same time cannot both have it. A ticket is a Lease with the run's age and needs. Both carry the run's UID: they are
//! released with its workload locks when every hold is THAWED or proven gone, taken over with them, and swept with them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::api::PostParams;
use stillpoint_api::backup::Backup;

use super::workload::{Lock, Locks};
use crate::context::{RequestError, bounded};
use crate::pace::{Bound, FREEZE_LIMIT, Taken, Ticket, Verdict, admit};
use crate::resolve::Refusal;

/// Annotation of a ticket: age and needs.
const TICKET_ANNOTATION: &str = "stillpoint.dev/ticket";
const TICKET: &str = "stillpoint-ticket-";
const PLACE: &str = "stillpoint-place-";

/// Name of the Lease of a place.
pub fn place_name(bound: &Bound, number: u32) -> String {
    format!("{PLACE}{}-{number}", bound.key())
}

/// Key of the scope of a place, by its name.
fn scope_of(name: &str) -> Option<&str> {
    name.strip_prefix(PLACE)?.rsplit_once('-').map(|(key, _)| key)
}

impl Locks {
    /// Takes a place of every scope of `bounds`, or none.
    ///
    /// # Errors
    /// `FreezeLimit`: there is no room, or an older run is before it; or a request failed.
    pub async fn take_places(
        &self,
        backup: &Backup,
        bounds: &[Bound],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if bounds.is_empty() {
            return Ok(());
        }
        let failed = |error: RequestError| Refusal::request(&error);
        let us = ticket(backup, bounds);
        let all = self.all().await.map_err(failed)?;
        let (mine, others): (Vec<&Lock>, Vec<&Lock>) =
            all.iter().partition(|lock| lock.holder.backup_uid == us.backup_uid);
        let mut taken = Taken::new();
        for lock in &others {
            if let Some(key) = scope_of(&lock.name()) {
                *taken.entry(key.to_owned()).or_default() += 1;
            }
        }
        let waiting: Vec<Ticket> = others.iter().filter_map(|lock| ticket_of(lock)).collect();
        let full = match admit(&us, &waiting, &taken) {
            Verdict::Go => {
                let full = self.take_all(backup, bounds, now).await.map_err(failed)?;
                if full.is_none() {
                    self.end_wait(&us, &mine).await.map_err(failed)?;
                    return Ok(());
                }
                full.map(|bound| (bound, 0))
            }
            Verdict::Wait { key, ahead } => {
                bounds.iter().find(|bound| bound.key() == key).map(|bound| (bound, ahead))
            }
        };
        self.wait(backup, &us, &mine, now).await.map_err(failed)?;
        let words = full.map_or_else(String::new, |(bound, ahead)| {
            let holding: Vec<&str> = others
                .iter()
                .filter(|lock| scope_of(&lock.name()) == Some(bound.key().as_str()))
                .map(|lock| lock.holder.backup.as_str())
                .collect();
            let line = if ahead > 0 { format!(", and {ahead} older run(s) go first") } else { String::new() };
            format!("{}; frozen or about to be: {}{line}", bound.words(), holding.join(", "))
        });
        Err(Refusal::may_pass(FREEZE_LIMIT, words))
    }

    /// Takes a place of each scope. What was taken is given back when one has none; that one is returned.
    async fn take_all<'a>(
        &self,
        backup: &Backup,
        bounds: &'a [Bound],
        now: Timestamp,
    ) -> Result<Option<&'a Bound>, RequestError> {
        for bound in bounds {
            let mut found = false;
            for number in 0..bound.limit {
                if self.hold(backup, &place_name(bound, number), &bound.words(), None, now).await? {
                    found = true;
                    break;
                }
            }
            if !found {
                self.give_back(backup).await?;
                return Ok(Some(bound));
            }
        }
        Ok(None)
    }

    async fn give_back(&self, backup: &Backup) -> Result<(), RequestError> {
        let uid = backup.metadata.uid.as_deref().unwrap_or_default();
        for lock in self.of_backup(uid).await? {
            if scope_of(&lock.name()).is_some() {
                self.remove(&lock).await?;
            }
        }
        Ok(())
    }

    /// Stands in line. What the rules ask for may have changed since: then the ticket is written anew.
    async fn wait(
        &self,
        backup: &Backup,
        us: &Ticket,
        mine: &[&Lock],
        now: Timestamp,
    ) -> Result<(), RequestError> {
        let name = ticket_name(us);
        if let Some(old) = mine.iter().find(|lock| lock.name() == name) {
            if ticket_of(old).as_ref() == Some(us) {
                return Ok(());
            }
            self.remove(old).await?;
        }
        let text = serde_json::to_string(us).unwrap_or_default();
        self.hold(backup, &name, "a ticket for a freeze", Some(text), now).await.map(|_| ())
    }

    async fn end_wait(&self, us: &Ticket, mine: &[&Lock]) -> Result<(), RequestError> {
        let name = ticket_name(us);
        match mine.iter().find(|lock| lock.name() == name) {
            Some(ticket) => self.remove(ticket).await,
            None => Ok(()),
        }
    }

    /// Creates one Lease of the run; true when it is this run's now.
    async fn hold(
        &self,
        backup: &Backup,
        name: &str,
        what: &str,
        ticket: Option<String>,
        now: Timestamp,
    ) -> Result<bool, RequestError> {
        let mut lease = self.named(backup, name, what, now);
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.extend(ticket.map(|text| (TICKET_ANNOTATION.to_owned(), text)));
        let api = self.api();
        let params = PostParams::default();
        match bounded(format!("create Lease {name}"), api.create(&params, &lease)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => {
                let found = bounded(format!("read Lease {name}"), api.get_opt(name)).await?.map(Lock::of);
                Ok(found.is_some_and(|lock| Some(lock.holder.backup_uid) == backup.metadata.uid))
            }
            Err(error) => Err(error),
        }
    }
}

fn ticket_name(ticket: &Ticket) -> String {
    format!("{TICKET}{}", ticket.backup_uid)
}

fn ticket_of(lock: &Lock) -> Option<Ticket> {
    if !lock.name().starts_with(TICKET) {
        return None;
    }
    serde_json::from_str(lock.annotation(TICKET_ANNOTATION)?).ok()
}

/// By its slot, else by its creation, so that a catch-up stands where it would have stood.
fn ticket(backup: &Backup, bounds: &[Bound]) -> Ticket {
    let slot = backup.spec.run.slot.as_ref().map(|slot| slot.0);
    let created = backup.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let needs: BTreeMap<String, u32> = bounds.iter().map(|bound| (bound.key(), bound.limit)).collect();
    Ticket {
        age: slot.or(created).unwrap_or(Timestamp::MIN),
        backup_uid: backup.metadata.uid.clone().unwrap_or_default(),
        needs,
    }
}
