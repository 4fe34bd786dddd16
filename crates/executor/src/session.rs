//! One hold's stream: opened, its lines followed as the machine's words, its end explained.
//!
//! The stream ends at its own deadline whatever the machine does; nothing here decides.

use std::sync::Arc;
use std::time::Duration;

use stillpoint_api::evidence::HoldAnswer;
use tokio::sync::mpsc;
use tracing::debug;

use crate::exec::{
    Ending, Exec, ExecCategory, ExecError, ExecEvent, ExecEvents, ExecHandle, ExecLimits, ExecTarget, Outcome,
};
use crate::hold::{HoldLine, HoldTexts, Nonce, Parsed, Report, direct};
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
    place: String,
    nonce: Nonce,
    closing: tokio::sync::watch::Receiver<Option<u64>>,
    events: mpsc::UnboundedSender<Event>,
) {
    while let Some(event) = stream.next().await {
        let news = match event {
            ExecEvent::Opened { .. } => continue,
            ExecEvent::Line { text, .. } => match HoldLine::parse(&text, &nonce) {
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
            ExecEvent::Ended(ending) => Event::HoldEnded { hold: id, why: ended(&place, &ending) },
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

/// Why a session ended, from what its client said last.
fn ended(place: &str, ending: &Ending) -> Abort {
    if let Outcome::Failed(failure) = &ending.outcome {
        let error = ExecError::from_failure(failure);
        if error.category() == ExecCategory::ClientMissing {
            return Abort::new(
                Reason::ClientMissing,
                format!("{place}: {error}; or choose the container that has it (applications[].container)"),
            );
        }
    }
    let how = match &ending.outcome {
        Outcome::Exited(code) => format!("its client ended with code {code}"),
        Outcome::Failed(failure) => format!("it failed: {}", ExecError::from_failure(failure)),
        Outcome::Unknown(why) => format!("its stream ended ({why:?})"),
    };
    explain(place, &how, &ending.stderr_tail)
}

/// The reason behind a client's last words. Only its own error line is repeated, never a statement that it echoes.
pub fn explain(place: &str, how: &str, stderr: &str) -> Abort {
    let said = error_line(stderr);
    let lower = said.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let quoted = if said.is_empty() { String::new() } else { format!(": {said}") };
    let (reason, cure) = if has(&["1227", "permission denied", "must be superuser", "need (at least one of)"])
    {
        (
            Reason::HoldNotReady,
            "; the user lacks a privilege, see the comment of the template for what it needs",
        )
    } else if has(&["password", "authentication", "1045", "access denied", "role \"", "peer"]) {
        (
            Reason::AuthenticationFailed,
            "; the server did not accept the user over its socket: set the template's user parameter, or let that \
             user in locally",
        )
    } else if has(&[
        "lock wait timeout",
        "1205",
        "lock timeout",
        "canceling statement due to lock timeout",
        // MariaDB: the bound of the statement that waits for the lock.
        "max_statement_time exceeded",
    ]) {
        (Reason::LockNotAcquired, "; a long statement holds the lock: see the server's process list")
    } else if has(&[
        "could not connect",
        "connection to server",
        "can't connect",
        "no such file or directory",
    ]) {
        (
            Reason::HoldNotReady,
            "; no server answers on that socket: set the template's socket parameter to where the server has it",
        )
    } else {
        (Reason::HoldNotReady, "")
    };
    Abort::new(reason, format!("{place}: {how}{quoted}{cure}"))
}

fn error_line(stderr: &str) -> String {
    const MOST: usize = 300;
    let marks = ["FATAL:", "ERROR:", "ERROR ", "psql: error", "mariadb: error", "mysql: error"];
    stderr
        .lines()
        .rev()
        .find(|line| marks.iter().any(|mark| line.contains(mark)))
        // Servers end a syntax error with the piece of the statement that they did not understand.
        .map(|line| line.split(" near ").next().unwrap_or(line))
        .map(|line| line.trim().chars().filter(|c| !c.is_control()).take(MOST).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_password_is_named_as_such() {
        for said in [
            "psql: error: connection to server on socket \"/run/s\" failed: fe_sendauth: no password supplied",
            "psql: error: connection to server on socket \"/run/s\" failed: FATAL:  password authentication failed for user \"x\"",
            "ERROR 1045 (28000): Access denied for user 'root'@'localhost' (using password: NO)",
            "psql: error: connection to server failed: FATAL:  role \"backup\" does not exist",
        ] {
            assert_eq!(explain("p/c", "it ended", said).reason, Reason::AuthenticationFailed, "{said}");
        }
    }

    #[test]
    fn a_lock_that_was_refused_is_named_as_such() {
        let said = "ERROR 1205 (HY000) at line 4: Lock wait timeout exceeded; try restarting transaction";
        assert_eq!(explain("p/c", "it ended", said).reason, Reason::LockNotAcquired);
        let bounded =
            "ERROR 1969 (70100) at line 5: Query execution was interrupted (max_statement_time exceeded)";
        assert_eq!(explain("p/c", "it ended", bounded).reason, Reason::LockNotAcquired);
    }

    #[test]
    fn a_missing_server_is_told_from_a_missing_right() {
        let nobody =
            "psql: error: connection to server on socket \"/run/s\" failed: No such file or directory";
        assert!(explain("p/c", "it ended", nobody).message.contains("socket parameter"));
        let right =
            "ERROR 1227 (42000) at line 2: Access denied; you need (at least one of) the RELOAD privilege(s)";
        assert!(explain("p/c", "it ended", right).message.contains("privilege"));
    }

    #[test]
    fn a_statement_that_the_client_echoes_is_not_repeated() {
        let said = "--------------\nSET PASSWORD = 'hunter2'\n--------------\n\nERROR 1064 (42000) at line 1: syntax";
        let message = explain("p/c", "it ended", said).message;
        assert!(!message.contains("hunter2") && message.contains("1064"), "{message}");
    }

    #[test]
    fn the_piece_of_a_statement_that_an_error_quotes_is_not_repeated() {
        for said in [
            "ERROR 1064 (42000) at line 4: You have an error in your SQL syntax; check the manual near 'hunter2'",
            "psql:<stdin>:3: ERROR:  syntax error at or near \"hunter2\"",
        ] {
            let message = explain("p/c", "it ended", said).message;
            assert!(!message.contains("hunter2") && message.contains("syntax"), "{message}");
        }
    }
}
