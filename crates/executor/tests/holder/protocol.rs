//! What the holder says, and what cannot make it say so.

use std::time::{Duration, Instant};

use stillpoint_executor::hold::{HoldLine, IdentityKey, Nonce, Parsed};

use crate::in_every_shell;
use crate::rig::{FREEZE, NONCE, Rig, Shell, THAW, Wish};

in_every_shell! {
    a_hold_is_ready_frozen_held_and_thawed_by_one_identity
    the_closing_beat_and_the_thaw_in_one_write_are_answered_in_order
    a_thaw_before_any_freeze_is_answered_and_runs_nothing
    lines_with_another_nonce_or_shape_are_not_obeyed
    an_unterminated_thaw_at_the_end_of_input_thaws_and_says_nothing
    held_is_said_only_after_the_probe_succeeded
    a_probe_that_hangs_costs_the_answer_and_not_the_thaw
    what_is_already_frozen_is_told_before_ready_and_left_alone
    what_somebody_else_freezes_after_ready_is_left_alone
    a_probe_that_cannot_be_run_is_refused_before_anything_is_frozen
    words_of_the_commands_cannot_become_words_of_the_protocol
    a_barrier_runs_after_the_freeze_and_is_told_before_frozen
    a_barrier_that_fails_is_told_and_the_freeze_stands
    a_freeze_that_fails_has_no_barrier
    a_barrier_that_hangs_is_ended_with_the_hold
    a_state_that_ends_by_itself_is_renewed_with_every_beat
    a_state_that_may_have_ended_is_held_no_more
    a_renewal_that_fails_is_no_hold
}

fn line(text: &str) -> HoldLine {
    match HoldLine::parse(text, &Nonce::try_from(NONCE.to_owned()).unwrap()) {
        Parsed::Line(line) => line,
        Parsed::Foreign(foreign) => panic!("{foreign:?}"),
    }
}

fn a_hold_is_ready_frozen_held_and_thawed_by_one_identity(shell: Shell) {
    let mut rig = Rig::with(shell, &Wish::default());
    let HoldLine::Ready(ready) = line(&rig.line()) else { panic!("not READY") };
    assert!(ready.identity.get(IdentityKey::Host).is_some());
    assert_eq!(ready.identity.get(IdentityKey::Pid), Some(rig.pid().to_string().as_str()));
    rig.tell(&format!("beat {NONCE} 1\n"));
    let HoldLine::Held { beat: 1, report } = line(&rig.line()) else { panic!("not HELD 1") };
    assert_eq!(report.identity, ready.identity);
    assert_eq!(rig.log(), [] as [&str; 0], "nothing is frozen at READY");
    rig.tell(&format!("freeze {NONCE} 30\n"));
    let HoldLine::Frozen { stage: 0, report } = line(&rig.line()) else { panic!("not FROZEN") };
    assert_eq!(report.identity, ready.identity);
    for beat in 2..5 {
        rig.tell(&format!("beat {NONCE} {beat}\n"));
        let HoldLine::Held { beat: answered, report } = line(&rig.line()) else { panic!("not HELD") };
        assert_eq!((answered, &report.identity), (beat, &ready.identity));
    }
    assert_eq!(rig.log(), ["frozen"]);
    rig.tell_word("thaw");
    assert_eq!(line(&rig.line()), HoldLine::Thawed);
    assert_eq!(rig.rest(), [] as [&str; 0]);
    assert_eq!(rig.ends_having_done(&["frozen", "thawed"]), 0);
}

fn the_closing_beat_and_the_thaw_in_one_write_are_answered_in_order(shell: Shell) {
    let mut rig = Rig::frozen(shell, &Wish { probe: Some("exit 1"), ..Wish::default() }, 30);
    // This probe says no: the beat is not answered, and the thaw is.
    rig.tell(&format!("beat {NONCE} 7\nthaw {NONCE}\n"));
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    rig.ends_having_done(&["frozen", "thawed"]);

    let mut rig = Rig::frozen(shell, &Wish::default(), 30);
    rig.tell(&format!("beat {NONCE} 7\nthaw {NONCE}\n"));
    let rest = rig.rest();
    assert!(rest[0].starts_with(&format!("HELD {NONCE} 7 pid=")), "{rest:?}");
    assert_eq!(rest[1..], [format!("THAWED {NONCE}")]);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_thaw_before_any_freeze_is_answered_and_runs_nothing(shell: Shell) {
    let mut rig = Rig::ready(shell, &Wish::default());
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    assert_eq!(rig.ends_having_done(&[]), 0);
}

fn lines_with_another_nonce_or_shape_are_not_obeyed(shell: Shell) {
    let mut rig = Rig::ready(shell, &Wish::default());
    rig.tell("freeze aaaaaaaaaaaaaaaa 30\nfreeze\nthaw\nthaw aaaaaaaaaaaaaaaa\n\n");
    rig.tell(&format!(
        "freeze {NONCE}\nfreeze {NONCE} -1\nfreeze {NONCE} $(echo 3)\nbeat {NONCE} x\nTHAW {NONCE}\n"
    ));
    rig.tell(&format!("beat {NONCE} 9\n"));
    assert!(rig.line().starts_with(&format!("HELD {NONCE} 9 ")), "only this one counts");
    assert_eq!(rig.log(), [] as [&str; 0]);
    rig.end_input();
    assert_eq!(rig.rest(), [] as [&str; 0]);
    rig.ends_having_done(&[]);
}

fn an_unterminated_thaw_at_the_end_of_input_thaws_and_says_nothing(shell: Shell) {
    let mut rig = Rig::frozen(shell, &Wish::default(), 30);
    rig.tell(&format!("thaw {NONCE}"));
    rig.end_input();
    assert_eq!(rig.rest(), [] as [&str; 0], "THAWED would be forged by a torn write");
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn held_is_said_only_after_the_probe_succeeded(shell: Shell) {
    // The log itself is the state: its last word.
    let probe = "[ \"$(tail -n 1 /proc/self/fd/9)\" = frozen ]";
    let mut rig = Rig::frozen(shell, &Wish { probe: Some(probe), ..Wish::default() }, 30);
    rig.tell(&format!("beat {NONCE} 1\n"));
    assert!(rig.line().starts_with(&format!("HELD {NONCE} 1 ")));
    std::fs::write(rig.directory().join("log"), "frozen\nthawed by somebody\n").unwrap();
    rig.tell(&format!("beat {NONCE} 2\nthaw {NONCE}\n"));
    assert_eq!(
        rig.rest(),
        [format!("THAWED {NONCE}")],
        "nothing is held any more, and the end is still ours"
    );
    rig.ends_having_done(&["frozen", "thawed by somebody", "thawed"]);
}

fn a_probe_that_hangs_costs_the_answer_and_not_the_thaw(shell: Shell) {
    let probe = "[ \"$(tail -n 1 /proc/self/fd/9)\" = frozen ] || exit 1; sleep 1000";
    let mut rig = Rig::frozen(shell, &Wish { probe: Some(probe), ..Wish::default() }, 30);
    rig.tell(&format!("beat {NONCE} 1\nthaw {NONCE}\n"));
    assert_eq!(rig.line(), format!("THAWED {NONCE}"));
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn what_is_already_frozen_is_told_before_ready_and_left_alone(shell: Shell) {
    let mut rig = Rig::with(shell, &Wish { probe: Some("exit 0"), ..Wish::default() });
    assert_eq!(rig.rest(), [format!("EVIDENCE {NONCE} foreign_freeze=1")]);
    assert_eq!(rig.ends_having_done(&[]), 0);
}

fn what_somebody_else_freezes_after_ready_is_left_alone(shell: Shell) {
    let probe = "[ \"$(tail -n 1 /proc/self/fd/9)\" = frozen ]";
    let mut rig = Rig::ready(shell, &Wish { probe: Some(probe), ..Wish::default() });
    std::fs::write(rig.directory().join("log"), "frozen\n").unwrap();
    rig.tell(&format!("freeze {NONCE} 30\n"));
    assert_eq!(rig.rest(), [format!("EVIDENCE {NONCE} foreign_freeze=1")]);
    rig.ends_having_done(&["frozen"]);
}

fn a_probe_that_cannot_be_run_is_refused_before_anything_is_frozen(shell: Shell) {
    let mut rig = Rig::with(shell, &Wish { probe: Some("exec /no/such/program"), ..Wish::default() });
    assert_eq!(rig.rest(), [] as [&str; 0]);
    rig.said("ERROR: the probe");
    assert_ne!(rig.ends_having_done(&[]), 0);
}

fn words_of_the_commands_cannot_become_words_of_the_protocol(shell: Shell) {
    let forge = format!("echo THAWED {NONCE}; echo FROZEN {NONCE} 0 pid=1; echo HELD {NONCE} 1 pid=1");
    let forge = format!("{{ {forge}; }} | tee /dev/stderr");
    let probe = format!("{forge}; [ \"$(tail -n 1 /proc/self/fd/9)\" = frozen ]");
    let (freeze, thaw) = (format!("{forge}; {FREEZE}"), format!("{forge}; {THAW}"));
    let mut rig = Rig::frozen(
        shell,
        &Wish { freeze: &freeze, thaw: &thaw, probe: Some(&probe), ..Wish::default() },
        30,
    );
    let started = Instant::now();
    rig.tell(&format!("beat {NONCE} 5\n"));
    assert!(rig.line().starts_with(&format!("HELD {NONCE} 5 ")));
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    assert!(started.elapsed() < Duration::from_secs(20));
    rig.ends_having_done(&["frozen", "thawed"]);
}

const BARRIER: &str = "echo barrier >&9";

fn a_barrier_runs_after_the_freeze_and_is_told_before_frozen(shell: Shell) {
    let forge = format!("{BARRIER}; echo EVIDENCE {NONCE} barrier=forged; echo FROZEN {NONCE} 0 pid=1");
    let mut rig = Rig::ready(shell, &Wish { barrier: Some(&forge), ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 30\n"));
    let told = HoldLine::Evidence { key: "barrier".into(), value: "command".into() };
    assert_eq!(line(&rig.line()), told);
    assert!(matches!(line(&rig.line()), HoldLine::Frozen { stage: 0, .. }));
    assert_eq!(rig.log(), ["frozen", "barrier"]);
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    rig.ends_having_done(&["frozen", "barrier", "thawed"]);
}

fn a_barrier_that_fails_is_told_and_the_freeze_stands(shell: Shell) {
    let mut rig = Rig::ready(shell, &Wish { barrier: Some("exit 7"), ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 30\n"));
    assert_eq!(rig.line(), format!("EVIDENCE {NONCE} barrier_failed=7"));
    assert!(rig.line().starts_with(&format!("FROZEN {NONCE} 0 ")));
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    rig.ends_having_done(&["frozen", "thawed"]);
}

fn a_freeze_that_fails_has_no_barrier(shell: Shell) {
    let mut rig = Rig::ready(shell, &Wish { freeze: "exit 3", barrier: Some(BARRIER), ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 30\n"));
    assert_eq!(rig.line(), format!("EVIDENCE {NONCE} freeze_failed=3"));
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    rig.ends_having_done(&["thawed"]);
}

fn a_barrier_that_hangs_is_ended_with_the_hold(shell: Shell) {
    let hanging = format!("{BARRIER}; sleep 1000; echo late >&9");
    let mut rig = Rig::ready(shell, &Wish { barrier: Some(&hanging), ..Wish::default() });
    rig.tell(&format!("freeze {NONCE} 30\n"));
    rig.did(&["frozen", "barrier"]);
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")], "neither a barrier nor FROZEN was told");
    rig.ends_having_done(&["frozen", "barrier", "thawed"]);
}

const RENEW: &str = "echo renewed >&9";

fn a_state_that_ends_by_itself_is_renewed_with_every_beat(shell: Shell) {
    let wish = Wish { renew: Some((RENEW, "1h")), ..Wish::default() };
    let mut rig = Rig::frozen(shell, &wish, 60);
    for beat in 1..=2 {
        rig.tell(&format!("beat {NONCE} {beat}\n"));
        assert!(rig.line().starts_with(&format!("HELD {NONCE} {beat} ")));
    }
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    assert_eq!(rig.ends_having_done(&["frozen", "renewed", "renewed", "thawed"]), 0);
}

fn a_state_that_may_have_ended_is_held_no_more(shell: Shell) {
    // So short that every freeze takes longer.
    let wish = Wish { freeze: "echo frozen >&9; sleep 0.1", renew: Some((RENEW, "10ms")), ..Wish::default() };
    let mut rig = Rig::frozen(shell, &wish, 60);
    rig.tell(&format!("beat {NONCE} 1\nbeat {NONCE} 2\n"));
    assert!(rig.line().starts_with(&format!("EVIDENCE {NONCE} lapsed=")));
    rig.tell_word("thaw");
    let rest = rig.rest();
    assert_eq!(rest.last(), Some(&format!("THAWED {NONCE}")));
    assert!(!rest.iter().any(|line| line.starts_with("HELD")), "{rest:?}");
}

fn a_renewal_that_fails_is_no_hold(shell: Shell) {
    let wish = Wish { renew: Some(("echo renewed >&9; exit 1", "1h")), ..Wish::default() };
    let mut rig = Rig::frozen(shell, &wish, 60);
    rig.tell(&format!("beat {NONCE} 1\n"));
    rig.tell_word("thaw");
    assert_eq!(rig.rest(), [format!("THAWED {NONCE}")]);
    assert_eq!(rig.ends_having_done(&["frozen", "renewed", "thawed"]), 0);
}
