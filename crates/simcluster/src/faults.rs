//! Faults a test puts between the client and the store: the n-th request that matches fails, waits, or is carried
//! out while its answer is lost.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What happens to a request that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAction {
    /// It is refused with this HTTP status (409, 429, 500, 504…) and never carried out.
    Status(u16),
    /// It is carried out after this time.
    Delay(Duration),
    /// It is carried out, and the connection is closed instead of the answer.
    LoseResponse,
    /// The connection is closed and nothing is carried out.
    Close,
}

/// One fault: which requests, how many of them, and what happens.
#[derive(Clone, Debug)]
pub struct Fault {
    verb: String,
    resource: String,
    skip: u32,
    times: u32,
    action: FaultAction,
}

impl Fault {
    /// The next request with this verb (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`,
    /// `deletecollection`, `*`) on this resource (`backups`, `backups/status`, `pods/exec`, `*`).
    pub fn new(verb: &str, resource: &str, action: FaultAction) -> Self {
        Self { verb: verb.into(), resource: resource.into(), skip: 0, times: 1, action }
    }

    /// Lets `requests` matching requests pass first.
    pub fn after(mut self, requests: u32) -> Self {
        self.skip = requests;
        self
    }

    /// Hits this many matching requests instead of one.
    pub fn times(mut self, requests: u32) -> Self {
        self.times = requests;
        self
    }
}

/// The faults of one cluster.
#[derive(Debug, Default)]
pub struct FaultPlan {
    faults: Mutex<(Vec<Fault>, u64)>,
}

impl FaultPlan {
    /// Adds a fault; faults are tried in the order they were added, one hits per request.
    pub fn inject(&self, fault: Fault) {
        self.lock().0.push(fault);
    }

    /// Forgets every fault that has not hit yet.
    pub fn clear(&self) {
        self.lock().0.clear();
    }

    /// How many requests were hit so far.
    pub fn hits(&self) -> u64 {
        self.lock().1
    }

    pub(crate) fn decide(&self, verb: &str, resource: &str) -> Option<FaultAction> {
        let mut plan = self.lock();
        let matching = |fault: &&mut Fault| {
            (fault.verb == "*" || fault.verb == verb) && (fault.resource == "*" || fault.resource == resource)
        };
        let mut action = None;
        for fault in plan.0.iter_mut().filter(matching) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                action = Some(fault.action);
                break;
            }
        }
        plan.0.retain(|fault| fault.times > 0);
        plan.1 += u64::from(action.is_some());
        action
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Vec<Fault>, u64)> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_the_requests_it_names_and_no_other() {
        let plan = FaultPlan::default();
        plan.inject(Fault::new("create", "pods", FaultAction::Status(500)).after(1).times(2));
        assert_eq!(plan.decide("get", "pods"), None);
        let hits: Vec<bool> = (0..5).map(|_| plan.decide("create", "pods").is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
        assert_eq!(plan.hits(), 2);
    }
}
