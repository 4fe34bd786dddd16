//! How the demo speaks: numbered steps on stdout, no line longer than [`COLUMNS`], colour only on a terminal.

use std::cell::Cell;
use std::io::IsTerminal as _;

use stillpoint_api::clock::{Mono, SharedClock};

use crate::output::{length, print};

/// Widest line: what fits a common terminal beside something else.
const COLUMNS: usize = 100;
/// What is said below a step is indented by so much.
const INDENT: usize = 4;

/// The narrator.
pub struct Voice {
    colour: bool,
    clock: SharedClock,
    begun: Mono,
    step: Cell<u32>,
}

impl Voice {
    /// A narrator whose time begins now.
    pub fn new(clock: SharedClock) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = std::io::stdout().is_terminal() && !plain;
        let begun = clock.mono();
        Self { colour, clock, begun, step: Cell::new(0) }
    }

    /// The next step.
    pub fn step(&self, title: &str) {
        self.step.set(self.step.get() + 1);
        let at = length(self.clock.mono().since(self.begun));
        let at = if self.step.get() == 1 {
            String::new()
        } else {
            format!("  {}", self.paint("2", &format!("({at})")))
        };
        self.write(&format!("\n{:>2}  {}{at}\n", self.step.get(), self.paint("1", title)));
    }

    /// A heading without a number.
    pub fn heading(&self, title: &str) {
        self.write(&format!("\n{}\n", self.paint("1", title)));
    }

    /// A sentence.
    pub fn say(&self, text: &str) {
        self.write(&wrap(text, INDENT, INDENT));
    }

    /// Something that was checked and is so.
    pub fn good(&self, text: &str) {
        self.marked("32", '✓', text);
    }

    /// Something that was checked and is not so.
    pub fn bad(&self, text: &str) {
        self.marked("31", '✗', text);
    }

    /// Text with line ends of its own; only lines that are too long are broken.
    pub fn block(&self, text: &str) {
        for line in text.lines() {
            let lead = line.chars().take_while(|letter| *letter == ' ').count();
            self.write(&wrap(line.trim_start(), INDENT + lead, INDENT + lead + 4));
        }
    }

    /// How long it took.
    pub fn total(&self) {
        let took = length(self.clock.mono().since(self.begun));
        self.write(&format!("\nDone in {took}.\n"));
    }

    fn marked(&self, colour: &str, mark: char, text: &str) {
        let wrapped = wrap(&format!("{mark} {text}"), INDENT, INDENT + 2);
        self.write(&wrapped.replacen(mark, &self.paint(colour, &mark.to_string()), 1));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn write(&self, text: &str) {
        // A reader that went away does not end the story: it ends where everything is cleaned up.
        let _ = print(text);
    }
}

/// Breaks a text between words; the first line is indented by `first`, the others by `rest`. Spaces inside a line that
/// fits stay as they are.
fn wrap(text: &str, first: usize, rest: usize) -> String {
    let whole = text.trim_end();
    if first + whole.chars().count() <= COLUMNS {
        return if whole.is_empty() { "\n".to_owned() } else { format!("{:first$}{whole}\n", "") };
    }
    let (mut out, mut line, mut indent) = (String::new(), String::new(), first);
    for word in whole.split_whitespace() {
        let needed = line.chars().count() + usize::from(!line.is_empty()) + word.chars().count();
        if !line.is_empty() && indent + needed > COLUMNS {
            out.push_str(&format!("{:indent$}{line}\n", ""));
            line.clear();
            indent = rest;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    out.push_str(&format!("{:indent$}{line}\n", ""));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_between_words_and_short_ones_left_alone() {
        let text = wrap(&"word ".repeat(40), 4, 6);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("      word")), "{text}");
        assert_eq!(wrap("a   b", 2, 4), "  a   b\n");
        assert_eq!(wrap("", 2, 4), "\n");
    }
}
