//! The random words of an attempt: its own, and one for each application that may be held.

use super::observe::Observed;
use super::{MAX_HOLDS, Refusal};
use crate::hold::{Entropy, Nonce};

/// What an attempt calls itself and its holds; nobody can guess one, so that no other output counts as an answer
/// (docs/design/freeze.md §2.1).
#[derive(Clone, Debug)]
pub struct Nonces {
    /// Of the attempt.
    pub attempt: Nonce,
    /// Enough for the pods that were observed, [`MAX_HOLDS`] at the most: a run with more is refused.
    pub holds: Vec<Nonce>,
}

impl Nonces {
    /// Draws them.
    ///
    /// # Errors
    /// `NoRandomness`: the system gave no random bytes.
    pub fn draw(entropy: &dyn Entropy, observed: &Observed) -> Result<Self, Refusal> {
        let fresh = || {
            Nonce::generate(entropy).map_err(|error| {
                Refusal::may_pass("NoRandomness", format!("the system gave no random bytes: {error}"))
            })
        };
        let pods: usize = observed.applications.iter().map(|application| application.pods.len()).sum();
        Ok(Self {
            attempt: fresh()?,
            holds: (0..pods.min(MAX_HOLDS)).map(|_| fresh()).collect::<Result<_, _>>()?,
        })
    }
}
