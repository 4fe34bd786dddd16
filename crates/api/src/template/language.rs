//! Says a value as one literal of a language, so that whoever reads the text reads that value and nothing else.
//!
//! The literal is the same in every mode that a server may be in (`NO_BACKSLASH_ESCAPES`, `standard_conforming_strings`), and
//! under every character set that a client may take the text for. What cannot be said so is refused. Control characters never
//! come here: `substitute` refuses them in any value.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Parameter, ParameterType};

/// In which language a text is written, and so its literals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Language {
    /// SQL of any server: quotes are doubled; a backslash is refused, because servers disagree on its meaning.
    #[default]
    Sql,
    /// SQL of MySQL and MariaDB. A value with a backslash is said in hexadecimal digits.
    Mysql,
    /// SQL of PostgreSQL. A value with a backslash is an escape string (`E'…'`).
    Postgresql,
    /// JavaScript of mongosh and node. Everything outside of ASCII is escaped.
    Javascript,
    /// Shell: a word in single quotes.
    Shell,
    /// A part of a URI: everything but letters, digits, `-._~` and `/` becomes `%` and two digits. Not for sessions.
    Uri,
}

impl Language {
    /// The language of a filter, as in `{{name|shell}}`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "sql" => Self::Sql,
            "mysql" => Self::Mysql,
            "postgresql" => Self::Postgresql,
            "javascript" => Self::Javascript,
            "shell" => Self::Shell,
            "uri" => Self::Uri,
            _ => return None,
        })
    }

    /// As it is written in templates.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sql => "sql",
            Self::Mysql => "mysql",
            Self::Postgresql => "postgresql",
            Self::Javascript => "javascript",
            Self::Shell => "shell",
            Self::Uri => "uri",
        }
    }

    /// Whether a text for `other` takes this language's literals.
    pub fn fits(self, other: Self) -> bool {
        let both = [self, other];
        self == other
            || both.contains(&Self::Sql) && (both.contains(&Self::Mysql) || both.contains(&Self::Postgresql))
    }
}

/// A parameter's value as a literal of `language`.
///
/// # Errors
/// Why it cannot be said, with what to do: for a message that begins with the parameter's name.
pub fn literal(language: Language, parameter: &Parameter, value: &str) -> Result<String, String> {
    match parameter.type_ {
        // A space keeps `5-{{k}}` from becoming the beginning of a comment.
        ParameterType::Integer if value.starts_with('-') && language != Language::Uri => {
            Ok(format!(" {value}"))
        }
        ParameterType::Integer | ParameterType::Boolean => Ok(value.to_owned()),
        ParameterType::Identifier => Ok(identifier(language, value)),
        ParameterType::Script => {
            Err("is a piece of a program, which can only be a whole argument: give it another type".into())
        }
        ParameterType::String | ParameterType::Enum | ParameterType::Duration | ParameterType::Path => {
            string(language, value)
        }
    }
}

/// A name of the server's. It has letters, digits and `_` only, so that the quotes cannot be left.
fn identifier(language: Language, value: &str) -> String {
    match language {
        Language::Sql | Language::Postgresql => format!("\"{value}\""),
        Language::Mysql => format!("`{value}`"),
        Language::Javascript => format!("\"{value}\""),
        Language::Shell | Language::Uri => value.to_owned(),
    }
}

fn string(language: Language, value: &str) -> Result<String, String> {
    let quoted = || format!("'{}'", value.replace('\'', "''"));
    let backslash = value.contains('\\');
    Ok(match language {
        Language::Sql if backslash => {
            return Err(
                "has a backslash and becomes an SQL literal, where servers disagree on its meaning: use another value, or \
                 name the server's own language in the template (freeze.session.language)"
                    .into(),
            );
        }
        Language::Sql => quoted(),
        // Digits mean the same in every sql_mode, and no character set of a client takes one of them for half of a character.
        Language::Mysql if backslash => {
            let digits: String = value.bytes().map(|byte| format!("{byte:02X}")).collect();
            format!("_utf8mb4 X'{digits}'")
        }
        Language::Mysql => quoted(),
        Language::Postgresql if backslash => escape_string(value),
        Language::Postgresql => quoted(),
        Language::Javascript => javascript(value),
        Language::Shell => format!("'{}'", value.replace('\'', "'\\''")),
        Language::Uri => uri(value),
    })
}

/// `E'…'` means the same whatever standard_conforming_strings is. Other characters than ASCII are escaped: a client that took
/// the text for Shift JIS would take half of one for a backslash.
fn escape_string(value: &str) -> String {
    let mut said = String::from("E'");
    for one in value.chars() {
        match one {
            '\\' => said.push_str("\\\\"),
            '\'' => said.push_str("''"),
            one if one.is_ascii() => said.push(one),
            one => said.push_str(&format!("\\U{:08X}", u32::from(one))),
        }
    }
    said.push('\'');
    said
}

fn javascript(value: &str) -> String {
    let mut said = String::from("\"");
    let mut units = [0; 2];
    for one in value.chars() {
        match one {
            '\\' | '"' => said.extend(['\\', one]),
            // A text that goes through HTML or a shell's here document stays what it is.
            '<' | '`' | '$' => said.push_str(&format!("\\u{:04x}", u32::from(one))),
            one if one.is_ascii() => said.push(one),
            one => {
                for unit in one.encode_utf16(&mut units) {
                    said.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    said.push('"');
    said
}

fn uri(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    value.bytes().fold(String::new(), |mut said, byte| {
        if plain(byte) {
            said.push(char::from(byte));
        } else {
            said.push_str(&format!("%{byte:02X}"));
        }
        said
    })
}

#[cfg(test)]
#[path = "language_tests.rs"]
mod tests;
