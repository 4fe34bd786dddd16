//! The ten rules (docs/design/freeze.md §4), each a pure check of one application's evidence.
//!
//! Rules 1, 2, 3, 5 and 10 speak of a lock. An application without one (an observer, or nothing held) is
//! `Application` by rules 4 and 6 to 9 and its template's `crashSafe`; for it they hold as *not needed*.
//!
//! What one step of the machine receives and what it then sends carry the same instant: the reception came first.
//! So "before" means "not later" wherever a reception is compared with a send.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stillpoint_api::evidence::{
    ApiClock, BarrierEvidence, CutKind, GroupKind, HoldAnswer, HoldEvidence, HoldKind, MemberEvidence, Offset,
};
use stillpoint_api::policy::Continuity;
use stillpoint_api::template::{DataTime, Layout, LocalValue, Setting};

use super::{CUT_TIME_TOLERANCE, CUT_TIME_TRUNCATION, Case};

/// One rule.
pub(super) struct Rule {
    pub(super) number: u8,
    pub(super) check: fn(&Case<'_>) -> Checked,
}

/// The rules in order.
pub(super) const RULES: [Rule; 10] = [
    Rule { number: 1, check: frozen_before_the_first_post },
    Rule { number: 2, check: cut_before_the_first_thaw },
    Rule { number: 3, check: closing_proof },
    Rule { number: 4, check: the_hold_covers_the_cut },
    Rule { number: 5, check: within_the_budget },
    Rule { number: 6, check: cut_times_agree },
    Rule { number: 7, check: ready_and_bound },
    Rule { number: 8, check: atomic_for_this_application },
    Rule { number: 9, check: durable },
    Rule { number: 10, check: continuous },
];

/// What a rule found.
pub(super) struct Checked {
    pub(super) holds: bool,
    pub(super) finding: String,
    /// A contradiction: the point is worth nothing, whatever else holds.
    pub(super) void: bool,
    pub(super) warnings: Vec<String>,
}

impl Checked {
    fn proved(finding: impl Into<String>) -> Self {
        Self { holds: true, finding: finding.into(), void: false, warnings: Vec::new() }
    }

    fn missing(finding: impl Into<String>) -> Self {
        Self { holds: false, finding: finding.into(), void: false, warnings: Vec::new() }
    }

    fn contradiction(finding: impl Into<String>) -> Self {
        Self { holds: false, finding: finding.into(), void: true, warnings: Vec::new() }
    }

    fn warn(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }
}

const NOT_NEEDED: &str = "not needed: nothing is locked";

fn pod(hold: &HoldEvidence) -> String {
    format!("{}/{}", hold.pod_name, hold.container)
}

fn millis(offset: Offset) -> String {
    format!("{:.1} ms", offset.0 as f64 / 1e3)
}

/// 1: every hold's FROZEN was received before the first snapshot POST of its stage was sent.
fn frozen_before_the_first_post(case: &Case<'_>) -> Checked {
    if !case.depends_on_holds() {
        return Checked::proved(NOT_NEEDED);
    }
    if let Some(why) = stage_gap(case) {
        return Checked::missing(why);
    }
    let Some(first_post) = case.members.iter().filter_map(|member| member.post_sent).min() else {
        return Checked::missing("no snapshot was posted");
    };
    if case.holds.is_empty() {
        return Checked::missing("there is no record of a hold");
    }
    let mut last = Offset(i64::MIN);
    for hold in &case.holds {
        match &hold.frozen {
            None => return Checked::missing(format!("{} never answered FROZEN", pod(hold))),
            Some(frozen) if frozen.at > first_post => {
                return Checked::missing(format!(
                    "{} answered FROZEN at {}, after the first snapshot was posted at {}",
                    pod(hold),
                    millis(frozen.at),
                    millis(first_post)
                ));
            }
            Some(frozen) => last = last.max(frozen.at),
        }
    }
    Checked::proved(format!("FROZEN at {}, first snapshot posted at {}", millis(last), millis(first_post)))
}

/// Why the stages did not follow each other: each begins after the last cut of the one before was seen, and is answered
/// before its own first POST.
fn stage_gap(case: &Case<'_>) -> Option<String> {
    for stage in 1..case.application.stages {
        let of = |stage: u32| case.members.iter().filter(move |member| member.stage == stage);
        let first_post = of(stage).filter_map(|member| member.post_sent).min();
        let before = stage - 1;
        if of(before).any(|member| member.signal.is_none()) {
            return Some(format!("a volume of stage {before} was never seen cut"));
        }
        let last_cut = of(before).filter_map(|member| member.signal).max();
        for hold in &case.holds {
            let Some(held) = hold.stages.iter().find(|held| held.stage == stage) else {
                return Some(format!("{} has no record of stage {stage}", pod(hold)));
            };
            let (Some(sent), Some(frozen)) = (held.sent, &held.frozen) else {
                return Some(format!("{} never answered stage {stage}", pod(hold)));
            };
            if last_cut.is_some_and(|cut| sent < cut) {
                return Some(format!("{} began stage {stage} before stage {before} was cut", pod(hold)));
            }
            if first_post.is_some_and(|post| frozen.at > post) {
                return Some(format!(
                    "{} answered stage {stage} after its first snapshot was posted",
                    pod(hold)
                ));
            }
            if hold.frozen.as_ref().is_none_or(|first| first.identity != frozen.identity) {
                return Some(format!("{}: another server answered stage {stage}", pod(hold)));
            }
        }
    }
    None
}

/// 2: every member's cut signal was received before the first THAW was sent.
fn cut_before_the_first_thaw(case: &Case<'_>) -> Checked {
    if !case.depends_on_holds() {
        return Checked::proved(NOT_NEEDED);
    }
    let Some(first_thaw) = case.holds.iter().filter_map(|hold| hold.thaw_sent).min() else {
        return Checked::missing("there is no record of a thaw");
    };
    let mut last = Offset(i64::MIN);
    for member in &case.members {
        match member.signal {
            None => return Checked::missing(format!("claim {} was never seen cut", member.claim_name)),
            Some(signal) if signal > first_thaw => {
                return Checked::missing(format!(
                    "the cut of claim {} was seen at {}, after the first thaw at {}",
                    member.claim_name,
                    millis(signal),
                    millis(first_thaw)
                ));
            }
            Some(signal) => last = last.max(signal),
        }
    }
    if case.members.is_empty() {
        return Checked::missing("nothing was cut");
    }
    Checked::proved(format!("last cut seen at {}, first thaw sent at {}", millis(last), millis(first_thaw)))
}

/// 3: every hold answered its closing beat, sent after the last cut signal was processed, then THAWED to its own
/// nonce, on the same stream, with the identity and role of FROZEN.
fn closing_proof(case: &Case<'_>) -> Checked {
    if !case.depends_on_holds() {
        return Checked::proved(NOT_NEEDED);
    }
    let Some(last_signal) = case.evidence.members.iter().filter_map(|member| member.signal).max() else {
        return Checked::missing("nothing was cut");
    };
    for hold in &case.holds {
        if let Some(why) = closing_gap(hold, last_signal) {
            return Checked::missing(format!("{}: {why}", pod(hold)));
        }
    }
    if case.holds.is_empty() {
        return Checked::missing("there is no record of a hold");
    }
    Checked::proved("every hold answered its closing beat and then THAWED, with the identity of FROZEN")
}

fn closing_gap(hold: &HoldEvidence, last_signal: Offset) -> Option<String> {
    let (Some(frozen), Some(sent)) = (&hold.frozen, hold.closing_sent) else {
        return Some("no closing beat was sent".into());
    };
    if sent < last_signal {
        return Some("the closing beat was sent before the last cut was seen".into());
    }
    if hold.closing_written.is_none() {
        return Some("the closing text was not written completely".into());
    }
    let Some(held) = &hold.held else {
        return Some("the closing beat was never answered".into());
    };
    if held.identity != frozen.identity || held.identity.is_empty() {
        return Some(format!(
            "the server changed: FROZEN said {:?}, HELD said {:?}",
            frozen.identity, held.identity
        ));
    }
    if held.role != frozen.role {
        return Some(format!("the role changed from {:?} to {:?}", frozen.role, held.role));
    }
    let Some(thawed) = hold.thawed else {
        return Some("it never answered THAWED".into());
    };
    (held.at < sent || thawed < held.at).then(|| "its answers came in the wrong order".into())
}

/// 4: the hold covers the cut: local server, written paths on members, the cut volume is the mounted one, and pods
/// and containers are the same at READY and THAWED.
fn the_hold_covers_the_cut(case: &Case<'_>) -> Checked {
    let mut warnings = Vec::new();
    if !cut_volume_is_the_mounted_one(case) {
        return Checked::contradiction("a snapshot was cut from another volume than the one the pod mounts");
    }
    if case.members.is_empty() {
        return Checked::missing("the application has no members");
    }
    let application = case.application;
    if application.pods_at_ready.is_empty() || application.pods_at_ready != application.pods_at_thawed {
        return Checked::missing(format!(
            "the selected pods changed from {:?} to {:?}",
            application.pods_at_ready, application.pods_at_thawed
        ));
    }
    if application.chosen_at_ready != application.chosen_at_thawed {
        return Checked::missing(format!(
            "the role rule chose {:?} and then {:?}",
            application.chosen_at_ready, application.chosen_at_thawed
        ));
    }
    if application.hold == HoldKind::None {
        return Checked::proved("the cut volumes are the mounted ones, and the pods stayed the same");
    }
    if case.holds.is_empty() {
        return Checked::missing("there is no record of a hold");
    }
    for hold in &case.holds {
        if hold.container_at_ready.is_none() || hold.container_at_ready != hold.container_at_thawed {
            return Checked::missing(format!("{} is not the container it was at READY", pod(hold)));
        }
        if let Some(why) = not_local(case, hold) {
            return Checked::missing(format!("{}: {why}", pod(hold)));
        }
        if let Some(why) = uncovered_path(case, hold) {
            return Checked::missing(format!("{}: {why}", pod(hold)));
        }
    }
    if !application.data_paths.is_empty() {
        warnings.push(format!(
            "{}: only {} was checked to lie on a member; other paths the server writes are not checked",
            application.name,
            application.data_paths.join(", ")
        ));
    }
    Checked::proved("local server, its data directory on a member, the same pods and containers throughout")
        .warn(warnings)
}

/// Whether every content was made from the volume that the pod mounts.
pub(super) fn cut_volume_is_the_mounted_one(case: &Case<'_>) -> bool {
    case.members.iter().all(|member| {
        !member.volume_handle.is_empty()
            && member.content_volume_handle.as_deref().is_none_or(|handle| handle == member.volume_handle)
            && (member.signal.is_none() || member.content_volume_handle.is_some())
    })
}

/// Whether the server says that it is this container's.
pub(crate) fn local_gap(
    rule: Option<&stillpoint_api::template::LocalRule>,
    pod_name: &str,
    answer: &HoldAnswer,
) -> Option<String> {
    let Some(rule) = rule else {
        return Some("the template does not say how the server tells that it is local".into());
    };
    let said = answer.identity.get(&rule.key).map_or("", String::as_str);
    let local = match rule.equals {
        LocalValue::True => ["true", "t", "1"].contains(&said),
        LocalValue::PodHostname => said == pod_name,
    };
    (!local).then(|| format!("the server is not this container's: it says {}={said:?}", rule.key))
}

fn not_local(case: &Case<'_>, hold: &HoldEvidence) -> Option<String> {
    match case.application.hold {
        HoldKind::Session | HoldKind::Observer => {}
        // They run in the container itself.
        HoldKind::Commands | HoldKind::Direct | HoldKind::None => return None,
    }
    let answer = hold.frozen.as_ref().or(hold.ready.as_ref())?;
    local_gap(case.application.local.as_ref(), &hold.pod_name, answer)
}

fn uncovered_path(case: &Case<'_>, hold: &HoldEvidence) -> Option<String> {
    path_gap(
        &case.application.data_paths,
        &hold.facts,
        &hold.foreign_mounts,
        case.members.iter().flat_map(|member| member.mounted_in(&hold.pod_uid)).chain(&hold.mount_paths),
    )
}

/// Whether `path` is `mount` or lies below it.
pub(crate) fn lies_on(path: &str, mount: &str) -> bool {
    let mount = mount.trim_end_matches('/');
    // What leaves a directory again may lie anywhere.
    if path.split('/').any(|part| part == "..") {
        return false;
    }
    path == mount || path.strip_prefix(mount).is_some_and(|rest| rest.starts_with('/'))
}

/// Which path the server writes is on no member, if any. A mount that is no member hides the member it lies on.
pub(crate) fn path_gap<'m>(
    names: &[String],
    facts: &std::collections::BTreeMap<String, String>,
    foreign: &[String],
    members: impl Iterator<Item = &'m String> + Clone,
) -> Option<String> {
    for name in names {
        let Some(path) = facts.get(name) else {
            return Some(format!("it did not tell its {name}"));
        };
        let longest = |mount: &String| mount.trim_end_matches('/').len();
        let member = members.clone().filter(|mount| lies_on(path, mount)).map(longest).max();
        let hidden = foreign.iter().filter(|mount| lies_on(path, mount)).map(longest).max();
        if member.is_none() || hidden > member {
            return Some(format!("its {name} {path} is on no snapshotted volume"));
        }
    }
    None
}

/// 5: t3 − t0 ≤ maxHold, on our clock and on the server's where it gives one.
fn within_the_budget(case: &Case<'_>) -> Checked {
    if !case.locks() {
        return Checked::proved(NOT_NEEDED);
    }
    let most = Duration::from_millis(case.evidence.resolved.max_hold_millis);
    let Some(end) = case
        .holds
        .iter()
        .map(|hold| hold.thawed)
        .collect::<Option<Vec<_>>>()
        .and_then(|all| all.into_iter().max())
    else {
        return Checked::missing("a hold never answered THAWED: its length is not known");
    };
    let took = Duration::from_micros(u64::try_from(end.0).unwrap_or(0));
    if took > most {
        return Checked::missing(format!("the hold took {took:?}, more than maxHold {most:?}"));
    }
    for hold in &case.holds {
        let clocks = (
            hold.frozen.as_ref().and_then(|answer| answer.clock),
            hold.held.as_ref().and_then(|answer| answer.clock),
        );
        if let (Some(begin), Some(end)) = clocks {
            let server = Duration::from_micros(u64::try_from(end - begin).unwrap_or(0));
            if server > most {
                return Checked::missing(format!(
                    "{} counted {server:?} on its own clock, more than maxHold {most:?}",
                    pod(hold)
                ));
            }
        }
    }
    Checked::proved(format!("held for {:.1} ms of {} ms", took.as_secs_f64() * 1e3, most.as_millis()))
}

/// 6: the driver's cut time is not before t1, and what was seen at settle is what was seen at the cut.
fn cut_times_agree(case: &Case<'_>) -> Checked {
    let mut warnings = Vec::new();
    let Some(posted) = case.evidence.window.cut_start.and_then(|offset| case.evidence.wall(offset)) else {
        return Checked::missing("there is no record of the first snapshot request");
    };
    let ahead = case.evidence.window.api_clock.unwrap_or_default();
    for member in &case.members {
        // In a group the signal is the group's; it lists the members' own handles where the sidecar does.
        let told = member.group.is_none() || member.handle.is_some();
        if let Some(settled) = member.settled.as_ref().filter(|_| told)
            && (settled.handle != member.handle || settled.creation_time != member.creation_time)
        {
            return Checked::contradiction(format!(
                "claim {}: handle or cut time changed between the cut ({:?}, {:?}) and the end ({:?}, {:?})",
                member.claim_name, member.handle, member.creation_time, settled.handle, settled.creation_time
            ));
        }
        let Some(cut) = driver_cut_time(member) else { continue };
        // On the cluster's clock, as far as it is known: ours may be wrong, and then it is wrong for every driver.
        let tolerance =
            SignedDuration::try_from(CUT_TIME_TOLERANCE + CUT_TIME_TRUNCATION).unwrap_or_default();
        if cut.duration_since(posted) < SignedDuration::from_micros(ahead.least_ahead_micros) - tolerance {
            return Checked::contradiction(format!(
                "claim {}: the driver says it cut at {cut}, before the snapshot was asked for at {posted}{}",
                member.claim_name,
                on_our_clock(&ahead)
            ));
        }
        if let Some(signal) = member.signal.and_then(|signal| case.evidence.wall(signal))
            && cut.duration_since(signal) > SignedDuration::from_micros(ahead.most_ahead_micros)
        {
            warnings.push(format!(
                "claim {}: the driver says it cut at {cut}, after we were told at {signal}; clocks differ",
                member.claim_name
            ));
        }
    }
    Checked::proved("no cut time contradicts the order of events").warn(warnings)
}

/// Says so where our clock and the API server's differ by more than the look at it can tell.
fn on_our_clock(ahead: &ApiClock) -> String {
    let seconds = |micros: i64| micros as f64 / 1e6;
    if ahead.least_ahead_micros <= 0 && ahead.most_ahead_micros >= 0 {
        return String::new();
    }
    format!(
        " by our clock, to which the API server's is ahead by {:.1} s to {:.1} s",
        seconds(ahead.least_ahead_micros),
        seconds(ahead.most_ahead_micros)
    )
}

/// The driver's own cut time; none where it is missing or the zero of some calendar.
pub(crate) fn driver_cut_time(member: &MemberEvidence) -> Option<Timestamp> {
    // A nil timestamp becomes 1970 in the sidecar; nobody took snapshots before 2001 (csi facts, §1.3).
    const PLAUSIBLE: i64 = 978_307_200_000_000_000;
    let nanos = member.creation_time.filter(|nanos| *nanos > PLAUSIBLE)?;
    Timestamp::from_nanosecond(i128::from(nanos)).ok()
}

/// 7: all members became ready, bound both ways, with a size where one is reported.
fn ready_and_bound(case: &Case<'_>) -> Checked {
    for member in &case.members {
        let claim = &member.claim_name;
        let Some(settled) = &member.settled else {
            return Checked::missing(format!("claim {claim}: its snapshot never became ready"));
        };
        if settled.ready_at.is_none() {
            return Checked::missing(format!("claim {claim}: its snapshot never became ready"));
        }
        if let Some(group) = &member.group {
            match group.exact {
                Some(true) => {}
                Some(false) => {
                    return Checked::contradiction(format!(
                        "group {}: its members are not exactly the resolved volumes",
                        group.volume_group_snapshot
                    ));
                }
                None => {
                    return Checked::missing(format!(
                        "group {}: its members were not compared with the resolved volumes",
                        group.volume_group_snapshot
                    ));
                }
            }
        }
        if !settled.bound {
            return Checked::missing(format!("claim {claim}: snapshot and content do not name each other"));
        }
        if settled.restore_size.is_some_and(|size| size <= 0) {
            return Checked::missing(format!("claim {claim}: its snapshot is reported as empty"));
        }
    }
    if case.members.is_empty() {
        return Checked::missing("the application has no members");
    }
    Checked::proved(format!("{} ready and bound both ways", count(case.members.len(), "snapshot")))
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

pub(super) fn all_cuts_atomic(case: &Case<'_>) -> bool {
    case.members.iter().all(|member| member.storage.cut == CutKind::Atomic)
}

/// Whether all members were cut at one instant, in the order of writes: one volume, or one write-ordered group.
pub(super) fn cut_at_one_instant(case: &Case<'_>) -> bool {
    case.members.len() == 1 || are_one_cut(&case.members)
}

/// Whether these members are one write-ordered group.
pub(super) fn are_one_cut(members: &[&MemberEvidence]) -> bool {
    let group =
        |member: &MemberEvidence| member.group.as_ref().map(|group| group.volume_group_snapshot.clone());
    members.first().is_some_and(|first| {
        first.group.is_some()
            && members
                .iter()
                .all(|member| group(member) == group(first) && member.storage.group == GroupKind::WriteOrder)
    })
}

/// The members of one pod that were not cut at one instant, if any pod has such. Pods of one application that share no
/// volume are servers of their own.
pub(crate) fn torn_pod<'m>(members: &[&'m MemberEvidence]) -> Option<(&'m str, Vec<&'m MemberEvidence>)> {
    let pods = members.iter().flat_map(|member| {
        let others = member.also_mounted.iter().map(|mount| (&mount.pod_uid, &mount.pod_name));
        std::iter::once((&member.pod_uid, &member.pod_name)).chain(others)
    });
    pods.map(|(uid, name)| {
        let mounts = |member: &&&MemberEvidence| {
            member.pod_uid == *uid || member.also_mounted.iter().any(|mount| mount.pod_uid == *uid)
        };
        (name.as_str(), members.iter().filter(mounts).copied().collect::<Vec<_>>())
    })
    .find(|(_, of_pod)| of_pod.len() > 1 && !are_one_cut(of_pod))
}

pub(super) fn all_cut(case: &Case<'_>) -> bool {
    case.members.iter().all(|member| member.signal.is_some())
}

/// 8: the cut was atomic for this application.
fn atomic_for_this_application(case: &Case<'_>) -> Checked {
    let application = case.application;
    if let Some(member) = case.members.iter().find(|member| member.storage.cut == CutKind::Copy) {
        let unlisted =
            if member.storage.reason.is_empty() { ", which is not in the storage table" } else { "" };
        if application.copy_safe.is_empty() || !case.locks() {
            return Checked::missing(format!(
                "claim {}: driver {}{unlisted} counts as a file by file copy, and the template is not proven for that; \
                 an operator who knows better says so with --storage-trust",
                member.claim_name, member.driver
            ));
        }
    }
    let proven_for_several = case.staged() || (case.locks() && application.layout == Layout::AnyUnderLock);
    if let Some((pod, torn)) = torn_pod(&case.members)
        && !proven_for_several
    {
        return Checked::missing(format!(
            "{} volumes of pod {pod} were cut one by one, and the template is proven for one volume or one write-ordered \
             group",
            torn.len()
        ));
    }
    if !case.locks() && application.crash_safe.is_empty() {
        return Checked::missing(
            "nothing was locked, and the template does not say that the engine recovers",
        );
    }
    let why = case.members.iter().map(|member| member.storage.reason.as_str()).next().unwrap_or("");
    Checked::proved(format!("{} cut atomically ({why})", count(case.members.len(), "volume")))
}

/// 9: what was frozen was durable.
fn durable(case: &Case<'_>) -> Checked {
    let application = case.application;
    if application.data_time == DataTime::Prepare {
        return if application.prepared_at.is_some() {
            Checked::proved("the point stands for the end of prepare's flush")
        } else {
            Checked::missing("the end of prepare's flush is not known")
        };
    }
    if application.crash_safe.is_empty() {
        return Checked::missing(
            "the template neither reads the settings that make a commit durable nor has a barrier",
        );
    }
    if application.settings.is_empty() {
        return Checked::proved(format!("durable by design: {}", application.crash_safe));
    }
    if case.holds.is_empty() {
        return Checked::missing("no hold told the settings that make a commit durable");
    }
    let mut barriers: Vec<String> = Vec::new();
    for hold in &case.holds {
        for setting in &application.settings {
            let Some(gap) = setting_gap(setting, hold) else { continue };
            let barrier = if setting.or_barrier { made_durable(case, hold) } else { Barrier::NotAsked };
            if let Barrier::Ran(name) = barrier {
                let said = format!("barrier {name} of {} made up for {}", pod(hold), setting.name);
                barriers.extend((!barriers.contains(&said)).then_some(said));
                continue;
            }
            match gap {
                SettingGap::Unread => {
                    return Checked::missing(format!("{} did not tell {}{barrier}", pod(hold), setting.name));
                }
                SettingGap::Contradicted(value) => {
                    let finding = format!(
                        "{}: {}={value}, so an acknowledged commit may not be durable (needs {}){barrier}",
                        pod(hold),
                        setting.name,
                        setting.allowed.join(" or ")
                    );
                    // Under a lock the copy is still what a power failure would have left; without one the claim
                    // that the engine recovers is void.
                    return if case.locks() {
                        Checked::missing(finding)
                    } else {
                        Checked::contradiction(finding)
                    };
                }
            }
        }
    }
    let names =
        application.settings.iter().map(|setting| setting.name.as_str()).collect::<Vec<_>>().join(", ");
    if barriers.is_empty() {
        return Checked::proved(format!("{names} read in this run"));
    }
    Checked::proved(format!("{names} read in this run, or made up for: {}", barriers.join(", ")))
}

/// Whether a barrier made durable what a hold froze.
#[derive(Clone, Copy)]
enum Barrier<'h> {
    /// The template does not say that one would do.
    NotAsked,
    /// It ran after the lock was asked for and before FROZEN.
    Ran(&'h str),
    /// It was told, and not then: more may have been acknowledged since, or the snapshots were asked for already.
    OutOfOrder(&'h BarrierEvidence),
    /// None was told.
    NotTold,
}

impl std::fmt::Display for Barrier<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAsked | Self::Ran(_) => Ok(()),
            Self::OutOfOrder(barrier) => write!(
                f,
                "; barrier {} was told at {}, not between FREEZE and FROZEN",
                barrier.name,
                millis(barrier.at)
            ),
            Self::NotTold => write!(f, "; no barrier was told"),
        }
    }
}

/// The barrier of a hold that counts: received after its FREEZE was sent, and not after its FROZEN.
fn made_durable<'h>(case: &Case<'_>, hold: &'h HoldEvidence) -> Barrier<'h> {
    // Who stops nobody acknowledges more after any barrier.
    if !case.locks() {
        return Barrier::NotAsked;
    }
    let between = |barrier: &&BarrierEvidence| {
        let frozen = hold.frozen.as_ref().map(|answer| answer.at);
        hold.freeze_sent.is_some_and(|sent| sent < barrier.at)
            && frozen.is_some_and(|frozen| barrier.at <= frozen)
    };
    match (hold.barriers.iter().find(between), hold.barriers.first()) {
        (Some(barrier), _) => Barrier::Ran(&barrier.name),
        (None, Some(barrier)) => Barrier::OutOfOrder(barrier),
        (None, None) => Barrier::NotTold,
    }
}

enum SettingGap {
    Unread,
    Contradicted(String),
}

fn setting_gap(setting: &Setting, hold: &HoldEvidence) -> Option<SettingGap> {
    let is_one_of = |value: &str, values: &[String]| values.iter().any(|one| one.eq_ignore_ascii_case(value));
    if let Some(condition) = &setting.when {
        match hold.facts.get(&condition.name) {
            None => return Some(SettingGap::Unread),
            Some(value) if !is_one_of(value, &condition.values) => return None,
            Some(_) => {}
        }
    }
    match hold.facts.get(&setting.name) {
        None => Some(SettingGap::Unread),
        Some(value) if is_one_of(value, &setting.allowed) => None,
        Some(value) => Some(SettingGap::Contradicted(value.clone())),
    }
}

/// The weakest grade of the application's holds.
pub(super) fn continuity(case: &Case<'_>) -> Continuity {
    case.holds.iter().map(|hold| grade(case, hold)).min().unwrap_or_default()
}

fn positions<'h>(case: &Case<'_>, hold: &'h HoldEvidence) -> Option<(&'h str, &'h str)> {
    let key = case.application.position.as_ref()?;
    let of = |answer: Option<&'h HoldAnswer>| {
        answer.and_then(|answer| answer.position.get(key)).map(String::as_str)
    };
    let (begin, end) = (of(hold.frozen.as_ref())?, of(hold.held.as_ref())?);
    // `off`: the counter does not run.
    let counts = |value: &str| {
        !value.is_empty() && !value.eq_ignore_ascii_case("off") && !value.eq_ignore_ascii_case("null")
    };
    (counts(begin) && counts(end)).then_some((begin, end))
}

fn grade(case: &Case<'_>, hold: &HoldEvidence) -> Continuity {
    if positions(case, hold).is_some_and(|(begin, end)| begin == end) {
        Continuity::Position
    } else if !case.application.thaw_proves_lock.is_empty() && hold.thawed.is_some() {
        Continuity::Lock
    } else if case.application.probed && hold.held.is_some() {
        Continuity::State
    } else {
        Continuity::Declared
    }
}

/// 10: continuity of the lock, at least as good as asked for.
fn continuous(case: &Case<'_>) -> Checked {
    if !case.locks() {
        return Checked::proved(NOT_NEEDED);
    }
    for hold in &case.holds {
        if let Some((begin, end)) = positions(case, hold)
            && begin != end
        {
            return Checked::contradiction(format!(
                "{}: something was committed under the lock: {begin} → {end}",
                pod(hold)
            ));
        }
    }
    if case.application.hold == HoldKind::Direct && !case.application.probed {
        return Checked::missing(
            "two separate commands without a probe: nothing shows that it was frozen before the cut and until the thaw",
        );
    }
    let grade = continuity(case);
    let least = case.evidence.resolved.min_continuity;
    if grade < least {
        return Checked::missing(format!("the lock is proven as {grade:?}, and {least:?} is asked for"));
    }
    Checked::proved(match grade {
        Continuity::Position => "Position: a counter that only a commit moves stood still".to_owned(),
        Continuity::Lock => format!("Lock: {}", case.application.thaw_proves_lock),
        Continuity::State => "State: a probe saw the frozen state at the end".to_owned(),
        Continuity::Declared => "Declared: the template's author vouches for it".to_owned(),
    })
}
