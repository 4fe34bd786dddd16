//! What a client's last words mean: a bounded reason, the client's own error line, and what to do.
//!
//! Pure. Only one line is repeated, and never a statement that a client echoes. What the template knows about its client comes
//! before what is known here of the usual ones.

use stillpoint_api::template::{ClientMessage, Meaning};

use crate::exec::{Ending, ExecCategory, ExecError, OneShot, Outcome};
use crate::run::{Abort, Reason};

/// What a shell and the programs that start others end with when there is no such program, or it cannot be run (POSIX, "Exit
/// Status for Commands").
const NO_PROGRAM: std::ops::RangeInclusive<i32> = 126..=127;

/// What a client left behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said<'a> {
    /// Its exit code, where there is one.
    pub code: Option<i32>,
    /// The end of its error output.
    pub stderr: &'a str,
    /// What the template knows about it.
    pub messages: &'a [ClientMessage],
}

impl<'a> Said<'a> {
    /// Words alone.
    #[cfg(test)]
    const fn of(stderr: &'a str) -> Self {
        Self { code: None, stderr, messages: &[] }
    }

    /// Those of a command that ended.
    pub fn by(done: &'a OneShot, messages: &'a [ClientMessage]) -> Self {
        Self { code: code(&done.outcome), stderr: &done.stderr, messages }
    }
}

/// A meaning with its cure.
type Means = (Reason, &'static str);

/// Words of the usual clients, in lower case. The first row that fits is taken: a missing right is also called a denied access.
const KNOWN: &[(&[&str], Means)] = &[
    (&["has no program"], (Reason::ClientMissing, "")),
    (
        &[
            "1227",
            "1142",
            "1044 (",
            "permission denied",
            "must be superuser",
            "need (at least one of)",
            "insufficient privilege",
            "not authorized on",
            "noperm",
        ],
        (
            Reason::PrivilegeMissing,
            "; the user lacks a privilege, see the comment of the template for what it needs (stillpoint templates NAME)",
        ),
    ),
    (
        &["too many connections", "too many clients", "remaining connection slots", "max number of clients"],
        (Reason::ServerBusy, "; the server has no connection left: try again later, or raise its limit"),
    ),
    (
        &["starting up", "shutting down", "in recovery mode", "still loading", "server shutdown in progress"],
        (Reason::HoldNotReady, "; the server is not ready: wait until its readiness probe succeeds"),
    ),
    (
        &["password", "authentication", "1045", "access denied", "role \"", "peer", "noauth", "wrongpass"],
        (
            Reason::AuthenticationFailed,
            "; the server did not accept the user: set the template's user parameter, correct the password that the container has \
             (its own variable, or the file of passwordFile), or let that user in over the socket",
        ),
    ),
    (
        &[
            "lock wait timeout",
            "1205",
            "lock timeout",
            "canceling statement due to lock timeout",
            "database is locked",
            // MariaDB: the bound of the statement that waits for the lock.
            "max_statement_time exceeded",
        ],
        (Reason::LockNotAcquired, "; a long statement holds the lock: see the server's process list"),
    ),
    (
        &[
            "could not connect",
            "connection to server",
            "can't connect",
            "connection refused",
            "no such file or directory",
        ],
        (
            Reason::HoldNotReady,
            "; no server answers there: set the template's socket parameter (or port) to where the server has it",
        ),
    ),
];

/// The reason behind a client's last words.
pub fn explain(place: &str, how: &str, said: Said<'_>) -> Abort {
    let line = error_line(said.stderr);
    let quoted = if line.is_empty() { String::new() } else { format!(": {line}") };
    if let Some(message) = ClientMessage::said(said.messages, said.stderr) {
        return Abort::new(reason(message.means), format!("{place}: {how}{quoted}; {}", message.says));
    }
    if said.code.is_some_and(|code| NO_PROGRAM.contains(&code)) {
        let which = missing_program(said.stderr).map_or_else(String::new, |program| format!(" {program}"));
        return Abort::new(
            Reason::ClientMissing,
            format!(
                "{place}: {how}: the container has no program{which}, or cannot run it: choose the container that has the client \
                 (applications[].container), or a template for this image"
            ),
        );
    }
    let lower = line.to_lowercase();
    let known = KNOWN.iter().find(|(words, _)| words.iter().any(|word| lower.contains(word)));
    let (reason, cure) = known.map_or((Reason::HoldNotReady, ""), |(_, means)| *means);
    Abort::new(reason, format!("{place}: {how}{quoted}{cure}"))
}

/// Why a session ended, from what its client said last.
pub fn ended(place: &str, ending: &Ending, messages: &[ClientMessage]) -> Abort {
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
    explain(place, &how, Said { code: code(&ending.outcome), stderr: &ending.stderr_tail, messages })
}

const fn code(outcome: &Outcome) -> Option<i32> {
    match outcome {
        Outcome::Exited(code) => Some(*code),
        Outcome::Failed(_) | Outcome::Unknown(_) => None,
    }
}

const fn reason(meaning: Meaning) -> Reason {
    match meaning {
        Meaning::ClientMissing => Reason::ClientMissing,
        Meaning::AuthenticationFailed => Reason::AuthenticationFailed,
        Meaning::PrivilegeMissing => Reason::PrivilegeMissing,
        Meaning::ServerBusy => Reason::ServerBusy,
        Meaning::ServerUnreachable => Reason::HoldNotReady,
        Meaning::NotSupported => Reason::NotSupported,
    }
}

/// The program that a shell, or env, did not find.
fn missing_program(stderr: &str) -> Option<&str> {
    let ends = [": not found", ": command not found", ": No such file or directory", ": Permission denied"];
    let before = stderr
        .lines()
        .rev()
        .find_map(|line| ends.iter().find_map(|end| line.trim_end().strip_suffix(end)))?;
    let program = before.rsplit(": ").next().unwrap_or(before).trim_matches(['\'', '‘', '’', '"', '`']);
    let plain = |one: char| one.is_ascii_alphanumeric() || "_./+-".contains(one);
    (!program.is_empty() && program.len() <= 128 && program.chars().all(plain)).then_some(program)
}

fn error_line(stderr: &str) -> String {
    const MOST: usize = 300;
    let marks = [
        "FATAL:",
        "ERROR:",
        "ERROR ",
        "Error: ",
        "Error in ",
        "MongoServerError",
        "psql: error",
        "mariadb: error",
        "mysql: error",
    ];
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
            assert_eq!(
                explain("p/c", "it ended", Said::of(said)).reason,
                Reason::AuthenticationFailed,
                "{said}"
            );
        }
    }

    #[test]
    fn a_lock_that_was_refused_is_named_as_such() {
        let said = "ERROR 1205 (HY000) at line 4: Lock wait timeout exceeded; try restarting transaction";
        assert_eq!(explain("p/c", "it ended", Said::of(said)).reason, Reason::LockNotAcquired);
        let bounded =
            "ERROR 1969 (70100) at line 5: Query execution was interrupted (max_statement_time exceeded)";
        assert_eq!(explain("p/c", "it ended", Said::of(bounded)).reason, Reason::LockNotAcquired);
    }

    #[test]
    fn a_missing_server_is_told_from_a_missing_right() {
        let nobody =
            "psql: error: connection to server on socket \"/run/s\" failed: No such file or directory";
        assert!(explain("p/c", "it ended", Said::of(nobody)).message.contains("socket parameter"));
        let right =
            "ERROR 1227 (42000) at line 2: Access denied; you need (at least one of) the RELOAD privilege(s)";
        assert!(explain("p/c", "it ended", Said::of(right)).message.contains("privilege"));
    }

    #[test]
    fn a_statement_that_the_client_echoes_is_not_repeated() {
        let said = "--------------\nSET PASSWORD = 'hunter2'\n--------------\n\nERROR 1064 (42000) at line 1: syntax";
        let message = explain("p/c", "it ended", Said::of(said)).message;
        assert!(!message.contains("hunter2") && message.contains("1064"), "{message}");
    }

    #[test]
    fn the_piece_of_a_statement_that_an_error_quotes_is_not_repeated() {
        for said in [
            "ERROR 1064 (42000) at line 4: You have an error in your SQL syntax; check the manual near 'hunter2'",
            "psql:<stdin>:3: ERROR:  syntax error at or near \"hunter2\"",
        ] {
            let message = explain("p/c", "it ended", Said::of(said)).message;
            assert!(!message.contains("hunter2") && message.contains("syntax"), "{message}");
        }
    }

    #[test]
    fn a_client_that_a_shell_did_not_find_is_named_as_such() {
        for said in [
            "sh: 1: exec: mysql: not found",
            "sh: mysql: not found",
            "bash: line 1: exec: mysql: not found",
            "sh: line 1: mysql: command not found",
            "env: 'mysql': No such file or directory",
        ] {
            let why = explain("p/c", "it ended", Said { code: Some(127), ..Said::of(said) });
            assert_eq!(why.reason, Reason::ClientMissing, "{said}");
            assert!(
                why.message.contains("no program mysql") && why.message.contains("container"),
                "{}",
                why.message
            );
        }
        let silent = explain("p/c", "it ended", Said { code: Some(126), ..Said::of("") });
        assert_eq!(silent.reason, Reason::ClientMissing);
        // A script that found out by itself.
        let ours = "ERROR: the container has no program nodetool: choose the container that has it";
        assert_eq!(
            explain("p/c", "it ended", Said { code: Some(3), ..Said::of(ours) }).reason,
            Reason::ClientMissing
        );
    }

    #[test]
    fn each_failure_of_a_client_has_a_reason_of_its_own_and_a_cure() {
        for (said, reason, cure) in [
            (
                "ERROR 1227 (42000) at line 2: Access denied; you need (at least one of) the RELOAD privilege(s)",
                Reason::PrivilegeMissing,
                "comment of the template",
            ),
            (
                "ERROR 1142 (42000): SELECT command denied to user 'x'@'localhost' for table 't'",
                Reason::PrivilegeMissing,
                "comment of the template",
            ),
            (
                "ERROR:  permission denied for function pg_backup_start",
                Reason::PrivilegeMissing,
                "comment of the template",
            ),
            ("ERROR 1040 (HY000): Too many connections", Reason::ServerBusy, "later"),
            (
                "psql: error: connection to server on socket \"/s\" failed: FATAL:  sorry, too many clients already",
                Reason::ServerBusy,
                "later",
            ),
            (
                "psql: error: connection to server failed: FATAL:  the database system is starting up",
                Reason::HoldNotReady,
                "wait",
            ),
            (
                "ERROR 2002 (HY000): Can't connect to local server through socket '/s' (2)",
                Reason::HoldNotReady,
                "socket",
            ),
            ("Error: Authentication failed.", Reason::AuthenticationFailed, "password"),
        ] {
            let why = explain("p/c", "it ended", Said::of(said));
            assert_eq!(why.reason, reason, "{said}");
            assert!(why.message.contains(cure), "{said}: {}", why.message);
        }
    }

    #[test]
    fn what_the_template_knows_about_its_client_comes_first() {
        let messages = [ClientMessage {
            contains: "ORA-01031".into(),
            means: Meaning::PrivilegeMissing,
            says: "grant SYSBACKUP to the account of the parameter user".into(),
        }];
        let said =
            Said { messages: &messages, ..Said::of("ERROR at line 1:\nORA-01031: insufficient privileges") };
        let why = explain("p/c", "it ended", said);
        assert_eq!(why.reason, Reason::PrivilegeMissing);
        assert!(
            why.message.ends_with("; grant SYSBACKUP to the account of the parameter user"),
            "{}",
            why.message
        );
    }
}
