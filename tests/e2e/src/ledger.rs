//! The CSI driver's ledger: when each cut really happened. The truth that evidence is compared with.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;
use stillpoint_api::evidence::MemberEvidence;

use crate::{Outcome, Present as _, Problem};

/// One line of `cuts.jsonl` (tests/cluster/README.md).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// When it was written.
    pub at: Timestamp,
    /// `rpc-start`, `cut`, `rpc-end` or `delete`.
    pub event: String,
    /// Handle of the volume; not on `delete` lines.
    #[serde(default)]
    pub volume: String,
    /// The driver's name of the snapshot: its handle.
    #[serde(default)]
    pub snapshot: String,
    /// `snapshot-<uid of the VolumeSnapshot>`.
    #[serde(default)]
    pub name: String,
    /// Handle of the group it was cut in; empty for a single snapshot.
    #[serde(default)]
    pub group: String,
    /// Equal for members that were cut at the same instant.
    #[serde(default)]
    pub cut: String,
    /// The true instant lies between this and `at`; on `cut` lines.
    #[serde(default)]
    pub cut_start: Option<Timestamp>,
}

impl Line {
    /// Of a `cut` line.
    fn true_cut(&self) -> Option<TrueCut> {
        Some(TrueCut { from: self.cut_start?, to: self.at })
    }
}

/// When a cut happened: at an instant between the two.
#[derive(Clone, Copy, Debug)]
pub struct TrueCut {
    /// Not before this.
    pub from: Timestamp,
    /// Not after this.
    pub to: Timestamp,
}

/// The ledger of the running cluster.
#[derive(Clone, Debug)]
pub struct Ledger {
    file: PathBuf,
}

impl Ledger {
    /// The ledger at `file`; it may not exist yet.
    pub fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// All complete lines so far.
    ///
    /// # Errors
    /// It cannot be read, or a line is not understood.
    pub fn lines(&self) -> Outcome<Vec<Line>> {
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        // The last line may still be being written.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|line| serde_json::from_str(line).map_err(Problem::from)).collect()
    }

    /// The cut of a VolumeSnapshot, by its UID.
    ///
    /// # Errors
    /// The ledger cannot be read, or has no such cut.
    pub fn cut_of(&self, snapshot_uid: &str) -> Outcome<TrueCut> {
        let name = format!("snapshot-{snapshot_uid}");
        self.lines()?
            .into_iter()
            .find(|line| line.event == "cut" && line.name == name)
            .and_then(|line| line.true_cut())
            .ok_or_else(|| Problem(format!("the driver's ledger has no cut {name}")))
    }

    /// The cut of a member of a Backup, by itself or in its group.
    ///
    /// # Errors
    /// The ledger cannot be read, or has no such cut.
    pub fn cut_of_member(&self, member: &MemberEvidence) -> Outcome<TrueCut> {
        let Some(group) = &member.group else {
            return self
                .cut_of(member.volume_snapshot_uid.as_deref().present("the UID of a member's snapshot")?);
        };
        self.cuts_of_group(group.uid.as_deref().present("the UID of a member's group")?)?
            .into_iter()
            .find(|line| line.volume == member.volume_handle)
            .and_then(|line| line.true_cut())
            .ok_or_else(|| {
                Problem(format!("the driver's ledger has no cut of {} in its group", member.claim_name))
            })
    }

    /// The cuts of a VolumeGroupSnapshot, by its UID.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn cuts_of_group(&self, group_uid: &str) -> Outcome<Vec<Line>> {
        let prefix = format!("groupsnapshot-{group_uid}/");
        let mut lines = self.lines()?;
        lines.retain(|line| line.event == "cut" && line.name.starts_with(&prefix));
        Ok(lines)
    }

    /// Whether the data behind a handle was deleted.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn deleted(&self, handle: &str) -> Outcome<bool> {
        Ok(self.lines()?.iter().any(|line| line.event == "delete" && line.snapshot == handle))
    }

    /// Handles that were cut after the first `seen` lines, from one volume or from any, and are still there.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn left_since(&self, seen: usize, volume: Option<&str>) -> Outcome<Vec<String>> {
        let lines = self.lines()?;
        let mut left: Vec<String> = Vec::new();
        for line in lines.iter().skip(seen) {
            match line.event.as_str() {
                "cut" if volume.is_none_or(|volume| volume == line.volume) => {
                    left.push(line.snapshot.clone())
                }
                "delete" => left.retain(|one| *one != line.snapshot),
                _ => {}
            }
        }
        Ok(left)
    }
}
