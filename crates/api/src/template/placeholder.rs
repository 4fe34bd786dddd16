//! `{{name}}` in arguments and texts: finding them, and replacing them in one pass. `{{name|language}}` says the value as a
//! literal of a language.
//!
//! One pass, so that a value which looks like a placeholder is never replaced again.

/// Placeholders that are filled when a hold runs, not when a template is resolved.
pub const RUN_TIME: [&str; 4] = ["n", "i", "lease", "acquireSeconds"];

/// The placeholder of `stallProbe.endBlocker` alone: the ID of the statement to end.
pub const BLOCKER: &str = "blocker";

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Text as it is.
    Literal(&'a str),
    /// `{{name}}` or `{{name|language}}`, without its braces.
    Placeholder(&'a str),
}

/// Splits a text. `{{` without `}}` after it is literal text.
pub fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, tail)) = after.split_once("}}") else { break };
        if !before.is_empty() {
            parts.push(Part::Literal(before));
        }
        parts.push(Part::Placeholder(name));
        rest = tail;
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest));
    }
    parts
}

/// The name of a placeholder, and the language behind `|`.
pub fn split(placeholder: &str) -> (&str, Option<&str>) {
    match placeholder.split_once('|') {
        Some((name, language)) => (name, Some(language)),
        None => (placeholder, None),
    }
}

/// The names of a text's placeholders, in order, with repetitions.
pub fn names(text: &str) -> impl Iterator<Item = &str> {
    parts(text).into_iter().filter_map(|part| match part {
        Part::Placeholder(placeholder) => Some(split(placeholder).0),
        Part::Literal(_) => None,
    })
}

/// Replaces the placeholders that `value` knows, by what is between their braces, and leaves the others as they are.
pub fn replace(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut replaced = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Literal(literal) => replaced.push_str(literal),
            Part::Placeholder(name) => match value(name) {
                Some(value) => replaced.push_str(&value),
                None => {
                    replaced.push_str("{{");
                    replaced.push_str(name);
                    replaced.push_str("}}");
                }
            },
        }
    }
    replaced
}
