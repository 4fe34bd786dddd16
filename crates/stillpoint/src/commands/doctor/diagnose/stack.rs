//! The API server and the snapshot stack: versions, clocks, components and their arguments.

use std::time::Duration;

use stillpoint_executor::storage_path::{UPSTREAM_BURST, UPSTREAM_QPS, throttle_delay};
use stillpoint_executor::verdict::{CUT_TIME_TOLERANCE, CUT_TIME_TRUNCATION};

use super::super::component::{Component, Role};
use super::super::finding::Finding;
use super::super::observed::Observed;
use super::look;
use crate::output::length;

/// The first minor version with constrained impersonation, which the controller runs hooks by (docs/authority.md).
const NEEDED_MINOR: u32 = 36;
/// Snapshots of one run that the throttle is judged by; the bench has the same number (docs/design/freeze.md §9).
const MANY_VOLUMES: usize = 10;
/// A throttle that adds less than this to them is not worth a word: as much as the API server's own noise.
const WORTH_A_WORD: Duration = Duration::from_millis(250);
/// Below this many characters names collide in the life of a cluster (docs/design/freeze.md §4 rule 6).
const SHORTEST_NAME: f64 = 16.0;
/// What upstream's sidecar waits for a call; drivers ship more, never less.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(60);
/// What both run with by default.
const UPSTREAM_WORKERS: f64 = 10.0;
const GROUP_GATE: &str = "CSIVolumeGroupSnapshot";

/// Version and clock of the API server.
pub(super) fn server(observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &observed.version {
        Err(why) => findings.push(Finding::unseen("server-version", "the version of the API server", why)),
        Ok((major, minor)) if (*major, *minor) < (1, NEEDED_MINOR) => findings.push(Finding::error(
            "server-version",
            format!("the API server is version {major}.{minor}"),
            format!("hooks run by constrained impersonation, which begins with 1.{NEEDED_MINOR}"),
            format!("update the cluster to 1.{NEEDED_MINOR} or newer"),
        )),
        Ok((major, minor)) => {
            findings
                .push(Finding::ok("server-version", format!("the API server is version {major}.{minor}")));
        }
    }
    findings.extend(clock(observed));
    findings
}

fn clock(observed: &Observed) -> Vec<Finding> {
    let offset = look!("clock", "the clock of the API server", &observed.clock);
    // Only what is certain counts: the nearer end of what is possible.
    let (apart, direction) = if offset.least.is_positive() {
        (offset.least.unsigned_abs(), "behind")
    } else if offset.most.is_negative() {
        (offset.most.unsigned_abs(), "ahead of")
    } else {
        return vec![Finding::ok(
            "clock",
            "the clocks of this machine and of the API server agree to the second",
        )];
    };
    let tolerated = CUT_TIME_TOLERANCE + CUT_TIME_TRUNCATION;
    if apart <= tolerated {
        return vec![Finding::ok(
            "clock",
            format!(
                "this machine's clock is {} {direction} the API server's, which is tolerated",
                length(apart)
            ),
        )];
    }
    vec![Finding::warning(
        "clock",
        format!("this machine's clock is at least {:.1} s {direction} the API server's", apart.as_secs_f64()),
        format!(
            "rule 6 tolerates {} between the controller's clock and the driver's: beyond it a good cut contradicts itself",
            length(tolerated)
        ),
        "synchronise the clocks of all nodes (NTP), or run doctor on a node, if only this machine is off",
    )]
}

/// The APIs of snapshots and of group snapshots.
pub(super) fn snapshot_api(observed: &Observed) -> Vec<Finding> {
    let groups = look!("snapshot-api", "the served APIs", &observed.groups);
    let mut findings = Vec::new();
    match groups.get("snapshot.storage.k8s.io") {
        Some(versions) if versions.iter().any(|version| version == "v1") => {
            findings.push(Finding::ok("snapshot-api", "snapshot.storage.k8s.io/v1 is served"));
        }
        Some(versions) => findings.push(Finding::error(
            "snapshot-api",
            format!("snapshot.storage.k8s.io is served as {} only", versions.join(", ")),
            "Stillpoint uses v1",
            "update external-snapshotter and its CRDs to 6.0 or newer",
        )),
        None => findings.push(Finding::error(
            "snapshot-api",
            "the snapshot CRDs are not installed",
            "without them nothing can be cut (SnapshotApiMissing)",
            "install the CRDs and the snapshot-controller of kubernetes-csi/external-snapshotter",
        )),
    }
    findings.extend(group_api(observed));
    findings
}

fn group_api(observed: &Observed) -> Option<Finding> {
    const CHECK: &str = "group-snapshots";
    let groups = observed.groups.as_ref().ok()?;
    let stack = |component: &&Component| component.role != Role::Stillpoint;
    let components: Vec<&Component> = observed.components.as_ref().ok()?.iter().filter(stack).collect();
    let (with, without): (Vec<&&Component>, Vec<&&Component>) =
        components.iter().partition(|component| component.gate(GROUP_GATE) == Some(true));
    let places = |of: &[&&Component]| of.iter().map(|one| one.place.as_str()).collect::<Vec<_>>().join(", ");
    let served = groups.get("groupsnapshot.storage.k8s.io");
    let why = "without group snapshots the volumes of an application are cut one request each";
    Some(match served {
        None if with.is_empty() => Finding::ok(
            CHECK,
            "group snapshots are not installed: several volumes are cut by single snapshots",
        ),
        None => Finding::warning(
            CHECK,
            format!(
                "{} have the gate {GROUP_GATE}, and the group snapshot CRDs are not installed",
                places(&with)
            ),
            why,
            "install the groupsnapshot.storage.k8s.io CRDs of the same external-snapshotter version",
        ),
        Some(versions) if !versions.iter().any(|version| version == "v1") => Finding::warning(
            CHECK,
            format!("groupsnapshot.storage.k8s.io is served as {} only", versions.join(", ")),
            format!("Stillpoint uses v1; {why}"),
            "update external-snapshotter and its CRDs to 8.6 or newer",
        ),
        Some(_) if !without.is_empty() => Finding::warning(
            CHECK,
            format!("the gate {GROUP_GATE} is not set for {}", places(&without)),
            format!("it is off by default up to external-snapshotter 8.6, and both sides need it; {why}"),
            format!("add --feature-gates={GROUP_GATE}=true to snapshot-controller and to csi-snapshotter"),
        ),
        Some(_) => Finding::ok(CHECK, "group snapshots are served"),
    })
}

/// Each part of the snapshot stack that runs, and its arguments.
pub(super) fn components(observed: &Observed) -> Vec<Finding> {
    let components = look!("snapshot-controller", "the pods of the snapshot stack", &observed.components);
    let mut findings = Vec::new();
    for (role, check, name) in [
        (Role::SnapshotController, "snapshot-controller", "snapshot-controller"),
        (Role::Sidecar, "csi-snapshotter", "csi-snapshotter"),
    ] {
        let of_role: Vec<&Component> = components.iter().filter(|component| component.role == role).collect();
        if of_role.is_empty() {
            findings.push(Finding::warning(
                check,
                format!("no pod runs {name}"),
                "nothing can be cut without it; where the provider runs it outside of the cluster its arguments cannot be \
                 seen",
                format!("install {name}, or make sure that your provider runs it; what finished runs measured is judged below"),
            ));
        }
        for component in of_role {
            findings.extend(component_findings(component, check));
        }
    }
    findings
}

fn component_findings(component: &Component, check: &'static str) -> Vec<Finding> {
    let place = &component.place;
    let mut wrong = Vec::new();
    if component.ready == 0 {
        wrong.push(Finding::error(
            check,
            format!("{place} is not ready"),
            "runs are frozen for as long as they wait for it, and then fail (SnapshotStackSilent)",
            format!("see `kubectl -n {} get pods` and its logs", place.split('/').next().unwrap_or_default()),
        ));
    }
    wrong.extend(throttle(component));
    if component.replicas > 1 && !component.is_set("leader-election") {
        wrong.push(Finding::error(
            "leader-election",
            format!("{place} has {} replicas and no --leader-election", component.replicas),
            "two that work on the same snapshots undo each other's writes",
            "add --leader-election, or run one replica",
        ));
    }
    let workers = component.number("worker-threads", UPSTREAM_WORKERS);
    if workers < UPSTREAM_WORKERS {
        wrong.push(Finding::warning(
            "worker-threads",
            format!("{place} runs {workers} workers"),
            format!("so many snapshots of one freeze are made at once, the others wait; upstream has {UPSTREAM_WORKERS}"),
            format!("set --worker-threads={UPSTREAM_WORKERS} or more"),
        ));
    }
    if component.role == Role::Sidecar {
        wrong.extend(timeout(component));
        wrong.extend(name_length(component));
    }
    if wrong.is_empty() {
        let tag = component.tag().map(|tag| format!(" {tag}")).unwrap_or_default();
        wrong.push(Finding::ok(check, format!("{place}{tag} is ready, and its arguments are good")));
    }
    wrong
}

/// What its client rate adds to a freeze of many volumes.
fn throttle(component: &Component) -> Option<Finding> {
    let qps = component.number("kube-api-qps", f64::from(UPSTREAM_QPS));
    let burst = component.number("kube-api-burst", f64::from(UPSTREAM_BURST));
    // A rate that is not positive switches the throttle off in client-go.
    if qps <= 0.0 {
        return None;
    }
    // Whole and bounded: the model knows no halves.
    let whole = |value: f64| value.clamp(1.0, 1e6) as u32;
    let delay = |volumes| throttle_delay(volumes, whole(qps), whole(burst));
    let waits = delay(MANY_VOLUMES);
    if waits < WORTH_A_WORD {
        return None;
    }
    // Ten without a throttle take some 0.35 s on the cluster of the figures.
    let window = waits + Duration::from_millis(350);
    Some(Finding::warning(
        "client-throttle",
        format!("{} makes at most {qps} requests a second (burst {burst})", component.place),
        format!(
            "each snapshot costs four: a freeze of {MANY_VOLUMES} volumes takes about {:.1} s, of 5 about {:.1} s",
            window.as_secs_f64(),
            (delay(5) + Duration::from_millis(200)).as_secs_f64(),
        ),
        "add --kube-api-qps=100 --kube-api-burst=200 to it, or cut the volumes as one group",
    ))
}

fn timeout(component: &Component) -> Option<Finding> {
    let text = component.flags.get("timeout")?;
    let timeout = go_duration(text)?;
    (timeout < UPSTREAM_TIMEOUT).then(|| {
        Finding::warning(
            "sidecar-timeout",
            format!("{} waits only {text} for a call (--timeout)", component.place),
            "a cut that takes longer is reported as an error: the run fails, and the cut that still happens is deleted",
            "set --timeout to 60s or more",
        )
    })
}

fn name_length(component: &Component) -> Option<Finding> {
    let length = component.number("snapshot-name-uuid-length", -1.0);
    (0.0..SHORTEST_NAME).contains(&length).then(|| {
        Finding::error(
            "snapshot-names",
            format!("{} truncates snapshot names (--snapshot-name-uuid-length={length})", component.place),
            format!(
                "names shorter than {SHORTEST_NAME} characters collide in time, and the driver then answers with an old \
                 snapshot instead of a cut"
            ),
            "remove the flag",
        )
    })
}

/// `1m30s`, `300s`, `1.5h`, as Go writes durations.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let read = |text| go_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(read("1m0s"), Some(60.0));
        assert_eq!(read("300s"), Some(300.0));
        assert_eq!(read("1h0.5m"), Some(3630.0));
        assert_eq!(read("250ms"), Some(0.25));
        assert_eq!((read("soon"), read("5")), (None, None));
    }
}
