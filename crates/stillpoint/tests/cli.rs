//! The built binary as a script meets it: exit codes, stdout for programs, stderr for people.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn stillpoint(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(args)
        .env_remove("KUBECONFIG")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its stdin may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Lints text from stdin: exit code and `path rule` of each finding.
fn lint(text: &str) -> (i32, Vec<String>) {
    let output = stillpoint(&["lint", "-", "-o", "json"], text);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", stdout(&output), stderr(&output)));
    let field = |finding: &Value, name: &str| finding[name].as_str().unwrap().to_owned();
    for finding in &findings {
        assert_eq!(field(finding, "file"), "-");
        assert!(!field(finding, "message").is_empty());
    }
    let found = findings.iter().map(|found| format!("{} {}", field(found, "path"), field(found, "rule")));
    (code(&output), found.collect())
}

const POLICY: &str = "\
apiVersion: stillpoint.dev/v1alpha1
kind: BackupPolicy
metadata: {name: nightly, namespace: shop}
spec:
  schedule: {cron: \"0 2 * * *\", timeZone: Europe/Berlin}
  applications:
  - name: db
    selector: {matchLabels: {app: db}}
";

const TEMPLATE: &str = "\
---
apiVersion: stillpoint.dev/v1alpha1
kind: HookTemplate
metadata: {name: mine, namespace: shop}
spec:
  parameters:
  - {name: user}
  freeze: {none: {}}
";

#[test]
fn a_sound_policy_passes() {
    assert_eq!(lint(POLICY), (0, vec![]));
}

#[test]
fn an_unknown_field_is_found_with_its_path_and_the_known_ones() {
    let text = POLICY.replace("    selector:", "    selectr: {}\n    selector:");
    assert_eq!(lint(&text), (1, vec!["spec.applications[0].selectr UnknownField".to_owned()]));
    let shown = stillpoint(&["lint", "-"], &text);
    assert!(
        stdout(&shown).contains("BackupPolicy/nightly") && stdout(&shown).contains("selector"),
        "{shown:?}"
    );
    assert!(stderr(&shown).contains("1 finding in 1 object"), "{shown:?}");
}

#[test]
fn a_bad_schedule_and_a_bad_zone_are_found() {
    let (exit, found) = lint(&POLICY.replace("0 2 * * *", "0 25 * * *"));
    assert_eq!((exit, found), (1, vec!["spec.schedule.cron InvalidSchedule".to_owned()]));
    let (exit, found) = lint(&POLICY.replace("Europe/Berlin", "Europe/Berlim"));
    assert_eq!((exit, found), (1, vec!["spec.schedule.timeZone InvalidTimeZone".to_owned()]));
}

#[test]
fn a_jitter_that_the_controller_would_refuse_is_found() {
    let (exit, found) = lint(&POLICY.replace("cron: \"0 2 * * *\"", "cron: \"0 2 * * *\", jitter: 24h"));
    assert_eq!((exit, found), (1, vec!["spec.schedule.jitter InvalidJitter".to_owned()]));
}

#[test]
fn a_key_written_twice_is_found() {
    let text = POLICY.replace("spec:\n", "spec:\n  suspend: false\n  suspend: true\n");
    assert_eq!(lint(&text), (1, vec!["spec.suspend DuplicateKey".to_owned()]));
}

#[test]
fn an_unknown_kind_of_the_group_is_found() {
    let (exit, found) = lint(&POLICY.replace("kind: BackupPolicy", "kind: Policy"));
    assert_eq!((exit, found), (1, vec!["kind UnknownKind".to_owned()]));
}

#[test]
fn what_is_no_yaml_is_found_with_its_line() {
    let (exit, found) = lint("a: [1\nb: 2\n");
    assert_eq!(exit, 1);
    assert!(found.len() == 1 && found[0].ends_with("InvalidYaml"), "{found:?}");
}

#[test]
fn objects_of_others_are_passed_over_and_counted() {
    let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\n---\n{POLICY}");
    let output = stillpoint(&["lint", "-"], &text);
    assert_eq!((code(&output), stdout(&output)), (0, ""));
    assert!(stderr(&output).contains("1 object of other groups passed over"), "{output:?}");
}

#[test]
fn a_policy_is_compared_with_its_template() {
    let referring =
        POLICY.replace("  - name: db\n", "  - name: db\n    templateRef: {kind: HookTemplate, name: mine}\n");
    let (exit, found) = lint(&(referring.clone() + TEMPLATE));
    assert_eq!(exit, 1);
    assert!(found[0].contains("parameters") && found[0].ends_with("MissingParameter"), "{found:?}");
    let given = referring.replace("    selector:", "    parameters: {user: u}\n    selector:") + TEMPLATE;
    assert_eq!(lint(&given), (0, vec![]));
}

#[test]
fn a_policy_is_compared_with_the_shipped_library() {
    let text = POLICY.replace(
        "  - name: db\n",
        "  - name: db\n    templateRef: {name: postgresql}\n    parameters: {no-such: x}\n",
    );
    let (exit, found) = lint(&text);
    assert_eq!(exit, 1);
    assert!(found[0].contains("no-such") && found[0].ends_with("UnknownParameter"), "{found:?}");
}

#[test]
fn the_shipped_library_passes() {
    let library = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/templates/");
    for name in ["postgresql.yaml", "mariadb.yaml"] {
        let output = stillpoint(&["lint", &format!("{library}{name}")], "");
        assert_eq!(code(&output), 0, "{output:?}");
    }
}

#[test]
fn a_template_that_is_nowhere_is_a_warning_because_it_may_be_in_the_cluster() {
    let text = POLICY.replace("  - name: db\n", "  - name: db\n    templateRef: {name: of-our-own}\n");
    let output = stillpoint(&["lint", "-"], &text);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(
        stderr(&output).contains("warning: -: BackupPolicy/nightly")
            && stderr(&output).contains("of-our-own")
    );
}

#[test]
fn an_objective_that_the_schedule_cannot_meet_is_a_warning() {
    let text = POLICY.replace("  applications:", "  objectives: {rpo: 1h}\n  applications:");
    let output = stillpoint(&["lint", "-"], &text);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(stderr(&output).contains("cannot be met"), "{output:?}");
}

#[test]
fn two_objects_of_one_name_are_found() {
    assert_eq!(
        lint(&format!("{POLICY}---\n{POLICY}")),
        (1, vec!["metadata.name DuplicateObject".to_owned()])
    );
}

#[test]
fn a_file_that_is_not_there_is_a_usage_error() {
    let output = stillpoint(&["lint", "/nonexistent/policy.yaml"], "");
    assert_eq!(code(&output), 64);
    assert!(stderr(&output).contains("cannot read /nonexistent/policy.yaml"), "{output:?}");
    assert_eq!(code(&stillpoint(&["lint"], "")), 64);
}

#[test]
fn explain_gives_the_slots_around_a_change_of_the_clock() {
    let args =
        ["explain", "30 2 * * *", "--tz", "Europe/Berlin", "--from", "2026-03-27T12:00:00Z", "--count", "3"];
    let output = stillpoint(&[&args[..], &["--rpo", "1d", "-o", "json"]].concat(), "");
    assert_eq!(code(&output), 1, "an objective that cannot be met: {output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let slots = serde_json::json!([
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:30:00+02:00",
        "2026-03-30T02:30:00+02:00"
    ]);
    assert_eq!(found["slots"], slots);
    assert_eq!(found["rpoAttainable"], false, "a day in autumn has 25 hours");
    assert!(
        found["minInterval"].as_u64().unwrap() < 86_400 && found["maxInterval"].as_u64().unwrap() > 86_400
    );
    let changes = serde_json::json!([
        {"at": "2026-03-29T03:00:00+02:00", "forward": 3600, "effect": "moved", "slots": 1,
         "minInterval": 82_800, "maxInterval": 86_400},
        {"at": "2026-10-25T02:00:00+01:00", "forward": -3600, "effect": "once", "slots": 1,
         "minInterval": 86_400, "maxInterval": 90_000},
    ]);
    assert_eq!(found["clockChanges"], changes);
    assert_eq!(found.as_object().unwrap().len(), 5);
}

#[test]
fn explain_tells_the_days_on_which_the_clock_changes_and_what_an_objective_needs() {
    let args =
        ["explain", "30 2 * * *", "--tz", "Europe/Berlin", "--from", "2026-03-27T12:00:00Z", "--count", "3"];
    let output = stillpoint(&[&args[..], &["--rpo", "24h"]].concat(), "");
    assert_eq!(code(&output), 1);
    for told in [
        "2  2026-03-29 03:30:00  Sun  +02:00  2026-03-29T01:30:00Z  1d              clock goes forward 1h (02:00 becomes 03:00)",
        "2026-03-29  Sun  forward 1h (02:00 becomes 03:00)  23h to 1d           02:30 does not exist: runs at 03:30 +02:00",
        "2026-10-25  Sun  back 1h (03:00 becomes 02:00)     1d to 1d1h          02:30 comes twice: runs the first time, +02:00",
        "RPO 24h: NOT attainable, the longest interval is 1d1h",
    ] {
        assert!(stdout(&output).contains(told), "{told}\n{}", stdout(&output));
    }
    let output = stillpoint(&[&args[..], &["--rpo", "25h"]].concat(), "");
    assert_eq!(code(&output), 0);
    assert!(stdout(&output).contains("RPO 25h: attainable when every run succeeds"), "{}", stdout(&output));
    let args = ["explain", "0 */2 * * *", "--tz", "Europe/Berlin", "--from", "2026-03-27T12:00:00Z"];
    let output = stillpoint(&args, "");
    assert!(stdout(&output).contains("02:00 comes twice: runs both times, as an interval"), "{output:?}");
    let output = stillpoint(&["explain", "@daily"], "");
    assert!(stdout(&output).contains("Clock changes: none in Etc/UTC in the coming year"), "{output:?}");
}

#[test]
fn explain_without_an_objective_judges_none() {
    let output = stillpoint(&["explain", "@daily", "-o", "json"], "");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["rpoAttainable"], Value::Null);
    assert_eq!(found["slots"].as_array().unwrap().len(), 10);
}

#[test]
fn explain_names_the_field_that_is_wrong() {
    for (args, named) in [
        (["explain", "0 25 * * *", "--tz", "Etc/UTC"], "hour"),
        (["explain", "61 * * * *", "--tz", "Etc/UTC"], "minute"),
        (["explain", "0 2 * * *", "--tz", "Mars/Base"], "zone"),
    ] {
        let output = stillpoint(&args, "");
        assert_eq!(code(&output), 1, "{output:?}");
        assert!(stderr(&output).to_lowercase().contains(named), "{output:?}");
        assert_eq!(stdout(&output), "");
    }
    assert_eq!(code(&stillpoint(&["explain", "@daily", "--from", "yesterday"], "")), 64);
    assert_eq!(code(&stillpoint(&["explain", "@daily", "--count", "0"], "")), 64);
}

#[test]
fn every_definition_is_a_document_that_parses() {
    let output = stillpoint(&["crd"], "");
    assert_eq!(code(&output), 0);
    let kinds: Vec<String> = stdout(&output)
        .lines()
        .filter_map(|line| line.strip_prefix("    kind: "))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        kinds,
        ["BackupPolicy", "Backup", "Restore", "HookTemplate", "ClusterHookTemplate", "ProtectionRule"]
    );
}

#[test]
fn what_needs_a_cluster_says_so_when_there_is_none() {
    for args in [&["backup", "list"][..], &["backup", "describe", "x"], &["restore", "run", "--backup", "x"]]
    {
        let output = stillpoint(args, "");
        assert_eq!(code(&output), 64, "{output:?}");
        assert!(stderr(&output).contains("no cluster to talk to") && stderr(&output).contains("KUBECONFIG"));
    }
}

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    assert_eq!(code(&stillpoint(&["frobnicate"], "")), 64);
    assert_eq!(code(&stillpoint(&[], "")), 64);
    let help = stillpoint(&["--help"], "");
    assert_eq!(code(&help), 0);
    assert!(stdout(&help).contains("stillpoint backup run --policy nightly --wait"));
    assert!(stdout(&stillpoint(&["version"], "")).starts_with("stillpoint "));
}

#[test]
fn a_rule_is_explained_and_an_unknown_one_names_the_known() {
    let shown = stillpoint(&["lint", "--explain", "oneshotlock"], "");
    assert_eq!(code(&shown), 0);
    let text = stdout(&shown);
    assert!(text.starts_with("OneShotLock\n") && text.contains("Instead\n  freeze.session"), "{text}");
    let unknown = stillpoint(&["lint", "--explain", "Nothing"], "");
    assert_eq!(code(&unknown), 64);
    assert!(stderr(&unknown).contains("OneShotLock"), "{}", stderr(&unknown));
}

#[test]
fn templates_are_listed_with_their_proof_and_one_is_shown_in_full() {
    let listed = stillpoint(&["templates"], "");
    assert_eq!(code(&listed), 0);
    let line = stdout(&listed).lines().find(|line| line.starts_with("mariadb ")).unwrap().to_owned();
    assert!(line.contains("real") && line.contains("10.11"), "{line}");
    let full = stillpoint(&["templates", "redis"], "");
    assert!(stdout(&full).contains("appendfsync=always or a barrier"), "{}", stdout(&full));
    assert_eq!(code(&stillpoint(&["templates", "none-such"], "")), 1);
    let json: Value =
        serde_json::from_slice(&stillpoint(&["templates", "sqlite", "-o", "json"], "").stdout).unwrap();
    assert_eq!(json[0]["proof"], "real");
}
