//! The result, for people and for docs/templates/proof.md.

use std::fmt::Write as _;

use stillpoint_e2e::{Outcome, Problem};

use crate::controls::Bad;
use crate::failures::Freed;
use crate::proof::Proved;
use crate::row::{Row, Storage};

/// One check of a row.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// What was seen, or what is wrong.
    pub found: Result<String, String>,
}

/// A row that was run.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Which.
    pub row: Row,
    /// Where.
    pub storage: Storage,
    /// What the server says it is.
    pub version: String,
    /// What the proof found.
    pub proved: Option<Proved>,
    /// Writers after the client was killed, where it is.
    pub freed: Option<Freed>,
    /// The copy that did not pass, where there is one.
    pub bad: Option<Bad>,
    /// Everything that was checked.
    pub checks: Vec<Check>,
    /// How long it took, seconds.
    pub seconds: u64,
}

impl Ran {
    /// A row of which nothing is known yet.
    pub fn begun(row: Row, storage: Storage) -> Self {
        Self {
            row,
            storage,
            version: "unknown".to_owned(),
            proved: None,
            freed: None,
            bad: None,
            checks: Vec::new(),
            seconds: 0,
        }
    }

    /// Notes a check, tells it at once, and hands on what it found.
    pub fn note<T>(&mut self, name: &str, found: Outcome<T>, words: impl FnOnce(&T) -> String) -> Option<T> {
        let (kept, found) = match found {
            Ok(value) => {
                let words = words(&value);
                (Some(value), Ok(words))
            }
            Err(Problem(words)) => (None, Err(words)),
        };
        let head = format!("{:<18} {:<6} {name}", self.row.name, self.storage.name());
        match &found {
            Ok(words) => println!("ok      {head}: {words}"),
            Err(words) => println!("FAILED  {head}: {words}"),
        }
        self.checks.push(Check { name: name.to_owned(), found });
        kept
    }

    /// How many checks were good, and how many not.
    pub fn counts(&self) -> (usize, usize) {
        let bad = self.checks.iter().filter(|check| check.found.is_err()).count();
        (self.checks.len() - bad, bad)
    }
}

/// A cell that may be empty.
fn cell(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).map_or_else(|| "–".to_owned(), |text| text.replace('|', " "))
}

/// Template × server × storage as docs/templates/proof.md has it, and below it every check in words.
pub fn markdown(ran: &[Ran]) -> String {
    let mut text = String::from(
        "| template | server | storage | result | verdict | continuity | longest stall | commits in the window | rows compared | \
         checks of the copy | client killed: next commit | a copy that must not pass |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    // Writing to a String cannot fail.
    for one in ran {
        let (good, bad) = one.counts();
        let result =
            if bad == 0 { format!("{good} checks") } else { format!("**{bad} of {} failed**", good + bad) };
        let proved = one.proved.clone().unwrap_or_default();
        let figures = if proved.expected == 0 {
            "– | – | –".to_owned()
        } else {
            format!("{:.0} ms | {} | {}", proved.stall_ms, proved.inside, proved.expected)
        };
        let options =
            if one.row.options.is_empty() { String::new() } else { format!(" `{}`", one.row.options) };
        let _ = writeln!(
            text,
            "| `{}` | {}{options}{} | {} | {result} | {} | {} | {figures} | {} | {} | {} |",
            one.row.template,
            one.version,
            one.row.remark,
            one.storage.name(),
            cell(Some(proved.verdict)),
            cell(Some(proved.continuity)),
            cell(Some(proved.steps)),
            cell(one.freed.as_ref().map(|freed| format!("{:.2} s", freed.seconds))),
            cell(one.bad.as_ref().map(|bad| bad.short.clone())),
        );
    }
    text.push_str("\n| row | storage | check | found |\n|---|---|---|---|\n");
    for one in ran {
        for check in &one.checks {
            let words = match &check.found {
                Ok(words) => words.clone(),
                Err(words) => format!("**failed**: {words}"),
            };
            let words: String = words.replace(['|', '\n'], " ").chars().take(300).collect();
            let _ =
                writeln!(text, "| {} | {} | {} | {words} |", one.row.name, one.storage.name(), check.name);
        }
    }
    text
}
