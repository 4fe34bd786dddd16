//! CSI drivers with volumes: their snapshot classes, and what the storage table says about them.

use std::collections::BTreeSet;

use stillpoint_api::evidence::{CutKind, CutSignal};
use stillpoint_api::snapshot::{DEFAULT_CLASS_ANNOTATION, VolumeSnapshotClass};
use stillpoint_executor::storage::StorageTable;

use super::super::finding::Finding;
use super::super::observed::Observed;
use super::{look, names};

/// Class parameter of drivers that otherwise answer before they cut.
const WAIT: &str = "wait";

/// One finding per driver and subject.
pub(super) fn drivers(observed: &Observed, table: &StorageTable) -> Vec<Finding> {
    let drivers = look!("snapshot-classes", "the drivers of the volumes", &observed.drivers);
    let classes = look!("snapshot-classes", "the snapshot classes", &observed.classes);
    let Some(classes) = classes else {
        return Vec::new(); // There is no snapshot API: said already.
    };
    if drivers.is_empty() {
        return vec![Finding::ok("storage-trust", "no CSI driver has volumes yet")];
    }
    let mut findings = Vec::new();
    for (driver, storage_classes) in drivers {
        let of_driver: Vec<&VolumeSnapshotClass> =
            classes.iter().filter(|class| class.driver == *driver).collect();
        findings.push(classes_of(driver, &of_driver));
        findings.extend(trust(driver, storage_classes, &of_driver, table));
    }
    findings
}

fn class_name(class: &VolumeSnapshotClass) -> String {
    class.metadata.name.clone().unwrap_or_default()
}

fn classes_of(driver: &str, of_driver: &[&VolumeSnapshotClass]) -> Finding {
    const CHECK: &str = "snapshot-classes";
    let is_default = |class: &&&VolumeSnapshotClass| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(DEFAULT_CLASS_ANNOTATION)).is_some_and(|value| value == "true")
    };
    let listed: Vec<String> = of_driver.iter().map(|class| class_name(class)).collect();
    let listed = names(&listed);
    match (of_driver, of_driver.iter().filter(is_default).count()) {
        ([], _) => Finding::warning(
            CHECK,
            format!("driver {driver} has volumes and no VolumeSnapshotClass"),
            "applications on it cannot be backed up (SnapshotClassMissing)",
            format!("create a VolumeSnapshotClass with driver: {driver}, if the driver makes snapshots"),
        ),
        ([only], _) => Finding::ok(
            CHECK,
            format!("driver {driver}: class {} ({})", class_name(only), only.deletion_policy),
        ),
        (_, 1) => Finding::ok(CHECK, format!("driver {driver}: classes {listed}, one of them the default")),
        (_, 0) => Finding::warning(
            CHECK,
            format!("driver {driver} has the classes {listed}, and none is the default"),
            "policies that name none fail (SnapshotClassMissing)",
            format!(
                "annotate one with {DEFAULT_CLASS_ANNOTATION}=true, or name one in snapshot.volumeSnapshotClassName"
            ),
        ),
        _ => Finding::warning(
            CHECK,
            format!("driver {driver} has several defaults among the classes {listed}"),
            "which one is used is chance",
            format!("leave {DEFAULT_CLASS_ANNOTATION} on one of them"),
        ),
    }
}

fn trust(
    driver: &str,
    storage_classes: &BTreeSet<String>,
    of_driver: &[&VolumeSnapshotClass],
    table: &StorageTable,
) -> Vec<Finding> {
    const CHECK: &str = "storage-trust";
    let mut findings: Vec<Finding> = Vec::new();
    for class in storage_classes {
        let fact = table.look_up(driver, class);
        let waits = || {
            let parameter = |class: &&VolumeSnapshotClass| {
                class.parameters.keys().any(|key| key.eq_ignore_ascii_case(WAIT))
            };
            !of_driver.is_empty() && of_driver.iter().all(parameter)
        };
        let finding = match (fact.cut, fact.signal) {
            _ if fact.reason.is_empty() => Finding::warning(
                CHECK,
                format!("driver {driver} is not in the storage table"),
                "it is not known whether its cut is one instant: policies with consistency: Required fail \
                 (StorageNotTrusted)",
                "find out how it cuts and tell the controller with --storage-trust (docs/design/storage.md); give doctor the \
                 same file",
            ),
            (CutKind::Copy, _) => Finding::warning(
                CHECK,
                format!("driver {driver} copies: {}", fact.reason),
                "only templates that are proven for copies give Application points on it; others fail (StorageNotTrusted)",
                "use another driver for databases, or consistency: BestEffort",
            ),
            (CutKind::Atomic, CutSignal::Ready) if !waits() => Finding::warning(
                CHECK,
                format!("driver {driver} may answer before it cuts: {}", fact.reason),
                "an application stays frozen until the snapshot is ready, and the sidecar looks only after 1, 2, 4… s",
                format!(
                    "where the driver has it, set the parameter {WAIT} in its VolumeSnapshotClass; measure with \
                     `stillpoint backup describe`"
                ),
            ),
            (CutKind::Atomic, CutSignal::Ready | CutSignal::Handle) => {
                Finding::ok(CHECK, format!("driver {driver} cuts at one instant ({})", fact.reason))
            }
        };
        // One entry for all classes is one line.
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    findings
}
