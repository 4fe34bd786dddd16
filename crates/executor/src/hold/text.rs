//! Texts of a template as bytes for a hold's standard input.
//!
//! Strict: an unknown placeholder is an error when the text is read, a placeholder without a value when it is
//! written. A rendered block is one write, so that a closing beat and its thaw cannot be torn apart
//! (docs/design/freeze.md §2.4). Parameters of a template are put in earlier; [`quote_sql_literal`] is for them.

use bytes::Bytes;

use super::Nonce;

/// A text with its placeholders found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Value(Placeholder),
}

/// What the controller fills in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placeholder {
    /// `{{n}}`: the hold's nonce.
    Nonce,
    /// `{{i}}`: the index of a beat.
    Beat,
    /// `{{lease}}`: the lease in the server variable's own unit.
    Lease,
    /// `{{acquireSeconds}}`: how long the freeze may take to acquire, in seconds.
    AcquireSeconds,
}

impl Placeholder {
    /// The name between the braces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nonce => "n",
            Self::Beat => "i",
            Self::Lease => "lease",
            Self::AcquireSeconds => "acquireSeconds",
        }
    }

    const ALL: [Self; 4] = [Self::Nonce, Self::Beat, Self::Lease, Self::AcquireSeconds];
}

/// The values of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextValues<'a> {
    /// The hold's nonce.
    pub nonce: &'a Nonce,
    /// Index of the beat, for beat texts.
    pub beat: Option<u64>,
    /// Lease in the variable's own unit.
    pub lease: Option<u64>,
    /// Whole seconds for acquisition.
    pub acquire_seconds: Option<u64>,
}

impl<'a> TextValues<'a> {
    /// Only the nonce.
    pub const fn of(nonce: &'a Nonce) -> Self {
        Self { nonce, beat: None, lease: None, acquire_seconds: None }
    }

    fn get(&self, placeholder: Placeholder) -> Option<String> {
        match placeholder {
            Placeholder::Nonce => Some(self.nonce.to_string()),
            Placeholder::Beat => self.beat.map(|value| value.to_string()),
            Placeholder::Lease => self.lease.map(|value| value.to_string()),
            Placeholder::AcquireSeconds => self.acquire_seconds.map(|value| value.to_string()),
        }
    }
}

/// Why a text cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A name between braces that nobody fills in.
    #[error(
        "the text has an unknown placeholder {{{{{name}}}}}; known are {{{{n}}}}, {{{{i}}}}, {{{{lease}}}} and \
         {{{{acquireSeconds}}}}"
    )]
    Unknown {
        /// The name as written, bounded.
        name: String,
    },
    /// `{{` without `}}`.
    #[error(
        "the text has {{{{ without }}}}; a placeholder is {{{{n}}}}, write other braces with a space between"
    )]
    Unclosed,
    /// A NUL byte, which no client reads.
    #[error("the text contains a NUL byte")]
    Nul,
    /// The write has no value for a placeholder of the text.
    #[error(
        "{{{{{name}}}}} has no value in this text; it may be used only where the template format says so"
    )]
    NoValue {
        /// The placeholder's name.
        name: &'static str,
    },
}

impl Text {
    /// Finds the placeholders of `source`.
    ///
    /// # Errors
    /// [`TextError`] for anything between double braces that is not a known name, exactly.
    pub fn parse(source: &str) -> Result<Self, TextError> {
        if source.contains('\0') {
            return Err(TextError::Nul);
        }
        let mut pieces = Vec::new();
        let mut rest = source;
        while let Some((literal, after)) = rest.split_once("{{") {
            let (name, tail) = after.split_once("}}").ok_or(TextError::Unclosed)?;
            let known = Placeholder::ALL.into_iter().find(|placeholder| placeholder.name() == name);
            let placeholder =
                known.ok_or_else(|| TextError::Unknown { name: name.chars().take(40).collect() })?;
            pieces.push(Piece::Literal(literal.to_owned()));
            pieces.push(Piece::Value(placeholder));
            rest = tail;
        }
        pieces.push(Piece::Literal(rest.to_owned()));
        pieces.retain(|piece| !matches!(piece, Piece::Literal(text) if text.is_empty()));
        Ok(Self { pieces })
    }

    /// Whether the text uses `placeholder`.
    pub fn uses(&self, placeholder: Placeholder) -> bool {
        self.pieces.contains(&Piece::Value(placeholder))
    }

    /// The text with its values, ending in a newline so that the client takes its last line.
    ///
    /// # Errors
    /// [`TextError::NoValue`].
    pub fn render(&self, values: &TextValues<'_>) -> Result<String, TextError> {
        let mut rendered = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => rendered.push_str(text),
                Piece::Value(placeholder) => rendered.push_str(
                    &values.get(*placeholder).ok_or(TextError::NoValue { name: placeholder.name() })?,
                ),
            }
        }
        if !rendered.is_empty() && !rendered.ends_with('\n') {
            rendered.push('\n');
        }
        Ok(rendered)
    }

    /// Several texts as **one** write, in order: the closing beat and the thaw.
    ///
    /// # Errors
    /// [`TextError::NoValue`].
    pub fn one_write(texts: &[&Self], values: &TextValues<'_>) -> Result<Bytes, TextError> {
        let mut block = String::new();
        for text in texts {
            block.push_str(&text.render(values)?);
        }
        Ok(Bytes::from(block))
    }
}

/// A value that cannot be written as a literal every supported server reads the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the value cannot be an SQL literal: it contains a backslash or a control character, which servers read \
     differently; use a value without"
)]
pub struct QuoteError;

/// `value` as an SQL string literal. Quotes are doubled, which PostgreSQL, MySQL and MariaDB read alike in
/// every mode; a backslash is an escape in some modes and a character in others, so it is refused, and with it
/// the clients' own backslash commands.
///
/// # Errors
/// [`QuoteError`].
pub fn quote_sql_literal(value: &str) -> Result<String, QuoteError> {
    if value.chars().any(|character| character == '\\' || character.is_control()) {
        return Err(QuoteError);
    }
    Ok(format!("'{}'", value.replace('\'', "''")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nonce() -> Nonce {
        Nonce::try_from("k3v9k3v9k3v9k3v9".to_owned()).unwrap()
    }

    #[test]
    fn every_placeholder_is_filled_in_and_the_block_ends_in_a_newline() {
        let text = Text::parse("SET wait_timeout={{lease}};\nSELECT 'HELD {{n}} {{i}}', {{acquireSeconds}};")
            .unwrap();
        let nonce = nonce();
        let values = TextValues { beat: Some(7), lease: Some(10), acquire_seconds: Some(5), nonce: &nonce };
        assert_eq!(
            text.render(&values).unwrap(),
            "SET wait_timeout=10;\nSELECT 'HELD k3v9k3v9k3v9k3v9 7', 5;\n"
        );
        assert!(text.uses(Placeholder::Beat));
    }

    #[test]
    fn an_unknown_or_unclosed_placeholder_is_an_error() {
        for source in ["{{N}}", "{{ n }}", "{{}}", "{{nonce}}", "{{password}}"] {
            assert!(matches!(Text::parse(source), Err(TextError::Unknown { .. })), "{source}");
        }
        assert_eq!(Text::parse("SELECT {{n"), Err(TextError::Unclosed));
        assert_eq!(Text::parse("a\0b"), Err(TextError::Nul));
        assert!(Text::parse("db.runCommand({a:{b:1}})").is_ok());
    }

    #[test]
    fn a_placeholder_without_a_value_is_never_sent() {
        let nonce = nonce();
        let text = Text::parse("HELD {{n}} {{i}}").unwrap();
        assert_eq!(text.render(&TextValues::of(&nonce)), Err(TextError::NoValue { name: "i" }));
    }

    #[test]
    fn closing_beat_and_thaw_are_one_write() {
        let nonce = nonce();
        let (beat, thaw) = (Text::parse("HELD {{i}};").unwrap(), Text::parse("COMMIT;").unwrap());
        let values = TextValues { beat: Some(9), ..TextValues::of(&nonce) };
        assert_eq!(
            Text::one_write(&[&beat, &thaw], &values).unwrap(),
            Bytes::from_static(b"HELD 9;\nCOMMIT;\n")
        );
    }

    #[test]
    fn literals_cannot_end_early() {
        assert_eq!(quote_sql_literal("o'brien; DROP"), Ok("'o''brien; DROP'".to_owned()));
        for refused in ["\\", "a\\'b", "a\nb", "a\0"] {
            assert_eq!(quote_sql_literal(refused), Err(QuoteError), "{refused:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_total_and_a_text_without_braces_is_kept(source in "\\PC{0,60}") {
            let nonce = nonce();
            if let Ok(text) = Text::parse(&source) && !source.contains("{{") {
                let rendered = text.render(&TextValues::of(&nonce)).unwrap();
                prop_assert_eq!(rendered.trim_end_matches('\n'), source.trim_end_matches('\n'));
            }
        }

        #[test]
        fn a_quoted_literal_has_only_doubled_quotes_inside(value in "[a-z' ]{0,20}") {
            let quoted = quote_sql_literal(&value).unwrap();
            let inside = &quoted[1..quoted.len() - 1];
            prop_assert_eq!(inside.replace("''", "").contains('\''), false);
            prop_assert_eq!(inside.replace("''", "'"), value);
        }
    }
}
