//! The harness of the end-to-end suite: a real cluster, the product's own binary, and the truth from elsewhere.
//!
//! Guarantees: what a case asserts about a cut comes from the driver's ledger and the writers' log, never from the
//! product's evidence alone; every wait is on a condition and has a deadline; the controller runs with a token of its
//! own ServiceAccount and the rights of `deploy/base`, nothing more, or is the Deployment that these very files install.

pub mod acks;
pub mod ask;
pub mod audit;
pub mod cluster;
pub mod controller;
pub mod deployed;
pub mod explain;
pub mod install;
pub mod ledger;
pub mod load;
pub mod monitoring;
pub mod network;
pub mod point;
pub mod process;
pub mod program;
pub mod wait;
pub mod world;

/// Why a case failed, for the person who reads the output.
#[derive(Clone, Debug)]
pub struct Problem(pub String);

/// The result of a case or of a step in one.
pub type Outcome<T = ()> = Result<T, Problem>;

// Any error is a reason to fail. (For this, `Problem` itself must not be an error.)
impl<E: std::error::Error> From<E> for Problem {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let words = error.to_string();
            if !text.contains(&words) {
                text = format!("{text}: {words}");
            }
            cause = error.source();
        }
        Self(text)
    }
}

/// Fails the case with these words unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err($crate::Problem(format!($($words)+)));
        }
    };
}

/// Fails the case with these words.
#[macro_export]
macro_rules! fail {
    ($($words:tt)+) => {
        return Err($crate::Problem(format!($($words)+)))
    };
}

/// Turns an absent value into a failure that says what is absent.
pub trait Present<T> {
    /// The value.
    ///
    /// # Errors
    /// It is absent.
    fn present(self, what: &str) -> Outcome<T>;
}

impl<T> Present<T> for Option<T> {
    fn present(self, what: &str) -> Outcome<T> {
        self.ok_or_else(|| Problem(format!("{what} is missing")))
    }
}
