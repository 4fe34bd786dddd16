//! Which replica schedules: one Lease of the cluster, and everybody's own clock.
//!
//! Guarantees, given that no clock runs faster or slower than true time by a fifth: at no instant do two replicas believe
//! that they lead; a leader stops by itself before anybody else may begin, whether it can reach the API server or not; a
//! Lease that was let go passes at once. Stored times are for people and are never compared with a clock.
//!
//! [`Election`] decides and is pure; [`run`] asks and writes; [`Leadership`] is what everybody else sees. No Lease fences
//! what was sent already: names of Backups are deterministic and every status is a compare-and-swap
//! (docs/design/schedule.md §2), so what a deposed leader still had on the wire changes nothing.

mod decide;
mod keeper;
mod leadership;
#[cfg(test)]
mod simulation;

pub use decide::{Action, Election, Event, Sighting, Terms};
pub use keeper::{Candidate, LEASE_NAME, run};
pub use leadership::Leadership;
