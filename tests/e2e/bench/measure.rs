//! What one run cost, by the audit log, the driver's ledger and the writers' logs; what only the two ends of a stream
//! can know (FROZEN received, THAW written) is from the evidence, and bounded from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use stillpoint_api::Backup;
use stillpoint_api::evidence::Offset;
use stillpoint_e2e::audit::Entry;
use stillpoint_e2e::load::Ack;
use stillpoint_e2e::wait::{Look, until};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Present as _, ensure};

use crate::scenario::Bench;

/// The audit log is written when a request ends.
const LOGGED_WITHIN: Duration = Duration::from_secs(60);

/// The storage path of several snapshots made at once; microseconds since 1970.
#[derive(Clone, Debug)]
pub struct Path {
    /// The first POST was received.
    pub posted: i64,
    /// The last handle was written.
    pub written: i64,
    /// The snapshot that was last.
    pub last: Hops,
}

impl Path {
    /// From the first POST to the last handle, milliseconds.
    pub fn millis(&self) -> f64 {
        (self.written - self.posted) as f64 / 1e3
    }
}

/// Where the time of one snapshot went; microseconds since 1970, where the audit log or the ledger has it.
#[derive(Clone, Debug, Default)]
pub struct Hops {
    /// POST received by the API server.
    pub received: i64,
    /// Its 201 sent.
    pub answered: i64,
    /// Its content created by the snapshot controller.
    pub created: Option<i64>,
    /// The content annotated by csi-snapshotter.
    pub annotated: Option<i64>,
    /// The driver was asked.
    pub rpc_start: Option<i64>,
    /// It was cut.
    pub cut: Option<i64>,
    /// The driver answered.
    pub rpc_end: Option<i64>,
    /// The handle was written to the content's status.
    pub written: i64,
}

/// The storage path of snapshots with these names and UIDs, once the audit log has all of it.
///
/// # Errors
/// It has not in time.
pub async fn storage_path(
    world: &World,
    place: u64,
    namespace: &str,
    snapshots: &[(String, String)],
) -> Outcome<Path> {
    let hops = until("every handle to be written", LOGGED_WITHIN, async || {
        let audit = world.cluster.audit().since(place)?;
        let ledger = world.cluster.ledger.lines()?;
        let at = |event: &str, name: &str| {
            let line = ledger.iter().rev().find(|line| line.event == event && line.name == name);
            line.map(|line| line.at.as_microsecond())
        };
        let mut all = Vec::new();
        for (name, uid) in snapshots {
            let content = format!("snapcontent-{uid}");
            let cut_name = format!("snapshot-{uid}");
            let rpc_end = at("rpc-end", &cut_name);
            let post = audit.iter().find(|one| {
                one.verb == "create"
                    && !one.is_dry_run()
                    && one.about("volumesnapshots", "")
                    && one.namespace() == namespace
                    && one.name() == name
                    && one.response_status.is_some_and(|status| status.code == 201)
            });
            let of = |one: &&Entry, verb: &str, sub: &str| {
                one.verb == verb && one.about("volumesnapshotcontents", sub) && one.name() == content
            };
            let done = |verb: &str, sub: &str| {
                audit.iter().find(|one| of(one, verb, sub)).map(|one| one.stage_timestamp.as_microsecond())
            };
            let written = audit
                .iter()
                .filter(|one| of(one, "patch", "status") || of(one, "update", "status"))
                .map(|one| one.stage_timestamp.as_microsecond())
                .find(|written| rpc_end.is_some_and(|end| end <= *written));
            let (Some(post), Some(written)) = (post, written) else {
                return Ok(Look::NotYet(format!(
                    "{name}: {} audit entries, driver answered {rpc_end:?}",
                    audit.len()
                )));
            };
            all.push(Hops {
                received: post.request_received_timestamp.as_microsecond(),
                answered: post.stage_timestamp.as_microsecond(),
                created: done("create", ""),
                annotated: done("patch", ""),
                rpc_start: at("rpc-start", &cut_name),
                cut: at("cut", &cut_name),
                rpc_end,
                written,
            });
        }
        Ok(Look::Done(all))
    })
    .await?;
    let posted = hops.iter().map(|one| one.received).min().present("a snapshot")?;
    let last = hops.into_iter().max_by_key(|one| one.written).present("a snapshot")?;
    Ok(Path { posted, written: last.written, last })
}

/// The figures of one run, milliseconds, by name. Names with `hop` are the trace of the member that was last.
pub type Figures = BTreeMap<&'static str, f64>;

/// Everything about one run of ours.
///
/// # Errors
/// The Backup is no proven point, or something is not logged.
pub async fn run(
    world: &World,
    bench: &Bench,
    backup: &Backup,
    audit: u64,
    acks: &[u64],
) -> Outcome<Figures> {
    let status = backup.status.as_ref().present("the status")?;
    let window = status.window.as_ref().present("the window")?;
    let begun = window.started_at.as_ref().present("window.startedAt")?.0;
    let wall = |offset: Option<Offset>, what: &str| -> Outcome<i64> {
        Ok(begun.checked_add(SignedDuration::from_micros(offset.present(what)?.0))?.as_microsecond())
    };
    let t0 = wall(Some(Offset(0)), "t0")?;
    let (locked, cut_end) = (wall(window.locked, "locked")?, wall(window.cut_end, "cutEnd")?);
    let (cut_start, t3) = (wall(window.cut_start, "cutStart")?, wall(window.thawed, "thawed")?);
    let ms = |micros: i64| micros as f64 / 1e3;
    let mut figures = Figures::from([("window", ms(t3 - t0))]);

    let singles: Vec<(String, String)> = status
        .members
        .iter()
        .filter(|member| member.group.is_none())
        .filter_map(|member| Some((member.volume_snapshot.clone(), member.volume_snapshot_uid.clone()?)))
        .collect();
    if !singles.is_empty() {
        ensure!(
            singles.len() == bench.scenario.members(),
            "only {} of its snapshots are known",
            singles.len()
        );
        let path = storage_path(world, audit, bench.scenario.name, &singles).await?;
        let last = &path.last;
        figures.insert("storage path in the run", path.millis());
        figures.insert("watch lag", ms(cut_end - path.written));
        figures.insert("hop 1 POST handed over to received", ms(last.received - cut_start));
        figures.insert("hop 2 received to answered 201", ms(last.answered - last.received));
        let mut hop = |name, from: Option<i64>, to: Option<i64>| {
            if let (Some(from), Some(to)) = (from, to) {
                figures.insert(name, ms(to - from));
            }
        };
        hop("hop 3 answered to content created", Some(last.answered), last.created);
        hop("hop 4 content created to annotated", last.created, last.annotated);
        hop("hop 5 annotated to RPC start", last.annotated, last.rpc_start);
        hop("hop 6 RPC start to cut", last.rpc_start, last.cut);
        hop("hop 7 cut to RPC end", last.cut, last.rpc_end);
        hop("hop 8 RPC end to status written", last.rpc_end, Some(last.written));
        hop("hop 9 status written to signal received", Some(last.written), Some(cut_end));
    }
    let closing_written = status
        .holds
        .iter()
        .map(|hold| wall(hold.closing_written, "closingWritten"))
        .collect::<Outcome<Vec<_>>>()?;
    let last_closing = closing_written.into_iter().max().present("a hold")?;
    figures.insert("own share", ms((cut_start - locked) + (last_closing - cut_end)));
    for hold in &status.holds {
        let sent = wall(hold.freeze_sent, "freezeSent")?;
        let frozen = wall(hold.frozen.as_ref().map(|answer| answer.at), "frozen")?;
        let closing = wall(hold.closing_sent, "closingSent")?;
        let held = wall(hold.held.as_ref().map(|answer| answer.at), "held")?;
        let thawed = wall(hold.thawed, "thawed")?;
        // The closing beat is a statement that waits for nothing: what it takes is the round trip alone.
        let trip = held - closing;
        let longest = |figures: &mut Figures, name, value: f64| {
            let known = figures.entry(name).or_insert(value);
            *known = known.max(value);
        };
        longest(&mut figures, "acquisition", ms((frozen - sent - trip).max(0)));
        longest(&mut figures, "exec round trips", ms((frozen - sent).min(trip) + (thawed - closing)));
    }
    figures.insert("hop 0 FREEZE to FROZEN", ms(locked - t0));
    figures.insert("hop 10 signal to THAWED", ms(t3 - cut_end));
    // The commit that waited longest, of those in flight in the hold: what a user of the application felt.
    let mut stalled: Option<i64> = None;
    for (log, place) in bench.acks.iter().zip(acks) {
        let commits = log.since(*place)?;
        let waited = commits.iter().filter(|ack| ack.acked > locked && ack.started < t3).map(waited).max();
        stalled = stalled.max(waited);
    }
    let stalled = stalled.present("a commit that waited")?;
    figures.insert("writer stall", ms(stalled));
    figures.insert("writer stall - window", ms(stalled - (t3 - t0)));
    Ok(figures)
}

fn waited(ack: &Ack) -> i64 {
    ack.acked - ack.started
}
