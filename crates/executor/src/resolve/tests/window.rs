//! What was measured lately refuses a freeze that cannot be long enough.

use serde_json::{Value, json};

use super::World;

/// A finished run of five snapshots, the last of which took so many seconds.
fn finished(name: &str, at: &str, step: f64) -> Value {
    let members: Vec<Value> = (1..=5)
        .map(|index| {
            json!({
                "application": "db", "podName": "p", "podUID": "u", "claimName": format!("c{index}"),
                "driver": "d.example", "volumeSnapshot": "s", "postSent": 0,
                "signal": (f64::from(index) * step * 1e6) as i64,
            })
        })
        .collect();
    json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
        "metadata": {"name": name, "namespace": "shop"}, "spec": {"run": {}},
        "status": {"finishedAt": at, "members": members},
    })
}

fn three_pods() -> World {
    let mut world = super::several::set_of(3);
    world.policy["spec"]["freeze"] = json!({"maxHold": "10s"});
    world
}

#[test]
fn cuts_that_were_measured_to_be_too_slow_are_refused_with_what_to_change() {
    let mut world = three_pods();
    world.backups = vec![finished("slow", "2026-01-01T02:00:00.000000Z", 2.0)];
    assert!(world.decide().is_ok(), "three of them fit");
    world.backups = vec![finished("slow", "2026-01-01T02:00:00.000000Z", 3.0)];
    world.refused("WindowTooLong", "one after the other");
    world.refused("WindowTooLong", "measured by slow");
    world.policy["spec"]["freeze"] = json!({"maxHold": "20s"});
    assert!(world.decide().is_ok());
}

#[test]
fn what_was_measured_long_ago_or_elsewhere_does_not_count() {
    let mut world = three_pods();
    world.backups = vec![finished("old", "2025-12-30T02:00:00.000000Z", 3.0)];
    assert!(world.decide().is_ok());
    let mut elsewhere = finished("elsewhere", "2026-01-01T02:00:00.000000Z", 3.0);
    for member in elsewhere["status"]["members"].as_array_mut().unwrap() {
        member["driver"] = json!("e.example");
    }
    world.backups = vec![elsewhere];
    assert!(world.decide().is_ok());
}
