//! Values that end literals somewhere, said by the product and read by a real client and server.

use std::io::Write as _;
use std::process::Stdio;

use stillpoint_api::template::{Language, Parameter, literal};

use crate::Outcome;
use crate::checks::Checked;
use crate::container::Container;

const VALUES: [&str; 9] = [
    "plain",
    "it's",
    "'; DROP TABLE t; --",
    "a\\",
    "\\'; SELECT 1; -- ",
    "$(reboot) `reboot` ${x} $$ $x$",
    "/* */ # -- \\g \\! :p %s",
    "Grüße \\ 表 😀'",
    "\"); quit(0); (\"",
];

/// Each value as a literal in a statement on the client's input, with `before` sent first; what comes back is the value.
pub fn literals(container: &Container, argv: &[&str], language: Language, before: &[&str]) -> Checked {
    let checked = (|| {
        for before in before {
            for value in VALUES {
                let said = literal(language, &Parameter::default(), value)?;
                let text = match language {
                    Language::Javascript => format!("{before}print({said});\n"),
                    Language::Sql
                    | Language::Mysql
                    | Language::Postgresql
                    | Language::Shell
                    | Language::Uri => {
                        format!("{before}SELECT {said};\n")
                    }
                };
                let printed = answer(container, argv, &text)?;
                if !printed.lines().any(|line| line == value || line.ends_with(&format!("> {value}"))) {
                    return Err(format!(
                        "{value:?} was said as {said} after {before:?}, and read as {printed:?}"
                    ));
                }
            }
        }
        Ok(format!("{} values came back as they were, in {} modes", VALUES.len(), before.len()))
    })();
    ("literals".into(), checked)
}

fn answer(container: &Container, argv: &[&str], text: &str) -> Outcome<String> {
    let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
    let mut child = container
        .command(&argv)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
    }
    let done = child.wait_with_output().map_err(|error| error.to_string())?;
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        Ok(printed)
    } else {
        Err(format!("{text:?}: {printed} {}", String::from_utf8_lossy(&done.stderr)))
    }
}
