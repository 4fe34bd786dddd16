//! Which points of a whole policy stay, which are deleted, and what its status says of them (docs/retention.md).

use stillpoint_api::policy::DELETIONS_AGREED_ANNOTATION;

use super::*;

#[test]
fn retention_keeps_the_newest_points_and_a_deleted_point_moves_the_reference_back() {
    let days = ["14", "15", "16", "17"];
    let mut points: Vec<BackupView> =
        days.map(|day| backup(&format!("2026-11-{day}T02:00:00Z"), "Succeeded")).to_vec();
    let (outcome, _) = decided(&policy(json!({})), &points, "2026-11-17T03:00:00Z");
    assert_eq!(outcome.delete, [points[0].name.clone(), points[1].name.clone()]);
    points.pop();
    let (_, after) = decided(&policy(json!({})), &points, "2026-11-17T03:00:00Z");
    assert_eq!(after.status.unwrap().rpo.unwrap().reference, Some(Time(at("2026-11-16T02:00:30Z"))));
}

#[test]
fn a_point_that_is_being_deleted_takes_no_place_and_is_no_failure() {
    let days = ["14", "15", "16"];
    let mut points: Vec<BackupView> =
        days.map(|day| backup(&format!("2026-11-{day}T02:00:00Z"), "Succeeded")).to_vec();
    points.push(backup("2026-11-17T02:00:00Z", "Deleting"));
    let (outcome, after) = decided(&policy(json!({})), &points, "2026-11-17T03:00:00Z");
    assert_eq!(outcome.delete, [points[0].name.clone()]);
    assert_eq!(condition(&after, READY).status, "True");
    let status = after.status.unwrap();
    assert_eq!(status.consecutive_failures, 0);
    assert_eq!(status.rpo.unwrap().reference, Some(Time(at("2026-11-16T02:00:30Z"))));
}

#[test]
fn a_point_that_only_a_guard_keeps_is_counted_under_that_guard() {
    let mut points = nights(4);
    for (point, application) in points.iter_mut().zip(["web", "db", "db", "db"]) {
        point.applications = [application.to_owned()].into();
    }
    points[3].held = true;
    let (outcome, _) = decided(&policy(json!({"retention": {"last": 1}})), &points, "2026-12-14T10:00:00Z");
    let blocked = outcome.status.retention.unwrap().blocked;
    assert_eq!(blocked, [("last_good".to_owned(), 1), ("legal_hold".to_owned(), 1)].into());
    let many = nights(30);
    let (outcome, _) = decided(&policy(json!({"retention": {"last": 3}})), &many, "2026-12-14T10:00:00Z");
    assert_eq!(outcome.status.retention.unwrap().blocked, [("breaker".to_owned(), 27)].into());
}

#[test]
fn a_point_whose_snapshot_somebody_deleted_counts_nowhere_and_is_no_failed_run() {
    let lost = |slot: &str| BackupView { standing: Standing::Lost, ..backup(slot, "Succeeded") };
    let backups = [
        backup("2026-11-14T02:00:00Z", "Succeeded"),
        backup("2026-11-15T02:00:00Z", "Failed"),
        lost("2026-11-16T02:00:00Z"),
    ];
    let (outcome, policy) = decided(&policy(json!({})), &backups, "2026-11-16T03:00:00Z");
    let status = &outcome.status;
    assert_eq!(status.rpo.as_ref().unwrap().reference, Some(Time(at("2026-11-14T02:00:30Z"))));
    assert_eq!(rpo_state(&policy), "Breached");
    let counts = status.recovery_points.as_ref().unwrap();
    assert_eq!((counts.ready, counts.failed, counts.snapshot_deleted), (1, 1, 1));
    assert_eq!(condition(&policy, READY).reason, "SnapshotDeleted");
    // The run itself was well: it ended the row of failures.
    assert_eq!(status.consecutive_failures, 0);
    assert_eq!(outcome.delete, Vec::<String>::new());
}

/// Proven points of so many nights before 2026-12-14.
fn nights(count: i64) -> Vec<BackupView> {
    let first = at("2026-12-14T02:00:00Z");
    (0..count)
        .map(|age| backup(&(first - SignedDuration::from_hours(24 * age)).to_string(), "Succeeded"))
        .collect()
}

#[test]
fn status_says_why_each_point_stays() {
    let policy = policy(json!({"retention": {"daily": 2, "monthly": 2}}));
    let mut points = nights(20);
    points[10].held = true;
    let (outcome, _) = decided(&policy, &points, "2026-12-14T10:00:00Z");
    let retention = outcome.status.retention.unwrap();
    let kept: Vec<(&str, String)> =
        retention.kept.iter().map(|kept| (kept.backup.as_str(), kept.reasons.join(" "))).collect();
    assert_eq!(
        kept,
        [
            (points[0].name.as_str(), "daily-1 monthly-1 newest".to_owned()),
            (points[1].name.as_str(), "daily-2".to_owned()),
            (points[10].name.as_str(), "held".to_owned()),
            // 30 November.
            (points[14].name.as_str(), "monthly-2".to_owned()),
        ]
    );
    assert_eq!(outcome.status.recovery_points.unwrap().held, 1);
}

#[test]
fn an_edit_that_lets_most_points_go_pauses_retention_until_this_edit_is_agreed_to() {
    let now = "2026-12-14T10:00:00Z";
    let points = nights(30);
    let (outcome, mut paused) = decided(&policy(json!({"retention": {"last": 3}})), &points, now);
    assert_eq!(outcome.delete, Vec::<String>::new());
    assert_eq!(outcome.status.retention.as_ref().map(|known| known.expiring), Some(0));
    let condition = outcome.status.conditions.iter().find(|known| known.type_ == RETENTION_PAUSED).unwrap();
    assert!(condition.message.contains("27 of 30"), "{}", condition.message);
    assert!(condition.message.contains("stillpoint.dev/deletions-agreed=1"), "{}", condition.message);
    assert!(outcome.notes.iter().any(|note| note.reason() == RETENTION_PAUSED));

    // It stays so, and is told once.
    let (again, _) = decided(&paused, &points, now);
    assert_eq!((again.delete.len(), again.notes.len()), (0, 0));

    // Agreed to another edit.
    let agree = |generation: &str| [(DELETIONS_AGREED_ANNOTATION.to_owned(), generation.to_owned())].into();
    paused.metadata.annotations = Some(agree("2"));
    assert_eq!(decided(&paused, &points, now).0.delete.len(), 0);

    paused.metadata.annotations = Some(agree("1"));
    let (agreed, _) = decided(&paused, &points, now);
    assert_eq!(agreed.delete.len(), 27);
    assert!(agreed.status.conditions.iter().all(|known| known.type_ != RETENTION_PAUSED));
}

#[test]
fn deletes_that_wait_for_long_are_no_edit() {
    let mut policy = policy(json!({"retention": {"last": 3}}));
    for count in 3..40 {
        let (outcome, noted) = decided(&policy, &nights(count), "2026-12-14T10:00:00Z");
        assert_eq!(outcome.delete.len(), usize::try_from(count).unwrap() - 3);
        policy = noted;
    }
}
