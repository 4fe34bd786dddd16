//! How many freezes go on at once, as ProtectionRules say: who may begin now, and who waits for whom.
//!
//! Pure. Each limit of a rule is a scope with so many numbered places; a freeze needs one place of every scope that it is
//! in, and has all of them or none. Whoever waits has a ticket. In the order of their age every waiting run is given what it
//! needs while there is room; a run begins when that order gives it its places. So an older run goes first, and one that
//! waits for something else keeps nobody from beginning (docs/design/freeze.md §1).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stillpoint_api::rule::ProtectionRule;

/// Reason of a refusal that ends when another freeze ends.
pub const FREEZE_LIMIT: &str = "FreezeLimit";

/// What is limited.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// All freezes in the namespaces of a rule.
    Cluster,
    /// Those in one namespace.
    Namespace(String),
    /// Those on one CSI driver.
    Driver(String),
}

/// A limit that a run is under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound {
    /// Name of the rule.
    pub rule: String,
    /// What is limited.
    pub scope: Scope,
    /// How many.
    pub limit: u32,
}

impl Bound {
    /// What its places are named by: the same for everybody.
    pub fn key(&self) -> String {
        let (kind, name) = match &self.scope {
            Scope::Cluster => ("cluster", ""),
            Scope::Namespace(name) => ("namespace", name.as_str()),
            Scope::Driver(name) => ("driver", name.as_str()),
        };
        let mut hash = Sha256::new();
        for part in [self.rule.as_str(), kind, name] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.finalize().iter().take(10).map(|byte| format!("{byte:02x}")).collect()
    }

    /// For people: what may be how many, and who says so.
    pub fn words(&self) -> String {
        let Self { rule, scope, limit } = self;
        let of = match scope {
            Scope::Cluster => "limits.cluster".to_owned(),
            Scope::Namespace(name) => format!("limits.namespace, here {name}"),
            Scope::Driver(name) => format!("limits of driver {name}"),
        };
        format!("ProtectionRule {rule} lets {limit} freeze(s) go on at once ({of})")
    }
}

/// Every limit that `rules`, which hold for `namespace`, put on a run that cuts volumes of `drivers`.
pub fn bounds<'a>(
    rules: &[ProtectionRule],
    namespace: &str,
    drivers: impl IntoIterator<Item = &'a str>,
) -> Vec<Bound> {
    let drivers: BTreeSet<&str> = drivers.into_iter().collect();
    let mut all = Vec::new();
    for rule in rules {
        let Some(limits) = &rule.spec.limits else { continue };
        let mut add = |scope, limit: Option<u32>| {
            all.extend(limit.map(|limit| Bound { rule: rule.name_any(), scope, limit }));
        };
        add(Scope::Cluster, limits.cluster);
        add(Scope::Namespace(namespace.to_owned()), limits.namespace);
        for driver in &drivers {
            let own = limits.drivers.iter().find(|limit| limit.name == *driver).map(|limit| limit.freezes);
            add(Scope::Driver((*driver).to_owned()), own.or(limits.driver));
        }
    }
    all.sort();
    all
}

/// A run that waits: how old it is, and what it needs. Stored with its ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Slot or creation of its Backup.
    pub age: Timestamp,
    /// UID of its Backup.
    pub backup_uid: String,
    /// Keys and limits of its scopes.
    pub needs: BTreeMap<String, u32>,
}

/// Places that are taken: by key of the scope, how many by other runs than the one that asks.
pub type Taken = BTreeMap<String, u32>;

/// Whether a run may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is room for it.
    Go,
    /// It waits for a place of this scope.
    Wait {
        /// Key of the first scope without room.
        key: String,
        /// Older runs that are given a place of it first.
        ahead: u32,
    },
}

/// Whether `us` may begin, with the tickets of all runs that wait.
pub fn admit(us: &Ticket, waiting: &[Ticket], taken: &Taken) -> Verdict {
    let order = |ticket: &Ticket| (ticket.age, ticket.backup_uid.clone());
    let mut older: Vec<&Ticket> = waiting.iter().filter(|ticket| order(ticket) < order(us)).collect();
    older.sort_by_key(|ticket| order(ticket));
    let mut given = Taken::new();
    let used = |given: &Taken, key: &str| {
        taken.get(key).copied().unwrap_or(0).saturating_add(given.get(key).copied().unwrap_or(0))
    };
    for ticket in older {
        if ticket.needs.iter().all(|(key, limit)| used(&given, key) < *limit) {
            for key in ticket.needs.keys() {
                *given.entry(key.clone()).or_default() += 1;
            }
        }
    }
    let full = us.needs.iter().find(|(key, limit)| used(&given, key) >= **limit);
    match full {
        None => Verdict::Go,
        Some((key, _)) => Verdict::Wait { key: key.clone(), ahead: given.get(key).copied().unwrap_or(0) },
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
