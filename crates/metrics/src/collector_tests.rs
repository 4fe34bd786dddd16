//! A scrape as Prometheus gets it, from objects as the API server gives them.

use std::sync::Arc;

use super::*;
use crate::facts::FactsStore;
use stillpoint_api::outcome::{HookPhase, HookResult, RunResult};

use crate::registry::{BuildInfo, Metrics};

fn store() -> (Arc<Metrics>, FactsStore) {
    let build = BuildInfo { version: "1.2.3".into(), revision: "abc".into() };
    let metrics = Arc::new(Metrics::new(&build).unwrap());
    (Arc::clone(&metrics), FactsStore::new(metrics))
}

fn policy() -> stillpoint_api::BackupPolicy {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
        "metadata": {"name": "nightly", "namespace": "shop", "creationTimestamp": "2026-11-01T00:00:00Z"},
        "spec": {
            "schedule": {"cron": "0 2 * * *", "timeZone": "Europe/Berlin"},
            "objectives": {"rpo": "26h"},
            "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}],
        },
        "status": {
            "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
                            "lastTransitionTime": "2026-11-01T00:00:00Z"}],
            "nextSlots": ["2026-11-22T02:00:00+01:00"],
            "maxIntervalSeconds": 90000, "minIntervalSeconds": 82800,
            "missed": {"deadline": 2, "blackout": 1},
        },
    }))
    .unwrap()
}

fn backup(name: &str, status: serde_json::Value) -> stillpoint_api::Backup {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2026-11-20T01:00:00Z"},
        "spec": {"run": {"policyRef": {"name": "nightly"}}, "trigger": "Schedule"},
        "status": status,
    }))
    .unwrap()
}

fn proven(name: &str, cut: &str) -> stillpoint_api::Backup {
    backup(
        name,
        serde_json::json!({"phase": "Succeeded", "consistency": "Application", "cut": cut,
                           "window": {"startedAt": cut, "frozenSeconds": 0.0625}}),
    )
}

fn text(store: &FactsStore) -> String {
    Family::ALL.iter().map(|family| family.render(store)).collect()
}

fn value(store: &FactsStore, series: &str) -> Option<String> {
    let text = text(store);
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned))
}

const REFERENCE: &str =
    r#"stillpoint_policy_rpo_reference_timestamp_seconds{namespace="shop",policy="nightly"}"#;
const FROZEN: &str = r#"stillpoint_frozen_since_timestamp_seconds{namespace="shop",policy="nightly"}"#;

#[test]
fn an_application_that_nobody_could_recover_is_counted_until_it_is() {
    let (_, store) = store();
    store.policy_applied(&policy());
    let left = |status: &str| {
        serde_json::json!({"phase": "Preparing", "conditions": [{
            "type": "ApplicationLeftQuiesced", "status": status, "reason": "NotProvenThawed", "message": "",
            "lastTransitionTime": "2026-11-20T01:00:00Z",
        }]})
    };
    let series = r#"stillpoint_application_left_quiesced{namespace="shop",policy="nightly"}"#;
    store.backup_applied(&backup("a", left("True")));
    assert_eq!(value(&store, series).as_deref(), Some("1"));
    store.backup_applied(&backup("a", left("False")));
    assert_eq!(value(&store, series).as_deref(), Some("0"));
}

#[test]
fn a_scrape_reads_like_this() {
    let (_, store) = store();
    store.policy_applied(&policy());
    store.backup_applied(&proven("a", "2026-11-19T01:00:00.500000Z"));
    store.backup_applied(&proven("b", "2026-11-20T01:00:00.250000Z"));
    store.backup_applied(&backup("c", serde_json::json!({"phase": "Failed"})));
    let expected = r#"# HELP stillpoint_active_run_start_timestamp_seconds Start of the run that is not finished; 0 when there is none.
# TYPE stillpoint_active_run_start_timestamp_seconds gauge
stillpoint_active_run_start_timestamp_seconds{namespace="shop",policy="nightly"} 0
# HELP stillpoint_application_left_quiesced Runs with an application that may still be frozen: nobody heard it thaw, and recovering it failed so far.
# TYPE stillpoint_application_left_quiesced gauge
stillpoint_application_left_quiesced{namespace="shop",policy="nightly"} 0
# HELP stillpoint_consecutive_failures Finished runs since the last success that were none.
# TYPE stillpoint_consecutive_failures gauge
stillpoint_consecutive_failures{namespace="shop",policy="nightly"} 0
# HELP stillpoint_frozen_since_timestamp_seconds Since when an application is, or must be taken to be, frozen; 0 when it is not.
# TYPE stillpoint_frozen_since_timestamp_seconds gauge
stillpoint_frozen_since_timestamp_seconds{namespace="shop",policy="nightly"} 0
# HELP stillpoint_last_freeze_duration_seconds Length of the newest freeze window; absent before the first.
# TYPE stillpoint_last_freeze_duration_seconds gauge
stillpoint_last_freeze_duration_seconds{namespace="shop",policy="nightly"} 0.0625
# HELP stillpoint_missed_runs_total Slots that did not run, by reason, since the policy exists.
# TYPE stillpoint_missed_runs_total counter
stillpoint_missed_runs_total{namespace="shop",policy="nightly",reason="blackout"} 1
stillpoint_missed_runs_total{namespace="shop",policy="nightly",reason="concurrency"} 0
stillpoint_missed_runs_total{namespace="shop",policy="nightly",reason="controller_down"} 0
stillpoint_missed_runs_total{namespace="shop",policy="nightly",reason="deadline"} 2
stillpoint_missed_runs_total{namespace="shop",policy="nightly",reason="rule_blackout"} 0
# HELP stillpoint_policy_condition Conditions of the policy: 1 for the status that holds.
# TYPE stillpoint_policy_condition gauge
stillpoint_policy_condition{namespace="shop",policy="nightly",type="Accepted",status="True"} 1
stillpoint_policy_condition{namespace="shop",policy="nightly",type="Accepted",status="False"} 0
stillpoint_policy_condition{namespace="shop",policy="nightly",type="Accepted",status="Unknown"} 0
stillpoint_policy_condition{namespace="shop",policy="nightly",type="Ready",status="True"} 0
stillpoint_policy_condition{namespace="shop",policy="nightly",type="Ready",status="False"} 0
stillpoint_policy_condition{namespace="shop",policy="nightly",type="Ready",status="Unknown"} 1
# HELP stillpoint_policy_created_timestamp_seconds When the policy was created: the start of protection.
# TYPE stillpoint_policy_created_timestamp_seconds gauge
stillpoint_policy_created_timestamp_seconds{namespace="shop",policy="nightly"} 1793491200
# HELP stillpoint_policy_in_blackout 1 inside a blackout of the policy or of a ProtectionRule: nothing starts.
# TYPE stillpoint_policy_in_blackout gauge
stillpoint_policy_in_blackout{namespace="shop",policy="nightly"} 0
# HELP stillpoint_policy_info How the policy is scheduled; always 1.
# TYPE stillpoint_policy_info gauge
stillpoint_policy_info{namespace="shop",policy="nightly",schedule="0 2 * * *",timezone="Europe/Berlin",concurrency="Forbid",catch_up="Latest"} 1
# HELP stillpoint_policy_rpo_reference_timestamp_seconds Cut of the newest proven recovery point, else the start of protection.
# TYPE stillpoint_policy_rpo_reference_timestamp_seconds gauge
stillpoint_policy_rpo_reference_timestamp_seconds{namespace="shop",policy="nightly"} 1795136400.25
# HELP stillpoint_policy_rpo_target_seconds How old the newest proven recovery point may become; absent without an objective.
# TYPE stillpoint_policy_rpo_target_seconds gauge
stillpoint_policy_rpo_target_seconds{namespace="shop",policy="nightly"} 93600
# HELP stillpoint_policy_suspended 1 while the policy starts nothing.
# TYPE stillpoint_policy_suspended gauge
stillpoint_policy_suspended{namespace="shop",policy="nightly"} 0
# HELP stillpoint_recovery_point_oldest_timestamp_seconds Cut of the oldest proven recovery point; absent without one.
# TYPE stillpoint_recovery_point_oldest_timestamp_seconds gauge
stillpoint_recovery_point_oldest_timestamp_seconds{namespace="shop",policy="nightly"} 1795050000.5
# HELP stillpoint_recovery_point_timestamp_seconds Cut of the newest proven recovery point; absent without one.
# TYPE stillpoint_recovery_point_timestamp_seconds gauge
stillpoint_recovery_point_timestamp_seconds{namespace="shop",policy="nightly"} 1795136400.25
# HELP stillpoint_recovery_points Backups of the policy by state; held ones are counted besides.
# TYPE stillpoint_recovery_points gauge
stillpoint_recovery_points{namespace="shop",policy="nightly",state="ready"} 2
stillpoint_recovery_points{namespace="shop",policy="nightly",state="pending"} 0
stillpoint_recovery_points{namespace="shop",policy="nightly",state="failed"} 1
stillpoint_recovery_points{namespace="shop",policy="nightly",state="inconsistent"} 0
stillpoint_recovery_points{namespace="shop",policy="nightly",state="deleting"} 0
stillpoint_recovery_points{namespace="shop",policy="nightly",state="snapshot_deleted"} 0
stillpoint_recovery_points{namespace="shop",policy="nightly",state="held"} 0
# HELP stillpoint_restore_size_bytes What the proven recovery points need to be restored, together, as far as drivers say.
# TYPE stillpoint_restore_size_bytes gauge
stillpoint_restore_size_bytes{namespace="shop",policy="nightly"} 0
# HELP stillpoint_retention_blocked Points that no rule keeps and that stay all the same, by what keeps them.
# TYPE stillpoint_retention_blocked gauge
stillpoint_retention_blocked{namespace="shop",policy="nightly",reason="breaker"} 0
stillpoint_retention_blocked{namespace="shop",policy="nightly",reason="clock_skew"} 0
stillpoint_retention_blocked{namespace="shop",policy="nightly",reason="last_good"} 0
stillpoint_retention_blocked{namespace="shop",policy="nightly",reason="legal_hold"} 0
# HELP stillpoint_retention_overdue Points that may go and are not gone yet.
# TYPE stillpoint_retention_overdue gauge
stillpoint_retention_overdue{namespace="shop",policy="nightly"} 0
# HELP stillpoint_runs_waiting Runs that wait because a ProtectionRule limits how many freezes go on at once.
# TYPE stillpoint_runs_waiting gauge
stillpoint_runs_waiting{namespace="shop"} 0
# HELP stillpoint_schedule_max_interval_seconds Longest interval between two slots.
# TYPE stillpoint_schedule_max_interval_seconds gauge
stillpoint_schedule_max_interval_seconds{namespace="shop",policy="nightly"} 90000
# HELP stillpoint_schedule_min_interval_seconds Shortest interval between two slots.
# TYPE stillpoint_schedule_min_interval_seconds gauge
stillpoint_schedule_min_interval_seconds{namespace="shop",policy="nightly"} 82800
# HELP stillpoint_schedule_next_timestamp_seconds Next slot; absent while there is none.
# TYPE stillpoint_schedule_next_timestamp_seconds gauge
stillpoint_schedule_next_timestamp_seconds{namespace="shop",policy="nightly"} 1795309200
# HELP stillpoint_slots_total Slots by outcome, since the policy exists; skipped ones were not to run.
# TYPE stillpoint_slots_total counter
stillpoint_slots_total{namespace="shop",policy="nightly",outcome="met"} 0
stillpoint_slots_total{namespace="shop",policy="nightly",outcome="failed"} 0
stillpoint_slots_total{namespace="shop",policy="nightly",outcome="missed"} 2
stillpoint_slots_total{namespace="shop",policy="nightly",outcome="skipped"} 1
"#;
    assert_eq!(text(&store), expected);
}

#[test]
fn without_a_point_the_reference_is_the_start_of_protection() {
    let (_, store) = store();
    store.policy_applied(&policy());
    assert_eq!(value(&store, REFERENCE).unwrap(), "1793491200");
}

#[test]
fn a_point_deleted_by_anybody_moves_the_reference_back() {
    let (_, store) = store();
    store.policy_applied(&policy());
    let newest = proven("b", "2026-11-20T01:00:00.000000Z");
    store.backup_applied(&proven("a", "2026-11-19T01:00:00.000000Z"));
    store.backup_applied(&newest);
    store.backup_deleted(&newest);
    assert_eq!(value(&store, REFERENCE).unwrap(), "1795050000");
}

#[test]
fn a_point_without_proof_does_not_count_for_the_objective() {
    let (_, store) = store();
    store.policy_applied(&policy());
    let status = serde_json::json!({"phase": "Succeeded", "consistency": "Crash",
                                    "cut": "2026-11-20T01:00:00.000000Z"});
    store.backup_applied(&backup("crash", status));
    assert_eq!(value(&store, REFERENCE).unwrap(), "1793491200");
    let inconsistent =
        r#"stillpoint_recovery_points{namespace="shop",policy="nightly",state="inconsistent"}"#;
    assert_eq!(value(&store, inconsistent).unwrap(), "1");
}

#[test]
fn a_server_that_acknowledges_early_counts_from_the_end_of_prepare() {
    let (_, store) = store();
    store.policy_applied(&policy());
    let status = serde_json::json!({
        "phase": "Succeeded", "consistency": "Application", "cut": "2026-11-20T01:00:10.000000Z",
        "resolved": {"applications": [{"name": "db", "dataTime": "Prepare",
                                       "preparedAt": "2026-11-20T01:00:00.000000Z"}]},
    });
    store.backup_applied(&backup("flushed", status));
    assert_eq!(value(&store, REFERENCE).unwrap(), "1795136400");
}

#[test]
fn an_application_counts_as_frozen_from_the_journal_entry_to_the_next() {
    let (_, store) = store();
    store.policy_applied(&policy());
    let freezing = serde_json::json!({"entry": "Freezing", "attempt": 1, "nonce": "n", "executor": "e",
                                      "at": "2026-11-20T01:00:00.000000Z"});
    let mut status = serde_json::json!({"phase": "Freezing", "journal": [freezing]});
    store.backup_applied(&backup("run", status.clone()));
    assert_eq!(value(&store, FROZEN).unwrap(), "1795136400");
    let thawed = serde_json::json!({"entry": "Thawed", "attempt": 1, "nonce": "n", "executor": "e",
                                    "at": "2026-11-20T01:00:01.000000Z"});
    status["journal"].as_array_mut().unwrap().push(thawed);
    store.backup_applied(&backup("run", status));
    assert_eq!(value(&store, FROZEN).unwrap(), "0");
}

#[test]
fn a_removed_policy_has_no_series_and_its_successor_adopts_the_points() {
    let (metrics, store) = store();
    store.policies_listing();
    store.policy_applied(&policy());
    store.policies_listed();
    store.backup_applied(&proven("a", "2026-11-19T01:00:00.000000Z"));
    store.policy_deleted(&policy());
    assert!(!text(&store).contains("nightly"), "{}", text(&store));
    metrics.freeze("shop", "nightly", 0.1);
    assert!(!Metrics::render(&*metrics).collect::<String>().contains("nightly"));
    store.policy_applied(&policy());
    assert_eq!(value(&store, REFERENCE).unwrap(), "1795050000");
}

#[test]
fn what_a_new_list_does_not_contain_is_gone() {
    let (metrics, store) = store();
    store.policies_listing();
    store.policy_applied(&policy());
    store.policies_listed();
    store.backups_listing();
    store.backup_applied(&proven("a", "2026-11-19T01:00:00.000000Z"));
    store.backups_listed();
    store.backups_listing();
    store.backups_listed();
    assert_eq!(value(&store, REFERENCE).unwrap(), "1793491200");
    store.policies_listing();
    store.policies_listed();
    assert_eq!(text(&store), "");
    assert!(!Metrics::render(&*metrics).collect::<String>().contains("nightly"));
}

#[test]
fn a_policy_stays_within_its_budget_of_series() {
    let (metrics, store) = store();
    store.policy_applied(&policy());
    metrics.freeze("shop", "nightly", 0.1);
    metrics.overhead("shop", "nightly", 0.1);
    for phase in HookPhase::ALL {
        metrics.hook("shop", "nightly", "db", phase, 0.1);
        metrics.hook_ended("shop", "nightly", "db", phase, HookResult::Succeeded);
    }
    let all = text(&store) + &Metrics::render(&*metrics).collect::<String>();
    let series = |hook: bool| {
        let of_policy = |line: &&str| line.contains("policy=\"nightly\"");
        all.lines().filter(of_policy).filter(|line| line.contains("stillpoint_hook_") == hook).count()
    };
    assert!(series(false) <= 95, "{} beside the hooks", series(false));
    assert!(series(true) <= 4 * 35, "{} of four hook phases", series(true));
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    let (metrics, store) = store();
    store.policies_listing();
    store.policy_applied(&policy());
    store.policies_listed();
    store.backup_applied(&of_claims("a", &[("data", "2026-11-20T01:00:00.000000Z")]));
    store.claims_listing();
    store.claim_applied(&claim("data", &[("pv.kubernetes.io/bind-completed", "yes")]));
    store.claims_listed();
    metrics.cut("d", 0.1);
    metrics.ready("d", 0.1);
    metrics.freeze("shop", "nightly", 0.1);
    metrics.overhead("shop", "nightly", 0.1);
    metrics.hook("shop", "nightly", "db", HookPhase::Hold, 0.1);
    metrics.restored("shop", "nightly", RunResult::Succeeded, 0.1);
    let process = crate::process::render(&crate::process::ProcessFacts::default());
    let all = text(&store) + &process + &Metrics::render(&*metrics).collect::<String>();
    let mut families = 0;
    for line in all.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        families += 1;
        assert!(name.starts_with("stillpoint_") || name.starts_with("process_"), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        for suffix in ["_count", "_sum", "_bucket", "_gauge", "_counter", "_histogram"] {
            assert!(!name.ends_with(suffix), "{name} ends with what the format reserves");
        }
        if name.contains("timestamp") {
            assert!(name.ends_with("_timestamp_seconds"), "{name}");
        }
        for unit in ["_milliseconds", "_ms", "_minutes", "_kb", "_percent"] {
            assert!(!name.contains(unit), "{name} has no base unit");
        }
        if kind == "histogram" {
            assert!(name.ends_with("_seconds") || name.ends_with("_bytes"), "{name} has no unit");
        }
        assert!(all.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    assert!(families >= Family::ALL.len() + 3);
    let names: Vec<_> = Family::ALL.iter().map(|family| family.name).collect();
    assert!(names.is_sorted(), "families are sorted");
}

#[test]
fn label_values_are_escaped() {
    let mut out = String::new();
    escape("a\"b\\c\nd", &mut out);
    assert_eq!(out, r#"a\"b\\c\nd"#);
}

/// A proven point of these claims.
fn of_claims(name: &str, claims: &[(&str, &str)]) -> stillpoint_api::Backup {
    let members: Vec<serde_json::Value> = claims
        .iter()
        .map(|(claim, cut)| {
            serde_json::json!({
                "application": "db", "podName": "db-0", "podUID": "p", "claimName": claim, "volumeSnapshot": claim,
                "volumeSnapshotUID": claim, "content": claim, "cut": cut,
                "settled": {"readyAt": "2026-11-20T01:00:05.000000Z", "bound": true, "restoreSize": 1024},
            })
        })
        .collect();
    let mut backup = proven(name, "2026-11-20T01:00:00.000000Z");
    let status = backup.status.as_mut().unwrap();
    status.members = serde_json::from_value(serde_json::json!(members)).unwrap();
    backup
}

fn claim(
    name: &str,
    annotations: &[(&str, &str)],
) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("shop".to_owned()),
        annotations: Some(
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ),
        ..Default::default()
    }
}

#[test]
fn a_bound_claim_in_no_proven_point_is_unprotected_unless_it_says_that_it_needs_none() {
    const SERIES: &str = r#"stillpoint_unprotected_volumes{namespace="shop"}"#;
    const BOUND: (&str, &str) = ("pv.kubernetes.io/bind-completed", "yes");
    let (_, store) = store();
    store.claims_listing();
    for name in ["data", "logs"] {
        store.claim_applied(&claim(name, &[BOUND]));
    }
    store.claim_applied(&claim("cache", &[BOUND, ("stillpoint.dev/needs-no-backup", "true")]));
    store.claim_applied(&claim("unbound", &[]));
    assert_eq!(value(&store, SERIES), None, "a list that is not complete says nothing");
    store.claims_listed();
    assert_eq!(value(&store, SERIES).as_deref(), Some("2"), "also in a namespace without any policy");

    store.policy_applied(&policy());
    let mut point = of_claims("a", &[("data", "2026-11-20T01:00:00.000000Z")]);
    store.backup_applied(&point);
    assert_eq!(value(&store, SERIES).as_deref(), Some("1"));
    let lost = stillpoint_api::conditions::condition(
        "Ready",
        false,
        "SnapshotDeleted",
        "",
        None,
        Timestamp::UNIX_EPOCH,
    );
    point.status.as_mut().unwrap().conditions.push(lost);
    store.backup_applied(&point);
    assert_eq!(value(&store, SERIES).as_deref(), Some("2"), "a point that cannot be used protects nothing");
    assert_eq!(value(&store, REFERENCE).as_deref(), Some("1793491200"), "the start of protection");
    let ready = r#"stillpoint_recovery_points{namespace="shop",policy="nightly",state="ready"}"#;
    let deleted = r#"stillpoint_recovery_points{namespace="shop",policy="nightly",state="snapshot_deleted"}"#;
    assert_eq!((value(&store, ready).as_deref(), value(&store, deleted).as_deref()), (Some("0"), Some("1")));

    store.claim_deleted(&claim("data", &[]));
    store.claim_deleted(&claim("logs", &[]));
    assert_eq!(value(&store, SERIES), None);
}

#[test]
fn backups_of_a_deleted_policy_are_counted_until_one_of_the_same_name_takes_them_over() {
    const SERIES: &str = r#"stillpoint_orphaned_backups{namespace="shop"}"#;
    let (_, store) = store();
    store.backup_applied(&proven("a", "2026-11-20T01:00:00.000000Z"));
    assert_eq!(value(&store, SERIES), None, "policies are not listed yet");
    store.policies_listing();
    store.policies_listed();
    assert_eq!(value(&store, SERIES).as_deref(), Some("1"));
    store.policy_applied(&policy());
    assert_eq!(value(&store, SERIES).as_deref(), Some("0"));
    store.policy_deleted(&policy());
    assert_eq!(value(&store, SERIES).as_deref(), Some("1"));
    store.backup_deleted(&proven("a", "2026-11-20T01:00:00.000000Z"));
    assert_eq!(value(&store, SERIES), None);
}

#[test]
fn sizes_spread_holds_and_lengths_are_those_of_the_points() {
    let (_, store) = store();
    store.policy_applied(&policy());
    let mut point =
        of_claims("a", &[("data", "2026-11-20T01:00:00.000000Z"), ("wal", "2026-11-20T01:00:01.500000Z")]);
    let status = point.status.as_mut().unwrap();
    status.started_at = serde_json::from_value(serde_json::json!("2026-11-20T00:59:00.000000Z")).unwrap();
    status.finished_at = serde_json::from_value(serde_json::json!("2026-11-20T01:00:30.000000Z")).unwrap();
    point.spec.hold = serde_json::from_value(serde_json::json!({"reason": "audit"})).unwrap();
    store.backup_applied(&point);
    let of = |metric: &str| value(&store, &format!(r#"{metric}{{namespace="shop",policy="nightly"}}"#));
    assert_eq!(of("stillpoint_recovery_point_cut_spread_seconds").as_deref(), Some("1.5"));
    assert_eq!(of("stillpoint_restore_size_bytes").as_deref(), Some("2048"));
    assert_eq!(of("stillpoint_last_run_duration_seconds").as_deref(), Some("90"));
    let held = r#"stillpoint_recovery_points{namespace="shop",policy="nightly",state="held"}"#;
    let ready = r#"stillpoint_recovery_points{namespace="shop",policy="nightly",state="ready"}"#;
    assert_eq!((value(&store, held).as_deref(), value(&store, ready).as_deref()), (Some("1"), Some("1")));
}

#[test]
fn a_frozen_application_is_told_of_without_a_policy_and_after_its_policy_is_gone() {
    let (_, store) = store();
    let freezing = serde_json::json!({"entry": "Freezing", "attempt": 1, "nonce": "n", "executor": "e",
                                      "at": "2026-11-20T01:00:00.000000Z"});
    let frozen = backup("run", serde_json::json!({"phase": "Freezing", "journal": [freezing]}));
    let mut alone = frozen.clone();
    alone.spec.run.policy_ref = None;
    alone.metadata.name = Some("alone".to_owned());
    for one in [&frozen, &alone] {
        store.backup_applied(one);
    }
    let series = |metric: &str, policy: &str| format!(r#"{metric}{{namespace="shop",policy="{policy}"}}"#);
    let since = "stillpoint_frozen_since_timestamp_seconds";
    for policy in ["", "nightly"] {
        assert_eq!(value(&store, &series(since, policy)).as_deref(), Some("1795136400"), "{policy:?}");
    }
    assert_eq!(
        value(&store, &series("stillpoint_policy_suspended", "nightly")),
        None,
        "there is no such policy"
    );
    let finished = |run: &stillpoint_api::Backup| {
        let mut run = run.clone();
        run.status = serde_json::from_value(serde_json::json!({"phase": "Failed"})).unwrap();
        store.backup_applied(&run);
    };
    finished(&frozen);
    finished(&alone);
    assert_eq!(value(&store, &series(since, "nightly")), None, "nothing is left to be told of it");
    for metric in
        [since, "stillpoint_application_left_quiesced", "stillpoint_active_run_start_timestamp_seconds"]
    {
        assert_eq!(value(&store, &series(metric, "")).as_deref(), Some("0"), "{metric}");
    }
    store.backup_deleted(&alone);
    assert!(!text(&store).contains(r#"policy="""#), "{}", text(&store));
}

#[test]
fn runs_that_wait_for_the_end_of_another_freeze_are_counted_by_namespace() {
    const SERIES: &str = r#"stillpoint_runs_waiting{namespace="shop"}"#;
    let (_, store) = store();
    let paced = |phase: &str, status: &str, finished: Option<&str>| {
        serde_json::json!({"phase": phase, "finishedAt": finished, "conditions": [{
            "type": "Paced", "status": status, "reason": "FreezeLimit", "message": "",
            "lastTransitionTime": "2026-11-20T01:00:00Z",
        }]})
    };
    store.backup_applied(&backup("a", paced("Preparing", "True", None)));
    store.backup_applied(&backup("b", paced("Preparing", "True", None)));
    store.backup_applied(&backup("c", paced("Freezing", "False", None)));
    store.backup_applied(&backup("d", paced("Failed", "True", Some("2026-11-20T01:00:30.000000Z"))));
    assert_eq!(value(&store, SERIES).as_deref(), Some("2"));
    store.backup_applied(&backup("a", paced("Freezing", "False", None)));
    assert_eq!(value(&store, SERIES).as_deref(), Some("1"));
}

/// Says that everything in `shop` is dark.
struct Dark;

impl crate::facts::Calendar for Dark {
    fn in_blackout(&self, namespace: &str, policy: &crate::facts::PolicyProjection) -> bool {
        namespace == "shop" && policy.blackouts.len() == 1 && &*policy.time_zone == "Europe/Berlin"
    }
}

#[test]
fn whether_a_blackout_holds_is_asked_at_the_scrape() {
    const SERIES: &str = r#"stillpoint_policy_in_blackout{namespace="shop",policy="nightly"}"#;
    let build = BuildInfo { version: "1.2.3".into(), revision: "abc".into() };
    let store = FactsStore::with_calendar(Arc::new(Metrics::new(&build).unwrap()), Arc::new(Dark));
    store.policy_applied(&policy());
    assert_eq!(value(&store, SERIES).as_deref(), Some("0"));
    let mut dark = policy();
    let window = serde_json::json!([{"start": "0 22 * * *", "duration": "8h", "action": "Skip"}]);
    dark.spec.schedule.blackouts = serde_json::from_value(window).unwrap();
    store.policy_applied(&dark);
    assert_eq!(value(&store, SERIES).as_deref(), Some("1"));
}
