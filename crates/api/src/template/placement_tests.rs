//! Where a placeholder may stand, language by language.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::template::substitute;

fn parameters() -> Value {
    json!([
        {"name": "p", "default": "x"}, {"name": "q", "default": "y"}, {"name": "count", "type": "integer", "default": "1"},
        {"name": "name", "type": "identifier", "default": "x"}, {"name": "wait", "type": "duration", "default": "1s"},
        {"name": "where", "type": "path", "default": "/x"}, {"name": "line", "type": "script", "default": "true"},
        {"name": "mode", "type": "enum", "enum": ["a", "b"], "default": "a"},
        {"name": "free", "type": "enum", "enum": ["a b", "$(c)"], "default": "a b"},
    ])
}

fn in_session(language: &str, text: &str) -> Vec<&'static str> {
    let recipe: Recipe = serde_json::from_value(json!({
        "parameters": parameters(),
        "freeze": {"session": {"command": ["client"], "language": language, "open": text, "freeze": "f", "beat": "b",
            "thaw": "t", "lease": {"variable": "v", "unit": "s"}}}
    }))
    .unwrap();
    misplaced(&recipe).iter().map(|wrong| wrong.rule).collect()
}

fn in_argv(argv: &[&str]) -> Vec<&'static str> {
    let recipe: Recipe =
        serde_json::from_value(json!({"parameters": parameters(), "prepare": {"command": argv}})).unwrap();
    misplaced(&recipe).iter().map(|wrong| wrong.rule).collect()
}

const SOUND: [&str; 0] = [];

#[test]
fn a_value_stands_alone_between_statements() {
    for (language, text) in [
        ("sql", "SELECT 'READY {{n}}', {{p}};\n"),
        ("sql", "SELECT 'it''s', {{p}}, \"a\", {{q}} /* why */;\n-- a comment\nSELECT {{p}};\n"),
        ("sql", "SET x = {{count}}, y = '{{count}}s';\n"),
        ("mysql", "SELECT `a`, 'b\\n', {{p}}; # c\nSELECT {{q}};\n"),
        ("mysql", "SELECT 5--1, {{p}};\n"),
        ("postgresql", "DO $x$ BEGIN 'a END $x$; SELECT $1, {{p}}, {{name}};\n"),
        ("postgresql", "SELECT E'a\\n' || {{p}};\n"),
        ("javascript", "const a = /^(127[.]|['\"/])/.test(x); print({{p}}); // it's\nprint(`a`, {{q}});\n"),
        ("javascript", "print(10 / 2, {{p}});\n"),
        ("shell", "echo \"it's $a\" 'x' --file={{where}} {{p}} # don't\nsync -f {{where}}\n"),
    ] {
        assert_eq!(in_session(language, text), SOUND, "{language}: {text}");
    }
}

#[test]
fn a_value_in_quotes_comments_or_other_words_is_refused() {
    for (language, text) in [
        ("sql", "SELECT '{{p}}';\n"),
        ("sql", "SELECT 'stillpoint {{p}} backup';\n"),
        ("sql", "SELECT \"it's {{p}}\";\n"),
        ("sql", "SELECT 'a'{{p}};\n"),
        ("sql", "SELECT {{p}}'a';\n"),
        ("sql", "SELECT {{p}}{{q}};\n"),
        ("sql", "SELECT X{{p}};\n"),
        ("sql", "SELECT 1 -- {{p}}\n;\n"),
        ("sql", "SELECT /* {{p}} */ 1;\n"),
        ("sql", "SELECT 'a\\', {{p}}, '';\n"),
        ("sql", "SELECT $$a$$, {{p}};\n"),
        ("sql", "SELECT 1 # it's\n, {{p}};\n"),
        ("mysql", "SELECT `{{name}}`;\n"),
        ("mysql", "SELECT 'a\\', {{p}}, '';\n"),
        ("mysql", "SELECT /*!80000 {{p}} */ 1;\n"),
        ("postgresql", "DO $x$ SELECT {{p}} $x$;\n"),
        ("postgresql", "SELECT :{{p}};\n"),
        ("postgresql", "SELECT U&{{p}};\n"),
        ("postgresql", "\\echo {{p}}\n;\n"),
        ("javascript", "print(`a ${x} {{p}}`);\n"),
        ("javascript", "print(\"{{p}}\");\n"),
        ("javascript", "x = /{{p}}/;\n"),
        ("shell", "echo \"{{p}}\"\n"),
        ("shell", "echo \"$(app \"{{p}}\")\"\n"),
        ("shell", "cat <<EOF\n{{p}}\nEOF\n"),
        ("shell", "echo `app {{p}}`\n"),
        ("shell", "echo $((1 + {{p}}))\n"),
    ] {
        assert!(in_session(language, text).contains(&"QuotedParameter"), "{language}: {text}");
    }
    assert_eq!(in_session("sql", "SELECT {{line}};\n"), ["UnquotedParameter"]);
    assert_eq!(in_session("sql", "SELECT {{p|mysql}};\n"), ["UnknownLanguage"]);
    assert_eq!(in_session("uri", "SELECT 1;\n"), ["UnknownLanguage"]);
}

#[test]
fn an_argument_of_its_own_needs_no_quotes() {
    for argv in [
        &["client", "-U", "{{p}}", "--file={{where}}"][..],
        &["sh", "-c", "cat \"$0\"", "{{where}}"],
        &[
            "sh",
            "-c",
            "p=$1; shift; exec \"$@\"",
            "psql",
            "{{p}}",
            "psql",
            "-h",
            "{{where}}",
            "-c",
            "CHECKPOINT",
        ],
        &["sh", "-c", "{{line}}"],
        &["app", "{{line}}"],
        &["mysql", "-e", "SET x={{count}}, y='{{wait}}', z={{mode}}"],
        &["mysql", "-e", "SELECT {{p|mysql}}"],
        &["psql", "-c", "SELECT {{p|postgresql}}, {{name|postgresql}}"],
        &["psql", "--command=SELECT {{p|sql}}"],
        &["mongosh", "--eval", "print({{p|javascript}})"],
        &["sh", "-c", "sync -f {{where|shell}}"],
        &["mongosh", "mongodb://127.0.0.1:{{count}}/admin"],
        &["sqlite3", "file:{{where|uri}}?mode=rw"],
        &["client", "KILL QUERY ID {{blocker}}"],
    ] {
        assert_eq!(in_argv(argv), SOUND, "{argv:?}");
    }
}

#[test]
fn a_value_in_a_program_is_refused() {
    for (argv, rule) in [
        (&["sh", "-c", "cat {{where}}"][..], "UnquotedParameter"),
        (&["sh", "-c", "{{p}}"], "UnquotedParameter"),
        (&["/bin/bash", "-euc", "{{p}}"], "UnquotedParameter"),
        (&["sh", "-c", "x; {{line}}"], "UnquotedParameter"),
        (&["su", "-l", "-c", "{{p}}", "db2inst1"], "UnquotedParameter"),
        (&["psql", "-U", "x", "-Atc", "SELECT {{p}}"], "UnquotedParameter"),
        (&["mysql", "-e", "{{p}}"], "UnquotedParameter"),
        (&["mysql", "--execute=SELECT {{p}}"], "UnquotedParameter"),
        (&["mongosh", "--eval", "x={{free}}"], "UnquotedParameter"),
        (&["python3", "-c", "print({{p}})"], "UnquotedParameter"),
        (&["app", "--query", "{{p}}"], "UnquotedParameter"),
        (&["app", "DELETE FROM {{p}}"], "UnquotedParameter"),
        (&["app", "http://127.0.0.1/{{p}}"], "UnquotedParameter"),
        (&["sqlite3", "file:{{where}}?mode=rw"], "UnquotedParameter"),
        (&["mysql", "-e", "SELECT '{{p|mysql}}'"], "QuotedParameter"),
        (&["sh", "-c", "echo \"{{p|shell}}\""], "QuotedParameter"),
        (&["sh", "-c", "psql -c \"SELECT {{p|sql}}\""], "UnknownLanguage"),
        (&["psql", "-c", "SELECT {{p|javascript}}"], "UnknownLanguage"),
        (&["psql", "-c", "SELECT {{p|nosuch}}"], "UnknownLanguage"),
        (&["app", "{{n|sql}}"], "UnknownLanguage"),
    ] {
        assert_eq!(in_argv(argv), [rule], "{argv:?}");
    }
}

#[test]
fn a_template_that_puts_a_value_into_a_program_is_never_filled_in() {
    let recipe: Recipe = serde_json::from_value(
        json!({"parameters": parameters(), "prepare": {"command": ["sh", "-c", "cat {{p}}"]}}),
    )
    .unwrap();
    let found = substitute(&recipe, &BTreeMap::new()).unwrap_err();
    assert_eq!((found[0].path.as_str(), found[0].rule), ("templateRef", "UnquotedParameter"));
}

/// The whole way, for what would end a literal, a word, a line or a placeholder somewhere.
#[test]
fn a_nasty_value_arrives_as_it_is_or_is_refused() {
    let recipe: Recipe = serde_json::from_value(json!({
        "parameters": [{"name": "p"}],
        "prepare": {"command": ["client", "{{p}}", "SELECT {{p|mysql}}"]},
        "freeze": {"session": {"command": ["client"], "language": "javascript", "open": "print({{p}});\n", "freeze": "f",
            "beat": "b", "thaw": "t", "lease": {"variable": "v", "unit": "s"}}}
    }))
    .unwrap();
    let filled = |value: &str| substitute(&recipe, &BTreeMap::from([("p".to_owned(), value.to_owned())]));
    for value in ["'; DROP TABLE t; --", "\"); quit(0); (\"", "$(reboot)", "`reboot`", "a\\", "\\'", "|n}}"] {
        let resolved = filled(value).unwrap();
        let Some(Freeze::Session(session)) = &resolved.freeze else { panic!("a session went in") };
        let said = session.open.strip_prefix("print(").unwrap().strip_suffix(");\n").unwrap();
        assert_eq!(serde_json::from_str::<String>(said).unwrap(), value);
        assert_eq!(resolved.prepare.unwrap().command[1], value);
    }
    for value in ["a\nb", "a\0", "{{n}}", "\u{1b}[2J", "-c"] {
        assert_eq!(filled(value).unwrap_err()[0].rule, "ParameterText", "{value:?}");
    }
}
