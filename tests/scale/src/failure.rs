//! What went wrong, in words for whoever ran the bench.

use std::fmt;

/// Why the bench ended.
#[derive(Debug)]
pub struct Problem(pub String);

/// A result of the bench.
pub type Outcome<T> = Result<T, Problem>;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Gives an error the action that failed.
pub trait Present<T> {
    /// `cannot <action>: <error>`.
    fn present(self, action: &str) -> Outcome<T>;
}

impl<T, E: fmt::Display> Present<T> for Result<T, E> {
    fn present(self, action: &str) -> Outcome<T> {
        self.map_err(|error| Problem(format!("cannot {action}: {error}")))
    }
}

impl<T> Present<T> for Option<T> {
    fn present(self, action: &str) -> Outcome<T> {
        self.ok_or_else(|| Problem(format!("cannot {action}")))
    }
}
