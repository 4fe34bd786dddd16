//! When backups are taken, which recovery points are kept and where objectives stand.
//!
//! Pure: [`cron`] (expressions, zones), [`slots`] (what is due), [`heap`] (who is due next), [`retention`] (what may
//! go), [`objectives`] (RPO). They take `now` as an argument and touch nothing.

pub mod cron;
pub mod heap;
pub mod objectives;
pub mod retention;
pub mod slots;
