//! Every way a hold can end: each of them ends the freeze, and leaves no process.

use std::time::{Duration, Instant};

use crate::in_every_shell;
use crate::rig::{NONCE, Rig, SOON, Shell, Wish, send};

in_every_shell! {
    the_end_of_input_thaws_and_says_nothing
    the_end_of_input_before_a_freeze_runs_nothing
    the_deadline_thaws_and_ends_the_holder
    a_freeze_that_is_still_running_at_the_deadline_is_ended_and_thawed
    a_killed_holder_is_thawed_within_a_second
    a_holder_killed_while_its_freeze_hangs_is_thawed
    a_holder_that_is_stopped_is_thawed_at_the_deadline
    a_keeper_that_is_killed_is_replaced_at_the_next_beat
    a_keeper_that_is_stopped_still_thaws_when_told
    a_holder_that_nobody_tells_to_freeze_ends_after_30_seconds
}

/// A killed holder is thawed within a second; the rest is what the thaw itself and a busy machine take.
const KILLED: Duration = Duration::from_secs(3);

fn the_end_of_input_thaws_and_says_nothing(shell: Shell) {
    let mut rig = Rig::frozen(shell, &Wish::default(), 30);
    rig.end_input();
    assert_eq!(rig.rest(), [] as [&str; 0]);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn the_end_of_input_before_a_freeze_runs_nothing(shell: Shell) {
    let mut rig = Rig::ready(shell, &Wish::default());
    rig.end_input();
    rig.ends_having_done(&[]);
}

fn the_deadline_thaws_and_ends_the_holder(shell: Shell) {
    let started = Instant::now();
    let mut rig = Rig::frozen(shell, &Wish::default(), 3);
    assert_eq!(rig.line(), format!("EXPIRED {NONCE}"));
    assert!(started.elapsed() >= Duration::from_secs(3), "not before its deadline");
    assert_eq!(rig.rest(), [] as [&str; 0]);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_freeze_that_is_still_running_at_the_deadline_is_ended_and_thawed(shell: Shell) {
    let mut rig =
        Rig::ready(shell, &Wish { freeze: "echo frozen >&9; sleep 1000; echo late >&9", ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 2\n"));
    assert_eq!(rig.line(), format!("EXPIRED {NONCE}"));
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_killed_holder_is_thawed_within_a_second(shell: Shell) {
    let mut rig = Rig::frozen(shell, &Wish::default(), 30);
    rig.signal("KILL");
    rig.did_within(&["frozen", "thawed"], KILLED);
    assert_eq!(rig.rest(), [] as [&str; 0], "nobody asked for a thaw");
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_holder_killed_while_its_freeze_hangs_is_thawed(shell: Shell) {
    let freeze = "echo frozen >&9; trap '' TERM; sleep 1000; echo late >&9";
    let mut rig = Rig::ready(shell, &Wish { freeze, ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 30\n"));
    rig.did(&["frozen"]);
    rig.signal("KILL");
    rig.did_within(&["frozen", "thawed"], KILLED);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_holder_that_is_stopped_is_thawed_at_the_deadline(shell: Shell) {
    let mut rig = Rig::frozen(shell, &Wish::default(), 3);
    rig.signal("STOP");
    rig.tell(&format!("beat {NONCE} 1\nthaw {NONCE}\n"));
    assert_eq!(rig.line(), format!("EXPIRED {NONCE}"));
    assert_eq!(rig.rest(), [] as [&str; 0], "it is not there to answer");
    rig.ends_having_done(&["frozen", "thawed"]);
}

/// The child of the holder that keeps the deadline: its only child once the freeze is over.
fn keeper(rig: &Rig) -> u32 {
    let started = Instant::now();
    loop {
        let children: Vec<u32> = rig
            .processes()
            .into_iter()
            .map(|(pid, _)| pid)
            .filter(|pid| parent(*pid) == Some(rig.pid()))
            .collect();
        if let [only] = children.as_slice() {
            return *only;
        }
        assert!(started.elapsed() < SOON, "{:?}", rig.processes());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn a_keeper_that_is_killed_is_replaced_at_the_next_beat(shell: Shell) {
    let mut rig = Rig::frozen(shell, &Wish::default(), 4);
    let keeper = keeper(&rig);
    send("KILL", keeper);
    // A signal is delivered in its own time: a beat before that is rightly answered.
    let started = Instant::now();
    while parent(keeper).is_some() && !zombie(keeper) {
        assert!(started.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    rig.tell(&format!("beat {NONCE} 1\n"));
    rig.did(&["frozen", "thawed"]);
    assert_eq!(rig.rest(), [] as [&str; 0], "nothing is held any more");
    assert_ne!(rig.ends_having_done(&["frozen", "thawed"]), 0);
}

fn a_keeper_that_is_stopped_still_thaws_when_told(shell: Shell) {
    let mut rig = Rig::frozen(shell, &Wish::default(), 30);
    send("STOP", keeper(&rig));
    rig.tell_word("thaw");
    assert_eq!(rig.line(), format!("THAWED {NONCE}"));
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_holder_that_nobody_tells_to_freeze_ends_after_30_seconds(shell: Shell) {
    let started = Instant::now();
    let mut rig = Rig::ready(shell, &Wish::default());
    rig.tell(&format!("beat {NONCE} 1\n"));
    rig.line();
    assert_eq!(rig.line_or_end(Duration::from_secs(45)), None, "it ends");
    assert!(started.elapsed() >= Duration::from_secs(29));
    rig.ends_having_done(&[]);
}
