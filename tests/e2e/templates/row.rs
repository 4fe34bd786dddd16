//! What a row of the table is: a claim, what must go wrong and how, and a copy that must not pass.

use stillpoint_api::policy::Continuity;

use crate::servers::Server;

/// A StorageClass of tests/cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A cut below the page cache, as of block storage.
    Disk,
    /// A cut that has the page cache.
    Btrfs,
}

impl Storage {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Disk, Self::Btrfs];

    /// Name of the class.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Btrfs => "btrfs",
        }
    }

    /// Whether a group of its volumes is cut at one instant (config/trust/cluster.yaml).
    pub const fn cuts_groups_at_once(self) -> bool {
        matches!(self, Self::Disk)
    }
}

/// What a template claims of a point of this server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Claim {
    /// No commit between FROZEN and THAW; the copy has exactly what was acknowledged before the thaw. So continuous.
    Held(Continuity),
    /// As `Held`, with data and log on two volumes: both in one write-ordered cut; refused where the volumes of a group are cut one
    /// after the other.
    Grouped(Continuity),
    /// Nobody waits; the copy has everything that was acknowledged before the cut.
    Observed,
    /// As `Observed`, with data and log on two volumes that are cut in this order.
    Staged,
    /// Nobody waits; the copy has everything that was acknowledged before prepare began.
    Prepared,
    /// As `Prepared`, and it is worth no more than `Crash`.
    Saved,
    /// A setting of this server voids the claim: the verdict names it.
    Voided(&'static str),
}

impl Claim {
    /// Whether writers wait in the window.
    pub const fn locks(self) -> bool {
        self.grade().is_some()
    }

    /// How continuous a lock is shown to have been.
    pub const fn grade(self) -> Option<Continuity> {
        match self {
            Self::Held(grade) | Self::Grouped(grade) => Some(grade),
            Self::Observed | Self::Staged | Self::Prepared | Self::Saved | Self::Voided(_) => None,
        }
    }
}

/// A copy that must not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// An atomic cut without the hold, judged as one under it: what was committed meanwhile shows. Of a server whose commits are all
    /// on the volume it shows that the comparison sees them; a copy that is taken in passing does not: PostgreSQL 17 and MySQL 9.7
    /// recovered from five of five exactly.
    Unheld,
    /// An atomic cut without the template: what was acknowledged before it and was not durable is lost.
    Undurable,
    /// Data and log cut one after the other while commits are stopped by a lock alone, which this line takes for a while and then prints
    /// `taken`: the server writes its pages between the cuts.
    Apart(&'static str),
    /// Both volumes cut one after the other without the template, with this line run in between: the server must not start on them, and
    /// its log `says` why.
    Disordered {
        /// Claims, in the order of their cuts.
        order: [&'static str; 2],
        /// Run in the server's container between the cuts.
        between: &'static str,
        /// Of the log.
        says: &'static str,
    },
    /// None, for this reason.
    Nothing(&'static str),
}

/// Somebody in the way: a line in the server's container that prints `taken` once it is, or will be when the run has come so far, and
/// ends by itself.
#[derive(Clone, Copy, Debug)]
pub struct Blocker {
    /// For `sh -c`.
    pub line: &'static str,
    /// It stops the load as well: writers are asked for only once it has gone.
    pub stops_writers: bool,
}

/// A run that must fail, leave nothing frozen, and say why.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Name of the check.
    pub name: &'static str,
    /// Parameters that differ.
    pub parameters: &'static [(&'static str, &'static str)],
    /// The template, where it is another one.
    pub template: Option<&'static str>,
    /// The container, where it is not the server's.
    pub container: Option<&'static str>,
    /// Who is in the way.
    pub blocker: Option<Blocker>,
    /// What reason and message of the Backup must contain.
    pub says: &'static [&'static str],
}

/// One row; each is run on every storage.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Unique; the word that chooses it.
    pub name: &'static str,
    /// Of config/templates.
    pub template: &'static str,
    /// Where.
    pub server: Server,
    /// Options of the server.
    pub options: &'static str,
    /// What the table says of it besides.
    pub remark: &'static str,
    /// Parameters of the template.
    pub parameters: &'static [(&'static str, &'static str)],
    /// `maxHold` and `acquireTimeout` of its policies.
    pub freeze: (&'static str, &'static str),
    /// Prints, in the server's container, settings that the template changes: after every run they are as before.
    pub settings: Option<&'static str>,
    /// A line that is run in the server's container once the load writes.
    pub then: Option<&'static str>,
    /// What it claims.
    pub claim: Claim,
    /// What must fail.
    pub failures: &'static [Failure],
    /// Words in the command line of the client in the pod, where its death has to free the writers.
    pub client: &'static [&'static str],
    /// All of them get one signal, so that none of them undoes the hold when it notices that another has ended.
    pub at_once: bool,
    /// The controls, on `disk` and on `btrfs`.
    pub controls: [Control; 2],
    /// The template has neither steps nor checks for a copy, and the product says so.
    pub unchecked: bool,
    /// Part of `make e2e` on `disk`.
    pub short: bool,
}

impl Row {
    /// The control on a storage.
    pub const fn control(&self, storage: Storage) -> Control {
        match storage {
            Storage::Disk => self.controls[0],
            Storage::Btrfs => self.controls[1],
        }
    }
}
