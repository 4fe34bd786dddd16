//! Rule 6: our clock may be wrong, and the API server's is known.

use stillpoint_api::evidence::ApiClock;

use super::*;

/// A cut `after` t0 on the cluster's clock (seconds; negative: before it), while the API server's clock is ahead of ours by
/// this much (seconds), known to half a second either way; `None`: not known.
fn cut(after: f64, ahead: Option<f64>) -> Case {
    let micros = |seconds: f64| (seconds * 1e6) as i64;
    let mut case = locked();
    let told = Some((T0_MICROS + micros(ahead.unwrap_or(0.0)) + micros(after)) * 1_000);
    case.members[0].creation_time = told;
    case.members[0].settled.as_mut().unwrap().creation_time = told;
    case.window.api_clock = ahead.map(|ahead| ApiClock {
        least_ahead_micros: micros(ahead - 0.5),
        most_ahead_micros: micros(ahead + 0.5),
    });
    case
}

#[test]
fn rule_6_a_clock_that_is_behind_passes_no_cut_from_before_the_request() {
    for ahead in [5.0, 60.0, 3_600.0] {
        let case = cut(-4.0, Some(ahead));
        only_rule_refuses(6, &case);
        assert_eq!(case.consistency(), Consistency::None, "{ahead}");
        assert_eq!(cut(0.05, Some(ahead)).consistency(), Consistency::Application, "{ahead}");
    }
}

#[test]
fn rule_6_a_clock_that_is_ahead_voids_no_true_cut() {
    for ahead in [-5.0, -60.0, -3_600.0] {
        let case = cut(0.05, Some(ahead));
        assert_eq!(case.consistency(), Consistency::Application, "{ahead}");
        let warnings = judge(&case.evidence()).verdict.warnings;
        assert!(!warnings.iter().any(|warning| warning.contains("clocks differ")), "{ahead}: {warnings:?}");
        assert_eq!(cut(-4.0, Some(ahead)).consistency(), Consistency::None, "{ahead}");
    }
    let mut unknown = cut(0.05, Some(-5.0));
    unknown.window.api_clock = None;
    only_rule_refuses(6, &unknown);
}

#[test]
fn rule_6_the_finding_says_how_the_clocks_stand() {
    let verdict = judge(&cut(-4.0, Some(60.0)).evidence()).verdict;
    assert!(verdict.missing[0].finding.contains("is ahead by 59.5 s to 60.5 s"), "{:?}", verdict.missing);
    let agreed = judge(&cut(-4.0, Some(0.0)).evidence()).verdict;
    assert!(!agreed.missing[0].finding.contains("ahead"), "{:?}", agreed.missing);
}
