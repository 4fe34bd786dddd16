//! The line protocol of a hold: `WORD n [i|s] (key=value)*`, and what its reports say.
//!
//! Pure and total. A line counts only when every byte of it fits: leading tokens exact, single spaces, keys
//! from a closed set, each once, values percent-encoded, numbers in their shortest form, the right nonce.
//! Anything else is [`Foreign`] and is kept, bounded, for diagnosis. Whether a word that counts may be believed
//! at this moment (`THAWED` only after the closing text was written completely) is the run machine's to decide
//! (docs/design/freeze.md §2.1).

use std::collections::BTreeMap;
use std::fmt;

use super::Nonce;

/// How much of a foreign line is kept.
const MAX_FOREIGN_CHARS: usize = 256;
/// Longest key of an EVIDENCE line: server settings have names up to 64 characters.
const MAX_EVIDENCE_KEY: usize = 64;

/// The words a line that counts begins with.
const WORDS: [&str; 8] = ["READY", "FROZEN", "HELD", "EVIDENCE", "THAWED", "THAWFAILED", "EXPIRED", "CANARY"];

/// Whether a line begins with a word of the protocol; whether it counts is for [`HoldLine::parse`] to say.
pub fn begins_with_word(line: &str) -> bool {
    line.split(' ').next().is_some_and(|word| WORDS.contains(&word))
}

/// A line that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldLine {
    /// The session is open, its lease is set, nothing is frozen.
    Ready(Report),
    /// Stage `stage` is frozen.
    Frozen {
        /// Stage of a staged template, from 0.
        stage: u32,
        /// Who says so.
        report: Report,
    },
    /// Beat `beat` found the freeze in place.
    Held {
        /// Index of the beat that is answered.
        beat: u64,
        /// Who says so.
        report: Report,
    },
    /// A setting or position of the server for the record.
    Evidence {
        /// Its name.
        key: String,
        /// Its value, decoded; may be empty.
        value: String,
    },
    /// Thawed, in answer to our own thaw.
    Thawed,
    /// The holder's thaw failed and is being tried again.
    ThawFailed,
    /// The holder thawed by its own deadline or at end of input.
    Expired,
    /// The canary came through: this client does not stop at its first error.
    Canary,
}

/// What READY, FROZEN and HELD say about their sender.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Who answered; compared for equality.
    pub identity: Identity,
    /// The server's role, judged by the role rule.
    pub role: Option<Role>,
    /// The server's clock in microseconds since 1970.
    pub clock_micros: Option<u64>,
    /// The lease as the server reads it back, in the variable's own unit.
    pub lease: Option<u64>,
    /// Counters that only a commit moves.
    pub position: Position,
}

/// The role a server reports, in its own word (`primary`, `standby`, `replica`…).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Role(pub String);

/// The keys that tell one server session from every other. READY, FROZEN and HELD must agree on all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Identity(BTreeMap<IdentityKey, String>);

/// The position counters of a report (grade `Position`, docs/design/freeze.md §4 rule 10).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Position(BTreeMap<PositionKey, String>);

macro_rules! keys {
    ($(#[$doc:meta])* $name:ident { $($(#[$key_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $($(#[$key_doc])* $variant,)+
        }

        impl $name {
            /// Every key of the set.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The key as it is written.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

keys! {
    /// The closed set of identity keys.
    IdentityKey {
        /// Process id of the back-end or the holder.
        Pid = "pid",
        /// Start of the server in microseconds, as the server stored it; never a computed time, which jitters.
        Start = "start",
        /// PostgreSQL's system identifier.
        Sysid = "sysid",
        /// Connection id.
        Conn = "conn",
        /// Uid of the server (MariaDB, MySQL).
        Uid = "uid",
        /// Host name as the server knows it.
        Host = "host",
        /// Whether the session reached the server without a network.
        Local = "local",
        /// Redis' and Valkey's run id.
        Runid = "runid",
        /// Port of the server.
        Port = "port",
        /// Data directory.
        Datadir = "datadir",
        /// Version of the server.
        Version = "version",
    }
}

keys! {
    /// The closed set of position keys.
    PositionKey {
        /// GTID set or position.
        Gtid = "gtid",
        /// Write-ahead log position.
        Lsn = "lsn",
        /// Oplog time of MongoDB.
        Oplog = "oplog",
        /// Changes since the last save of Redis and Valkey.
        Changes = "changes",
        /// Any other counter of a template.
        Position = "position",
    }
}

macro_rules! key_values {
    ($name:ident, $key:ident) => {
        impl $name {
            /// The value of `key`, decoded.
            pub fn get(&self, key: $key) -> Option<&str> {
                self.0.get(&key).map(String::as_str)
            }

            /// Every key that was reported, with its value.
            pub fn pairs(&self) -> impl Iterator<Item = ($key, &str)> {
                self.0.iter().map(|(key, value)| (*key, value.as_str()))
            }

            /// Whether no key was reported.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }

            /// The first key, in order of the set, on which `now` differs from `self`; a key that only one of
            /// them has differs.
            pub fn difference(&self, now: &Self) -> Option<Difference> {
                $key::ALL.iter().find(|key| self.0.get(key) != now.0.get(key)).map(|key| Difference {
                    key: key.as_str(),
                    was: self.0.get(key).cloned(),
                    is: now.0.get(key).cloned(),
                })
            }
        }

        impl FromIterator<($key, String)> for $name {
            fn from_iter<I: IntoIterator<Item = ($key, String)>>(pairs: I) -> Self {
                Self(pairs.into_iter().collect())
            }
        }
    };
}

key_values!(Identity, IdentityKey);
key_values!(Position, PositionKey);

/// A key of a report, to require it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReportKey {
    /// One of the identity keys.
    Identity(IdentityKey),
    /// `role`.
    Role,
    /// `clock`.
    Clock,
    /// `lease`.
    Lease,
    /// One of the position keys.
    Position(PositionKey),
}

impl ReportKey {
    /// The key written as `word`; `None` outside the closed set.
    pub fn from_word(word: &str) -> Option<Self> {
        if let Some(key) = IdentityKey::ALL.iter().find(|key| key.as_str() == word) {
            return Some(Self::Identity(*key));
        }
        if let Some(key) = PositionKey::ALL.iter().find(|key| key.as_str() == word) {
            return Some(Self::Position(*key));
        }
        match word {
            "role" => Some(Self::Role),
            "clock" => Some(Self::Clock),
            "lease" => Some(Self::Lease),
            _ => None,
        }
    }
}

impl Report {
    /// Whether the report has `key`.
    pub fn has(&self, key: ReportKey) -> bool {
        match key {
            ReportKey::Identity(key) => self.identity.get(key).is_some(),
            ReportKey::Role => self.role.is_some(),
            ReportKey::Clock => self.clock_micros.is_some(),
            ReportKey::Lease => self.lease.is_some(),
            ReportKey::Position(key) => self.position.get(key).is_some(),
        }
    }
}

/// Where two reports differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: &'static str,
    /// Its value before.
    pub was: Option<String>,
    /// Its value now.
    pub is: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(not reported)".to_owned());
        write!(f, "{} was {} and is {}", self.key, shown(&self.was), shown(&self.is))
    }
}

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// It counts.
    Line(HoldLine),
    /// It does not.
    Foreign(Foreign),
}

/// A line that does not count. Its text is for debug logs only: clients echo failed statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Why.
    pub reason: ForeignReason,
    /// The line, bounded.
    pub text: String,
}

/// Why a line does not count. All but the first two are faults of a template, worth a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForeignReason {
    /// It does not begin with a word of the protocol.
    NotProtocol,
    /// It is of another attempt or another hold.
    OtherNonce,
    /// Tokens missing, too many, or not separated by single spaces.
    Shape,
    /// A number that is not in its shortest decimal form or does not fit.
    Number,
    /// A key outside the closed set.
    UnknownKey,
    /// A key twice.
    RepeatedKey,
    /// A value that is empty, has a control character, or is not percent-encoded UTF-8.
    Value,
    /// READY, FROZEN or HELD without any identity.
    NoIdentity,
    /// READY, FROZEN or HELD without a key the template requires.
    MissingKey,
}

impl ForeignReason {
    /// What is wrong, for a message about a template.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotProtocol => "not a line of the protocol",
            Self::OtherNonce => "another attempt's nonce",
            Self::Shape => "tokens missing, too many, or not separated by single spaces",
            Self::Number => "a number that is not plain decimal",
            Self::UnknownKey => "a key outside the closed set",
            Self::RepeatedKey => "a key twice",
            Self::Value => "a value that is empty or not percent-encoded",
            Self::NoIdentity => "no identity key",
            Self::MissingKey => "a required key is missing",
        }
    }
}

impl HoldLine {
    /// Reads one complete line, without its newline, for the hold with `nonce`.
    pub fn parse(line: &str, nonce: &Nonce) -> Parsed {
        Self::parse_requiring(line, nonce, &[])
    }

    /// [`Self::parse`], where READY, FROZEN and HELD must have every key of `required`.
    pub fn parse_requiring(line: &str, nonce: &Nonce, required: &[ReportKey]) -> Parsed {
        let counted = read(line, nonce).and_then(|read| {
            let complete = read.report().is_none_or(|report| required.iter().all(|key| report.has(*key)));
            if complete { Ok(read) } else { Err(ForeignReason::MissingKey) }
        });
        match counted {
            Ok(line) => Parsed::Line(line),
            Err(reason) => {
                Parsed::Foreign(Foreign { reason, text: line.chars().take(MAX_FOREIGN_CHARS).collect() })
            }
        }
    }

    /// The report of READY, FROZEN and HELD.
    pub const fn report(&self) -> Option<&Report> {
        match self {
            Self::Ready(report) | Self::Frozen { report, .. } | Self::Held { report, .. } => Some(report),
            Self::Evidence { .. } | Self::Thawed | Self::ThawFailed | Self::Expired | Self::Canary => None,
        }
    }

    /// The line as a hold would print it, without its newline: for simulated holds and tests.
    pub fn render(&self, nonce: &Nonce) -> String {
        match self {
            Self::Ready(report) => format!("READY {nonce}{report}"),
            Self::Frozen { stage, report } => format!("FROZEN {nonce} {stage}{report}"),
            Self::Held { beat, report } => format!("HELD {nonce} {beat}{report}"),
            Self::Evidence { key, value } => format!("EVIDENCE {nonce} {key}={}", encode(value)),
            Self::Thawed => format!("THAWED {nonce}"),
            Self::ThawFailed => format!("THAWFAILED {nonce}"),
            Self::Expired => format!("EXPIRED {nonce}"),
            Self::Canary => format!("CANARY {nonce}"),
        }
    }
}

impl fmt::Display for Report {
    /// The key and value pairs, each with a leading space.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in &self.identity.0 {
            write!(f, " {key}={}", encode(value))?;
        }
        if let Some(Role(role)) = &self.role {
            write!(f, " role={}", encode(role))?;
        }
        if let Some(clock) = self.clock_micros {
            write!(f, " clock={clock}")?;
        }
        if let Some(lease) = self.lease {
            write!(f, " lease={lease}")?;
        }
        for (key, value) in &self.position.0 {
            write!(f, " {key}={}", encode(value))?;
        }
        Ok(())
    }
}

fn read(line: &str, nonce: &Nonce) -> Result<HoldLine, ForeignReason> {
    let mut tokens = line.split(' ');
    let word = tokens.next().unwrap_or_default();
    if !WORDS.contains(&word) {
        return Err(ForeignReason::NotProtocol);
    }
    match tokens.next() {
        Some(token) if token == nonce.as_str() => {}
        Some(_) => return Err(ForeignReason::OtherNonce),
        None => return Err(ForeignReason::Shape),
    }
    let bare = |mut tokens: std::str::Split<'_, char>, line| match tokens.next() {
        None => Ok(line),
        Some(_) => Err(ForeignReason::Shape),
    };
    match word {
        "READY" => Ok(HoldLine::Ready(report(tokens)?)),
        "FROZEN" => {
            let stage = number(tokens.next())?;
            Ok(HoldLine::Frozen {
                stage: u32::try_from(stage).map_err(|_| ForeignReason::Number)?,
                report: report(tokens)?,
            })
        }
        "HELD" => Ok(HoldLine::Held { beat: number(tokens.next())?, report: report(tokens)? }),
        "EVIDENCE" => {
            let (key, value) =
                tokens.next().ok_or(ForeignReason::Shape)?.split_once('=').ok_or(ForeignReason::Shape)?;
            let named = !key.is_empty()
                && key.len() <= MAX_EVIDENCE_KEY
                && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
            if !named {
                return Err(ForeignReason::UnknownKey);
            }
            bare(tokens, HoldLine::Evidence { key: key.to_owned(), value: decode(value)? })
        }
        "THAWED" => bare(tokens, HoldLine::Thawed),
        "THAWFAILED" => bare(tokens, HoldLine::ThawFailed),
        "EXPIRED" => bare(tokens, HoldLine::Expired),
        "CANARY" => bare(tokens, HoldLine::Canary),
        _ => Err(ForeignReason::NotProtocol),
    }
}

fn report<'a>(tokens: impl Iterator<Item = &'a str>) -> Result<Report, ForeignReason> {
    let mut report = Report::default();
    for token in tokens {
        let (key, value) = token.split_once('=').ok_or(ForeignReason::Shape)?;
        let decoded = decode(value)?;
        if decoded.is_empty() {
            return Err(ForeignReason::Value);
        }
        let repeated = if let Some(key) = IdentityKey::ALL.iter().find(|known| known.as_str() == key) {
            report.identity.0.insert(*key, decoded).is_some()
        } else if let Some(key) = PositionKey::ALL.iter().find(|known| known.as_str() == key) {
            report.position.0.insert(*key, decoded).is_some()
        } else {
            match key {
                // Words, not a state: the closed set ends here.
                "role" => report.role.replace(Role(decoded)).is_some(),
                "clock" => report.clock_micros.replace(number(Some(value))?).is_some(),
                "lease" => report.lease.replace(number(Some(value))?).is_some(),
                _ => return Err(ForeignReason::UnknownKey),
            }
        };
        if repeated {
            return Err(ForeignReason::RepeatedKey);
        }
    }
    if report.identity.is_empty() { Err(ForeignReason::NoIdentity) } else { Ok(report) }
}

/// A decimal number in its only form: digits, no sign, no leading zero.
fn number(token: Option<&str>) -> Result<u64, ForeignReason> {
    let token = token.ok_or(ForeignReason::Shape)?;
    let plain = !token.is_empty()
        && token.bytes().all(|byte| byte.is_ascii_digit())
        && (token.len() == 1 || !token.starts_with('0'));
    if plain { token.parse().map_err(|_| ForeignReason::Number) } else { Err(ForeignReason::Number) }
}

/// A percent-encoded value. Servers print most characters as they are, so any printable one stands for itself.
fn decode(value: &str) -> Result<String, ForeignReason> {
    if value.chars().any(char::is_control) {
        return Err(ForeignReason::Value);
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let digits = tail.get(..2).and_then(|digits| Some((hex(digits[0])?, hex(digits[1])?)));
            let (high, low) = digits.ok_or(ForeignReason::Value)?;
            bytes.push(high * 16 + low);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map_err(|_| ForeignReason::Value)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for character in value.chars() {
        if character == ' ' || character == '%' || character.is_control() {
            let mut buffer = [0; 4];
            for byte in character.encode_utf8(&mut buffer).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        } else {
            encoded.push(character);
        }
    }
    encoded
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
