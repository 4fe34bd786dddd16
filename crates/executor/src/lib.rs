//! executor

pub mod exec;
pub mod hold;
