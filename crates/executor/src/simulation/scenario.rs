//! What one world is made of before anything happens: replicas, applications, pods, volumes and drivers.

use std::time::Duration;

use stillpoint_api::evidence::{CutKind, CutSignal, GroupKind, HoldKind, StorageFact};
use stillpoint_api::policy::{Continuity, Requirement};

use super::faults::{Fault, Faults, Rng};

/// An engine as it truly behaves; its template claims exactly that.
#[derive(Clone, Debug)]
pub struct Engine {
    /// A counter that only a commit moves is told.
    pub position: bool,
    /// The thaw statement fails unless the session owns the lock.
    pub thaw_proves_lock: bool,
    /// The holder's probe sees the frozen state.
    pub probed: bool,
    /// A file copy under the hold is usable.
    pub copy_safe: bool,
    /// Several volumes cut one by one under the lock are consistent.
    pub any_under_lock: bool,
    /// Cuts in two stages: data, then log.
    pub staged: bool,
    /// The template can tell that writers are stuck.
    pub stall_probe: bool,
}

/// One application.
#[derive(Clone, Debug)]
pub struct App {
    /// Its name.
    pub name: String,
    /// How it is held.
    pub kind: HoldKind,
    /// Its engine.
    pub engine: Engine,
    /// Freezes in this order.
    pub order: i32,
    /// Lease in seconds.
    pub lease: u64,
    /// Pods, each with this many volumes.
    pub pods: Vec<usize>,
    /// Whether its volumes are cut as a group where there are several.
    pub group: bool,
    /// Whether acknowledged commits are durable.
    pub durable: bool,
}

/// A storage driver as it truly behaves.
#[derive(Clone, Debug)]
pub struct Driver {
    /// A cut is one instant.
    pub atomic: bool,
    /// The operator's or the built-in table knows it.
    pub listed: bool,
    /// It answers before it cuts.
    pub ok_before_cut: bool,
    /// One cut at a time.
    pub serialised: bool,
    /// A group is one instant.
    pub write_order: bool,
}

impl Driver {
    /// What the storage table says, truthfully, or the worse where it says nothing.
    pub fn fact(&self) -> StorageFact {
        if !self.listed {
            return StorageFact::default();
        }
        StorageFact {
            cut: if self.atomic { CutKind::Atomic } else { CutKind::Copy },
            group: if self.write_order { GroupKind::WriteOrder } else { GroupKind::Sequential },
            signal: if self.ok_before_cut { CutSignal::Ready } else { CutSignal::Handle },
            reason: "listed".to_owned(),
        }
    }
}

/// One world before anything happens.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Replicas of the controller.
    pub replicas: usize,
    /// Backups of the workload.
    pub backups: usize,
    /// Longest hold.
    pub max_hold: Duration,
    /// Longest acquisition.
    pub acquire_timeout: Duration,
    /// What happens without proof.
    pub requirement: Requirement,
    /// Least continuity.
    pub min_continuity: Continuity,
    /// The applications.
    pub apps: Vec<App>,
    /// The driver.
    pub driver: Driver,
}

/// Upper bounds that shrinking lowers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Replicas.
    pub replicas: usize,
    /// Applications.
    pub apps: usize,
    /// Pods of an application.
    pub pods: usize,
    /// Volumes of a pod.
    pub volumes: usize,
}

impl Size {
    /// As large as worlds get.
    pub const FULL: Self = Self { replicas: 3, apps: 2, pods: 2, volumes: 2 };
}

impl Scenario {
    /// The scenario of a seed.
    pub fn of(seed: u64, size: Size, faults: &mut Faults) -> Self {
        let mut rng = Rng::new(seed, 12);
        let replicas = match rng.below(8) {
            0..=3 => 1,
            4..=6 => 2,
            _ => 3,
        };
        let count = if rng.chance(250) { 2 } else { 1 };
        let max_hold = Duration::from_secs(rng.pick(&[8, 10, 15, 30]));
        let acquire_timeout =
            Duration::from_secs(rng.pick(&[2, 4, 8])).min(max_hold - Duration::from_secs(4));
        let mut apps: Vec<App> = (0..count).map(|index| app(index, &mut rng, size)).collect();
        for app in &mut apps {
            app.durable = !faults.happens(Fault::Undurable, 700, 0);
        }
        apps.truncate(size.apps);
        let min_continuity = match rng.below(8) {
            0 => Continuity::State,
            1 => Continuity::Lock,
            2 => Continuity::Position,
            _ => Continuity::Declared,
        };
        // Who lets go without a trace under a template that only declares its lock is not found out: the grade says
        // so, and a policy that minds asks for more.
        let weak = |app: &App| !(app.engine.position || app.engine.thaw_proves_lock || app.engine.probed);
        let min_continuity = if faults.has(Fault::ForeignUnlock) && apps.iter().any(weak) {
            min_continuity.max(Continuity::State)
        } else {
            min_continuity
        };
        let driver = Driver {
            atomic: !faults.happens(Fault::CopyMode, 800, 0),
            listed: !faults.happens(Fault::Unlisted, 800, 0),
            ok_before_cut: faults.happens(Fault::OkBeforeCut, 800, 0),
            serialised: faults.happens(Fault::Serialised, 900, 0),
            write_order: !faults.happens(Fault::SequentialGroup, 800, 0),
        };
        Self {
            replicas: replicas.min(size.replicas),
            backups: if faults.happens(Fault::RivalRun, 950, 0) { 2 } else { 1 },
            max_hold,
            acquire_timeout,
            requirement: if rng.chance(700) { Requirement::Required } else { Requirement::BestEffort },
            min_continuity,
            apps,
            driver,
        }
    }
}

fn app(index: usize, rng: &mut Rng, size: Size) -> App {
    let kind = match rng.below(16) {
        0..=6 => HoldKind::Session,
        7..=11 => HoldKind::Commands,
        12..=14 => HoldKind::Observer,
        _ => HoldKind::None,
    };
    let staged = kind == HoldKind::Observer && rng.chance(400) && size.volumes > 1;
    let pods = if rng.chance(250) && size.pods > 1 { 2 } else { 1 };
    let volumes = if staged || (rng.chance(300) && size.volumes > 1) { 2 } else { 1 };
    let session = kind == HoldKind::Session;
    App {
        name: format!("app-{index}"),
        kind,
        engine: Engine {
            position: session && rng.chance(400),
            thaw_proves_lock: session && rng.chance(400),
            probed: kind == HoldKind::Commands && rng.chance(500),
            copy_safe: rng.chance(200),
            any_under_lock: rng.chance(500),
            staged,
            stall_probe: session && rng.chance(600),
        },
        order: if rng.chance(500) { 0 } else { i32::try_from(index).unwrap_or(0) },
        lease: rng.pick(&[5, 10]),
        pods: vec![volumes; pods],
        group: !staged && volumes > 1 && rng.chance(500),
        durable: true,
    }
}
