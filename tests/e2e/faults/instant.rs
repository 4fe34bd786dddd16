//! Waits for an instant of a run, by what others saw of it: the audit log, the driver's ledger, the journal.

use std::time::Duration;

use serde_json::{Value, json};
use stillpoint_api::backup::JournalKind;
use stillpoint_api::clock::{Clock as _, SystemClock};
use stillpoint_e2e::world::World;
use stillpoint_e2e::{Outcome, fail};

use crate::database::Database;
use crate::plan::Aim;

/// Decides how soon an instant is noticed.
const BETWEEN_LOOKS: Duration = Duration::from_millis(3);
/// Between looks that ask the API server.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(25);
/// A run begins to freeze a second or two after it was created.
const WITHIN: Duration = Duration::from_secs(40);
/// Another session keeps the lock for so long: from before the run to well after its FREEZE, within acquireTimeout.
pub const LOCK_TAKEN_FOR: Duration = Duration::from_millis(3500);

/// The driver's behaviour that stretches what is aimed at.
pub fn knobs(aim: Aim) -> Value {
    match aim {
        Aim::BeforeReady | Aim::Freezing => json!({"preCutDelay": "600ms"}),
        Aim::Storage => json!({"preCutDelay": "1500ms", "postCutDelay": "60ms"}),
        Aim::Thawing => json!({"preCutDelay": "600ms", "postCutDelay": "30ms"}),
        Aim::Settling => json!({"preCutDelay": "600ms", "readyDelay": "4s"}),
    }
}

/// Where the records ended when the run was created.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Lines of the ledger.
    pub ledger: usize,
    /// Bytes of the audit log.
    pub audit: u64,
    /// Bytes of the writers' log.
    pub acks: u64,
}

impl Places {
    /// Now.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn now(world: &World, database: &Database) -> Outcome<Self> {
        Ok(Self {
            ledger: world.cluster.ledger.lines()?.len(),
            audit: world.cluster.audit().length(),
            acks: database.acks.length(),
        })
    }
}

/// Returns as soon as the run has come to the instant that is aimed at.
///
/// # Errors
/// It did not come there.
pub async fn reached(world: &World, database: &Database, name: &str, aim: Aim, places: Places) -> Outcome {
    let clock = SystemClock::new();
    let begun = clock.mono();
    while clock.mono().since(begun) < WITHIN {
        let (there, pause) = match aim {
            Aim::BeforeReady => (true, BETWEEN_LOOKS),
            Aim::Freezing => (journalled(database, name, JournalKind::Freezing).await, BETWEEN_REQUESTS),
            Aim::Storage => (in_ledger(world, database, places, "rpc-start")?, BETWEEN_LOOKS),
            Aim::Thawing => (in_ledger(world, database, places, "cut")?, BETWEEN_LOOKS),
            Aim::Settling => (journalled(database, name, JournalKind::Thawed).await, BETWEEN_REQUESTS),
        };
        if there {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
    }
    fail!("{name} did not come to `{}` within {WITHIN:?}", aim.name());
}

fn in_ledger(world: &World, database: &Database, places: Places, event: &str) -> Outcome<bool> {
    let lines = world.cluster.ledger.lines()?;
    Ok(lines.iter().skip(places.ledger).any(|line| line.event == event && line.volume == database.volume))
}

async fn journalled(database: &Database, name: &str, entry: JournalKind) -> bool {
    let backup = database.backups().get(name).await;
    let journal =
        backup.ok().and_then(|backup| backup.status).map(|status| status.journal).unwrap_or_default();
    journal.iter().any(|line| line.entry == entry)
}
