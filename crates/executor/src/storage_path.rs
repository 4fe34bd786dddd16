//! How long snapshots take from their request to their cut signal, learned from finished runs. Pure.
//!
//! With upstream's defaults it is not the storage that makes several volumes slow: snapshot-controller and
//! csi-snapshotter ask the API server at most five times a second, and each snapshot costs about four requests on the
//! way to its signal. Two or three are free, every further one waits (docs/design/freeze.md §9). What runs have
//! measured is preferred to that model, and the preflight refuses a window that cannot fit before anything is frozen.

use std::time::Duration;

use stillpoint_api::backup::BackupStatus;
use stillpoint_api::evidence::MemberEvidence;

/// Client rate of snapshot-controller and csi-snapshotter when nobody sets it: requests per second.
pub const UPSTREAM_QPS: u32 = 5;
/// Requests that both may send at once before that rate binds.
pub const UPSTREAM_BURST: u32 = 10;
/// Requests of the busier of both from the POST to the signal: counted in their sources, and what the test cluster's
/// figures fit (ten volumes 6.0 s, five 1.8 to 2.2 s, three 0.2 s).
const REQUESTS_PER_SNAPSHOT: u32 = 4;
/// One snapshot alone on an idle test cluster: the median.
const FIRST: Duration = Duration::from_millis(62);
/// What each further one adds without a throttle: ten take 346 ms.
const EACH: Duration = Duration::from_millis(32);
/// Runs with fewer volumes than this fit into the burst and tell nothing about a throttle.
const TELLING_VOLUMES: usize = 4;
/// A wait this much longer than the first one is no noise of a busy API server (p99 of a single one is below 0.3 s).
const QUEUED: Duration = Duration::from_secs(1);
/// Runs that count, newest first: an operator who raised the rate should be believed soon.
const NEWEST_RUNS: usize = 3;

/// How long the snapshots of one run took: from the POST to the signal each, shortest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathRun {
    /// One per snapshot that was seen cut.
    pub waits: Vec<Duration>,
}

/// Why the snapshots of a run wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// The first ones came together, the later ones one step after the other: the burst of a client throttle.
    Throttled {
        /// What each snapshot beyond the burst adds.
        step: Duration,
    },
    /// One after the other from the first on: the driver makes them one by one.
    Serialised {
        /// What each snapshot adds.
        step: Duration,
    },
}

impl Queue {
    /// Whether a client throttle at upstream's default rate can look like this. On a busy machine the snapshots that the burst
    /// lets through do not come together, and the throttle looks like a driver that makes one after the other; its step
    /// tells then: four requests at five a second are 0.8 s, from half to one and a half of which was seen.
    pub fn may_be_throttle(self) -> bool {
        let usual = Duration::from_secs(u64::from(REQUESTS_PER_SNAPSHOT)) / UPSTREAM_QPS;
        match self {
            Self::Throttled { .. } => true,
            Self::Serialised { step } => (usual / 2..=usual + usual / 2).contains(&step),
        }
    }

    /// What each further snapshot adds.
    pub const fn step(self) -> Duration {
        match self {
            Self::Throttled { step } | Self::Serialised { step } => step,
        }
    }
}

/// What the storage path of a window is expected to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// From the first POST to the last signal.
    pub window: Duration,
    /// Where the figure comes from.
    pub basis: Basis,
}

/// Where an expected window comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Nothing was measured that tells: upstream's default throttle is assumed.
    Assumed,
    /// From runs of the same storage path.
    Measured {
        /// Volumes of the run it rests on.
        volumes: usize,
        /// Why its snapshots waited for each other, if they did.
        queue: Option<Queue>,
    },
}

impl PathRun {
    /// The storage path of a run's last attempt; none where no snapshot was seen cut. Members of a group snapshot do
    /// not count: they share one request.
    pub fn of(status: &BackupStatus) -> Option<Self> {
        let mut waits: Vec<Duration> = status.members.iter().filter_map(wait).collect();
        waits.sort_unstable();
        (!waits.is_empty()).then_some(Self { waits })
    }

    /// Why the snapshots waited for each other; none where they did not.
    pub fn queue(&self) -> Option<Queue> {
        let [first, second, .., last] = self.waits.as_slice() else { return None };
        if self.waits.len() < TELLING_VOLUMES || last.saturating_sub(*first) < QUEUED {
            return None;
        }
        let step_after = |from: Duration, snapshots: usize| {
            last.saturating_sub(from) / u32::try_from(snapshots).unwrap_or(u32::MAX).max(1)
        };
        let steady = step_after(*first, self.waits.len() - 1);
        // A burst lets at least two through together; a driver that makes one after the other does not.
        if second.saturating_sub(*first) < steady / 2 {
            let beyond_burst = self.waits.len() - free_snapshots();
            Some(Queue::Throttled { step: step_after(*first, beyond_burst) })
        } else {
            Some(Queue::Serialised { step: steady })
        }
    }
}

fn wait(member: &MemberEvidence) -> Option<Duration> {
    if member.group.is_some() {
        return None;
    }
    let micros = member.signal?.0.checked_sub(member.post_sent?.0)?;
    u64::try_from(micros).ok().map(Duration::from_micros)
}

/// Snapshots that fit into the default burst.
const fn free_snapshots() -> usize {
    (UPSTREAM_BURST / REQUESTS_PER_SNAPSHOT) as usize
}

/// What `volumes` snapshots posted at once wait for a client throttle.
pub fn throttle_delay(volumes: usize, qps: u32, burst: u32) -> Duration {
    let requests = u32::try_from(volumes).unwrap_or(u32::MAX).saturating_mul(REQUESTS_PER_SNAPSHOT);
    Duration::from_secs(u64::from(requests.saturating_sub(burst))) / qps.max(1)
}

/// Expected time from the first POST to the last signal of `snapshots` single snapshots (a group counts as one), from the
/// finished runs on the same drivers, newest first.
///
/// A refusal that rests on [`Basis::Assumed`] would refuse for ever on a cluster whose rates were raised: only what was
/// measured, and lately, is a reason to refuse.
pub fn expected_window(snapshots: usize, newest_first: &[PathRun]) -> Expected {
    if snapshots == 0 {
        return Expected { window: Duration::ZERO, basis: Basis::Assumed };
    }
    let telling = newest_first.iter().filter(|run| run.waits.len() >= TELLING_VOLUMES.min(snapshots));
    let slowest =
        telling.take(NEWEST_RUNS).map(|run| (extrapolate(run, snapshots), run)).max_by_key(|of| of.0);
    match slowest {
        Some((window, run)) => {
            Expected { window, basis: Basis::Measured { volumes: run.waits.len(), queue: run.queue() } }
        }
        None => {
            let rest = u32::try_from(snapshots - 1).unwrap_or(u32::MAX);
            let path = FIRST.saturating_add(EACH.saturating_mul(rest));
            let window = path.saturating_add(throttle_delay(snapshots, UPSTREAM_QPS, UPSTREAM_BURST));
            Expected { window, basis: Basis::Assumed }
        }
    }
}

/// The `snapshots`-th wait of a run, beyond its last one by steps.
fn extrapolate(run: &PathRun, snapshots: usize) -> Duration {
    if let Some(wait) = run.waits.get(snapshots - 1) {
        return *wait;
    }
    let last = run.waits.last().copied().unwrap_or(FIRST);
    let beyond = u32::try_from(snapshots - run.waits.len()).unwrap_or(u32::MAX);
    let step = run.queue().map_or(EACH, Queue::step);
    last.saturating_add(step.saturating_mul(beyond))
}

/// Why snapshots of the newest runs wait for each other: the newest run that tells, if it shows a queue.
pub fn detect(newest_first: &[PathRun]) -> Option<(Queue, &PathRun)> {
    let run = newest_first.iter().find(|run| run.waits.len() >= TELLING_VOLUMES)?;
    Some((run.queue()?, run))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_api::evidence::Offset;

    fn run(seconds: &[f64]) -> PathRun {
        PathRun { waits: seconds.iter().map(|wait| Duration::from_secs_f64(*wait)).collect() }
    }

    /// Taken from the API server's audit log of the test cluster at the default rate.
    const TEN_THROTTLED: [f64; 10] = [0.11, 0.12, 1.43, 2.03, 2.23, 2.68, 3.48, 4.28, 5.08, 5.88];
    const TEN_AGAIN: [f64; 10] = [0.08, 0.09, 1.02, 1.66, 2.43, 2.82, 3.63, 4.23, 5.08, 5.83];
    const FIVE_THROTTLED: [f64; 5] = [0.12, 0.12, 0.27, 0.47, 2.23];
    /// The same cluster with a raised rate.
    const TEN_RAISED: [f64; 10] = [0.05, 0.08, 0.11, 0.15, 0.18, 0.21, 0.25, 0.28, 0.31, 0.35];

    #[test]
    fn the_default_throttle_is_recognised_in_what_was_measured() {
        for waits in [&TEN_THROTTLED[..], &TEN_AGAIN, &FIVE_THROTTLED] {
            let found = run(waits).queue();
            let Some(Queue::Throttled { step }) = found else { panic!("{waits:?}: {found:?}") };
            assert!((0.5..1.0).contains(&step.as_secs_f64()), "{step:?}");
        }
    }

    #[test]
    fn a_raised_rate_and_few_volumes_are_no_throttle() {
        for waits in [&TEN_RAISED[..], &[0.06], &[0.09, 0.2, 0.24], &[0.1, 0.1, 1.9]] {
            assert_eq!(run(waits).queue(), None, "{waits:?}");
        }
    }

    #[test]
    fn a_driver_that_makes_one_after_the_other_is_told_from_a_throttle() {
        let found = run(&[2.0, 4.1, 6.0, 8.1, 10.0]).queue();
        let Some(Queue::Serialised { step }) = found else { panic!("{found:?}") };
        assert_eq!(step, Duration::from_secs(2));
        assert!(!found.unwrap().may_be_throttle());
    }

    #[test]
    fn a_throttle_on_a_busy_machine_is_not_taken_for_a_slow_driver() {
        let busy = run(&[0.5, 0.9, 1.5, 2.1, 2.8, 3.4, 4.0, 4.7, 5.3, 6.1]).queue().unwrap();
        assert!(matches!(busy, Queue::Serialised { .. }), "{busy:?}");
        assert!(busy.may_be_throttle(), "{busy:?}");
    }

    #[test]
    fn the_assumed_window_fits_what_was_measured_at_the_default_rate() {
        for (volumes, low, high) in [(1, 0.05, 0.08), (3, 0.1, 0.6), (5, 1.8, 2.3), (10, 5.8, 6.5)] {
            let expected = expected_window(volumes, &[]);
            assert_eq!(expected.basis, Basis::Assumed);
            let seconds = expected.window.as_secs_f64();
            assert!((low..high).contains(&seconds), "{volumes} volumes: {seconds} s");
        }
    }

    #[test]
    fn what_was_measured_is_preferred_and_continued_by_its_own_step() {
        let raised = expected_window(20, &[run(&TEN_RAISED)]);
        assert!(raised.window < Duration::from_secs(1), "{raised:?}");
        let throttled = expected_window(40, &[run(&TEN_THROTTLED)]);
        assert!(throttled.window > Duration::from_secs(25), "{throttled:?}");
        let Basis::Measured { volumes: 10, queue: Some(Queue::Throttled { .. }) } = throttled.basis else {
            panic!("{throttled:?}")
        };
        assert_eq!(expected_window(4, &[run(&TEN_THROTTLED)]).window, Duration::from_millis(2030));
    }

    #[test]
    fn runs_that_fit_into_the_burst_do_not_speak_for_many_volumes() {
        let expected = expected_window(10, &[run(&[0.06]), run(&[0.09, 0.2, 0.24])]);
        assert_eq!(expected.basis, Basis::Assumed);
        assert_eq!(expected_window(1, &[run(&[0.08])]).window, Duration::from_millis(80));
    }

    #[test]
    fn three_runs_at_a_raised_rate_outweigh_older_ones() {
        let newest_first = [run(&TEN_RAISED), run(&TEN_RAISED), run(&TEN_RAISED), run(&TEN_THROTTLED)];
        assert!(expected_window(10, &newest_first).window < Duration::from_secs(1));
        assert_eq!(detect(&newest_first), None);
        assert!(expected_window(10, &newest_first[2..]).window > Duration::from_secs(5));
        assert!(detect(&newest_first[3..]).is_some());
    }

    #[test]
    fn waits_count_from_each_snapshots_own_request() {
        let member = |posted, signal| MemberEvidence {
            post_sent: Some(Offset(posted)),
            signal,
            ..MemberEvidence::default()
        };
        let members =
            vec![member(100, Some(Offset(60_100))), member(50, None), member(200, Some(Offset(20_200)))];
        let status = BackupStatus { members, ..BackupStatus::default() };
        let waits = PathRun::of(&status).unwrap().waits;
        assert_eq!(waits, [Duration::from_millis(20), Duration::from_millis(60)]);
        assert_eq!(PathRun::of(&BackupStatus::default()), None);
    }

    #[test]
    fn nothing_to_cut_takes_no_time() {
        assert_eq!(expected_window(0, &[]).window, Duration::ZERO);
    }
}
