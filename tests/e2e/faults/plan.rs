//! What is killed, and when: a campaign follows from its seed and its size alone.

use std::time::Duration;

use serde::Serialize;

use crate::dice::Dice;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Fault {
    /// SIGKILL of the controller.
    Controller,
    /// SIGKILL of the kubelet.
    Kubelet,
    /// SIGKILL of the API server.
    ApiServer,
    /// SIGKILL of containerd: the exec'd process lives on and sees no end of input.
    Containerd,
    /// SIGKILL of the snapshot controller.
    SnapshotController,
    /// SIGKILL of csi-snapshotter.
    Sidecar,
    /// SIGKILL of the CSI driver; its sidecars end with it.
    Driver,
    /// SIGKILL of the database client in the pod, the process that holds.
    Client,
    /// Every packet between controller and API server is dropped.
    Partition,
    /// SIGSTOP of one of two controllers, and SIGCONT.
    Stopped,
}

impl Fault {
    /// Every one, and how many of a hundred and four kills are of it.
    pub const ALL: [(Self, usize); 10] = [
        (Self::Controller, 14),
        (Self::Kubelet, 10),
        (Self::ApiServer, 10),
        (Self::Containerd, 10),
        (Self::SnapshotController, 10),
        (Self::Sidecar, 10),
        (Self::Driver, 10),
        (Self::Client, 20),
        (Self::Partition, 6),
        (Self::Stopped, 4),
    ];

    /// For people, and to choose faults by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Kubelet => "kubelet",
            Self::ApiServer => "kube-apiserver",
            Self::Containerd => "containerd",
            Self::SnapshotController => "snapshot-controller",
            Self::Sidecar => "csi-snapshotter",
            Self::Driver => "csi-driver",
            Self::Client => "database-client",
            Self::Partition => "partition",
            Self::Stopped => "stopped-controller",
        }
    }

    /// The component of tests/cluster that is killed, where it is one.
    pub const fn component(self) -> Option<&'static str> {
        match self {
            Self::Kubelet => Some("kubelet"),
            Self::ApiServer => Some("apiserver"),
            Self::Containerd => Some("containerd"),
            Self::SnapshotController => Some("snapshot-controller"),
            Self::Sidecar => Some("csi-snapshotter"),
            Self::Driver => Some("csi"),
            Self::Controller | Self::Client | Self::Partition | Self::Stopped => None,
        }
    }
}

/// At which instant of the aimed run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Aim {
    /// From the creation of the Backup on: resolving, preparing, opening.
    BeforeReady,
    /// Between FREEZE and FROZEN: the lock is kept waiting by another session.
    Freezing,
    /// Between the POST and the cut: the driver takes its time.
    Storage,
    /// Around the cut signal and THAW.
    Thawing,
    /// While the snapshots become ready.
    Settling,
}

impl Aim {
    /// Out of twenty kills: most of them inside of the window.
    const OF_TWENTY: [(Self, usize); 5] = [
        (Self::BeforeReady, 2),
        (Self::Freezing, 4),
        (Self::Storage, 7),
        (Self::Thawing, 4),
        (Self::Settling, 3),
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeReady => "before READY",
            Self::Freezing => "FREEZE to FROZEN",
            Self::Storage => "POST to cut",
            Self::Thawing => "around THAW",
            Self::Settling => "settling",
        }
    }

    /// How long after the instant was seen the kill may come.
    const fn span(self) -> Duration {
        match self {
            Self::BeforeReady => Duration::from_millis(800),
            Self::Freezing => Duration::from_millis(1000),
            Self::Storage => Duration::from_millis(1500),
            Self::Thawing => Duration::from_millis(120),
            Self::Settling => Duration::from_millis(1500),
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Shot {
    /// From 1.
    pub number: usize,
    /// What.
    pub fault: Fault,
    /// When.
    pub aim: Aim,
    /// So long after the instant was seen.
    pub delay: Duration,
    /// So long nothing is repaired.
    pub down: Duration,
    /// Chance for the rest.
    pub chance: u64,
}

/// Whether a fault is chosen: its name contains one of the words (or there is none), and no word behind a `!`.
fn chosen(fault: Fault, words: &[String]) -> bool {
    let mut wanted = words.iter().filter(|word| !word.starts_with('!')).peekable();
    let unwanted =
        words.iter().filter_map(|word| word.strip_prefix('!')).any(|word| fault.name().contains(word));
    !unwanted && (wanted.peek().is_none() || wanted.any(|word| fault.name().contains(word.as_str())))
}

/// The faults of a campaign: `kills` of them, of those that the words choose.
pub fn campaign(seed: u64, kills: usize, stop_for: Duration, words: &[String]) -> Vec<Shot> {
    let mut dice = Dice::of(seed);
    let mut faults = Vec::new();
    let chosen: Vec<(Fault, usize)> =
        Fault::ALL.into_iter().filter(|(fault, _)| chosen(*fault, words)).collect();
    let whole: usize = chosen.iter().map(|(_, share)| share).sum();
    // Everyone's share, rounded down but at least one; the rest goes to who has most.
    for (fault, share) in &chosen {
        let count = (share * kills / whole.max(1)).max(1);
        faults.extend(std::iter::repeat_n(*fault, count));
    }
    let by_share = chosen.iter().cycle().map(|(fault, _)| *fault);
    let missing = kills.saturating_sub(faults.len());
    faults.extend(by_share.take(missing));
    dice.shuffle(&mut faults);
    let mut aims: Vec<Aim> = Vec::new();
    while aims.len() < faults.len() {
        let mut twenty: Vec<Aim> =
            Aim::OF_TWENTY.into_iter().flat_map(|(aim, count)| std::iter::repeat_n(aim, count)).collect();
        dice.shuffle(&mut twenty);
        aims.extend(twenty);
    }
    let shots = faults.into_iter().zip(aims).enumerate();
    shots
        .map(|(index, (fault, aim))| {
            // What is stopped stays so for a given time; what is stopped or cut off before it holds shows little.
            let aim = match fault {
                Fault::Stopped | Fault::Client if aim == Aim::BeforeReady => Aim::Storage,
                Fault::Client if aim == Aim::Settling => Aim::Thawing,
                _ => aim,
            };
            let down = match fault {
                Fault::Stopped => stop_for,
                Fault::Partition => Duration::from_secs(12) + dice.time(Duration::from_secs(10)),
                _ => dice.time(Duration::from_millis(2500)),
            };
            let span = match (fault, aim) {
                // Later there is no client any more.
                (Fault::Client, Aim::Thawing) => Duration::from_millis(50),
                _ => aim.span(),
            };
            Shot { number: index + 1, fault, aim, delay: dice.time(span), down, chance: dice.roll() }
        })
        .collect()
}
