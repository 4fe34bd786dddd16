#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::super::fixtures::{
    FOREIGN, MARIADB_OPEN, MARIADB_PRINTED, MARIADB_THAW, POSTGRESQL_EVIDENCE, POSTGRESQL_OPEN,
    POSTGRESQL_PRINTED, POSTGRESQL_THAW,
};
use super::super::{Text, TextValues};
use super::*;

fn nonce() -> Nonce {
    Nonce::try_from("k3v9k3v9k3v9k3v9".to_owned()).unwrap()
}

fn printed(transcript: &str) -> Vec<HoldLine> {
    let nonce = nonce();
    transcript
        .lines()
        .map(|line| match HoldLine::parse(&line.replace("{{n}}", nonce.as_str()), &nonce) {
            Parsed::Line(line) => line,
            Parsed::Foreign(foreign) => panic!("{foreign:?}"),
        })
        .collect()
}

fn reason(line: &str) -> Option<ForeignReason> {
    match HoldLine::parse(&line.replace("{{n}}", nonce().as_str()), &nonce()) {
        Parsed::Line(_) => None,
        Parsed::Foreign(foreign) => Some(foreign.reason),
    }
}

#[test]
fn what_postgresql_prints_is_read() {
    let lines = printed(POSTGRESQL_PRINTED);
    assert_eq!(lines.len(), 13);
    let HoldLine::Ready(ready) = &lines[0] else { panic!("{:?}", lines[0]) };
    assert_eq!(ready.identity.get(IdentityKey::Sysid), Some("7574201188377169934"));
    assert_eq!(ready.identity.get(IdentityKey::Local), Some("true"));
    assert_eq!(ready.role, Some(Role("primary".into())));
    assert_eq!((ready.clock_micros, ready.lease), (Some(1_795_254_368_000_123), Some(10_000)));
    assert!(ready.position.is_empty());
    assert_eq!(
        lines[2],
        HoldLine::Evidence { key: "data_directory".into(), value: "/var/lib/postgresql/my data".into() }
    );
    let (HoldLine::Frozen { stage: 0, report: frozen }, HoldLine::Held { beat: 3, report: held }) =
        (&lines[10], &lines[11])
    else {
        panic!("{:?}", &lines[10..12])
    };
    assert_eq!(ready.identity.difference(&frozen.identity), None);
    assert_eq!(frozen.identity.difference(&held.identity), None);
    assert_eq!(lines[12], HoldLine::Thawed);
}

#[test]
fn what_mariadb_prints_is_read_and_its_position_is_compared() {
    let lines = printed(MARIADB_PRINTED);
    let reports: Vec<&Report> = lines.iter().filter_map(HoldLine::report).collect();
    let [ready, frozen, held] = reports[..] else { panic!("{reports:?}") };
    assert_eq!(ready.identity.get(IdentityKey::Uid), Some("bmCTHV9jsI5ClWgXaNPIq6Xn3Ew="));
    assert_eq!(frozen.position.difference(&held.position), None);
    let moved = ready.position.difference(&frozen.position).unwrap();
    assert_eq!(moved.to_string(), "gtid was 0-1-5120 and is 0-1-5144");
}

#[test]
fn another_session_of_the_same_server_is_seen() {
    let lines = printed(POSTGRESQL_PRINTED);
    let was = &lines[0].report().unwrap().identity;
    let nonce = nonce();
    let other = POSTGRESQL_PRINTED.lines().next().unwrap().replace("pid=71", "pid=72");
    let Parsed::Line(line) = HoldLine::parse(&other.replace("{{n}}", nonce.as_str()), &nonce) else {
        panic!("foreign")
    };
    assert_eq!(was.difference(&line.report().unwrap().identity).unwrap().key, "pid");
    assert_eq!(was.difference(&Identity::default()).unwrap().is, None);
}

#[test]
fn the_texts_that_were_run_render_and_need_only_known_values() {
    let nonce = nonce();
    let values = TextValues { lease: Some(10), acquire_seconds: Some(5), ..TextValues::of(&nonce) };
    for source in [POSTGRESQL_OPEN, POSTGRESQL_EVIDENCE, POSTGRESQL_THAW, MARIADB_OPEN, MARIADB_THAW] {
        let rendered = Text::parse(source).unwrap().render(&values).unwrap();
        assert!(!rendered.contains("{{"), "{rendered}");
        assert_eq!(rendered.matches(nonce.as_str()).count(), source.matches("{{n}}").count());
    }
}

#[test]
fn a_text_that_is_echoed_line_by_line_proves_nothing() {
    for source in [POSTGRESQL_OPEN, POSTGRESQL_EVIDENCE, POSTGRESQL_THAW, MARIADB_OPEN, MARIADB_THAW] {
        for line in source.lines() {
            assert_eq!(reason(line), Some(ForeignReason::NotProtocol), "{line}");
        }
    }
}

#[test]
fn lines_that_only_look_alike_do_not_count() {
    for line in FOREIGN {
        assert!(reason(line).is_some(), "{line:?} counted");
    }
}

#[test]
fn each_fault_of_a_line_has_its_reason() {
    for (line, expected) in [
        ("THAWED aaaaaaaaaaaaaaaaaaaa", ForeignReason::OtherNonce),
        ("THAWED {{n}}x", ForeignReason::OtherNonce),
        ("THAWED {{n}} pid=1", ForeignReason::Shape),
        ("READY {{n}}  pid=1", ForeignReason::Shape),
        ("READY {{n}} pid", ForeignReason::Shape),
        ("READY {{n}}", ForeignReason::NoIdentity),
        ("READY {{n}} role=primary clock=1", ForeignReason::NoIdentity),
        ("READY {{n}} pid=1 pid=1", ForeignReason::RepeatedKey),
        ("READY {{n}} pid=1 role=a role=b", ForeignReason::RepeatedKey),
        ("READY {{n}} pid=1 lease=5 lease=5", ForeignReason::RepeatedKey),
        ("READY {{n}} pid=1 shoe=9", ForeignReason::UnknownKey),
        ("READY {{n}} pid=1 PID=1", ForeignReason::UnknownKey),
        ("READY {{n}} pid=", ForeignReason::Value),
        ("READY {{n}} pid=%4", ForeignReason::Value),
        ("READY {{n}} pid=%zz", ForeignReason::Value),
        ("READY {{n}} pid=%ff", ForeignReason::Value),
        ("READY {{n}} pid=a\tb", ForeignReason::Value),
        ("READY {{n}} pid=1 clock=-5", ForeignReason::Number),
        ("READY {{n}} pid=1 clock=1e9", ForeignReason::Number),
        ("READY {{n}} pid=1 lease=10s", ForeignReason::Number),
        ("HELD {{n}} 007 pid=1", ForeignReason::Number),
        ("HELD {{n}} +7 pid=1", ForeignReason::Number),
        ("FROZEN {{n}} 4294967296 pid=1", ForeignReason::Number),
        ("EVIDENCE {{n}}", ForeignReason::Shape),
        ("EVIDENCE {{n}} a b", ForeignReason::Shape),
        ("EVIDENCE {{n}} a=1 b=2", ForeignReason::Shape),
        ("EVIDENCE {{n}} =1", ForeignReason::UnknownKey),
        ("EVIDENCE {{n}} a'b=1", ForeignReason::UnknownKey),
    ] {
        assert_eq!(reason(line), Some(expected), "{line}");
    }
}

#[test]
fn a_line_with_a_newline_inside_never_counts() {
    assert!(reason("EVIDENCE {{n}} a=1\nTHAWED {{n}}").is_some());
    assert!(reason("THAWED {{n}}\n").is_some());
    assert!(reason("THAWED {{n}}\r").is_some());
}

#[test]
fn a_required_key_that_is_missing_makes_the_line_invalid() {
    let nonce = nonce();
    let required = ["pid", "role", "lease", "gtid"].map(|word| ReportKey::from_word(word).unwrap());
    let whole = "READY k3v9k3v9k3v9k3v9 pid=1 role=primary lease=5 gtid=0-1-2";
    assert!(matches!(HoldLine::parse_requiring(whole, &nonce, &required), Parsed::Line(_)));
    for cut in [" pid=1", " role=primary", " lease=5", " gtid=0-1-2"] {
        let line = whole.replace(cut, "") + " host=h";
        let Parsed::Foreign(foreign) = HoldLine::parse_requiring(&line, &nonce, &required) else {
            panic!("{line} counted")
        };
        assert_eq!(foreign.reason, ForeignReason::MissingKey);
    }
    assert_eq!(ReportKey::from_word("shoe"), None);
    let thawed = HoldLine::parse_requiring("THAWED k3v9k3v9k3v9k3v9", &nonce, &required);
    assert_eq!(thawed, Parsed::Line(HoldLine::Thawed));
}

#[test]
fn a_foreign_line_is_kept_bounded() {
    let Parsed::Foreign(foreign) = HoldLine::parse(&"é".repeat(100_000), &nonce()) else {
        panic!("counted")
    };
    assert_eq!(foreign.text.chars().count(), 256);
}

fn reports() -> impl Strategy<Value = Report> {
    let value = "[^\u{0}]{1,12}";
    (
        proptest::collection::btree_map(proptest::sample::select(IdentityKey::ALL), value, 1..5),
        proptest::collection::btree_map(proptest::sample::select(PositionKey::ALL), value, 0..3),
        proptest::option::of(value.prop_map(Role)),
        any::<Option<u64>>(),
        any::<Option<u64>>(),
    )
        .prop_map(|(identity, position, role, clock_micros, lease)| Report {
            identity: Identity(identity),
            role,
            clock_micros,
            lease,
            position: Position(position),
        })
}

fn hold_lines() -> impl Strategy<Value = HoldLine> {
    prop_oneof![
        reports().prop_map(HoldLine::Ready),
        (any::<u32>(), reports()).prop_map(|(stage, report)| HoldLine::Frozen { stage, report }),
        (any::<u64>(), reports()).prop_map(|(beat, report)| HoldLine::Held { beat, report }),
        ("[a-z_.A-Z0-9-]{1,64}", "[^\u{0}]{0,20}").prop_map(|(key, value)| HoldLine::Evidence { key, value }),
        Just(HoldLine::Thawed),
        Just(HoldLine::ThawFailed),
        Just(HoldLine::Expired),
        Just(HoldLine::Canary),
    ]
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(line in "\\PC{0,80}") {
        let _ = HoldLine::parse(&line, &nonce());
    }

    #[test]
    fn any_text_behind_a_word_is_read_without_panic(
        word in proptest::sample::select(&["READY", "FROZEN", "HELD", "EVIDENCE", "THAWED"][..]),
        rest in "[ =%0-9a-fé\\n]{0,40}",
    ) {
        let _ = HoldLine::parse(&format!("{word} k3v9k3v9k3v9k3v9{rest}"), &nonce());
    }

    #[test]
    fn what_is_rendered_is_read_back(line in hold_lines()) {
        let rendered = line.render(&nonce());
        prop_assert!(!rendered.contains('\n'));
        prop_assert_eq!(HoldLine::parse(&rendered, &nonce()), Parsed::Line(line));
    }

    /// Only THAWED, THAWFAILED, EXPIRED and CANARY have a prefix that is a line of its own word, and no cut of
    /// any line is the line: an unterminated line can at worst be another line of the same nonce that the
    /// stream never delivers, since it has no newline.
    #[test]
    fn a_cut_line_is_never_the_line(line in hold_lines(), keep in 0.0f64..1.0) {
        let rendered = line.render(&nonce());
        let kept: String =
            rendered.chars().take((rendered.chars().count() as f64 * keep) as usize).collect();
        prop_assert_ne!(HoldLine::parse(&kept, &nonce()), Parsed::Line(line));
    }

    #[test]
    fn the_answer_to_another_nonce_never_counts(line in hold_lines(), other in "[a-z0-9]{16,32}") {
        prop_assume!(other != nonce().as_str());
        let rendered = line.render(&Nonce::try_from(other).unwrap());
        prop_assert!(matches!(HoldLine::parse(&rendered, &nonce()), Parsed::Foreign(_)));
    }
}
