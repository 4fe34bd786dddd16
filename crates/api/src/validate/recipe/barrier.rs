//! What must be true of a barrier that makes up for a setting: it runs after the lock and before FROZEN
//! (docs/design/freeze.md §4.9).

use crate::template::{self, Freeze, Recipe};
use crate::validate::Finding;

/// How a session tells that its barrier ran.
const TOLD: &str = "EVIDENCE {{n}} barrier=";

pub(super) fn barrier(recipe: &Recipe) -> Vec<Finding> {
    let settings = recipe.crash_safe.iter().flat_map(|safe| &safe.settings);
    let asked = settings.into_iter().any(|setting| setting.or_barrier);
    let refuse = |path: &str, rule: &'static str, why: &str| vec![Finding::new(path, rule, why)];
    match &recipe.freeze {
        Some(Freeze::Session(held)) => {
            let elsewhere = template::texts(held)
                .into_iter()
                .find(|(field, text)| *field != "freeze" && text.contains("barrier="));
            if let Some((field, _)) = elsewhere {
                return refuse(
                    &format!("spec.freeze.session.{field}"),
                    "BarrierOutsideFreeze",
                    "a barrier counts only between the lock and FROZEN: print EVIDENCE {{n}} barrier= in the freeze text alone",
                );
            }
            let told = held.freeze.find(TOLD);
            if !held.locks && (asked || told.is_some()) {
                return refuse(
                    "spec.crashSafe.settings",
                    "BarrierWithoutLock",
                    "an observer stops nobody, so that more is acknowledged after any barrier: remove orBarrier",
                );
            }
            match (asked, told, held.freeze.find("FROZEN {{n}}")) {
                (true, None, _) => refuse(
                    "spec.freeze.session.freeze",
                    "BarrierNotPrinted",
                    "a setting has orBarrier and the freeze text runs none: print EVIDENCE {{n}} barrier=NAME after the \
                     statement that makes everything durable",
                ),
                (_, Some(told), Some(frozen)) if told > frozen => refuse(
                    "spec.freeze.session.freeze",
                    "BarrierAfterFrozen",
                    "the barrier is told after FROZEN, when the snapshots are asked for already: move it before",
                ),
                (true | false, Some(_) | None, Some(_) | None) => Vec::new(),
            }
        }
        Some(Freeze::Commands(commands)) if asked && commands.barrier.is_empty() => refuse(
            "spec.freeze.commands.barrier",
            "BarrierNotPrinted",
            "a setting has orBarrier and nothing runs one: write the command that makes everything durable",
        ),
        Some(Freeze::Commands(_)) => Vec::new(),
        None if asked && recipe.pre_hook.is_some() => refuse(
            "spec.crashSafe.settings",
            "BarrierNotPrinted",
            "a preHook has no barrier: write freeze.commands with barrier",
        ),
        Some(Freeze::None {}) | None if asked => refuse(
            "spec.crashSafe.settings",
            "BarrierWithoutLock",
            "nothing is locked, so that more is acknowledged after any barrier: remove orBarrier",
        ),
        Some(Freeze::None {}) | None => Vec::new(),
    }
}
