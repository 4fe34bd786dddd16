//! The claim of a row: who waits in the window, what the copy has, what the verdict says.

use std::time::Duration;

use kube::ResourceExt as _;
use stillpoint_api::Backup;
use stillpoint_api::backup::{BackupStatus, Phase};
use stillpoint_api::evidence::{Consistency, MemberEvidence};
use stillpoint_e2e::acks::stalls;
use stillpoint_e2e::ledger::TrueCut;
use stillpoint_e2e::load::{Ack, Bounds, Checked};
use stillpoint_e2e::world::{RUN_WITHIN, World};
use stillpoint_e2e::{Outcome, Present as _, ensure, fail, point};

use crate::failures;
use crate::row::{Claim, Failure};
use crate::site::{Copied, Site};

/// The driver waits for so long before it cuts: a window in which an idle machine's writers commit dozens of times.
const WINDOW: &str = "500ms";
/// After the thaw a writer commits again within this.
pub const GOES_ON_WITHIN: Duration = Duration::from_secs(30);
/// A cut that only saves what was asked for may be worth this.
const BY_HAND: &str = "proof";

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Proved {
    /// Verdict of the point.
    pub verdict: String,
    /// Continuity of the hold, where there is one.
    pub continuity: String,
    /// Longest time without a commit that touches the window, milliseconds.
    pub stall_ms: f64,
    /// Commits begun and acknowledged inside the window.
    pub inside: usize,
    /// What the check of the copy counted.
    pub expected: u64,
    /// Steps and checks of the template in the copy, and how long they took.
    pub steps: String,
}

/// The window as others can see it, microseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Seen {
    cut: TrueCut,
    from: i64,
    to: i64,
}

/// Runs the policy, and compares the point with the writers' log, the driver's ledger and a server on its copy.
///
/// # Errors
/// The claim does not hold.
pub async fn prove(world: &mut World, site: &Site) -> Outcome<Proved> {
    if let Claim::Voided(setting) = site.row.claim {
        return voided(world, site, setting).await;
    }
    if matches!(site.row.claim, Claim::Grouped(_)) && !site.storage.cuts_groups_at_once() {
        return refused(world, site).await;
    }
    let consistency = if site.row.claim == Claim::Saved { "BestEffort" } else { "Required" };
    site.policy(world, BY_HAND, &[], "server", consistency).await?;
    world.cluster.misbehave(Some(serde_json::json!({"preCutDelay": WINDOW})))?;
    let backup = world.run(site.namespace, BY_HAND).await;
    world.cluster.misbehave(None)?;
    let backup = backup?;
    let name = backup.name_any();
    let described =
        world.stillpoint(site.namespace, &["backup", "describe", &name]).await?.good("backup describe")?;
    std::fs::write(world.out.join(format!("describe-{}.txt", site.namespace)), described)?;

    let (seen, bounds) = window(world, site, &backup).await?;
    let status = backup.status.as_ref().present("the status")?;
    if let Some(grade) = site.row.claim.grade() {
        ensure!(status.continuity == Some(grade), "the continuity is {:?}, not {grade:?}", status.continuity);
    }
    site.commits_after(seen.to, GOES_ON_WITHIN).await?;
    let settings = site.settings_now().await?;
    ensure!(
        settings == site.settings,
        "the settings are {settings:?} after the thaw, not {:?}",
        site.settings
    );
    let acks = site.acks.since(0)?;
    let inside = acks.iter().filter(|ack| ack.started > seen.from && ack.acked < seen.to).count();
    match (site.row.claim.locks(), inside) {
        (true, 0) | (false, 1..) => {}
        (true, some) => fail!("{some} commits were begun after FROZEN and acknowledged before THAW"),
        (false, 0) => fail!("no writer committed in {} µs, and nobody should wait", seen.to - seen.from),
    }
    let (checked, steps) = match site.restored(world, &backup, &bounds).await? {
        Copied::Exact { checked, steps } => (checked, steps),
        Copied::Wrong { words, .. } => fail!("the copy is not exact: {words}"),
        Copied::Failed(words) => fail!("{words}"),
        Copied::Dead(words) => fail!("the server does not run on the copy: {words}"),
    };
    Ok(Proved { steps, ..proved(status, &acks, seen, inside, &checked) })
}

fn proved(status: &BackupStatus, acks: &[Ack], seen: Seen, inside: usize, checked: &Checked) -> Proved {
    let touching = stalls(acks, 1).into_iter().filter(|stall| stall.from < seen.to && stall.to > seen.from);
    let longest = touching.map(|stall| stall.micros()).max().unwrap_or_default();
    Proved {
        verdict: format!("{:?}", status.consistency.unwrap_or_default()),
        continuity: status.continuity.map_or("–".to_owned(), |grade| format!("{grade:?}")),
        stall_ms: longest as f64 / 1e3,
        inside,
        expected: checked.expected,
        steps: String::new(),
    }
}

/// When it was held or only cut, and what follows for the copy.
async fn window(world: &World, site: &Site, backup: &Backup) -> Outcome<(Seen, Bounds)> {
    let status = backup.status.as_ref().present("the status")?;
    let name = backup.name_any();
    ensure!(status.phase == Phase::Succeeded, "{name} is {:?}: {}", status.phase, point::outcome_of(backup));
    let member = status.members.first().present("the member")?;
    let cut = || world.cluster.ledger.cut_of_member(member);
    match site.row.claim {
        Claim::Held(_) | Claim::Grouped(_) | Claim::Observed => {
            let instants = point::verify(&world.cluster, backup).await?;
            if matches!(site.row.claim, Claim::Grouped(_)) {
                at_one_instant(world, &status.members)?;
            }
            let seen = Seen { cut: instants.cut, from: instants.frozen, to: instants.thaw_sent };
            let locks = site.row.claim.locks();
            Ok((seen, if locks { Bounds::held(&instants) } else { Bounds::observed(&seen.cut) }))
        }
        Claim::Staged => {
            ensure!(
                status.consistency == Some(Consistency::Application) && status.members.len() == 2,
                "{name} is {:?} of {} members: {:?}",
                status.consistency,
                status.members.len(),
                status.verdict
            );
            let of = |claim: &str| -> Outcome<TrueCut> {
                let member =
                    status.members.iter().find(|member| member.claim_name == claim).present(claim)?;
                world.cluster.ledger.cut_of_member(member)
            };
            let (data, log) = (of("data-server-0")?, of("second-server-0")?);
            let held = status.window.as_ref().present("the window")?;
            let begun = held.started_at.as_ref().present("window.startedAt")?.0.as_microsecond();
            let from = begun + held.locked.present("window.locked")?.0;
            let to = begun + held.thaw_sent.present("window.thawSent")?.0;
            ensure!(
                from <= data.from.as_microsecond() && data.to <= log.from && log.to.as_microsecond() <= to,
                "the data was cut in {}..{} and the log in {}..{}, which is not one after the other inside of the hold",
                data.from,
                data.to,
                log.from,
                log.to
            );
            // The log has everything up to its own cut.
            Ok((Seen { cut: log, from, to }, Bounds::observed(&log)))
        }
        Claim::Prepared => {
            ensure!(
                status.consistency == Some(Consistency::Application),
                "{name} is {:?}: {:?}",
                status.consistency,
                status.verdict
            );
            // The point stands for what prepare made durable, and says so.
            let (cut, stands) = (cut()?, status.cut.as_ref().present("status.cut")?.0);
            ensure!(
                stands < cut.from,
                "the point stands for {stands}, which is not before the cut {}",
                cut.from
            );
            Ok(unheld(stands.as_microsecond(), cut))
        }
        Claim::Saved => {
            ensure!(
                status.consistency == Some(Consistency::Crash),
                "{name} is {:?}, and its template claims Crash at most",
                status.consistency
            );
            Ok(unheld(status.started_at.as_ref().present("status.startedAt")?.0.as_microsecond(), cut()?))
        }
        Claim::Voided(setting) => fail!("{setting} voids the claim: there is no point to look at"),
    }
}

/// Two members whose volumes the driver cut at one instant, by its ledger.
fn at_one_instant(world: &World, members: &[MemberEvidence]) -> Outcome {
    let group = members.first().and_then(|member| member.group.as_ref()).present("a member in a group")?;
    let cuts = world.cluster.ledger.cuts_of_group(group.uid.as_deref().present("the group's UID")?)?;
    let [data, log] = &cuts[..] else { fail!("the ledger has {} cuts of the group, not two", cuts.len()) };
    ensure!(
        members.len() == 2 && !data.cut.is_empty() && data.cut == log.cut && data.cut_start == log.cut_start,
        "{} members, cut at two instants: {cuts:?}",
        members.len()
    );
    Ok(())
}

/// A copy that stands for `stands`: all of before is there, and what was begun after the cut is not.
fn unheld(stands: i64, cut: TrueCut) -> (Seen, Bounds) {
    let (begun, ended) = (cut.from.as_microsecond(), cut.to.as_microsecond());
    let seen = Seen { cut, from: stands.min(begun), to: ended };
    (seen, Bounds { acked_before: stands, started_after: ended, cut: None })
}

/// A setting voids the claim: no point without being asked for one, and one that is asked for says why it is less.
async fn voided(world: &mut World, site: &Site, setting: &str) -> Outcome<Proved> {
    site.policy(world, "required", &[], "server", "Required").await?;
    let refused = world.run(site.namespace, "required").await?;
    let status = refused.status.as_ref().present("the status")?;
    ensure!(status.phase != Phase::Succeeded, "a point was kept although {setting} voids it");
    ensure!(
        point::outcome_of(&refused).contains(setting),
        "the message does not name {setting}: {}",
        point::outcome_of(&refused)
    );
    site.policy(world, "kept", &[], "server", "BestEffort").await?;
    let kept = world.run(site.namespace, "kept").await?;
    let name = kept.name_any();
    let status = kept.status.as_ref().present("the status")?;
    ensure!(status.phase == Phase::Succeeded, "{name} is {:?}: {}", status.phase, point::outcome_of(&kept));
    ensure!(
        status.consistency != Some(Consistency::Application),
        "{name} is Application, and {setting} voids it"
    );
    let missing = status.verdict.clone().unwrap_or_default().missing;
    ensure!(
        missing.iter().any(|finding| finding.finding.contains(setting)),
        "no finding of {name} names {setting}: {missing:?}"
    );
    let described =
        world.stillpoint(site.namespace, &["backup", "describe", &name]).await?.good("backup describe")?;
    std::fs::write(world.out.join(format!("describe-{}.txt", site.namespace)), described)?;
    Ok(Proved {
        verdict: format!("{:?}", status.consistency.unwrap_or_default()),
        continuity: "–".to_owned(),
        ..Proved::default()
    })
}

/// Two volumes that cannot be cut at once: the run names the ways out before anything is frozen.
async fn refused(world: &mut World, site: &Site) -> Outcome<Proved> {
    let apart = Failure {
        name: "no group",
        parameters: &[],
        template: None,
        container: None,
        blocker: None,
        says: &["2 volumes", "snapshot.group", "mysql-flushed"],
    };
    failures::fails(world, site, &apart).await?;
    Ok(Proved { verdict: "refused".to_owned(), continuity: "–".to_owned(), ..Proved::default() })
}

/// A run of the proof's policy once more: after everything that went wrong it succeeds again.
///
/// # Errors
/// It does not.
pub async fn works_again(world: &mut World, site: &Site) -> Outcome<String> {
    let name = world.start_run(site.namespace, BY_HAND).await?.name_any();
    let backup = world.finished(site.namespace, &name, RUN_WITHIN).await?;
    let status = backup.status.as_ref().present("the status")?;
    ensure!(status.phase == Phase::Succeeded, "{name} is {:?}: {}", status.phase, point::outcome_of(&backup));
    Ok(format!("{:?}", status.consistency.unwrap_or_default()))
}
