//! The Kubernetes types of Stillpoint, their validation and their defaults. No IO and no client.

pub mod clock;
