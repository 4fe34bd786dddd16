//! What a recovery point is truly worth: the verdict held against the world's own ledger of commits and cuts.

use stillpoint_api::backup::BackupStatus;
use stillpoint_api::evidence::{Consistency, HoldEvidence, HoldKind, MemberEvidence};

use super::exec::StreamId;
use super::runtime::micros;
use super::scenario::App;
use super::storage::{Copied, Snapshot};
use super::world::World;
use super::{MS, Micros};
use crate::verdict::Judgement;

/// What the promised length of a freeze may be missed by before `Application` counts as false: the way of a thaw.
const THAW_ON_ITS_WAY: Micros = 10 * MS;

impl World {
    /// Compares a verdict with the ground truth.
    pub fn check_verdict(
        &mut self,
        status: &BackupStatus,
        members: &[MemberEvidence],
        judgement: &Judgement,
    ) {
        if judgement.consistency == Consistency::None {
            self.coverage.outcome("judged None");
            return;
        }
        let mut worth = None;
        for index in 0..self.scenario.apps.len() {
            let app = self.scenario.apps[index].clone();
            let of_app: Vec<&MemberEvidence> =
                members.iter().filter(|member| member.application == app.name).collect();
            let holds: Vec<&HoldEvidence> =
                status.holds.iter().filter(|hold| hold.application == app.name).collect();
            let truth = match judgement.consistency {
                Consistency::Application => self.application_truth(&app, &of_app, &holds),
                Consistency::Crash | Consistency::None => self.crash_truth(&app, &of_app),
            };
            if let Err(why) = truth {
                worth.get_or_insert(format!("{}: {why}", app.name));
            }
        }
        match (judgement.consistency, worth) {
            (Consistency::Application, Some(why)) => {
                self.broken("Application only where the world agrees", why);
            }
            (_, Some(why)) => self.broken("Crash only where the world agrees", why),
            (Consistency::Application, None) => {
                self.coverage.outcome("judged Application");
                for app in &self.scenario.apps.clone() {
                    self.coverage.outcome(match (app.kind, app.engine.staged) {
                        (HoldKind::Session, _) => "Application of a session",
                        (HoldKind::Commands | HoldKind::Direct, _) => "Application of commands",
                        (HoldKind::Observer, true) => "Application in stages",
                        (HoldKind::Observer, false) => "Application of an observer",
                        (HoldKind::None, _) => "Application without a hold",
                    });
                    if app.group {
                        self.coverage.outcome("Application of a group");
                    }
                }
                if self.scenario.backups > 1 {
                    self.coverage.outcome("Application beside a rival");
                }
            }
            (_, None) => self.coverage.outcome("judged Crash"),
        }
    }

    fn snapshot_of(&self, member: &MemberEvidence) -> Result<&Snapshot, String> {
        let uid = match &member.group {
            Some(group) => group.uid.as_ref(),
            None => member.volume_snapshot_uid.as_ref(),
        };
        let found = uid.and_then(|uid| self.snapshots.iter().find(|one| one.uid == *uid));
        found.ok_or_else(|| format!("claim {}: there is no such snapshot", member.claim_name))
    }

    /// The copy of a member that a restore would use.
    fn copy_of(&self, member: &MemberEvidence) -> Result<&Copied, String> {
        let snapshot = self.snapshot_of(member)?;
        let claim = &member.claim_name;
        if !snapshot.exists || !snapshot.usable {
            return Err(format!("claim {claim}: its snapshot cannot be restored"));
        }
        let copy = snapshot
            .copies
            .iter()
            .find(|copy| self.volumes[copy.asked].handle == member.volume_handle)
            .ok_or_else(|| format!("claim {claim}: the group has no copy of it"))?;
        if copy.volume == usize::MAX {
            return Err(format!("claim {claim}: another volume was cut"));
        }
        Ok(copy)
    }

    fn stream_of(&self, hold: &HoldEvidence, attempt: &str) -> Option<StreamId> {
        (0..self.streams.len()).rev().find(|id| {
            let stream = &self.streams[*id];
            stream.attempt == attempt
                && self.pods[stream.pod].name == hold.pod_name
                && stream.frozen_position.is_some()
        })
    }

    fn application_truth(
        &self,
        app: &App,
        members: &[&MemberEvidence],
        holds: &[&HoldEvidence],
    ) -> Result<(), String> {
        let mut copies = Vec::new();
        for member in members {
            copies.push((*member, self.copy_of(member)?));
        }
        let snapshots = members.iter().filter_map(|member| self.snapshot_of(member).ok());
        // Pods of one application are servers of their own: each must have been cut at one instant.
        let one_instant = members.iter().all(|first| {
            let of_pod: Vec<&&MemberEvidence> =
                members.iter().filter(|member| member.pod_name == first.pod_name).collect();
            let group = |member: &MemberEvidence| {
                member.group.as_ref().map(|group| group.volume_group_snapshot.clone())
            };
            let one_group =
                of_pod.iter().all(|member| group(member).is_some() && group(member) == group(first));
            of_pod.len() == 1 || (one_group && self.scenario.driver.write_order)
        });
        let attempt = snapshots.map(|one| one.attempt.clone()).next().unwrap_or_default();
        for (member, copy) in &copies {
            let claim = &member.claim_name;
            if copy.from != copy.to && !(app.engine.copy_safe && app.kind.locks()) {
                return Err(format!("claim {claim}: files were copied one after the other"));
            }
            if copy.first != copy.last {
                return Err(format!(
                    "claim {claim}: something was committed while it was copied: {} → {}",
                    copy.first, copy.last
                ));
            }
            if copy.durable < copy.first {
                return Err(format!(
                    "claim {claim}: acknowledged commits are missing: {} of {}",
                    copy.durable, copy.first
                ));
            }
        }
        match app.kind {
            HoldKind::Session | HoldKind::Commands | HoldKind::Direct => {
                if !one_instant && !app.engine.any_under_lock {
                    return Err(
                        "several volumes were cut one by one, which this engine does not survive".into()
                    );
                }
                self.lock_truth(&copies, holds, &attempt)
            }
            HoldKind::Observer if app.engine.staged => self.stage_truth(&copies, holds, &attempt),
            HoldKind::Observer => {
                self.one_cut(one_instant, &copies)?;
                for hold in holds {
                    let stream = self.stream_of(hold, &attempt);
                    let marked = stream.and_then(|id| self.streams[id].frozen_position).unwrap_or(0);
                    if copies
                        .iter()
                        .any(|(member, copy)| member.pod_uid == hold.pod_uid && copy.durable < marked)
                    {
                        return Err(format!("commits acknowledged before FROZEN ({marked}) are missing"));
                    }
                }
                Ok(())
            }
            HoldKind::None => self.one_cut(one_instant, &copies),
        }
    }

    fn one_cut(&self, one_instant: bool, copies: &[(&MemberEvidence, &Copied)]) -> Result<(), String> {
        if one_instant { self.young(copies) } else { Err("several volumes were cut one by one".to_owned()) }
    }

    /// Whether the copies are of this run, and not older ones.
    fn young(&self, copies: &[(&MemberEvidence, &Copied)]) -> Result<(), String> {
        for (member, copy) in copies {
            let begun = self.snapshot_of(member)?.created_at;
            if copy.from < begun {
                return Err(format!("claim {}: its copy is older than the request", member.claim_name));
            }
        }
        Ok(())
    }

    /// Under a lock every copy has exactly the commits that there were at FROZEN, and the freeze kept its promise.
    fn lock_truth(
        &self,
        copies: &[(&MemberEvidence, &Copied)],
        holds: &[&HoldEvidence],
        attempt: &str,
    ) -> Result<(), String> {
        for hold in holds {
            let Some(id) = self.stream_of(hold, attempt) else {
                return Err(format!("{} was never frozen", hold.pod_name));
            };
            let stream = &self.streams[id];
            let frozen = stream.frozen_position.unwrap_or(0);
            for (member, copy) in copies.iter().filter(|(member, _)| member.pod_name == hold.pod_name) {
                if copy.first != frozen {
                    return Err(format!(
                        "claim {}: it has commit {}, and {frozen} was the last one at FROZEN",
                        member.claim_name, copy.first
                    ));
                }
                if copy.pod_uid != hold.pod_uid {
                    return Err(format!("claim {}: another pod had it when it was cut", member.claim_name));
                }
            }
            let (Some(begun), Some(ended)) = (stream.frozen_at, stream.freed_at) else {
                return Err(format!("{} is still frozen", hold.pod_name));
            };
            // The promise is that we know of the end in time, not only that there was one (rule 5).
            let known = stream.freeze_sent.zip(stream.thawed_heard).map(|(sent, heard)| heard - sent);
            if known.is_some_and(|known| known > micros(self.scenario.max_hold)) {
                return Err(format!("{} was known to be thawed only after the promise", hold.pod_name));
            }
            let took = ended - begun;
            if took > micros(self.scenario.max_hold) + THAW_ON_ITS_WAY {
                return Err(format!("{} was frozen for {took} µs, more than was promised", hold.pod_name));
            }
        }
        Ok(())
    }

    /// In stages the log is cut after its stage began and while the session still lived.
    fn stage_truth(
        &self,
        copies: &[(&MemberEvidence, &Copied)],
        holds: &[&HoldEvidence],
        attempt: &str,
    ) -> Result<(), String> {
        self.young(copies)?;
        for hold in holds {
            let Some(id) = self.stream_of(hold, attempt) else {
                return Err(format!("{} never began", hold.pod_name));
            };
            let stream = &self.streams[id];
            let Some(second) = stream.stages.get(&1).copied() else {
                return Err("the second stage was never begun".to_owned());
            };
            for (member, copy) in copies.iter().filter(|(member, _)| member.pod_name == hold.pod_name) {
                let in_order = if member.stage == 0 { copy.to <= second } else { copy.from >= second };
                if !in_order {
                    return Err(format!("claim {}: it was cut in another stage", member.claim_name));
                }
                if stream.server_ended_at.or(stream.ended_at).is_some_and(|ended| ended < copy.from) {
                    return Err(format!("claim {}: the session was over when it was cut", member.claim_name));
                }
            }
        }
        Ok(())
    }

    /// What a power failure would have left: one instant of the right volumes, or copies under a lock.
    fn crash_truth(&self, app: &App, members: &[&MemberEvidence]) -> Result<(), String> {
        for member in members {
            let copy = self.copy_of(member)?;
            if copy.from != copy.to && !(app.engine.copy_safe && app.kind.locks()) {
                return Err(format!("claim {}: files were copied one after the other", member.claim_name));
            }
        }
        Ok(())
    }
}
