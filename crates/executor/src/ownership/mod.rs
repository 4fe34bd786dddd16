//! Who works on a Backup, what only one run at a time may touch, and what must be undone and removed when an owner is
//! gone (docs/design/freeze.md §2.6, §5).
//!
//! Every replica keeps one Lease of its own ([`replica`]); a claim is the replica's identity in `status.executor`, written
//! by compare-and-swap ([`claim`]); whether a replica is silent is judged on our own monotonic clock from changes that we
//! saw, never by comparing stored times ([`peers`]). Workloads are locked by Leases that never expire ([`workload`]), and so
//! are the places of freezes where rules limit them ([`places`]).
//! Templates are kept by content for whoever must undo a freeze later ([`templates_kept`], [`quiesce`]). What is left of
//! runs that are gone is removed by the [`sweeper`].

pub mod claim;
pub mod peers;
pub mod places;
pub mod quiesce;
pub mod replica;
pub mod sweeper;
pub mod templates_kept;
mod timing;
pub mod workload;

pub use claim::{Claim, Standing};
pub use replica::{ClaimNews, ClaimWatch, OwnLease, Ownership};
pub use timing::Timing;

/// Label of our Leases: what each is for.
pub const LEASE_LABEL: &str = "stillpoint.dev/lease";
/// Value of [`LEASE_LABEL`]: a replica is alive.
pub const REPLICA_LEASE: &str = "replica";
/// Value of [`LEASE_LABEL`]: a workload is being backed up.
pub const WORKLOAD_LEASE: &str = "workload";
