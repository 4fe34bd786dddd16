//! Where a parameter's value would not stay one value: in quotes or comments of a text, or in a program that an argument is.
//!
//! A place that is not certain counts as unsafe: a template can always say it otherwise.

use super::language::Language;
use super::placeholder::{self, BLOCKER, Part, RUN_TIME};
use super::reader::is_code;
use super::substitute::{arguments, texts};
use super::{Freeze, Parameter, ParameterType, Recipe};

/// A placeholder in a place where its value could become something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misplaced {
    /// The text or argv.
    pub path: String,
    /// Rule of `validate`.
    pub rule: &'static str,
    /// What is wrong and what to write instead.
    pub why: String,
}

/// Every placeholder of a parameter that stands where its value could become a statement.
pub(crate) fn misplaced(recipe: &Recipe) -> Vec<Misplaced> {
    let parameter = |name: &str| recipe.parameters.iter().find(|parameter| parameter.name == name);
    let mut found = Vec::new();
    for (path, argv) in arguments(recipe) {
        for (at, word) in argv.iter().enumerate() {
            let program = Program::of(argv, at);
            for (index, raw) in raw_placeholders(word) {
                let (name, filter) = placeholder::split(raw);
                let wrong = match (parameter(name), filter) {
                    (_, Some(filter)) if Language::named(filter).is_none() => Some(unknown_language(raw)),
                    (None, Some(_)) if is_run_time(name) => Some(run_time(raw)),
                    (None, _) => None,
                    (Some(parameter), filter) => in_argument(parameter, filter, word, index, program),
                };
                found.extend(wrong.map(|(rule, why)| Misplaced { path: path.clone(), rule, why }));
            }
        }
    }
    let Some(Freeze::Session(held)) = &recipe.freeze else { return found };
    if held.language == Language::Uri {
        found.push(Misplaced {
            path: "spec.freeze.session.language".into(),
            rule: "UnknownLanguage",
            why: "no client reads statements in URIs: name the language of the texts (sql, mysql, postgresql, javascript, shell)".into(),
        });
    }
    for (field, text) in texts(held) {
        for (index, raw) in raw_placeholders(text) {
            let (name, filter) = placeholder::split(raw);
            let wrong = match (parameter(name), filter) {
                (_, Some(_)) => Some((
                    "UnknownLanguage",
                    format!(
                        "{{{{{raw}}}}}: a text of a session is in the session's language: write {{{{{name}}}}}, and name the language in freeze.session.language"
                    ),
                )),
                (None, None) => None,
                (Some(parameter), None) => in_text(parameter, held.language, text, index),
            };
            let path = format!("spec.freeze.session.{field}");
            found.extend(wrong.map(|(rule, why)| Misplaced { path, rule, why }));
        }
    }
    found
}

type Wrong = (&'static str, String);

fn unknown_language(raw: &str) -> Wrong {
    (
        "UnknownLanguage",
        format!("{{{{{raw}}}}} names no language: sql, mysql, postgresql, javascript, shell or uri"),
    )
}

fn run_time(raw: &str) -> Wrong {
    ("UnknownLanguage", format!("{{{{{raw}}}}} is filled when the hold runs, and takes no language"))
}

fn is_run_time(name: &str) -> bool {
    RUN_TIME.contains(&name) || name == BLOCKER
}

/// The placeholders of a text with their places among its parts.
fn raw_placeholders(text: &str) -> Vec<(usize, &str)> {
    let parts = placeholder::parts(text).into_iter().enumerate();
    parts
        .filter_map(|(index, part)| match part {
            Part::Placeholder(raw) => Some((index, raw)),
            Part::Literal(_) => None,
        })
        .collect()
}

/// What an argument is for the program that gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// A word like any other.
    No,
    /// Statements in a language.
    Of(Language),
    /// Statements of a program that we do not know.
    Unknown,
}

impl Program {
    /// By the option before the word, and by the program before that.
    fn of(argv: &[String], at: usize) -> Self {
        let before = &argv[..at];
        let word = argv.get(at).map_or("", String::as_str);
        let option = before.last().map_or("", String::as_str);
        let interpreter = before.iter().rev().find_map(|word| Interpreter::named(word));
        let attached = ["--eval=", "--execute=", "--command=", "--query="];
        if let Some(interpreter) = interpreter
            && interpreter.takes(option)
        {
            return interpreter.reads();
        }
        if attached.iter().any(|option| word.starts_with(option)) {
            return interpreter.map_or(Self::Unknown, Interpreter::reads);
        }
        if ["--eval", "--execute", "--command", "--query"].contains(&option) {
            return interpreter.map_or(Self::Unknown, Interpreter::reads);
        }
        Self::No
    }
}

/// Programs that run a text that is one of their arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interpreter {
    Shell,
    Psql,
    Mysql,
    Mongosh,
    Other,
}

impl Interpreter {
    fn named(word: &str) -> Option<Self> {
        Some(match word.rsplit('/').next().unwrap_or(word) {
            "sh" | "bash" | "dash" | "ash" | "ksh" | "zsh" | "busybox" | "su" | "runuser" => Self::Shell,
            "psql" => Self::Psql,
            "mysql" | "mariadb" | "mysqladmin" => Self::Mysql,
            "mongosh" | "mongo" | "node" => Self::Mongosh,
            "python" | "python3" | "perl" | "ruby" | "php" | "awk" | "sqlite3" | "sqlcmd" | "cqlsh"
            | "clickhouse-client" | "sqlplus" | "cypher-shell" | "cockroach" => Self::Other,
            _ => return None,
        })
    }

    /// Whether the word after `option` is run.
    fn takes(self, option: &str) -> bool {
        let short =
            option.strip_prefix('-').filter(|rest| rest.bytes().all(|byte| byte.is_ascii_alphabetic()));
        match self {
            // Options may be joined: -euc.
            Self::Shell => short.is_some_and(|letters| letters.ends_with('c')),
            Self::Psql => short.is_some_and(|letters| letters.ends_with('c')),
            Self::Mysql => short.is_some_and(|letters| letters.ends_with('e')),
            Self::Mongosh => short == Some("e") || short == Some("p"),
            Self::Other => matches!(short, Some("c" | "e" | "r" | "q" | "Q")) || option == "awk",
        }
    }

    fn reads(self) -> Program {
        match self {
            Self::Shell => Program::Of(Language::Shell),
            Self::Psql => Program::Of(Language::Postgresql),
            Self::Mysql => Program::Of(Language::Mysql),
            Self::Mongosh => Program::Of(Language::Javascript),
            Self::Other => Program::Unknown,
        }
    }
}

/// A placeholder in an argument.
fn in_argument(
    parameter: &Parameter,
    filter: Option<&str>,
    word: &str,
    index: usize,
    program: Program,
) -> Option<Wrong> {
    let name = &parameter.name;
    let whole = placeholder::parts(word).len() == 1;
    if parameter.type_ == ParameterType::Script {
        let alone = whole && filter.is_none();
        return (!alone).then(|| {
            let why = format!(
                "{{{{{name}}}}} is a piece of a program and stands inside of an argument: make it a whole argument, as [sh, -c, \"{{{{{name}}}}}\"]"
            );
            ("UnquotedParameter", why)
        });
    }
    if let Some(language) = filter.and_then(Language::named) {
        if let Program::Of(read) = program
            && !language.fits(read)
        {
            let why = format!(
                "{{{{{name}|{}}}}} is said in another language than the program reads: write {{{{{name}|{}}}}}, or pass it as an argument of its own",
                language.as_str(),
                read.as_str()
            );
            return Some(("UnknownLanguage", why));
        }
        return match language {
            Language::Uri => None,
            Language::Sql
            | Language::Mysql
            | Language::Postgresql
            | Language::Javascript
            | Language::Shell => in_text(parameter, language, &statement(word), index),
        };
    }
    let text = match program {
        Program::Of(_) | Program::Unknown => true,
        // Whoever gets a text with white space, quotes or brackets reads more in it than a value.
        Program::No => !whole && reads_like_a_program(word),
    };
    if !text || says_nothing_else(parameter) {
        return None;
    }
    let how = match program {
        Program::Of(Language::Shell) => {
            "pass it as an argument behind the script and write \"$0\", or make the parameter of type script where it is one".to_owned()
        }
        Program::Of(language) => format!("write {{{{{name}|{}}}}} without quotes", language.as_str()),
        Program::Unknown | Program::No => {
            format!(
                "pass it as an argument of its own, or name its language: {{{{{name}|sql}}}}, {{{{{name}|uri}}}}"
            )
        }
    };
    Some((
        "UnquotedParameter",
        format!(
            "{{{{{name}}}}} stands in a text that is more than a value, where some values would be statements: {how}"
        ),
    ))
}

/// A word without the option that it is attached to, in as many parts: `--` would be a comment in SQL.
fn statement(word: &str) -> String {
    let attached = word.strip_prefix("--").and_then(|option| option.split_once('='));
    attached.map_or_else(|| word.to_owned(), |(_, statement)| format!(" {statement}"))
}

/// A URI or something of many words.
fn reads_like_a_program(word: &str) -> bool {
    let uri = word.contains("://") || word.starts_with("file:");
    let literal = placeholder::parts(word);
    let literal = literal.iter().filter_map(|part| match part {
        Part::Literal(text) => Some(*text),
        Part::Placeholder(_) => None,
    });
    uri || literal.flat_map(str::chars).any(|one| one.is_whitespace() || ";('\"`$".contains(one))
}

/// Whether no value of the parameter has a meaning in any language.
fn says_nothing_else(parameter: &Parameter) -> bool {
    let plain =
        |value: &String| value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    match parameter.type_ {
        ParameterType::Integer
        | ParameterType::Boolean
        | ParameterType::Identifier
        | ParameterType::Duration => true,
        ParameterType::Enum => parameter.enum_.iter().all(plain),
        ParameterType::String | ParameterType::Path | ParameterType::Script => false,
    }
}

/// A placeholder in a text of statements, whose value becomes a literal.
fn in_text(parameter: &Parameter, language: Language, text: &str, index: usize) -> Option<Wrong> {
    let name = &parameter.name;
    match parameter.type_ {
        // Digits or a word, wherever they stand.
        ParameterType::Integer | ParameterType::Boolean => return None,
        ParameterType::Script => {
            let why = format!(
                "{{{{{name}}}}} is a piece of a program, and a text knows values only: give it another type"
            );
            return Some(("UnquotedParameter", why));
        }
        ParameterType::String
        | ParameterType::Enum
        | ParameterType::Duration
        | ParameterType::Identifier
        | ParameterType::Path => {}
    }
    let parts = placeholder::parts(text);
    let before: String = parts[..index]
        .iter()
        .map(|part| match part {
            Part::Literal(text) => text,
            // Whatever it becomes, it is closed where it ends.
            Part::Placeholder(_) => "0",
        })
        .collect();
    let touches = match parts.get(index + 1) {
        Some(Part::Literal(after)) => {
            after.starts_with(|one: char| one.is_alphanumeric() || "_'\"`$".contains(one))
        }
        Some(Part::Placeholder(_)) => true,
        None => false,
    };
    let follows = before.ends_with(|one: char| one.is_alphanumeric() || "_\\$'\"`".contains(one));
    let glued = match language {
        // A shell joins words: --file={{path}} is one.
        Language::Shell | Language::Uri => before.ends_with(['$', '\\']),
        Language::Javascript => follows || touches,
        // :'…' is a variable of psql, U&'…' a literal with escapes.
        Language::Sql | Language::Mysql | Language::Postgresql => {
            follows || touches || before.ends_with([':', '&'])
        }
    };
    (glued || !is_code(language, &before)).then(|| {
        let why = format!(
            "{{{{{name}}}}} becomes a quoted literal by itself: let it stand alone, outside of quotes and comments (concatenate it where it is a part of a text)"
        );
        ("QuotedParameter", why)
    })
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
