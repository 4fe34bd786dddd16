//! How a command ends: bounded exit codes, and errors that say what failed, why and what to do.

use std::fmt;
use std::process::ExitCode;

/// Exit codes of every command (docs/cli.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was done; a backup is proven application-consistent.
    Success,
    /// It failed, or something was found.
    Failed,
    /// A backup was kept and is crash-consistent.
    Crash,
    /// A backup was kept and nothing is proven.
    Unproven,
    /// The command line is wrong or a file cannot be read (EX_USAGE of sysexits).
    Usage,
    /// It did not end in time (EX_TEMPFAIL of sysexits).
    TimedOut,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0_u8,
            Exit::Failed => 1,
            Exit::Crash => 3,
            Exit::Unproven => 4,
            Exit::Usage => 64,
            Exit::TimedOut => 75,
        })
    }
}

/// Why a command did not do what it was asked for.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What failed.
    pub what: String,
    /// Why; empty: it is said by `what`.
    pub why: String,
    /// What to do; empty: nothing is known.
    pub cure: String,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(what: impl Into<String>, why: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, what: what.into(), why: why.into(), cure: cure.into() }
    }

    /// The same with another exit code.
    pub fn exiting(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if !self.why.is_empty() {
            write!(f, "\n  why: {}", self.why)?;
        }
        if !self.cure.is_empty() {
            write!(f, "\n  try: {}", self.cure)?;
        }
        Ok(())
    }
}

/// Names that somebody may have meant by `wanted`, nearest first, at most three.
pub fn near<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut ranked: Vec<(usize, &str)> = names
        .into_iter()
        .map(|name| {
            let contained = !wanted.is_empty() && (name.contains(wanted) || wanted.contains(name));
            (if contained { 1 } else { distance(wanted, name) }, name)
        })
        .filter(|(distance, name)| *distance <= name.len().max(wanted.len()) / 2)
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Edits between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_to_try() {
        let failure = Failure::new("cannot read it", "it is gone", "look elsewhere");
        assert_eq!(failure.to_string(), "error: cannot read it\n  why: it is gone\n  try: look elsewhere");
    }

    #[test]
    fn near_names_come_nearest_first_and_far_ones_not_at_all() {
        assert_eq!(near("nigthly", ["hourly", "nightly", "database"]), ["nightly"]);
        assert_eq!(near("night", ["nightly", "x"]), ["nightly"]);
        assert_eq!(near("zzz", ["nightly"]), Vec::<&str>::new());
    }
}
