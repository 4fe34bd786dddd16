//! The types of parameters: whether a value is of one, and what to write instead.
//!
//! Every value that passes is what its type promises wherever it is put: an integer has digits only, an identifier nothing that
//! could end a name, a path no way out of itself.

use crate::duration::ShortDuration;

use super::substitute::listed;
use super::{Parameter, ParameterType};

/// The longest name that the servers we know take (PostgreSQL 63, MySQL 64).
const MAX_IDENTIFIER: usize = 63;

/// Why a value does not fit its parameter's type, with what to write instead.
///
/// A path, an identifier or a duration may be empty where that is its default: then it means none.
pub(crate) fn type_mismatch(parameter: &Parameter, value: &str) -> Option<String> {
    let name = &parameter.name;
    let none = value.is_empty() && parameter.default.as_deref() == Some("");
    match parameter.type_ {
        ParameterType::String | ParameterType::Script => None,
        ParameterType::Integer => integer(parameter, value),
        ParameterType::Boolean => (!matches!(value, "true" | "false")).then(|| {
            format!("parameter {name:?} is a boolean and {value:?} is none: write \"true\" or \"false\"")
        }),
        ParameterType::Enum => {
            let allowed: Vec<&str> = parameter.enum_.iter().map(String::as_str).collect();
            (!allowed.contains(&value))
                .then(|| format!("parameter {name:?} cannot be {value:?}: it is one of {}", listed(&allowed)))
        }
        ParameterType::Duration => (!none && value.parse::<ShortDuration>().is_err()).then(|| {
            format!("parameter {name:?} is a duration and {value:?} is none: write for example 500ms, 30s or 1m30s")
        }),
        ParameterType::Identifier => (!none && !is_identifier(value)).then(|| {
            format!(
                "parameter {name:?} is a name and {value:?} is none: letters, digits and _, at most {MAX_IDENTIFIER}, no digit first"
            )
        }),
        ParameterType::Path => (!none && !is_path(value)).then(|| {
            format!("parameter {name:?} is a path and {value:?} is none: it begins with / and has no .. in it")
        }),
    }
}

fn integer(parameter: &Parameter, value: &str) -> Option<String> {
    let name = &parameter.name;
    // One way to write a number: what is put into a text is what was compared.
    let number = value.parse::<i64>().ok().filter(|number| number.to_string() == value);
    let Some(number) = number else {
        return Some(format!("parameter {name:?} is an integer and {value:?} is none: write digits only"));
    };
    let (least, most) = (parameter.min.unwrap_or(i64::MIN), parameter.max.unwrap_or(i64::MAX));
    if (least..=most).contains(&number) {
        return None;
    }
    let range = match (parameter.min, parameter.max) {
        (Some(least), Some(most)) => format!("{least} to {most}"),
        (Some(least), None) => format!("{least} or more"),
        (None, Some(most)) => format!("{most} or less"),
        (None, None) => return None,
    };
    Some(format!("parameter {name:?} cannot be {value}: it is {range}"))
}

fn is_identifier(value: &str) -> bool {
    value.len() <= MAX_IDENTIFIER
        && value.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_path(value: &str) -> bool {
    value.starts_with('/') && value.split('/').all(|part| part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(type_: ParameterType, value: &str) -> Option<String> {
        let bounded = type_ == ParameterType::Integer;
        let parameter = Parameter {
            name: "p".into(),
            type_,
            enum_: vec!["a".into(), "b".into()],
            min: bounded.then_some(1),
            max: bounded.then_some(65_535),
            ..Parameter::default()
        };
        type_mismatch(&parameter, value)
    }

    #[test]
    fn a_value_is_of_its_type_or_the_message_says_what_to_write() {
        use ParameterType::{Boolean, Duration, Enum, Identifier, Integer, Path, Script, String};
        for (type_, good, bad, says) in [
            (
                Integer,
                vec!["1", "5432", "65535"],
                vec!["", "0", "65536", "-1", "+5", "007", "5 ", "0x10", "1e3"],
                "p",
            ),
            (Boolean, vec!["true", "false"], vec!["", "True", "1", "yes"], "\"true\" or \"false\""),
            (Enum, vec!["a", "b"], vec!["", "A", "c", "a "], "one of a, b"),
            (Duration, vec!["30s", "1m30s", "500ms"], vec!["", "30", "1d", "-1s", "1s; x"], "500ms"),
            (
                Identifier,
                vec!["app", "_x9", "A_B"],
                vec!["", "9x", "a-b", "a b", "é", "a\"b", "a.b"],
                "letters",
            ),
            (
                Path,
                vec!["/", "/run/x.sock", "/a b/c"],
                vec!["", "run", "./x", "/a/../b", "~/x"],
                "begins with /",
            ),
            (String, vec!["", "anything '\"\\ $(x)"], vec![], ""),
            (Script, vec!["", "a; b"], vec![], ""),
        ] {
            for value in good {
                assert_eq!(said(type_, value), None, "{type_:?} {value:?}");
            }
            for value in bad {
                let why = said(type_, value).unwrap_or_default();
                assert!(why.contains(says) && why.contains("\"p\""), "{type_:?} {value:?}: {why}");
            }
        }
        assert!(said(Identifier, &"x".repeat(64)).is_some());
        assert!(said(Integer, "70000").unwrap_or_default().contains("1 to 65535"));
    }

    #[test]
    fn nothing_is_a_value_only_where_it_is_the_default() {
        let mut parameter =
            Parameter { name: "passwordFile".into(), type_: ParameterType::Path, ..Parameter::default() };
        assert!(type_mismatch(&parameter, "").is_some());
        parameter.default = Some("/run/secrets/x".into());
        assert!(type_mismatch(&parameter, "").is_some());
        parameter.default = Some(String::new());
        assert_eq!(type_mismatch(&parameter, ""), None);
        assert!(type_mismatch(&parameter, "x").is_some());
    }
}
