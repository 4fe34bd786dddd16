//! Systematic faults: one at every effect of a scripted run, of every kind. Every one must end well.

use std::time::Duration;

use stillpoint_api::evidence::HoldKind;
use stillpoint_api::policy::{Continuity, Requirement};

use super::scenario::{App, Driver, Engine, Scenario, Size};
use super::world::World;
use super::{Options, Outcome, run};

/// What happens at an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happens {
    /// It is not carried out, and fails.
    FailsBefore,
    /// It is carried out, and fails.
    FailsAfter,
    /// It is carried out, and the process is killed before it is recorded.
    CrashAfter,
    /// It is carried out twice.
    Twice,
    /// It is not carried out, and nobody hears of it.
    TimesOut,
    /// It is carried out, and nobody hears of it.
    Unknown,
}

impl Happens {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::FailsBefore, Self::FailsAfter, Self::CrashAfter, Self::Twice, Self::TimesOut, Self::Unknown];
}

/// A fault at one effect of the first attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// At which effect.
    pub effect: usize,
    /// What happens there.
    pub happens: Happens,
}

impl World {
    /// Counts an effect; answers what is injected at it.
    pub fn injected(&mut self) -> Option<Happens> {
        let here = self.effects;
        self.effects += 1;
        self.options.injection.filter(|injection| injection.effect == here).map(|injection| injection.happens)
    }
}

/// A scripted run without faults.
#[derive(Clone, Debug)]
pub struct Script {
    /// Its name.
    pub name: &'static str,
    /// Its world.
    pub scenario: Scenario,
}

fn app(name: &str, kind: HoldKind, pods: Vec<usize>, order: i32) -> App {
    App {
        name: name.to_owned(),
        kind,
        engine: Engine {
            position: kind == HoldKind::Session,
            thaw_proves_lock: false,
            probed: kind == HoldKind::Commands,
            copy_safe: false,
            any_under_lock: true,
            staged: false,
            stall_probe: false,
        },
        order,
        lease: 10,
        pods,
        group: false,
        durable: true,
    }
}

fn scenario(apps: Vec<App>) -> Scenario {
    Scenario {
        replicas: 2,
        backups: 1,
        max_hold: Duration::from_secs(15),
        acquire_timeout: Duration::from_secs(4),
        requirement: Requirement::Required,
        min_continuity: Continuity::Declared,
        apps,
        driver: Driver {
            atomic: true,
            listed: true,
            ok_before_cut: false,
            serialised: false,
            write_order: true,
        },
    }
}

/// The scripted runs.
pub fn scripts() -> Vec<Script> {
    let mut staged = app("staged", HoldKind::Observer, vec![2], 0);
    staged.engine.staged = true;
    staged.engine.any_under_lock = false;
    let mut grouped = app("grouped", HoldKind::Session, vec![2], 0);
    grouped.group = true;
    grouped.engine.any_under_lock = false;
    vec![
        Script {
            name: "one session, one volume",
            scenario: scenario(vec![app("db", HoldKind::Session, vec![1], 0)]),
        },
        Script {
            name: "commands, one volume",
            scenario: scenario(vec![app("files", HoldKind::Commands, vec![1], 0)]),
        },
        Script {
            name: "two holds in two orders, two volumes",
            scenario: scenario(vec![
                app("front", HoldKind::Commands, vec![1], 0),
                app("db", HoldKind::Session, vec![1], 1),
            ]),
        },
        Script { name: "two stages", scenario: scenario(vec![staged]) },
        Script { name: "a group", scenario: scenario(vec![grouped]) },
        Script { name: "nothing held", scenario: scenario(vec![app("plain", HoldKind::None, vec![1], 0)]) },
    ]
}

/// Runs a script with a fault, or without one.
pub fn play(script: &Script, injection: Option<Injection>, log: bool) -> Outcome {
    let options = Options {
        mask: 0,
        size: Size::FULL,
        scenario: Some(script.scenario.clone()),
        injection,
        log,
        ..Options::default()
    };
    run(7, &options)
}
