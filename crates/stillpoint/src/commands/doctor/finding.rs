//! What one check found.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// As it should be.
    Ok,
    /// Works, but worse than it could; or it could not be looked at.
    Warning,
    /// Backups fail.
    Error,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The check, a stable word for scripts.
    pub check: &'static str,
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// Why it matters; empty where all is well.
    pub why: String,
    /// What to do; empty where there is nothing to do.
    pub cure: String,
}

impl Finding {
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, what: what.into(), why: String::new(), cure: String::new() }
    }

    pub(super) fn warning(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { check, severity: Severity::Warning, what: what.into(), why: why.into(), cure: cure.into() }
    }

    pub(super) fn error(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Error, ..Self::warning(check, what, why, cure) }
    }

    /// Something that could not be read.
    pub(super) fn unseen(check: &'static str, what: &str, why: &str) -> Self {
        Self::warning(
            check,
            format!("{what} could not be checked"),
            why,
            "run doctor with an account that may read it (`kubectl auth can-i --list`)",
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity:<8} {}", self.what)?;
        for more in [&self.why, &self.cure].into_iter().filter(|more| !more.is_empty()) {
            write!(f, " — {more}")?;
        }
        Ok(())
    }
}
