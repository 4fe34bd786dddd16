//! Frames of the exec subprotocols `v4.channel.k8s.io` and `v5.channel.k8s.io`, and what a status means.
//!
//! Pure and total: any bytes decode to something. The first byte of a message is its channel; `[255, c]` is
//! v5's half-close of channel `c`; an empty frame on channel 1 only says that the streams are connected.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const CLOSE: u8 = 255;

/// Longest text of a peer that is kept: statuses end up in conditions and logs.
const MAX_DETAIL_CHARS: usize = 1024;

/// One message of the server, sorted by its channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of the command's standard output; may be empty.
    Stdout(Bytes),
    /// Bytes of the command's standard error; may be empty.
    Stderr(Bytes),
    /// The status object that ends the command, as JSON.
    Status(Bytes),
    /// The server closed its direction of one channel (v5).
    HalfClosed(u8),
    /// Nothing that concerns us: an empty message, a channel that is ours to write, an unknown channel.
    Ignored,
}

impl Frame {
    /// Sorts one binary message. Never fails: what cannot be understood is [`Frame::Ignored`].
    pub fn decode(mut message: Bytes) -> Self {
        if message.is_empty() {
            return Self::Ignored;
        }
        let payload = message.split_off(1);
        match message.first().copied() {
            Some(STDOUT) => Self::Stdout(payload),
            Some(STDERR) => Self::Stderr(payload),
            // An empty status frame only announces the channel.
            Some(STATUS) if !payload.is_empty() => Self::Status(payload),
            Some(CLOSE) => payload.first().map_or(Self::Ignored, |channel| Self::HalfClosed(*channel)),
            Some(_) | None => Self::Ignored,
        }
    }
}

/// The message that carries `bytes` to the command's standard input: one write, one message.
pub fn encode_stdin(bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(bytes.len().saturating_add(1));
    message.put_u8(STDIN);
    message.put_slice(bytes);
    message.freeze()
}

/// The message that ends the command's standard input and leaves its output open. v5 only: v4 servers answer
/// it as data of an unknown channel.
pub const fn encode_close_stdin() -> Bytes {
    Bytes::from_static(&[CLOSE, STDIN])
}

/// How a command ended, as far as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ran and ended with this code. An exit code proves nothing about a freeze
    /// (docs/design/freeze.md §2.1).
    Exited(i32),
    /// The kubelet or the runtime says that it could not run the command, or lost it.
    Failed(Failure),
    /// Nobody said how the command ended; it may still run.
    Unknown(Unknown),
}

impl Outcome {
    /// What the JSON on channel 3 says. A status that cannot be read is [`Unknown::Unreadable`].
    pub fn from_status(json: &[u8]) -> Self {
        let Ok(status) = serde_json::from_slice::<Status>(json) else {
            return Self::Unknown(Unknown::Unreadable);
        };
        match status.status.as_deref() {
            Some("Success") => Self::Exited(0),
            Some("Failure") => match exit_code(&status) {
                Some(code) => Self::Exited(code),
                None => Self::Failed(Failure {
                    reason: bounded(status.reason.as_deref().unwrap_or_default()),
                    message: bounded(status.message.as_deref().unwrap_or_default()),
                    code: status.code.and_then(|code| u16::try_from(code).ok()).unwrap_or_default(),
                }),
            },
            Some(_) | None => Self::Unknown(Unknown::Unreadable),
        }
    }

    /// The command ran to its end and returned 0.
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Exited(0))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Failed(failure) => write!(f, "failed: {failure}"),
            Self::Unknown(unknown) => write!(f, "unknown: {unknown}"),
        }
    }
}

/// A refusal that came over an open stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Machine-readable reason, e.g. `InternalError`; may be empty.
    pub reason: String,
    /// The kubelet's words, bounded.
    pub message: String,
    /// HTTP code of the status; 0 when it has none.
    pub code: u16,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.message, self.code, self.reason)
    }
}

/// Why the end of a command was not seen. Each means: it may have run, it may still run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unknown {
    /// The server closed the stream in order, without a status.
    Closed,
    /// The connection broke.
    Reset,
    /// The stream reached its hard deadline and closed the socket by its own timer.
    Deadline,
    /// Pings stayed without an answer.
    PingsUnanswered,
    /// We closed it: [`super::ExecSender::close`], the handle dropped, or standard input ended under v4.
    ClosedHere,
    /// A write came too late for its fence; nothing of it was sent (docs/design/freeze.md §5).
    Fenced,
    /// A status came that no version of the protocol knows.
    Unreadable,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the server closed the stream without a status",
            Self::Reset => "the connection broke",
            Self::Deadline => "the stream was closed at its deadline",
            Self::PingsUnanswered => "the server answered no pings",
            Self::ClosedHere => "the stream was closed from this side",
            Self::Fenced => "a write came after its fence and the stream was closed instead",
            Self::Unreadable => "the status could not be read",
        })
    }
}

/// The exit code of a `NonZeroExitCode` status; `None` for any other failure.
fn exit_code(status: &Status) -> Option<i32> {
    if status.reason.as_deref() != Some("NonZeroExitCode") {
        return None;
    }
    status
        .details
        .as_ref()?
        .causes
        .as_ref()?
        .iter()
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))?
        .message
        .as_deref()?
        .parse()
        .ok()
}

/// `text` cut to what may be kept.
pub(super) fn bounded(text: &str) -> String {
    text.chars().take(MAX_DETAIL_CHARS).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NON_ZERO: &str = r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 2","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"2"}]}}"#;
    const MISSING: &str = r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: error executing command in container: failed to exec in container: failed to start exec \"0b1c\": OCI runtime exec failed: exec failed: unable to start container process: exec: \"psql\": executable file not found in $PATH: unknown","reason":"InternalError","details":{"causes":[{"message":"error executing command"}]},"code":500}"#;

    #[test]
    fn every_channel_is_told_apart() {
        let decode = |bytes: &'static [u8]| Frame::decode(Bytes::from_static(bytes));
        assert_eq!(decode(b"\x01out"), Frame::Stdout(Bytes::from_static(b"out")));
        assert_eq!(decode(b"\x01"), Frame::Stdout(Bytes::new()));
        assert_eq!(decode(b"\x02err"), Frame::Stderr(Bytes::from_static(b"err")));
        assert_eq!(decode(b"\x03{}"), Frame::Status(Bytes::from_static(b"{}")));
        assert_eq!(decode(b"\x03"), Frame::Ignored);
        assert_eq!(decode(b"\xff\x01"), Frame::HalfClosed(1));
        assert_eq!(decode(b"\xff"), Frame::Ignored);
        assert_eq!(decode(b"\x00mine"), Frame::Ignored);
        assert_eq!(decode(b"\x04{}"), Frame::Ignored);
        assert_eq!(decode(b"\x2atext"), Frame::Ignored);
        assert_eq!(decode(b""), Frame::Ignored);
    }

    #[test]
    fn standard_input_goes_out_on_channel_0_and_its_end_as_a_half_close() {
        assert_eq!(encode_stdin(b"freeze\n").as_ref(), b"\x00freeze\n");
        assert_eq!(encode_close_stdin().as_ref(), [255, 0]);
    }

    #[test]
    fn a_status_says_how_the_command_ended() {
        assert_eq!(Outcome::from_status(br#"{"metadata":{},"status":"Success"}"#), Outcome::Exited(0));
        assert_eq!(Outcome::from_status(NON_ZERO.as_bytes()), Outcome::Exited(2));
        let Outcome::Failed(failure) = Outcome::from_status(MISSING.as_bytes()) else { panic!("not failed") };
        assert_eq!((failure.code, failure.reason.as_str()), (500, "InternalError"));
        assert!(failure.message.contains("executable file not found in $PATH"));
    }

    #[test]
    fn an_exit_code_that_cannot_be_read_is_a_failure_not_a_guess() {
        let odd = NON_ZERO.replace("\"message\":\"2\"", "\"message\":\"two\"");
        assert!(matches!(Outcome::from_status(odd.as_bytes()), Outcome::Failed(_)));
    }

    #[test]
    fn an_unreadable_status_is_never_success() {
        for json in ["", "{", "[]", "{}", r#"{"status":"Maybe"}"#, r#"{"status":7}"#] {
            assert_eq!(
                Outcome::from_status(json.as_bytes()),
                Outcome::Unknown(Unknown::Unreadable),
                "{json}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_message_decodes_and_loses_no_byte(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            match Frame::decode(Bytes::from(bytes.clone())) {
                Frame::Stdout(payload) | Frame::Stderr(payload) | Frame::Status(payload) => {
                    prop_assert_eq!(payload.as_ref(), &bytes[1..]);
                }
                Frame::HalfClosed(channel) => prop_assert_eq!(channel, bytes[1]),
                Frame::Ignored => {}
            }
        }

        #[test]
        fn any_status_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Outcome::from_status(&bytes);
        }

        #[test]
        fn only_the_word_success_is_success(word in "[A-Za-z]{0,10}") {
            let outcome = Outcome::from_status(format!(r#"{{"status":"{word}"}}"#).as_bytes());
            prop_assert_eq!(outcome.is_success(), word == "Success");
        }
    }
}
