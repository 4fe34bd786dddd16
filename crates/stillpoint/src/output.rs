//! What commands print: to stdout what was asked for, to stderr what happens meanwhile.
//!
//! A reader that goes away (`| head`) ends a command quietly.

use std::io::{self, Write as _};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::failure::Failure;

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Prints to stdout.
///
/// # Errors
/// Stdout cannot be written to, for another reason than a reader that went away.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("cannot write the result", error.to_string(), ""))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints a value as indented JSON and a newline.
///
/// # Errors
/// As [`print`].
pub fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new("cannot write the result as JSON", error.to_string(), ""))?;
    print(&(text + "\n"))
}

/// Tells what happens, on stderr. Nobody listening is no error.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A table with left-aligned columns, two spaces apart. The first row is the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A length of time for people: `62.4 ms`, `4.2 s`, `26h`, `1d2h`.
pub fn length(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 1 {
        return format!("{:.1} ms", duration.as_secs_f64() * 1e3);
    }
    if seconds < 60 {
        let text = format!("{:.1}", duration.as_secs_f64());
        return format!("{} s", text.trim_end_matches(".0"));
    }
    let mut text = String::new();
    for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        let (count, parts) = (seconds % next_size(size) / size, text.len());
        if count > 0 && parts < 6 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

const fn next_size(size: u64) -> u64 {
    match size {
        1 => 60,
        60 => 3_600,
        3_600 => 86_400,
        _ => u64::MAX,
    }
}

/// Seconds as a length of time for people; zero when negative or no number.
pub fn seconds(seconds: f64) -> String {
    length(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// An instant to the second in UTC.
pub fn instant(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// An instant to the millisecond in UTC.
pub fn precise(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_people_say_them() {
        let text = |millis| length(Duration::from_millis(millis));
        assert_eq!(text(62), "62.0 ms");
        assert_eq!(text(4_210), "4.2 s");
        assert_eq!(text(30_000), "30 s");
        assert_eq!(text(90_000), "1m30s");
        assert_eq!(text(86_400_000), "1d");
        assert_eq!(text(26 * 3_600_000), "1d2h");
        assert_eq!(seconds(f64::NAN), "0.0 ms");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["NAME".to_owned(), "A".to_owned()], vec!["x".to_owned(), "long".to_owned()]];
        assert_eq!(table(&rows), "NAME  A\nx     long\n");
    }
}
