//! What a client says when it cannot, and what a template makes of it: cause and cure for people, a bounded meaning for conditions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Words of a client, and what they mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientMessage {
    /// Words that stand in its error output, compared without case.
    #[schemars(length(min = 4, max = 128))]
    pub contains: String,
    /// What they mean.
    pub means: Meaning,
    /// Cause and cure, as they are shown. No parameters.
    #[schemars(length(min = 1, max = 512))]
    pub says: String,
}

/// What the words of a client mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Meaning {
    /// The container has no such program.
    ClientMissing,
    /// The server did not accept who we are.
    AuthenticationFailed,
    /// It did, and that account may not do this.
    PrivilegeMissing,
    /// Something holds what is needed, or the server has no room now: it may pass.
    ServerBusy,
    /// No server answers there, or it is not ready: it may pass.
    ServerUnreachable,
    /// The server is not one that this template is for.
    NotSupported,
}

impl ClientMessage {
    /// The first message that is said in a client's error output.
    pub fn said<'m>(messages: &'m [Self], stderr: &str) -> Option<&'m Self> {
        let stderr = stderr.to_lowercase();
        messages.iter().find(|message| stderr.contains(&message.contains.to_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_said_counts_whatever_its_case() {
        let message = |contains: &str, says: &str| ClientMessage {
            contains: contains.into(),
            means: Meaning::PrivilegeMissing,
            says: says.into(),
        };
        let all = [message("ORA-01031", "grant it"), message("ora-", "something else")];
        let says = |stderr: &str| ClientMessage::said(&all, stderr).map(|message| message.says.as_str());
        assert_eq!(says("error\nOra-01031: insufficient privileges"), Some("grant it"));
        assert_eq!(says("ORA-00257: archiver error"), Some("something else"));
        assert_eq!(says("fine"), None);
    }
}
