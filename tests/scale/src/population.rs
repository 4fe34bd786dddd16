//! The policies and their recovery points: which there are is a function of their number alone.
//!
//! 60 % run daily, 35 % hourly, 5 % every minute (at most 500, suspended until they are asked for). 90 % are in one namespace,
//! the others twenty to a namespace. No slot of them is due soon after they are made, so that idle is idle.

use jiff::Timestamp;
use serde_json::{Value, json};
use stillpoint_scheduler::slots::backup_name;

/// The namespace with nine tenths of the policies.
pub const BIG: &str = "big";
/// Policies of each other namespace.
const PER_NAMESPACE: usize = 20;
/// Policies that run every minute, at most.
const MINUTELY: usize = 500;
/// UTC under several names: equal clocks, different schedules.
const ZONES: [&str; 4] = ["Etc/UTC", "Africa/Abidjan", "Africa/Accra", "Atlantic/Reykjavik"];

/// How often a policy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Once a day.
    Daily,
    /// Once an hour.
    Hourly,
    /// Every minute, while not suspended.
    Minutely,
}

/// One policy.
#[derive(Clone, Debug)]
pub struct Member {
    index: usize,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How often it runs.
    pub class: Class,
    uid: String,
    cron: String,
    zone: &'static str,
    /// Its newest slot before the population was made, seconds since 1970.
    newest: i64,
}

impl Member {
    /// Policy `index` of a population that is made at `now`.
    pub fn of(index: usize, now: Timestamp) -> Self {
        let class = match index.wrapping_mul(7) % 20 {
            0 if index / 20 < MINUTELY => Class::Minutely,
            0..=7 => Class::Hourly,
            _ => Class::Daily,
        };
        let (number, second) = (index as i64, now.as_second());
        let (minute, hour) = (second / 60 % 60, second / 3600 % 24);
        let back = |slot: i64, period: i64| if slot > second { slot - period } else { slot };
        let (cron, newest) = match class {
            Class::Daily => {
                let (at, hour) = (number % 60, (hour + 3 + number % 18) % 24);
                let slot = second / 86400 * 86400 + hour * 3600 + at * 60;
                (format!("{at} {hour} * * *"), back(slot, 86400))
            }
            Class::Hourly => {
                let at = (minute + 40 + number % 15) % 60;
                (format!("{at} * * * *"), back(second / 3600 * 3600 + at * 60, 3600))
            }
            Class::Minutely => ("* * * * *".to_owned(), second / 60 * 60),
        };
        let namespace = if index.is_multiple_of(10) {
            format!("team-{:04}", index / 10 / PER_NAMESPACE)
        } else {
            BIG.to_owned()
        };
        Self {
            index,
            namespace,
            name: format!("orders-{index:06}-nightly"),
            class,
            uid: format!("5a1e{:04x}-{:04x}-4c0d-9f5b-{index:012x}", index % 0xffff, index / 7 % 0xffff),
            cron,
            zone: ZONES[index / 60 % ZONES.len()],
            newest,
        }
    }

    /// The same policy under the UID that an API server gave it.
    pub fn known_as(self, uid: String) -> Self {
        Self { uid, ..self }
    }

    fn period(&self) -> i64 {
        match self.class {
            Class::Daily => 86400,
            Class::Hourly => 3600,
            Class::Minutely => 60,
        }
    }

    /// The policy, with the status that a controller would have written.
    pub fn policy(&self) -> Value {
        let suspended = self.class == Class::Minutely;
        let (rpo, zone) = (["26h", "3h", "10m"][self.class as usize], self.zone);
        let seen = if suspended { "suspended".to_owned() } else { format!("{} {zone}", self.cron) };
        let created = time(self.newest - 30 * 86400);
        json!({
            "metadata": {
                "name": self.name, "namespace": self.namespace, "uid": self.uid, "creationTimestamp": created,
                "generation": 1, "labels": {"app.kubernetes.io/part-of": "orders"},
            },
            "spec": {
                "schedule": {"cron": self.cron, "timeZone": zone}, "suspend": suspended,
                "objectives": {"rpo": rpo}, "retention": {"last": 14},
                // One attempt: the second one of a run that finds no pods tells nothing new.
                "run": {"maxAttempts": 1},
                "applications": [{
                    "name": "db", "selector": {"matchLabels": {"app": format!("orders-{:06}", self.index)}},
                }],
            },
            "status": {
                "observedGeneration": 1, "lastSlot": time(self.newest), "scheduleSince": created, "scheduleSeen": seen,
                "consecutiveFailures": 0,
                "conditions": [condition("Accepted", "Accepted", &created), condition("Ready", "Proven", &created)],
            },
        })
    }

    /// Recovery point `back` periods before the newest slot, proven, with the evidence of one database and one volume.
    pub fn point(&self, back: usize) -> Value {
        let slot = self.newest - back as i64 * self.period();
        let at = Timestamp::from_second(slot).unwrap_or_default();
        let name = backup_name(&self.name, &self.uid, at);
        let later = |millis: i64| {
            let at = at.as_microsecond() + millis * 1000;
            Timestamp::from_microsecond(at).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
        };
        let pod = format!("orders-{:06}-0", self.index);
        let digest = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b";
        let snapshot = format!("sp-{name}-8f1c{back:04x}");
        let handle = format!("vol-{:08x}-snap-{slot:x}", self.index);
        let finding =
            |rule: u8, finding: &str| json!({"rule": rule, "application": "db", "finding": finding});
        let answer = |at: i64| {
            json!({
                "at": at, "identity": {"host": pod, "server_uuid": self.uid}, "lease": "10",
                "position": {"gtid": format!("0-1-{}", slot + at)}, "clock": slot * 1000 + at,
            })
        };
        let container = json!({"containerID": format!("containerd://{digest}"), "restartCount": 0});
        let member = json!({
            "application": "db", "podName": pod, "podUID": self.uid, "claimName": format!("data-{pod}"),
            "mountPaths": ["/var/lib/mysql"], "volumeHandle": format!("vol-{:08x}", self.index),
            "driver": "disk.csi.example.com", "storageClass": "fast", "capacity": "20Gi",
            "accessModes": ["ReadWriteOnce"], "volumeSnapshot": snapshot, "volumeSnapshotUID": self.uid,
            "postSent": 3400, "posted": 7100, "content": format!("snapcontent-{}", self.uid), "signal": 61000,
            "handle": handle, "creationTime": slot * 1_000_000_000, "contentVolumeHandle": handle,
            "cut": later(1160),
            "settled": {"readyAt": later(2500), "handle": handle, "bound": true},
        });
        let hold = json!({
            "application": "db", "podName": pod, "podUID": self.uid, "container": "mariadb", "nonce": "8f1c2a",
            "containerAtReady": container, "containerAtThawed": container, "ready": answer(-40),
            "freezeSent": 20, "frozen": answer(3100), "mountPaths": ["/var/lib/mysql"], "beats": 1,
            "closingSent": 66000, "held": answer(66800), "thawSent": 67000, "thawed": 71200,
            "facts": {"datadir": "/var/lib/mysql", "sync_binlog": "1", "innodb_flush_log_at_trx_commit": "1"},
        });
        json!({
            "metadata": {
                "name": name, "namespace": self.namespace, "creationTimestamp": time(slot), "generation": 1,
                "labels": {"stillpoint.dev/policy": self.name}, "finalizers": ["stillpoint.dev/snapshots"],
                "uid": format!("b0{:06x}-{:04x}-4a0d-8f5b-{:012x}", self.index, back, slot),
            },
            "spec": {
                "run": {"policyRef": {"name": self.name, "uid": self.uid}, "slot": time(slot)}, "trigger": "Schedule",
            },
            "status": {
                "phase": "Succeeded", "attempt": 1, "executor": "stillpoint-7d4f9-abcde_4f2a", "consistency": "Application",
                "continuity": "Lock", "crossConsistent": true, "cut": later(1160), "startedAt": later(500),
                "finishedAt": later(3000),
                "conditions": [
                    condition("Succeeded", "Proven", &time(slot + 3)), condition("Finished", "Proven", &time(slot + 3)),
                ],
                "journal": [
                    {"entry": "Freezing", "attempt": 1, "nonce": "8f1c2a", "executor": "stillpoint-7d4f9-abcde_4f2a",
                     "at": later(1100), "maxHoldMillis": 30000},
                    {"entry": "Thawed", "attempt": 1, "nonce": "8f1c2a", "executor": "stillpoint-7d4f9-abcde_4f2a",
                     "at": later(1195)},
                ],
                "resolved": {
                    "policyUid": self.uid, "policyGeneration": 1, "maxHoldMillis": 30000,
                    "applications": [{
                        "name": "db", "template": {"name": "mariadb"}, "digest": digest, "hold": "Session",
                        "dataPaths": ["datadir"], "podsAtReady": [pod], "podsAtThawed": [pod],
                    }],
                },
                "members": [member],
                "holds": [hold],
                "window": {
                    "startedAt": later(1120), "locked": 3100, "cutStart": 3400, "cutEnd": 61000, "thawSent": 67000,
                    "thawed": 71200, "frozenSeconds": 0.0712,
                },
                "verdict": {
                    "proved": [
                        finding(1, "FROZEN 0.3 ms before the first snapshot was posted"),
                        finding(2, "the last cut was seen 6 ms before the thaw"),
                        finding(3, "the session and its container were the same before and after"),
                        finding(9, "the copy of a held server is safe as its storage cuts it: one volume, atomic"),
                        finding(10, "grade Lock, asked for Declared"),
                    ],
                },
            },
        })
    }
}

/// The population in order.
pub fn members(policies: usize, now: Timestamp) -> impl Iterator<Item = Member> {
    (0..policies).map(move |index| Member::of(index, now))
}

/// Every namespace of the population.
pub fn namespaces(policies: usize) -> Vec<String> {
    let small = policies.div_ceil(10 * PER_NAMESPACE);
    std::iter::once(BIG.to_owned()).chain((0..small).map(|number| format!("team-{number:04}"))).collect()
}

fn time(second: i64) -> String {
    Timestamp::from_second(second).unwrap_or_default().to_string()
}

fn condition(kind: &str, reason: &str, since: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": since})
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use stillpoint_api::{Backup, BackupPolicy};

    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T20:31:07Z".parse().unwrap()
    }

    #[test]
    fn every_object_is_one_that_the_product_reads_and_every_point_is_proven() {
        for member in members(200, now()) {
            let mut policy = member.policy();
            policy["apiVersion"] = json!("stillpoint.dev/v1alpha1");
            policy["kind"] = json!("BackupPolicy");
            let policy: BackupPolicy = serde_json::from_value(policy).unwrap();
            assert_eq!(stillpoint_scheduler::accept::findings(&policy, now()), []);
            let mut point = member.point(3);
            point["apiVersion"] = json!("stillpoint.dev/v1alpha1");
            point["kind"] = json!("Backup");
            let point: Backup = serde_json::from_value(point).unwrap();
            assert!(point.proven() && point.policy_name() == Some(&member.name));
        }
    }

    #[test]
    fn no_slot_is_due_soon_and_none_was_missed() {
        let soon = Timestamp::from_second(now().as_second() + 1800).unwrap();
        for member in members(2000, now()).filter(|member| member.class != Class::Minutely) {
            let policy: BackupPolicy = serde_json::from_value({
                let mut policy = member.policy();
                policy["apiVersion"] = json!("stillpoint.dev/v1alpha1");
                policy["kind"] = json!("BackupPolicy");
                policy
            })
            .unwrap();
            let schedules = stillpoint_scheduler::accept::Schedules::default();
            let accepted = stillpoint_scheduler::accept::accept(&policy, &schedules, "c", now()).unwrap();
            let newest = Timestamp::from_second(member.newest).unwrap();
            let (next, _) = accepted.slots.next(newest).unwrap();
            assert!(newest <= now() && next > soon, "{} {newest} {next}", member.cron);
        }
    }

    #[test]
    fn nine_tenths_share_a_namespace_and_no_name_or_uid_is_used_twice() {
        let all: Vec<Member> = members(2000, now()).collect();
        let mut count: HashMap<&str, usize> = HashMap::new();
        all.iter().for_each(|member| *count.entry(&member.namespace).or_default() += 1);
        assert_eq!(count[BIG], 1800);
        assert_eq!(count.len(), namespaces(2000).len());
        assert!(namespaces(2000).iter().all(|namespace| count.contains_key(namespace.as_str())));
        let distinct: BTreeSet<&str> = all.iter().map(|member| member.uid.as_str()).collect();
        assert_eq!(distinct.len(), 2000);
        let minutely = all.iter().filter(|member| member.class == Class::Minutely).count();
        assert_eq!(minutely, 100);
    }
}
