//! Any bytes as an expression in several zones: see `expression.rs` beside the manifest.
#![no_main]

#[path = "../expression.rs"]
mod expression;

use stillpoint_scheduler::cron::Schedule;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    expression::check(bytes);
});
