//! Names of what an attempt asks for. They carry its nonce, so that what was made of a request is known by its name where
//! it carries no label of ours (docs/design/freeze.md §1).

/// Characters of a Backup's name that go into the names; the hash and the nonce keep them apart.
const OF_BACKUP: usize = 200;
/// Characters of the attempt's nonce that go into them: 50 bits.
const OF_NONCE: usize = 10;
/// Digits of the hash of a claim's name.
const OF_CLAIM: usize = 8;

/// Name of the snapshot of one claim, never used twice.
pub fn of_claim(backup: &str, nonce: &str, claim: &str) -> String {
    format!("{}-{:08x}", stem(backup, nonce), short_hash(claim))
}

/// Name of a group of an attempt.
pub fn of_group(backup: &str, nonce: &str, index: usize) -> String {
    format!("{}-g{index}", stem(backup, nonce))
}

/// The part of an attempt's nonce in the name of a claim's snapshot; `None` for a name that is none of ours.
pub fn nonce_part(name: &str) -> Option<&str> {
    let (rest, hash) = name.rsplit_once('-')?;
    let (_, nonce) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let of_ours = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (hash.len() == OF_CLAIM && digits(hash) && nonce.len() == OF_NONCE && of_ours(nonce)).then_some(nonce)
}

/// Whether a [`nonce_part`] is of this nonce.
pub fn is_part_of(part: &str, nonce: &str) -> bool {
    part.len() == OF_NONCE && nonce.starts_with(part)
}

fn stem(backup: &str, nonce: &str) -> String {
    let backup: String = backup.chars().take(OF_BACKUP).collect();
    let nonce: String = nonce.chars().take(OF_NONCE).collect();
    format!("{backup}-{nonce}")
}

/// Tells the members of one attempt apart in a bounded name.
fn short_hash(text: &str) -> u32 {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().take(4).fold(0, |hash, byte| (hash << 8) | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_attempt() {
        let nonce = "abcdefghijklmnopqrstuvwx";
        let name = of_claim("nightly-1", nonce, "data");
        assert_eq!(nonce_part(&name), Some("abcdefghij"), "{name}");
        assert!(is_part_of("abcdefghij", nonce) && !is_part_of("abcdefghi", nonce));
        let long = of_claim(&"b".repeat(300), nonce, "data");
        assert!(long.len() < 253 && nonce_part(&long) == Some("abcdefghij"), "{long}");
    }

    #[test]
    fn a_name_that_somebody_else_gave_is_none_of_ours() {
        for name in
            ["", "data", "velero-data-x7k2p", "a-b-c", "x-abcdefghij-1234567", "x-ABCDEFGHIJ-12345678"]
        {
            assert_eq!(nonce_part(name), None, "{name}");
        }
        assert_eq!(
            nonce_part(&of_group("nightly-1", "abcdefghijklmnop", 0)),
            None,
            "its members have other names"
        );
    }
}
