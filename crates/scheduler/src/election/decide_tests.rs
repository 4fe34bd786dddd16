//! The table of the election: what each thing that can be seen leads to.

use super::*;

fn at(millis: u64) -> Mono {
    Mono::from_origin(Duration::from_millis(millis))
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn lease(holder: &str, version: &str) -> Sighting {
    let holder = (!holder.is_empty()).then(|| holder.to_owned());
    Sighting { holder, version: version.to_owned(), lasts: Some(secs(15)) }
}

fn looked(holder: &str, version: &str) -> Event {
    Event::Looked(Some(lease(holder, version)))
}

fn wrote(sent: u64, version: &str) -> Event {
    Event::Wrote { sent: at(sent), lease: lease("me", version) }
}

fn hold(version: &str) -> Action {
    Action::Hold(Some(version.to_owned()))
}

fn candidate() -> Election {
    Election::new("me", Terms::default())
}

/// A leader whose renewal was sent at second 100.
fn leader() -> Election {
    let mut election = candidate();
    assert_eq!(election.step(Event::Time, at(99_990)), Action::Look);
    assert_eq!(election.step(Event::Looked(None), at(100_000)), Action::Hold(None));
    assert_eq!(election.step(wrote(100_000, "1"), at(100_010)), Action::Wait(Duration::from_millis(1990)));
    assert_eq!(election.leads_until(), Some(at(110_000)));
    election
}

/// What a candidate that has seen nothing does after its first look.
#[test]
fn a_candidate_decides_by_what_it_sees_first() {
    for (why, seen, action) in [
        ("nobody ever held it", None, Action::Hold(None)),
        ("it was let go", Some(lease("", "7")), hold("7")),
        ("somebody holds it, since whenever", Some(lease("other", "7")), Action::Wait(secs(1))),
        ("our own earlier write whose answer was lost", Some(lease("me", "7")), hold("7")),
    ] {
        let mut election = candidate();
        assert_eq!(election.step(Event::Time, at(0)), Action::Look);
        assert_eq!(election.step(Event::Looked(seen), at(5)), action, "{why}");
        assert_eq!(election.leads_until(), None, "{why}: nobody leads by looking");
    }
}

#[test]
fn a_lease_is_taken_when_it_was_seen_unchanged_for_its_whole_duration_on_our_own_clock() {
    let mut election = candidate();
    election.step(looked("other", "1"), at(0));
    for second in 1..15 {
        let at = at(second * 1000);
        assert_eq!(election.step(Event::Time, at), Action::Look);
        assert_eq!(election.step(looked("other", "1"), at), Action::Wait(secs(1)), "second {second}");
    }
    assert_eq!(election.step(Event::Time, at(14_999)), Action::Wait(Duration::from_millis(1)));
    assert_eq!(election.step(Event::Time, at(15_000)), hold("1"));
    assert_eq!(election.leads_until(), None, "asking is not leading");
    election.step(wrote(15_000, "2"), at(15_020));
    assert_eq!(election.leads_until(), Some(at(25_000)), "from when it was sent");
}

#[test]
fn every_renewal_that_is_seen_starts_the_wait_anew() {
    let mut election = candidate();
    for renewal in 0..20_u64 {
        let seen = looked("other", &renewal.to_string());
        assert_eq!(election.step(seen, at(renewal * 14_000)), Action::Wait(secs(1)));
    }
    assert_eq!(
        election.step(looked("other", "19"), at(19 * 14_000 + 14_999)),
        Action::Wait(Duration::from_millis(1))
    );
    assert_eq!(election.step(Event::Time, at(19 * 14_000 + 15_000)), hold("19"));
}

#[test]
fn the_duration_is_the_holders_word() {
    let mut election = candidate();
    let seen = Sighting { lasts: Some(secs(60)), ..lease("other", "1") };
    election.step(Event::Looked(Some(seen.clone())), at(0));
    assert!(!matches!(election.step(Event::Looked(Some(seen)), at(59_000)), Action::Hold(_)));
    assert_eq!(election.step(Event::Time, at(60_000)), hold("1"));
    let mut election = candidate();
    election.step(Event::Looked(Some(Sighting { lasts: None, ..lease("other", "1") })), at(0));
    assert_eq!(election.step(Event::Time, at(15_000)), hold("1"), "one that says nothing counts as ours do");
}

#[test]
fn a_lease_that_is_let_go_passes_at_the_next_look() {
    let mut election = candidate();
    election.step(looked("other", "1"), at(0));
    assert_eq!(election.step(Event::Time, at(1000)), Action::Look);
    assert_eq!(election.step(looked("", "2"), at(1010)), hold("2"));
}

#[test]
fn a_lease_that_was_deleted_does_not_pass_before_its_holder_must_have_stopped() {
    let mut election = candidate();
    election.step(looked("other", "1"), at(0));
    assert_eq!(election.step(Event::Looked(None), at(3000)), Action::Wait(secs(1)));
    assert_eq!(election.step(Event::Looked(None), at(17_999)), Action::Wait(Duration::from_millis(1)));
    assert_eq!(election.step(Event::Time, at(18_000)), Action::Hold(None));
    // Its own holder makes it again at once.
    let mut election = leader();
    election.step(Event::Failed, at(102_000));
    assert_eq!(election.step(Event::Time, at(103_000)), Action::Look);
    assert_eq!(election.step(Event::Looked(None), at(103_000)), Action::Hold(None));
}

#[test]
fn whoever_lost_the_race_waits_again() {
    let mut election = candidate();
    election.step(looked("other", "1"), at(0));
    assert_eq!(election.step(Event::Time, at(15_000)), hold("1"));
    assert_eq!(election.step(Event::Failed, at(15_010)), Action::Wait(secs(1)));
    assert_eq!(election.step(Event::Time, at(16_010)), Action::Look);
    assert_eq!(election.step(looked("third", "2"), at(16_020)), Action::Wait(secs(1)));
    assert_eq!(election.step(Event::Time, at(31_019)), Action::Look);
    assert_eq!(election.step(looked("third", "2"), at(31_020)), hold("2"));
}

#[test]
fn a_leader_renews_and_its_time_counts_from_when_the_renewal_was_sent() {
    let mut election = leader();
    assert_eq!(election.step(Event::Time, at(102_000)), hold("1"));
    assert_eq!(election.step(wrote(102_000, "2"), at(104_500)), hold("2"), "that took long: the next is due");
    assert_eq!(election.leads_until(), Some(at(112_000)));
}

#[test]
fn a_leader_that_cannot_renew_tries_on_and_stops_by_its_own_clock() {
    let mut election = leader();
    let mut now = 102_000;
    while now < 110_000 {
        assert_eq!(election.leads_until(), Some(at(110_000)), "at {now}");
        election.step(Event::Failed, at(now));
        now += 1000;
        assert_eq!(election.step(Event::Time, at(now)), Action::Look, "at {now}");
    }
    assert_eq!(election.leads_until(), None);
    // Nobody took it: it may lead again.
    assert_eq!(election.step(looked("me", "1"), at(112_000)), hold("1"));
    election.step(wrote(112_000, "2"), at(112_010));
    assert_eq!(election.leads_until(), Some(at(122_000)));
}

#[test]
fn a_leader_stops_when_its_time_is_over_even_if_nothing_happened_since() {
    let mut election = leader();
    election.step(Event::Time, at(3_600_000));
    assert_eq!(election.leads_until(), None, "it was stopped and goes on an hour later");
    let mut election = leader();
    assert_eq!(election.step(wrote(102_000, "2"), at(3_600_000)), hold("2"), "an answer of an hour ago");
    assert_eq!(election.leads_until(), None);
}

#[test]
fn a_leader_that_sees_another_holder_stops_at_once() {
    let mut election = leader();
    election.step(Event::Failed, at(102_000));
    assert_eq!(election.step(looked("other", "9"), at(103_000)), Action::Wait(secs(1)));
    assert_eq!(election.leads_until(), None);
    assert_eq!(election.step(Event::Time, at(118_000)), hold("9"), "and waits like everybody");
}

#[test]
fn a_write_of_somebody_who_is_no_candidate_costs_nothing() {
    let mut election = leader();
    election.step(Event::Failed, at(102_000));
    assert_eq!(election.step(looked("me", "labelled"), at(103_000)), hold("labelled"));
    assert_eq!(election.leads_until(), Some(at(110_000)));
}

#[test]
fn whoever_leaves_lets_go_what_is_its_own_and_nothing_else() {
    let mut election = leader();
    assert_eq!(election.step(Event::Leave, at(101_000)), Action::LetGo("1".to_owned()));
    assert_eq!(election.leads_until(), None);
    assert_eq!(candidate().step(Event::Leave, at(0)), Action::Done);
    let mut waiting = candidate();
    waiting.step(looked("other", "1"), at(0));
    assert_eq!(waiting.step(Event::Leave, at(1)), Action::Done);
    // Of what it has no certain version it leaves alone: that runs out.
    let mut unsure = leader();
    unsure.step(Event::Failed, at(102_000));
    assert_eq!(unsure.step(Event::Leave, at(102_500)), Action::Done);
}

#[test]
fn a_server_that_fails_is_asked_once_per_pause() {
    let mut election = candidate();
    for try_ in 0..10 {
        assert_eq!(election.step(Event::Time, at(try_ * 1000)), Action::Look);
        assert_eq!(election.step(Event::Failed, at(try_ * 1000)), Action::Wait(secs(1)));
    }
}
