//! Each literal is read again by a reader of its language, written apart from the writer: it yields the value and ends where the
//! literal ends, in every mode of the server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

const ALL: [Language; 6] = [
    Language::Sql,
    Language::Mysql,
    Language::Postgresql,
    Language::Javascript,
    Language::Shell,
    Language::Uri,
];

fn text() -> Parameter {
    Parameter { name: "p".into(), ..Parameter::default() }
}

/// What a server makes of `'…'`, and what is left behind it. `escapes`: a backslash takes the next character.
fn quoted(text: &str, escapes: bool) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.strip_prefix('\'')?.char_indices().peekable();
    while let Some((at, one)) = chars.next() {
        match one {
            '\'' if chars.peek().is_some_and(|(_, next)| *next == '\'') => {
                chars.next();
                value.push('\'');
            }
            '\'' => return Some((value, &text[at + 2..])),
            '\\' if escapes => match chars.next()?.1 {
                'U' => {
                    let digits: String = chars.by_ref().take(8).map(|(_, digit)| digit).collect();
                    value.push(char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?);
                }
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

fn bytes(digits: &str) -> Vec<u8> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// The value that every mode of a language's readers takes the whole literal for.
fn read(language: Language, said: &str) -> Vec<String> {
    match language {
        Language::Sql => [false, true].map(|escapes| whole(quoted(said, escapes))).to_vec(),
        Language::Mysql => match said.strip_prefix("_utf8mb4 X'") {
            Some(digits) => vec![String::from_utf8(bytes(digits.strip_suffix('\'').unwrap())).unwrap()],
            None => [false, true].map(|escapes| whole(quoted(said, escapes))).to_vec(),
        },
        Language::Postgresql => match said.strip_prefix('E') {
            Some(escaped) => vec![whole(quoted(escaped, true))],
            None => [false, true].map(|escapes| whole(quoted(said, escapes))).to_vec(),
        },
        // JSON is a part of JavaScript.
        Language::Javascript => vec![serde_json::from_str(said).unwrap()],
        Language::Shell => vec![shell(said)],
        Language::Uri => {
            let mut value = Vec::new();
            let mut rest = said.bytes();
            while let Some(byte) = rest.next() {
                match byte {
                    b'%' => value.extend(bytes(
                        std::str::from_utf8(&[rest.next().unwrap(), rest.next().unwrap()]).unwrap(),
                    )),
                    plain => value.push(plain),
                }
            }
            vec![String::from_utf8(value).unwrap()]
        }
    }
}

fn whole(read: Option<(String, &str)>) -> String {
    let (value, rest) = read.expect("the literal is closed");
    assert_eq!(rest, "", "nothing is left of it");
    value
}

/// One word of single quotes and escaped quotes.
fn shell(said: &str) -> String {
    let (mut value, mut rest) = (String::new(), said);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("\\'") {
            value.push('\'');
            rest = after;
        } else {
            let (inside, after) = rest.strip_prefix('\'').unwrap().split_once('\'').unwrap();
            value.push_str(inside);
            rest = after;
        }
    }
    value
}

/// Values made of what ends literals, comments and statements somewhere.
fn nasty() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "'",
        "''",
        "\"",
        "\\",
        "\\'",
        "\\\\",
        "`",
        "$(reboot)",
        "${x}",
        "$$",
        ";",
        "--",
        "-- ",
        "/*",
        "*/",
        "#",
        "{",
        "}",
        "|",
        "&",
        ">",
        "<!--",
        "</script>",
        " ",
        "a",
        "0",
        "DROP TABLE t",
        "é",
        "表",
        "\u{bf}",
        "\u{2028}",
        "😀",
        ":x",
        "%s",
        "%27",
        "\u{ff07}",
    ];
    prop::collection::vec(prop::sample::select(PIECES), 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_value_never_leaves_its_literal(value in nasty(), any in "\\PC{0,24}") {
        for value in [value, any] {
            for language in ALL {
                let Ok(said) = literal(language, &text(), &value) else {
                    prop_assert!(language == Language::Sql && value.contains('\\'), "{language:?} cannot say {value:?}");
                    continue;
                };
                for read in read(language, &said) {
                    prop_assert_eq!(&read, &value, "{:?} said {}", language, &said);
                }
                prop_assert!(!said.contains('\n'));
            }
        }
    }

    /// The real reader of one of the languages.
    #[test]
    fn a_shell_reads_the_word_that_was_said(value in nasty()) {
        let line = format!("printf %s {}", literal(Language::Shell, &text(), &value).unwrap());
        let done = std::process::Command::new("sh").arg("-c").arg(line).output().unwrap();
        prop_assert!(done.status.success());
        prop_assert_eq!(String::from_utf8(done.stdout).unwrap(), value);
    }

    /// In Shift JIS, Big5 and GB 18030 the byte 0x5C may be the second half of a character, whose first half could be the end
    /// of what stands before it.
    #[test]
    fn no_character_set_hides_a_backslash_or_a_quote(value in nasty()) {
        for language in [Language::Mysql, Language::Postgresql, Language::Javascript] {
            let said = literal(language, &text(), &value).unwrap();
            let bytes = said.as_bytes();
            prop_assert!(!bytes.windows(2).any(|pair| !pair[0].is_ascii() && pair[1] == b'\\'), "{said}");
        }
    }
}

#[test]
fn numbers_and_names_are_said_as_such() {
    let of = |type_| Parameter { name: "p".into(), type_, ..Parameter::default() };
    let said = |language, type_, value: &str| literal(language, &of(type_), value);
    assert_eq!(said(Language::Sql, ParameterType::Integer, "5").as_deref(), Ok("5"));
    assert_eq!(
        said(Language::Sql, ParameterType::Integer, "-5").as_deref(),
        Ok(" -5"),
        "5--5 would be a comment"
    );
    assert_eq!(said(Language::Sql, ParameterType::Boolean, "true").as_deref(), Ok("true"));
    assert_eq!(said(Language::Postgresql, ParameterType::Identifier, "Shop").as_deref(), Ok("\"Shop\""));
    assert_eq!(said(Language::Mysql, ParameterType::Identifier, "shop").as_deref(), Ok("`shop`"));
    assert_eq!(said(Language::Postgresql, ParameterType::Duration, "30s").as_deref(), Ok("'30s'"));
    assert!(said(Language::Shell, ParameterType::Script, "rm -rf /").is_err());
}

#[test]
fn what_is_usual_reads_as_usual() {
    let said = |language, value: &str| literal(language, &text(), value).unwrap();
    assert_eq!(said(Language::Sql, "it's"), "'it''s'");
    assert_eq!(said(Language::Mysql, "it's"), "'it''s'");
    assert_eq!(said(Language::Mysql, "a\\"), "_utf8mb4 X'615C'");
    assert_eq!(said(Language::Postgresql, "a\\b'é"), "E'a\\\\b''\\U000000E9'");
    assert_eq!(said(Language::Javascript, "a\"b\\é"), "\"a\\\"b\\\\\\u00e9\"");
    assert_eq!(said(Language::Shell, "it's"), "'it'\\''s'");
    assert_eq!(said(Language::Uri, "/a b?c&d%"), "/a%20b%3Fc%26d%25");
}
