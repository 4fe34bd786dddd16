//! Decides which recovery points of one policy may go.
//!
//! Guarantees: only proven, ready points count towards what is kept; the newest of them is never deleted; nothing
//! is deleted while the clock is in doubt; points that are kept say why (docs/design/schedule.md §5).

use jiff::Timestamp;

/// Failed runs that are kept for inspection, newest first; they never push out a proven point.
pub const FAILED_KEPT: usize = 3;

/// A Backup as retention sees it; one that is being deleted already is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Name of the Backup.
    pub name: String,
    /// When the data was cut; for a run without a cut, when it was created.
    pub cut: Timestamp,
    /// Where it stands.
    pub standing: Standing,
}

/// What a Backup is worth to retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not finished.
    Unfinished,
    /// Finished, ready and proven `Application`.
    Proven,
    /// Finished and usable, but not proven: kept under `BestEffort`.
    Unproven,
    /// Finished without a usable point.
    Failed,
}

/// What retention decides about one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Points that stay and why.
    pub keep: Vec<(String, KeepReason)>,
    /// Points that go, oldest first.
    pub delete: Vec<String>,
}

/// Why a point stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// One of the newest n proven points; 1 is the newest.
    Last(u32),
    /// The newest proven point, whatever the rules say.
    NewestProven,
    /// One of the newest failed runs, kept for inspection.
    RecentFailure,
    /// Not finished.
    Unfinished,
    /// Cut in the future: written by a wrong clock.
    FutureDated,
    /// Nothing is deleted while the clock is in doubt.
    ClockSkew,
}

/// Applies `retention.last` at `now`. `skewed`: the clock is in doubt.
///
/// Unproven points have the same number, counted among themselves: they neither count for nor against proven ones.
pub fn plan(points: &[Point], last: u32, skewed: bool, now: Timestamp) -> Plan {
    let mut newest_first: Vec<&Point> = points.iter().collect();
    // The name decides between equal cuts, so that two passes agree.
    newest_first.sort_by(|a, b| b.cut.cmp(&a.cut).then_with(|| b.name.cmp(&a.name)));
    let (mut proven, mut unproven, mut failed) = (0_u32, 0_u32, 0_usize);
    let mut plan = Plan::default();
    for point in newest_first {
        let reason = if point.standing == Standing::Unfinished {
            Some(KeepReason::Unfinished)
        } else if point.cut > now {
            // Never an anchor: it takes no place among the newest.
            Some(KeepReason::FutureDated)
        } else {
            let by_rule = match point.standing {
                Standing::Unfinished => Some(KeepReason::Unfinished),
                Standing::Proven => {
                    proven += 1;
                    match proven {
                        nth if nth <= last => Some(KeepReason::Last(nth)),
                        1 => Some(KeepReason::NewestProven),
                        _ => None,
                    }
                }
                Standing::Unproven => {
                    unproven += 1;
                    (unproven <= last).then_some(KeepReason::Last(unproven))
                }
                Standing::Failed => {
                    failed += 1;
                    (failed <= FAILED_KEPT).then_some(KeepReason::RecentFailure)
                }
            };
            by_rule.or(skewed.then_some(KeepReason::ClockSkew))
        };
        match reason {
            Some(reason) => plan.keep.push((point.name.clone(), reason)),
            None => plan.delete.push(point.name.clone()),
        }
    }
    plan.delete.reverse();
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn point(name: &str, hour: i64, standing: Standing) -> Point {
        Point { name: name.to_owned(), cut: at(hour), standing }
    }

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(NOW + hour * 3600).unwrap()
    }

    fn proven(count: i64) -> Vec<Point> {
        (1..=count).map(|age| point(&format!("p{age}"), -age, Standing::Proven)).collect()
    }

    #[test]
    fn the_newest_n_proven_points_are_kept_and_older_ones_go_oldest_first() {
        let plan = plan(&proven(5), 3, false, at(0));
        assert_eq!(plan.delete, ["p5", "p4"]);
        assert_eq!(plan.keep[0], ("p1".to_owned(), KeepReason::Last(1)));
        assert_eq!(plan.keep.len(), 3);
    }

    #[test]
    fn failed_runs_never_push_out_a_proven_point() {
        let mut points = vec![point("good", -100, Standing::Proven)];
        points.extend((1..=50).map(|age| point(&format!("bad{age:02}"), -age, Standing::Failed)));
        let plan = plan(&points, 3, false, at(0));
        assert!(plan.keep.contains(&("good".to_owned(), KeepReason::Last(1))));
        assert_eq!(plan.delete.len(), 50 - FAILED_KEPT);
        assert!(!plan.delete.contains(&"bad01".to_owned()));
    }

    #[test]
    fn unproven_points_do_not_count_as_proven() {
        let mut points = proven(2);
        points.extend((1..=9).map(|age| point(&format!("crash{age}"), -age, Standing::Unproven)));
        let plan = plan(&points, 2, false, at(0));
        assert!(plan.delete.iter().all(|name| name.starts_with("crash")));
        assert_eq!(plan.delete.len(), 7);
    }

    #[test]
    fn the_newest_proven_point_stays_even_when_none_is_asked_for() {
        let plan = plan(&proven(3), 0, false, at(0));
        assert_eq!(plan.keep, [("p1".to_owned(), KeepReason::NewestProven)]);
    }

    #[test]
    fn nothing_is_deleted_while_the_clock_is_in_doubt() {
        assert_eq!(plan(&proven(9), 1, true, at(0)).delete, Vec::<String>::new());
    }

    #[test]
    fn a_point_from_the_future_is_kept_and_takes_no_place() {
        let mut points = proven(2);
        points.push(point("future", 1, Standing::Proven));
        let plan = plan(&points, 1, false, at(0));
        assert!(plan.keep.contains(&("future".to_owned(), KeepReason::FutureDated)));
        assert!(plan.keep.contains(&("p1".to_owned(), KeepReason::Last(1))));
        assert_eq!(plan.delete, ["p2"]);
    }

    #[test]
    fn unfinished_runs_stay() {
        let mut points = proven(2);
        points.push(point("running", -500, Standing::Unfinished));
        let plan = plan(&points, 1, false, at(0));
        assert_eq!(plan.delete, ["p2"]);
    }

    #[test]
    fn a_scheduler_that_was_dead_for_a_month_deletes_nothing() {
        assert_eq!(plan(&proven(7), 7, false, at(30 * 24)).delete, Vec::<String>::new());
    }

    #[test]
    fn a_second_pass_after_the_deletes_decides_nothing_new() {
        let points = proven(20);
        let first = plan(&points, 4, false, at(0));
        let left: Vec<Point> =
            points.into_iter().filter(|point| !first.delete.contains(&point.name)).collect();
        assert_eq!(plan(&left, 4, false, at(0)).delete, Vec::<String>::new());
    }
}
