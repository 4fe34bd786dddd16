//! The words between the controller and a hold: what is sent, what an answer must look like to count.
//!
//! Guarantees (docs/design/freeze.md §2.1): everything here is pure and total; a line that does not fit the
//! grammar to its last byte, or carries another nonce, is [`protocol::Parsed::Foreign`] and proves nothing;
//! what is sent is rendered from a text whose every placeholder has a value, one write per block.

pub mod direct;
pub mod holder;
pub mod nonce;
pub mod protocol;
pub mod text;
pub mod texts;
pub mod trial;

#[cfg(test)]
mod fixtures;

pub use nonce::{Entropy, InvalidNonce, Nonce, SystemEntropy};
pub use protocol::{
    Difference, Foreign, ForeignReason, HoldLine, Identity, IdentityKey, Parsed, Position, PositionKey,
    Report, ReportKey, Role, begins_with_word,
};
pub use text::{Placeholder, QuoteError, Text, TextError, TextValues, quote_sql_literal};
pub use texts::{HoldRecipe, HoldTexts, SessionTexts};
