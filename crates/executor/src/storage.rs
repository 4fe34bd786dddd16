//! What is known about how each CSI driver cuts (docs/design/freeze.md §4 rule 8).
//!
//! A driver that is not listed counts as the worse of everything: its cut is a copy, its groups are sequential, and
//! only `readyToUse` says that it is done. Entries are built in for known drivers and extended only by the operator,
//! with a reason each; the entry used is part of the evidence.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stillpoint_api::evidence::{CutKind, CutSignal, GroupKind, StorageFact};

/// One entry of the operator's file (`--storage-trust`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustEntry {
    /// CSI driver.
    pub driver: String,
    /// StorageClass; without it the entry is for all classes of the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Whether a cut is one instant.
    pub cut: CutKind,
    /// What a group is.
    #[serde(default)]
    pub group: GroupKind,
    /// What tells that the cut is done.
    pub cut_signal: CutSignal,
    /// Why this is believed.
    pub reason: String,
}

/// The operator's file: a list of entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustFile {
    /// The entries; at most 256.
    pub entries: Vec<TrustEntry>,
}

/// Why a trust file was refused.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It does not parse.
    #[error(
        "the storage trust file does not parse: {0}; it is a list `entries` of driver, storageClass, cut, group, cutSignal and reason"
    )]
    Parse(String),
    /// An entry gives no reason.
    #[error("storage trust entry for driver {0} gives no reason: write down why its cuts can be believed")]
    NoReason(String),
    /// Two entries for the same driver and class.
    #[error("storage trust has two entries for driver {driver}, class {class}: keep one")]
    Twice {
        /// The driver.
        driver: String,
        /// The class, or `*`.
        class: String,
    },
}

/// The table: (driver, class) → fact; the class `*` stands for all.
#[derive(Clone, Debug, Default)]
pub struct StorageTable {
    entries: BTreeMap<(String, String), StorageFact>,
}

/// A driver that we know from its sources and documents.
struct Known {
    driver: &'static str,
    cut: CutKind,
    signal: CutSignal,
    /// Why, and from where it is known.
    why: &'static str,
}

const fn atomic(driver: &'static str, why: &'static str) -> Known {
    Known { driver, cut: CutKind::Atomic, signal: CutSignal::Handle, why }
}

/// Answers before it cuts, or does not say: only `readyToUse` tells.
const fn late(driver: &'static str, why: &'static str) -> Known {
    Known { driver, cut: CutKind::Atomic, signal: CutSignal::Ready, why }
}

const fn copies(driver: &'static str, why: &'static str) -> Known {
    Known { driver, cut: CutKind::Copy, signal: CutSignal::Handle, why }
}

/// The drivers that `Auto` knows. None of their groups is vouched for: where a driver has groups, whether they are one
/// instant depends on the version and the kind of volume, and an operator says so (docs/design/storage.md).
const BUILT_IN: &[Known] = &[
    atomic(
        "ebs.csi.aws.com",
        "EC2 snapshots are a point in time when CreateSnapshot returns; the upload follows (AWS documentation; \
         aws-ebs-csi-driver)",
    ),
    atomic(
        "pd.csi.storage.gke.io",
        "GCE disk snapshots are cut when their status leaves CREATING, and the driver waits for that \
         (gcp-compute-persistent-disk-csi-driver)",
    ),
    atomic(
        "disk.csi.azure.com",
        "managed disk snapshots are cut when the operation returns; the copy follows (azuredisk-csi-driver)",
    ),
    atomic("rbd.csi.ceph.com", "RBD snapshots are atomic and taken inside the call (ceph-csi)"),
    copies(
        "cephfs.csi.ceph.com",
        "CephFS snapshots are taken inside the call, but each client adds what it still has buffered when it learns of \
         them: not proven to be one instant (ceph-csi; Ceph documentation)",
    ),
    atomic("csi.trident.netapp.io", "ONTAP snapshots are atomic; ready when Online (trident)"),
    atomic("topolvm.io", "thin LVM snapshots are atomic and taken before the call returns (topolvm)"),
    atomic("topolvm.cybozu.com", "as topolvm.io, its older name"),
    atomic(
        "driver.longhorn.io",
        "Longhorn snapshots are taken inside the call; those of type bak upload later (longhorn-manager)",
    ),
    late(
        "linstor.csi.linbit.com",
        "LINSTOR snapshots are atomic; a call that returns not ready did not confirm the cut (linstor-csi)",
    ),
    late(
        "zfs.csi.openebs.io",
        "ZFS snapshots are atomic, but the call returns before the node cut, unless the snapshot class has the \
         parameter wait (openebs/zfs-localpv)",
    ),
    late(
        "local.csi.openebs.io",
        "LVM snapshots are atomic, but the call returns before the node cut (openebs/lvm-localpv)",
    ),
    copies("hostpath.csi.k8s.io", "copies a live directory file by file (csi-driver-host-path)"),
];

impl StorageTable {
    /// The built-in table.
    pub fn built_in() -> Self {
        let entries = BUILT_IN
            .iter()
            .map(|known| {
                let fact = StorageFact {
                    cut: known.cut,
                    group: GroupKind::Sequential,
                    signal: known.signal,
                    reason: format!("built in: {}", known.why),
                };
                ((known.driver.to_owned(), "*".to_owned()), fact)
            })
            .collect();
        Self { entries }
    }

    /// The built-in table with the operator's entries over it.
    ///
    /// # Errors
    /// An entry without a reason, or two entries for one driver and class.
    pub fn with_trust(file: &TrustFile) -> Result<Self, TrustError> {
        let mut table = Self::built_in();
        let mut seen = std::collections::BTreeSet::new();
        for entry in &file.entries {
            if entry.reason.trim().is_empty() {
                return Err(TrustError::NoReason(entry.driver.clone()));
            }
            let class = entry.storage_class.clone().unwrap_or_else(|| "*".to_owned());
            if !seen.insert((entry.driver.clone(), class.clone())) {
                return Err(TrustError::Twice { driver: entry.driver.clone(), class });
            }
            table.entries.insert(
                (entry.driver.clone(), class),
                StorageFact {
                    cut: entry.cut,
                    group: entry.group,
                    signal: entry.cut_signal,
                    reason: format!("operator: {}", entry.reason.trim()),
                },
            );
        }
        Ok(table)
    }

    /// What is known about a driver's volumes of a class; unlisted counts as the worse.
    pub fn look_up(&self, driver: &str, class: &str) -> StorageFact {
        self.entries
            .get(&(driver.to_owned(), class.to_owned()))
            .or_else(|| self.entries.get(&(driver.to_owned(), "*".to_owned())))
            .cloned()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(driver: &str, class: Option<&str>, reason: &str) -> TrustEntry {
        TrustEntry {
            driver: driver.into(),
            storage_class: class.map(Into::into),
            cut: CutKind::Atomic,
            group: GroupKind::WriteOrder,
            cut_signal: CutSignal::Handle,
            reason: reason.into(),
        }
    }

    #[test]
    fn an_unlisted_driver_counts_as_the_worse_of_everything() {
        let fact = StorageTable::built_in().look_up("csi.vendor.example", "any");
        assert_eq!(fact, StorageFact::default());
        assert_eq!((fact.cut, fact.signal), (CutKind::Copy, CutSignal::Ready));
    }

    #[test]
    fn drivers_that_answer_before_they_cut_are_waited_for_and_copies_are_copies() {
        let table = StorageTable::built_in();
        for driver in ["zfs.csi.openebs.io", "local.csi.openebs.io", "linstor.csi.linbit.com"] {
            let fact = table.look_up(driver, "any");
            assert_eq!((fact.cut, fact.signal), (CutKind::Atomic, CutSignal::Ready), "{driver}");
        }
        for driver in ["hostpath.csi.k8s.io", "cephfs.csi.ceph.com"] {
            assert_eq!(table.look_up(driver, "any").cut, CutKind::Copy, "{driver}");
        }
    }

    #[test]
    fn every_built_in_entry_is_in_the_document_as_it_is() {
        let page = include_str!("../../../docs/design/storage.md");
        for known in BUILT_IN {
            let row = format!("| `{}` | `{:?}` | `{:?}` |", known.driver, known.cut, known.signal);
            assert!(page.contains(&row), "docs/design/storage.md has no row beginning {row}");
        }
    }

    #[test]
    fn an_entry_for_a_class_wins_over_one_for_the_driver() {
        let mut copy = entry("d", Some("slow"), "files");
        copy.cut = CutKind::Copy;
        let table =
            StorageTable::with_trust(&TrustFile { entries: vec![entry("d", None, "ours"), copy] }).unwrap();
        assert_eq!(table.look_up("d", "slow").cut, CutKind::Copy);
        assert_eq!(table.look_up("d", "fast").cut, CutKind::Atomic);
    }

    #[test]
    fn trust_without_a_reason_is_refused() {
        assert!(StorageTable::with_trust(&TrustFile { entries: vec![entry("d", None, " ")] }).is_err());
        let twice = TrustFile { entries: vec![entry("d", None, "a"), entry("d", None, "b")] };
        assert!(StorageTable::with_trust(&twice).unwrap_err().to_string().contains("two entries"));
    }
}
