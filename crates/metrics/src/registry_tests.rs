//! Events become series under their labels, and go with their policy.

use super::*;

fn metrics() -> Metrics {
    Metrics::new(&BuildInfo { version: "1.2.3".into(), revision: String::new() }).unwrap()
}

fn text(metrics: &Metrics) -> String {
    Metrics::render(metrics).collect()
}

#[test]
fn every_ending_of_a_policy_starts_at_zero_and_durations_with_the_first_one() {
    let metrics = metrics();
    metrics.policy_accepted("shop", "nightly", &["db"]);
    let text = text(&metrics);
    for line in [
        r#"stillpoint_backups_total{namespace="shop",policy="nightly",trigger="schedule",consistency="none",result="failed"} 0"#,
        r#"stillpoint_backups_total{namespace="shop",policy="nightly",trigger="initial",consistency="application",result="succeeded"} 0"#,
        r#"stillpoint_retention_deletions_total{namespace="shop",policy="nightly",result="deleted"} 0"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.lines().any(|line| line.contains("duration") && line.contains("policy=")), "{text}");
}

#[test]
fn an_event_is_counted_under_its_labels() {
    let metrics = metrics();
    metrics.policy_accepted("shop", "nightly", &["db"]);
    metrics.freeze("shop", "nightly", 0.07);
    metrics.hook("shop", "nightly", "db", HookPhase::Acquire, 0.003);
    metrics.cut("disk.csi", 0.06);
    metrics.ready("disk.csi", 0.4);
    metrics.retention_deletion("shop", "nightly", DeletionResult::Failed);
    metrics.backup_finished(
        "shop",
        "nightly",
        Trigger::Schedule,
        Consistency::Application,
        RunResult::Succeeded,
    );
    let text = text(&metrics);
    for line in [
        r#"stillpoint_retention_deletions_total{namespace="shop",policy="nightly",result="failed"} 1"#,
        r#"stillpoint_freeze_duration_seconds_bucket{namespace="shop",policy="nightly",le="0.05"} 0"#,
        r#"stillpoint_freeze_duration_seconds_bucket{namespace="shop",policy="nightly",le="0.1"} 1"#,
        r#"stillpoint_cut_duration_seconds_count{driver="disk.csi"} 1"#,
        r#"stillpoint_backups_total{namespace="shop",policy="nightly",trigger="schedule",consistency="application",result="succeeded"} 1"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_removed_policy_takes_its_series_along_and_a_late_event_brings_none_back() {
    let metrics = metrics();
    metrics.policy_accepted("shop", "nightly", &["db"]);
    metrics.policies_listed(|key| key.1 == "nightly");
    metrics.freeze("shop", "nightly", 0.07);
    metrics.policy_removed("shop", "nightly");
    metrics.freeze("shop", "nightly", 0.07);
    metrics.hook("shop", "nightly", "db", HookPhase::Thaw, 0.01);
    metrics.backup_finished("shop", "nightly", Trigger::Manual, Consistency::None, RunResult::Failed);
    assert!(!text(&metrics).contains("nightly"));
}

#[test]
fn a_run_that_ends_before_its_policy_was_listed_counts() {
    let metrics = metrics();
    metrics.hook("shop", "nightly", "db", HookPhase::Hold, 0.05);
    metrics.freeze("shop", "gone", 0.05);
    metrics.policy_accepted("shop", "nightly", &["db"]);
    metrics.policies_listed(|key| key.1 == "nightly");
    let text = text(&metrics);
    let counted = r#"_count{namespace="shop",policy="nightly",application="db",phase="hold"} 1"#;
    assert!(text.contains(counted), "{text}");
    assert!(!text.contains("gone"), "{text}");
}

#[test]
fn an_application_that_left_the_policy_loses_its_series() {
    let metrics = metrics();
    metrics.policies_listed(|key| key.1 == "nightly");
    metrics.policy_accepted("shop", "nightly", &["db", "cache"]);
    for application in ["db", "cache"] {
        metrics.hook("shop", "nightly", application, HookPhase::Hold, 0.1);
    }
    metrics.policy_accepted("shop", "nightly", &["db"]);
    metrics.hook("shop", "nightly", "cache", HookPhase::Hold, 0.1);
    let text = text(&metrics);
    assert!(!text.contains("cache") && text.contains(r#"application="db""#), "{text}");
}

#[test]
fn violations_start_at_zero_and_the_results_of_hooks_with_the_first_one_of_their_application() {
    let metrics = metrics();
    metrics.policies_listed(|_| true);
    metrics.policy_accepted("shop", "nightly", &["db", "cache"]);
    let zero = r#"stillpoint_consistency_violations_total{namespace="shop",policy="nightly",reason="contradiction"} 0"#;
    let before = text(&metrics);
    assert!(before.contains(zero) && !before.contains("hook_executions"), "{before}");
    metrics.violation("shop", "nightly", Violation::CutOutsideFreeze);
    metrics.hook_ended("shop", "nightly", "db", HookPhase::Acquire, HookResult::Timeout);
    metrics.hook_ended("shop", "nightly", "gone", HookPhase::Acquire, HookResult::Failed);
    let after = text(&metrics);
    let of = r#"{namespace="shop",policy="nightly""#;
    for line in [
        format!(r#"stillpoint_consistency_violations_total{of},reason="cut_outside_freeze"}} 1"#),
        format!(
            r#"stillpoint_hook_executions_total{of},application="db",phase="acquire",result="timeout"}} 1"#
        ),
        format!(r#"stillpoint_hook_executions_total{of},application="db",phase="thaw",result="failed"}} 0"#),
    ] {
        assert!(after.contains(&line), "{line}\n{after}");
    }
    assert!(!after.contains(r#"application="cache""#) && !after.contains("hook_duration"), "{after}");
    assert!(!after.contains(r#"application="gone""#), "{after}");
}

#[test]
fn a_restore_is_counted_also_when_the_policy_of_its_point_is_gone() {
    let metrics = metrics();
    metrics.policies_listed(|_| false);
    metrics.restored("shop", "gone", RunResult::Failed, 9.0);
    let of = r#"{namespace="shop",policy="gone","#;
    let failed = format!(r#"stillpoint_restores_total{of}result="failed"}} 1"#);
    let succeeded = format!(r#"stillpoint_restores_total{of}result="succeeded"}} 0"#);
    let before = text(&metrics);
    assert!(before.contains(&failed) && before.contains(&succeeded), "{before}");
    assert!(!before.contains("stillpoint_restore_duration_seconds_count"), "{before}");
    metrics.restored("shop", "gone", RunResult::Succeeded, 9.0);
    let took = r#"stillpoint_restore_duration_seconds_bucket{namespace="shop",policy="gone",le="15"} 1"#;
    assert!(text(&metrics).contains(took), "{}", text(&metrics));
}

#[test]
fn many_policies_are_rendered_in_pages_with_one_head_per_family() {
    let metrics = metrics();
    let many = 2 * PER_PAGE + 1;
    for number in 0..many {
        metrics.policy_accepted("shop", &format!("p{number:05}"), &["db"]);
    }
    metrics.freeze("shop", "p00000", 0.07);
    let pages: Vec<String> = Metrics::render(&metrics).collect();
    assert!(pages.len() > 3);
    let text = text(&metrics);
    assert_eq!(text.matches("# TYPE stillpoint_backups_total").count(), 1);
    assert_eq!(text.matches(r#"trigger="manual",consistency="none",result="failed"} 0"#).count(), many);
    assert_eq!(text.matches("# TYPE stillpoint_freeze_duration_seconds histogram").count(), 1);
}
