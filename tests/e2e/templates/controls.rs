//! Copies that must not pass: they show that the suite sees a loss where there is one.

use std::time::Duration;

use stillpoint_e2e::load::{Bounds, Checked};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, Present as _, ensure, fail};

use crate::proof::GOES_ON_WITHIN;
use crate::row::Control;
use crate::site::{Copied, DATA, SECOND, Site};

/// Chance decides what a cut finds: of so many one must be bad.
const TRIES: u32 = 5;
/// What SQLite says of a file that lost pages which were written and not synced.
const UNREADABLE: &str = "malformed";

/// Between the two cuts the server writes its pages: at most 3 s after the first it begins, and it takes about 2 s (measured).
const BETWEEN: Duration = Duration::from_secs(7);

/// The data, later the log, both while the lock of a line is held, judged as if that were a hold.
async fn apart(site: &Site, name: &str, lock: &str) -> Outcome<Copied> {
    let mut held = site.block(lock).await?;
    let (log, data) = (format!("{name}-log"), format!("{name}-data"));
    let (_, asked, _) = site.bare_cut(&data, DATA).await?;
    tokio::time::sleep(BETWEEN).await;
    let (_, _, ready) = site.bare_cut(&log, SECOND).await?;
    ensure!(held.try_wait()?.is_none(), "the lock ended before the second cut");
    tokio::time::timeout(GOES_ON_WITHIN, held.wait()).await??;
    let bounds = Bounds { acked_before: ready, started_after: asked, cut: None };
    let copied = site.checked(&[data.clone(), log.clone()], "", &bounds).await;
    for cut in [log, data] {
        site.remove_cut(&cut).await?;
    }
    copied
}

/// A copy that did not pass.
#[derive(Clone, Debug)]
pub struct Bad {
    /// For the table.
    pub short: String,
    /// What was said of it.
    pub words: String,
}

/// Both volumes in this order, with a line of the server's between the cuts, and nothing of what the template says there.
async fn disordered(site: &Site, name: &str, order: [&str; 2], between: &str) -> Outcome<Copied> {
    let cut_of = |claim: &str| format!("{name}-{claim}");
    let [first, second] = order;
    site.bare_cut(&cut_of(first), first).await?;
    site.inside(between).await?;
    let (uid, _, _) = site.bare_cut(&cut_of(second), second).await?;
    // What the template promises of the two: everything up to the last cut.
    let bounds = Bounds::observed(&site.cluster.ledger.cut_of(&uid)?);
    let copied = site.checked(&[cut_of(DATA), cut_of(SECOND)], "", &bounds).await;
    for claim in order {
        site.remove_cut(&cut_of(claim)).await?;
    }
    copied
}

/// The lines of a server's log that say why it ended.
fn last_words(log: &str) -> String {
    let said: Vec<&str> = log.lines().filter(|line| line.contains("[ERROR]")).take(2).collect();
    if said.is_empty() { log.chars().take(300).collect() } else { said.join("; ") }
}

/// How a copy was made that must not pass, in a few words.
fn how(control: Control) -> &'static str {
    match control {
        Control::Unheld => "not held",
        Control::Undurable => "without the template",
        Control::Apart(_) => "data and log cut one after the other under the lock alone",
        Control::Disordered { order: [SECOND, DATA], .. } => {
            "the log cut before the data, a checkpoint between, no label"
        }
        Control::Disordered { .. } => "the data cut before the log, a checkpoint between, no label",
        Control::Nothing(_) => "none",
    }
}

/// What is missing and what cannot be, in a few words.
fn lost(checked: &Checked) -> String {
    let missing = format!("{} of {} missing", checked.missing, checked.expected);
    match (checked.missing + checked.impossible, checked.impossible) {
        (0, _) => "not what it must be".to_owned(),
        (_, 0) => missing,
        (_, more) => format!("{missing}, {more} too many"),
    }
}

/// Cuts and checks until a copy does not pass; what was wrong with it, and at which try.
///
/// # Errors
/// Every copy passed.
pub async fn seen(world: &World, site: &Site, control: Control) -> Outcome<Bad> {
    for attempt in 1..=TRIES {
        let name = format!("control-{attempt}");
        if let Control::Apart(lock) = control {
            match apart(site, &name, lock).await? {
                Copied::Exact { .. } => continue,
                Copied::Wrong { checked, words } => {
                    let short = format!("{}: {}", how(control), lost(&checked));
                    return Ok(Bad { short, words: format!("at try {attempt}: {words}") });
                }
                Copied::Failed(words) => fail!("{words}"),
                Copied::Dead(words) => {
                    let short = format!("{}: the server ends on it", how(control));
                    return Ok(Bad { short, words: format!("at try {attempt}: {}", last_words(&words)) });
                }
            }
        }
        if let Control::Disordered { order, between, says } = control {
            match disordered(site, &name, order, between).await? {
                Copied::Exact { .. } => continue,
                Copied::Wrong { words, .. } | Copied::Failed(words) => {
                    fail!("the server runs on it, and that was not expected: {words}")
                }
                Copied::Dead(words) => {
                    let said = words.lines().find(|line| line.contains(says));
                    let said = said.present(&format!("{says:?} in its log, which has {words}"))?;
                    let short = format!("{}: no start, `{says}`", how(control));
                    return Ok(Bad { short, words: said.trim().to_owned() });
                }
            }
        }
        let (uid, asked, ready) = site.bare_cut(&name, DATA).await?;
        let truth = world.cluster.ledger.cut_of(&uid)?;
        let bounds = match control {
            // As if FROZEN had come before the request and THAW had been sent after the answer.
            Control::Unheld => Bounds { acked_before: ready, started_after: asked, cut: None },
            Control::Undurable => Bounds::observed(&truth),
            Control::Apart(_) | Control::Disordered { .. } => fail!("it was judged above"),
            Control::Nothing(why) => fail!("there is no control: {why}"),
        };
        let copied = site.checked(std::slice::from_ref(&name), "", &bounds).await?;
        site.remove_cut(&name).await?;
        match copied {
            Copied::Exact { .. } => {}
            Copied::Wrong { checked, words }
                if checked.missing + checked.impossible > 0 || words.contains(UNREADABLE) =>
            {
                let short = format!("{}: {}", how(control), lost(&checked));
                return Ok(Bad { short, words: format!("at try {attempt}: {words}") });
            }
            // A load that cannot reach the server shows nothing.
            Copied::Wrong { words, .. } | Copied::Failed(words) => {
                fail!("it failed for another reason: {words}")
            }
            // An atomic cut always starts: this is a fault, and not the loss that was to be shown.
            Copied::Dead(words) => fail!("the server does not run on an atomic cut: {words}"),
        }
    }
    fail!("{TRIES} copies of {control:?} passed: either nothing is lost there, or the suite does not see it")
}
