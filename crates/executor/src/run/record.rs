//! What an attempt leaves behind: its evidence, with every time as an offset from t0.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use stillpoint_api::clock::Mono;
use stillpoint_api::evidence::{HoldAnswer, HoldEvidence, MemberEvidence, Offset, Window};

use super::{MemberId, Now, Run};

/// The evidence of an attempt, as far as it got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The holds.
    pub holds: Vec<HoldEvidence>,
    /// The members.
    pub members: Vec<MemberEvidence>,
    /// The window; absent where nothing was frozen or cut.
    pub window: Option<Window>,
    /// When every prepare was begun: what was acknowledged before is covered by it (docs/design/freeze.md §4.9).
    pub prepare_began: Option<Timestamp>,
}

impl Run {
    /// The evidence so far.
    pub fn evidence(&self) -> Record {
        let origin = self.t0;
        let offset = |at: Mono| offset(origin, at);
        let answer = |(at, answer): &(Mono, HoldAnswer)| HoldAnswer { at: offset(*at), ..answer.clone() };
        let holds = self
            .holds
            .iter()
            .map(|hold| HoldEvidence {
                mount_paths: hold.plan.mount_paths.clone(),
                order: hold.plan.order,
                stages: hold.stage_evidence(offset),
                late_beats: hold.late_beats,
                application: hold.plan.application.clone(),
                pod_name: hold.plan.pod_name.clone(),
                pod_uid: hold.plan.pod_uid.clone(),
                container: hold.plan.container.clone(),
                nonce: hold.plan.nonce.clone(),
                container_at_ready: Some(hold.plan.container_state.clone()),
                container_at_thawed: None,
                ready: hold.ready.as_ref().map(answer),
                freeze_sent: hold.freeze_sent.map(offset),
                frozen: hold.frozen.as_ref().map(answer),
                beats: hold.beats_while_frozen,
                closing_index: hold.closing.map(|(index, _)| index),
                closing_sent: hold.closing.map(|(_, at)| offset(at)),
                closing_written: hold.closing_written.map(offset),
                held: hold.held.as_ref().map(answer),
                thaw_sent: hold.thaw_sent.map(offset),
                thawed: hold.thawed.map(offset),
                foreign_mounts: hold.plan.foreign_mounts.clone(),
                barriers: hold.barrier_evidence(offset),
                ended_blockers: hold.ended_evidence(offset),
                facts: hold.facts.clone(),
                lost: hold.lost.as_ref().map(|why| why.chars().take(1024).collect()),
            })
            .collect();
        let members = self
            .members
            .iter()
            .enumerate()
            .map(|(index, member)| {
                let cut = self.cuts.iter().find(|cut| cut.plan.members.contains(&MemberId(index)));
                MemberEvidence {
                    stage: cut.map_or(0, |cut| cut.plan.stage),
                    post_sent: cut.and_then(|cut| cut.post_sent).map(offset),
                    posted: cut.and_then(|cut| cut.posted.as_ref()).map(|(at, _)| offset(*at)),
                    signal: cut.and_then(|cut| cut.seen.as_ref()).map(|(at, _)| offset(*at)),
                    ..member.clone()
                }
            })
            .collect();
        Record { holds, members, window: self.window(), prepare_began: self.prepare_began }
    }

    fn window(&self) -> Option<Window> {
        let t0 = self.t0?;
        let offset = |at: Mono| offset(Some(t0), at);
        let all_cut = self.cuts.iter().all(|cut| cut.seen.is_some());
        let thawed = self
            .holds
            .iter()
            .map(|hold| hold.thawed)
            .collect::<Option<Vec<Mono>>>()
            .and_then(|all| all.into_iter().max());
        Some(Window {
            started_at: Some(MicroTime(t0.wall)),
            api_clock: self.plan.api_clock.map(|read| read.against(t0.mono, t0.wall)),
            locked: self.acquired.map(offset),
            cut_start: self.cuts.iter().filter_map(|cut| cut.post_sent).min().map(offset),
            cut_end: self
                .cuts
                .iter()
                .filter_map(|cut| cut.seen.as_ref().map(|(at, _)| *at))
                .max()
                .filter(|_| all_cut)
                .map(offset),
            thaw_sent: self.holds.iter().filter_map(|hold| hold.thaw_sent).min().map(offset),
            thawed: thawed.map(offset),
            frozen_seconds: thawed.map(|at| at.since(t0.mono).as_secs_f64()),
        })
    }
}

/// Microseconds from t0; before t0 they are negative. Without a t0 everything counts from the clock's origin, which
/// only orders the record of an attempt that froze nothing.
fn offset(origin: Option<Now>, at: Mono) -> Offset {
    let origin = origin.map_or(Mono::default(), |t0| t0.mono);
    let micros = |time: std::time::Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    if at >= origin { Offset(micros(at.since(origin))) } else { Offset(-micros(origin.since(at))) }
}
