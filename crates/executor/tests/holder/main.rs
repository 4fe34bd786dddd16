//! The holder in the shells that containers have: dash, busybox ash and bash, each as itself and bash as `sh`.
//!
//! Every test runs the argv that the controller sends. What the commands did is read from a log that they append to,
//! through a descriptor they inherit, so that they need no right to write anywhere. Bounds are the promised ones only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod ends;
mod misbehaviour;
mod protocol;
mod rig;
