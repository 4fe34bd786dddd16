//! The Kubernetes types of Stillpoint, their validation and their defaults. No IO and no client.

// Each `printcolumn` of a kind has its own `type_`, which the lint takes for a repeated attribute.
#![allow(clippy::duplicated_attributes)]

pub mod backup;
pub mod backup_events;
pub mod clock;
pub mod conditions;
pub mod crd;
pub mod duration;
pub mod evidence;
pub mod group_snapshot;
pub mod outcome;
pub mod policy;
pub mod restore;
pub mod rule;
pub mod snapshot;
pub mod template;
pub mod validate;

pub use backup::Backup;
pub use policy::BackupPolicy;
pub use restore::Restore;
pub use rule::ProtectionRule;
pub use template::{ClusterHookTemplate, HookTemplate};
