//! What no text may do: make the parser or the calendar panic, be accepted and never fire, or give slots that do not
//! increase. Used by the fuzz target and by a test with seeded bytes.

use jiff::Timestamp;

use super::Schedule;

/// With and without clock changes, by half an hour, at midnight, and once by a whole day.
const ZONES: [&str; 4] = ["Etc/UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/Santiago"];

/// Just before the clock goes back in Berlin.
const FROM: i64 = 1_792_884_000;

/// Checks `bytes`; `true` when they are an expression.
pub fn check(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Ok(from) = Timestamp::from_second(FROM) else { return false };
    let mut accepted = false;
    for zone in ZONES {
        let schedule = match Schedule::parse(&text, zone, from) {
            Ok(schedule) => schedule,
            Err(error) => {
                // Every refusal names a field and a reason, in one line of bounded length.
                let told = error.to_string();
                assert!(!error.reason.is_empty() && told.len() < 2_000, "{told}");
                return false;
            }
        };
        accepted = true;
        let mut before = from;
        for _ in 0..8 {
            let Some(slot) = schedule.next(before) else { break };
            assert!(slot > before, "{text:?} in {zone}: {slot} after {before}");
            assert_eq!(schedule.prev(slot), Some(slot), "{text:?} in {zone}");
            before = slot;
        }
        assert!(before > from, "{text:?} is accepted and never fires");
    }
    accepted
}
