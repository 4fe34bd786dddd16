//! The nonce that ties answers to one attempt and one hold.
//!
//! Random, so that no output of an application, of an earlier attempt or of an echoed statement can pass for an
//! answer; letters and digits only, so that it needs no quoting in SQL, shell or an object's name.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

/// RFC 4648 base32 in lower case: 5 bits per character, nothing that needs quoting, valid in DNS labels.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// 100 bits: no two attempts ever meet.
const LENGTH: usize = 20;
const SHORTEST: usize = 16;
const LONGEST: usize = 32;

/// Where random bytes come from.
pub trait Entropy: Send + Sync {
    /// Fills `buffer` with random bytes.
    ///
    /// # Errors
    /// When the source fails; there is no fallback, a guessable nonce proves nothing.
    fn bytes(&self, buffer: &mut [u8]) -> io::Result<()>;
}

/// The kernel's random source.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn bytes(&self, buffer: &mut [u8]) -> io::Result<()> {
        File::open("/dev/urandom")?.read_exact(buffer)
    }
}

/// `[a-z0-9]{16,32}`, one per attempt and hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(String);

/// A text that is no nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a nonce is 16 to 32 characters of a-z and 0-9")]
pub struct InvalidNonce;

impl Nonce {
    /// A new random nonce.
    ///
    /// # Errors
    /// When the source of entropy fails.
    pub fn generate(entropy: &dyn Entropy) -> io::Result<Self> {
        let mut bytes = [0_u8; LENGTH];
        entropy.bytes(&mut bytes)?;
        Ok(Self(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()))
    }

    /// The nonce as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Nonce {
    type Error = InvalidNonce;

    fn try_from(text: String) -> Result<Self, InvalidNonce> {
        let fits = (SHORTEST..=LONGEST).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if fits { Ok(Self(text)) } else { Err(InvalidNonce) }
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        nonce.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    struct Broken;

    impl Entropy for Broken {
        fn bytes(&self, _buffer: &mut [u8]) -> io::Result<()> {
            Err(io::Error::other("no entropy"))
        }
    }

    #[test]
    fn nonces_of_the_kernel_are_valid_and_differ() {
        let (a, b) = (Nonce::generate(&SystemEntropy).unwrap(), Nonce::generate(&SystemEntropy).unwrap());
        assert_ne!(a, b);
        assert_eq!(Nonce::try_from(a.to_string()).unwrap(), a);
    }

    #[test]
    fn without_entropy_there_is_no_nonce() {
        assert!(Nonce::generate(&Broken).is_err());
    }

    #[test]
    fn what_would_need_quoting_is_no_nonce() {
        for text in ["", "short", "ABCDEFGHIJKLMNOPQRST", "abcdefghijklmno'--", &"a".repeat(33)] {
            assert_eq!(Nonce::try_from(text.to_owned()), Err(InvalidNonce), "{text}");
        }
    }
}
