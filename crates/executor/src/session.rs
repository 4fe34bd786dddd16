//! One hold's stream: opened, its lines followed as the machine's words, its end explained.
//!
//! The stream ends at its own deadline whatever the machine does; nothing here decides.

use std::sync::Arc;
use std::time::Duration;

use stillpoint_api::evidence::HoldAnswer;
use tokio::sync::mpsc;
use tracing::debug;

use crate::client_words::ended;
use crate::exec::{Exec, ExecCategory, ExecError, ExecEvent, ExecEvents, ExecHandle, ExecLimits, ExecTarget};
use crate::hold::{HoldLine, HoldTexts, Parsed, Report, direct};
use crate::resolve::RunHold;
use crate::run::{Abort, Event, HoldId, Reason, Word};

/// Opens a hold's stream and writes its opening text, where it has one.
///
/// # Errors
/// Why it is not open, as the machine's abort.
pub async fn open(
    exec: &Arc<dyn Exec>,
    held: &RunHold,
    lease: Duration,
    acquire: Duration,
) -> Result<ExecHandle, Abort> {
    let target = &held.target;
    let opening = held
        .texts
        .open(&held.plan, &held.nonce, lease, acquire)
        .map_err(|error| Abort::new(Reason::Internal, format!("{}: {error}", held.place())))?;
    if let HoldTexts::Direct(commands) = &held.texts {
        return Ok(direct::open(Arc::clone(exec), target.clone(), commands.clone(), held.nonce.clone()));
    }
    let handle = exec.open(target, ExecLimits::default()).await.map_err(|error| refused(target, &error))?;
    if !opening.is_empty() {
        handle
            .sender
            .send(opening)
            .map_err(|error| Abort::new(Reason::HoldNotReady, format!("{}: {error}", held.place())))?;
    }
    Ok(handle)
}

/// Turns a stream's events into the machine's, until the stream ends.
pub async fn follow(
    mut stream: ExecEvents,
    id: HoldId,
    held: &RunHold,
    closing: tokio::sync::watch::Receiver<Option<u64>>,
    events: mpsc::UnboundedSender<Event>,
) {
    let (place, nonce) = (held.place(), &held.nonce);
    while let Some(event) = stream.next().await {
        let news = match event {
            ExecEvent::Opened { .. } => continue,
            ExecEvent::Line { text, .. } => match HoldLine::parse(&text, nonce) {
                Parsed::Line(line) => match word(line) {
                    Some(word) => Event::HoldSaid { hold: id, word },
                    None => continue,
                },
                Parsed::Foreign(foreign) => {
                    // Clients echo statements: never above debug.
                    debug!(hold = place, reason = ?foreign, "a line that does not count");
                    continue;
                }
            },
            ExecEvent::Written { seq, .. } => {
                if *closing.borrow() != Some(seq) {
                    continue;
                }
                Event::ClosingWritten { hold: id }
            }
            ExecEvent::Ended(ending) => {
                Event::HoldEnded { hold: id, why: ended(&place, &ending, &held.messages) }
            }
        };
        if events.send(news).is_err() {
            return;
        }
    }
}

fn word(line: HoldLine) -> Option<Word> {
    Some(match line {
        HoldLine::Ready(report) => Word::Ready(answer(&report)),
        HoldLine::Frozen { stage, report } => Word::Frozen { stage, answer: answer(&report) },
        HoldLine::Held { beat, report } => {
            Word::Held { index: u32::try_from(beat).ok()?, answer: answer(&report) }
        }
        HoldLine::Evidence { key, value } => Word::Evidence { key, value },
        HoldLine::Thawed => Word::Thawed,
        HoldLine::ThawFailed => Word::ThawFailed,
        HoldLine::Expired => Word::Expired,
        HoldLine::Canary => return None,
    })
}

fn answer(report: &Report) -> HoldAnswer {
    HoldAnswer {
        at: stillpoint_api::evidence::Offset::default(),
        identity: report.identity.pairs().map(|(key, value)| (key.to_string(), value.to_owned())).collect(),
        role: report.role.as_ref().map(|role| role.0.clone()),
        clock: report.clock_micros.and_then(|micros| i64::try_from(micros).ok()),
        lease: report.lease.map(|lease| lease.to_string()),
        position: report.position.pairs().map(|(key, value)| (key.to_string(), value.to_owned())).collect(),
    }
}

/// What a refused exec means for a hold or a prepare.
pub fn refused(target: &ExecTarget, error: &ExecError) -> Abort {
    let place = format!("{}/{}", target.pod, target.container);
    match error.category() {
        ExecCategory::Forbidden => Abort::new(
            Reason::ExecForbidden,
            format!(
                "{place}: {error}; the namespace opts in by a ServiceAccount stillpoint-hooks bound to ClusterRole \
                 stillpoint-hooks"
            ),
        ),
        ExecCategory::ClientMissing => {
            let program = target.argv.first().map_or("", String::as_str);
            Abort::new(
                Reason::ClientMissing,
                format!(
                    "{place}: the container has no program {program}: choose the container that has the client \
                     (applications[].container), or a template for this image"
                ),
            )
        }
        ExecCategory::NotFound | ExecCategory::ContainerNotFound => {
            Abort::new(Reason::PodChanged, format!("{place}: {error}"))
        }
        ExecCategory::Timeout | ExecCategory::Transport | ExecCategory::Other => {
            Abort::new(Reason::HoldNotReady, format!("{place}: {error}"))
        }
    }
}
