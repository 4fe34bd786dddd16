//! Rules 6 and 7: the points themselves. Cut times agree with the order of events, and all snapshots are ready and bound both ways.

use jiff::{SignedDuration, Timestamp};
use stillpoint_api::evidence::{ApiClock, MemberEvidence};

use super::{Checked, count};
use crate::verdict::{CUT_TIME_TOLERANCE, CUT_TIME_TRUNCATION, Case};

/// 6: the driver's cut time is not before t1, and what was seen at settle is what was seen at the cut.
pub(super) fn cut_times_agree(case: &Case<'_>) -> Checked {
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
pub(super) fn ready_and_bound(case: &Case<'_>) -> Checked {
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
