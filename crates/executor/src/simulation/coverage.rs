//! What happened how often: a check that cannot fail is a defect, and so is a fault that never comes.

use std::collections::BTreeMap;

use super::faults::Fault;

/// Counters over one world or many.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    faults: BTreeMap<Fault, u64>,
    outcomes: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// A fault happened.
    pub fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// Something else worth counting happened.
    pub fn outcome(&mut self, name: &'static str) {
        *self.outcomes.entry(name).or_default() += 1;
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (name, count) in &other.outcomes {
            *self.outcomes.entry(name).or_default() += count;
        }
    }

    /// How often a fault happened.
    pub fn of(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }

    /// How often something else happened.
    pub fn count(&self, name: &str) -> u64 {
        self.outcomes.get(name).copied().unwrap_or(0)
    }

    /// Every counter, by name.
    pub fn lines(&self) -> Vec<(String, u64)> {
        let faults = self.faults.iter().map(|(fault, count)| (format!("{fault:?}"), *count));
        faults.chain(self.outcomes.iter().map(|(name, count)| ((*name).to_owned(), *count))).collect()
    }
}
