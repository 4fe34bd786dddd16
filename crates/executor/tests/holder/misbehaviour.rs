//! Commands that misbehave: whatever they do, what was frozen is thawed, and the answer says how it stands.

use std::path::PathBuf;

use crate::in_every_shell;
use crate::rig::{FREEZE, NONCE, Rig, Shell, Wish};

in_every_shell! {
    a_freeze_that_hangs_is_ended_and_thawed_when_told
    a_freeze_that_ignores_sigterm_and_forks_is_ended_with_its_children
    a_freeze_that_fails_half_way_is_told_and_thawed_without_being_told
    a_freeze_that_does_not_exist_is_told_and_thawed
    a_freeze_that_prints_megabytes_freezes
    a_freeze_that_closes_its_streams_freezes
    a_freeze_that_leaves_a_child_behind_freezes_and_the_child_lives_until_the_thaw
    a_thaw_that_fails_twice_is_tried_again
    a_thaw_that_hangs_once_is_ended_and_tried_again
    a_thaw_that_prints_megabytes_to_nobody_thaws
    a_read_only_root_and_no_right_to_write_are_enough
    a_container_without_sleep_is_refused
}

fn a_freeze_that_hangs_is_ended_and_thawed_when_told(shell: Shell) {
    let mut rig =
        Rig::ready(shell, &Wish { freeze: "echo frozen >&9; sleep 1000; echo late >&9", ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 30\n"));
    rig.did(&["frozen"]);
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_freeze_that_ignores_sigterm_and_forks_is_ended_with_its_children(shell: Shell) {
    // Were a child left, it would freeze again after the thaw.
    let freeze =
        "trap '' TERM HUP; echo frozen >&9; (trap '' TERM HUP; sleep 4; echo late >&9) & wait; sleep 1000";
    let mut rig = Rig::ready(shell, &Wish { freeze, ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 30\n"));
    rig.did(&["frozen"]);
    rig.end_input();
    rig.did(&["frozen", "thawed"]);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_freeze_that_fails_half_way_is_told_and_thawed_without_being_told(shell: Shell) {
    let freeze = "echo half >&9; echo ERROR: the other half >&2; exit 3";
    let mut rig = Rig::ready(shell, &Wish { freeze, ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 30\n"));
    assert_eq!(rig.line(), format!("EVIDENCE {NONCE} freeze_failed=3"));
    rig.did(&["half", "thawed"]);
    rig.said("ERROR: the other half");
    rig.tell(&format!("beat {NONCE} 1\nthaw {NONCE}\n"));
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")], "thawed once, and not held");
    rig.ends_having_done(&["half", "thawed"]);
}

fn a_freeze_that_does_not_exist_is_told_and_thawed(shell: Shell) {
    let mut rig = Rig::ready(shell, &Wish { freeze: "exec /no/such/program", ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 30\n"));
    assert_eq!(rig.line(), format!("EVIDENCE {NONCE} freeze_failed=127"));
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    rig.ends_having_done(&["thawed"]);
}

fn a_freeze_that_prints_megabytes_freezes(shell: Shell) {
    let freeze = format!("head -c 4000000 /dev/zero; head -c 4000000 /dev/zero >&2; {FREEZE}");
    let mut rig = Rig::frozen(shell, &Wish { freeze: &freeze, ..Wish::default() }, 60);
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_freeze_that_closes_its_streams_freezes(shell: Shell) {
    let freeze = format!("{FREEZE}; exec <&- >&- 2>&-; exit 0");
    let mut rig = Rig::frozen(shell, &Wish { freeze: &freeze, ..Wish::default() }, 30);
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_freeze_that_leaves_a_child_behind_freezes_and_the_child_lives_until_the_thaw(shell: Shell) {
    // The child has every stream of the freeze: none of them may keep FROZEN, THAWED or the end waiting.
    let freeze = format!("sleep 1000 & echo $! >&9; {FREEZE}");
    let thaw = "read -r child </proc/self/fd/9; kill \"$child\" && echo thawed >&9";
    let mut rig = Rig::frozen(shell, &Wish { freeze: &freeze, thaw, ..Wish::default() }, 30);
    let child = rig.log()[0].clone();
    rig.tell(&format!("beat {NONCE} 1\n"));
    assert!(rig.line().starts_with(&format!("HELD {NONCE} 1 ")));
    rig.tell_word("thaw");
    assert_eq!(rig.line(), format!("THAWED {NONCE}"));
    rig.ends_having_done(&[&child, "frozen", "thawed"]);
}

fn a_thaw_that_fails_twice_is_tried_again(shell: Shell) {
    let thaw =
        "if [ \"$(grep -c fails /proc/self/fd/9)\" -lt 2 ]; then echo fails >&9; exit 7; fi; echo thawed >&9";
    let mut rig = Rig::frozen(shell, &Wish { thaw, ..Wish::default() }, 30);
    rig.tell_word("thaw");
    let failed = [format!("EVIDENCE {NONCE} thaw_failed=7"), format!("THAWFAILED {NONCE}")];
    let expected: Vec<String> =
        failed.iter().chain(&failed).cloned().chain([format!("THAWED {NONCE}")]).collect();
    assert_eq!(rig.rest(), expected);
    rig.ends_having_done(&["frozen", "fails", "fails", "thawed"]);
}

fn a_thaw_that_hangs_once_is_ended_and_tried_again(shell: Shell) {
    let thaw = "if ! grep -q hangs /proc/self/fd/9; then echo hangs >&9; trap '' TERM; sleep 1000; fi; echo thawed >&9";
    let mut rig = Rig::frozen(shell, &Wish { thaw, ..Wish::default() }, 30);
    rig.tell_word("thaw");
    assert_eq!(rig.word(), format!("THAWFAILED {NONCE}"));
    assert_eq!(rig.word(), format!("THAWED {NONCE}"));
    rig.ends_having_done(&["frozen", "hangs", "thawed"]);
}

fn a_thaw_that_prints_megabytes_to_nobody_thaws(shell: Shell) {
    let thaw = "head -c 4000000 /dev/zero; head -c 4000000 /dev/zero >&2; echo thawed >&9";
    let mut rig = Rig::frozen(shell, &Wish { thaw, ..Wish::default() }, 30);
    // Killed, and nobody reads any more: a write to a stream without a reader would end the command.
    rig.signal("KILL");
    rig.did(&["frozen", "thawed"]);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_read_only_root_and_no_right_to_write_are_enough(shell: Shell) {
    let freeze = "(: >/tmp/x) 2>/dev/null && echo writable >&9; (: >/dev/shm/x) 2>/dev/null && echo writable >&9; echo frozen >&9";
    let mut rig = Rig::frozen(shell, &Wish { freeze, read_only: true, ..Wish::default() }, 30);
    rig.tell(&format!("beat {NONCE} 1\n"));
    assert!(rig.line().starts_with(&format!("HELD {NONCE} 1 ")));
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    assert_eq!(rig.stderr(), "");
    rig.ends_having_done(&["frozen", "thawed"]);

    let mut rig = Rig::frozen(shell, &Wish { read_only: true, ..Wish::default() }, 30);
    rig.end_input();
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_container_without_sleep_is_refused(shell: Shell) {
    let mut rig = Rig::with(shell, &Wish { path: Some(PathBuf::from("/no/programs")), ..Wish::default() });
    if shell == Shell::Ash {
        // busybox is its own sleep.
        assert!(rig.line().starts_with("READY "));
        return;
    }
    assert_eq!(rig.rest(), [] as [&str; 0]);
    rig.said("no program sleep");
    assert_ne!(rig.ends_having_done(&[]), 0);
}
