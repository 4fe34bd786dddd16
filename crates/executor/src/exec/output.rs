//! Output of a command in bounded memory: whole lines, and the end of what came.
//!
//! A line is delivered whole or not at all: a cut piece of a long line could pass for a line of the hold protocol.

use std::collections::VecDeque;

use super::stream::{MAX_LINE_BYTES, STDERR_TAIL_BYTES};

pub(super) fn count(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Cuts a byte stream into complete lines of bounded length.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) partial: Vec<u8>,
    overlong: bool,
}

/// A line longer than [`MAX_LINE_BYTES`], skipped to its newline.
pub(super) struct TooLong;

impl Lines {
    pub(super) fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Result<String, TooLong>)) {
        while let Some(newline) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..newline]);
            if std::mem::take(&mut self.overlong) {
                each(Err(TooLong));
            } else {
                each(Ok(String::from_utf8_lossy(&self.partial).into_owned()));
            }
            self.partial.clear();
            bytes = &bytes[newline + 1..];
        }
        self.extend(bytes);
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.overlong || self.partial.len() + bytes.len() > MAX_LINE_BYTES {
            self.overlong = true;
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}

/// The last [`STDERR_TAIL_BYTES`] of a byte stream.
#[derive(Debug, Default)]
pub(super) struct Tail {
    kept: VecDeque<u8>,
    pub(super) seen: u64,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.seen = self.seen.saturating_add(count(bytes));
        let bytes = &bytes[bytes.len().saturating_sub(STDERR_TAIL_BYTES)..];
        let excess = (self.kept.len() + bytes.len()).saturating_sub(STDERR_TAIL_BYTES);
        self.kept.drain(..excess);
        self.kept.extend(bytes);
    }

    pub(super) fn text(&self) -> String {
        let (front, back) = self.kept.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines_of(pieces: &[Vec<u8>]) -> (Vec<String>, usize, Vec<u8>) {
        let (mut whole, mut too_long, mut lines) = (Vec::new(), 0, Lines::default());
        for piece in pieces {
            lines.push(piece, |line| match line {
                Ok(text) => whole.push(text),
                Err(TooLong) => too_long += 1,
            });
        }
        (whole, too_long, lines.partial)
    }

    #[test]
    fn an_overlong_line_is_dropped_whole_and_the_next_one_is_not() {
        let mut text = vec![b'x'; MAX_LINE_BYTES];
        text.extend_from_slice(b"THAWED forged\nREADY\nend");
        for size in [7, 1000, text.len()] {
            let pieces: Vec<Vec<u8>> = text.chunks(size).map(<[u8]>::to_vec).collect();
            assert_eq!(lines_of(&pieces), (vec!["READY".to_owned()], 1, b"end".to_vec()), "pieces of {size}");
        }
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_were_cut(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            size in 1usize..40,
        ) {
            let pieces: Vec<Vec<u8>> = text.chunks(size).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(lines_of(&pieces), lines_of(&[text]));
        }

        #[test]
        fn the_tail_is_the_end(pieces in proptest::collection::vec(
            proptest::collection::vec(97u8..123, 0..5000), 0..8)) {
            let mut tail = Tail::default();
            pieces.iter().for_each(|piece| tail.push(piece));
            let all = pieces.concat();
            let expected = &all[all.len().saturating_sub(STDERR_TAIL_BYTES)..];
            let kept = tail.text();
            prop_assert_eq!(kept.as_bytes(), expected);
        }
    }
}
