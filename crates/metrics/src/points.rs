//! What the Backups of one policy say, in sixty-four bytes each.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::facts::PointState;

/// No time, in microseconds since 1970.
const NEVER: i64 = i64::MIN;

const HELD: u8 = 1;
const LEFT_QUIESCED: u8 = 2;
/// It waits for its turn among the freezes that rules allow.
const WAITS: u8 = 8;
/// The list that is under way showed it.
const SEEN: u8 = 4;

/// What one Backup says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BackupProjection {
    /// What it is; never `Held`, which it may be besides.
    pub state: PointState,
    pub held: bool,
    pub point: Option<Timestamp>,
    pub started: Option<Timestamp>,
    pub frozen_since: Option<Timestamp>,
    pub left_quiesced: bool,
    /// It waits for its turn among the freezes that rules allow.
    pub waits: bool,
    /// Its start and its length, of which microseconds are remembered, for at most 71 minutes.
    pub freeze: Option<(Timestamp, Duration)>,
    pub finished: Option<Timestamp>,
    pub cut_spread: Option<f32>,
    pub restore_bytes: u64,
    /// Claims whose data it has; shared between the Backups of a policy that have the same.
    pub claims: Arc<[String]>,
}

/// The Backups of one policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Points {
    /// The lists of claims that rows have, each once; a place that no row has is used again.
    lists: Box<[Arc<[String]>]>,
    rows: Vec<Row>,
}

/// Which Backup, by its name: a hash of this process. Two that are equal by chance, of one policy, are one in 10^14.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(u64);

/// Makes [`Id`]s.
#[derive(Debug, Default)]
pub(crate) struct Ids(RandomState);

/// Equal values, one of each.
#[derive(Debug)]
pub(crate) struct Shared<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// When so many are known, those that nobody has are forgotten.
    sweep_at: usize,
}

#[derive(Clone, Debug)]
struct Row {
    id: Id,
    point: i64,
    started: i64,
    finished: i64,
    frozen_since: i64,
    restore_bytes: u64,
    /// Seconds since 1970, 0 for none: it only tells which window is the newest.
    freeze_at: u32,
    freeze_micros: u32,
    /// No number: none.
    cut_spread: f32,
    /// Which of the lists of claims.
    list: u16,
    state: PointState,
    flags: u8,
}

impl Ids {
    /// The identity of a name.
    pub(crate) fn of(&self, name: &str) -> Id {
        Id(self.0.hash_one(name))
    }
}

impl Points {
    /// Notes a Backup.
    pub(crate) fn insert(&mut self, id: Id, backup: BackupProjection) {
        let micros = |at: Option<Timestamp>| at.map_or(NEVER, |at| at.as_microsecond());
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let list = self.list(backup.claims);
        let row = Row {
            id,
            point: micros(backup.point),
            started: micros(backup.started),
            finished: micros(backup.finished),
            frozen_since: micros(backup.frozen_since),
            restore_bytes: backup.restore_bytes,
            freeze_at: backup.freeze.map_or(0, |(at, _)| u32::try_from(at.as_second()).unwrap_or(u32::MAX)),
            freeze_micros: backup
                .freeze
                .map_or(0, |(_, length)| u32::try_from(length.as_micros()).unwrap_or(u32::MAX)),
            cut_spread: backup.cut_spread.unwrap_or(f32::NAN),
            list,
            state: backup.state,
            flags: flag(backup.held, HELD)
                | flag(backup.left_quiesced, LEFT_QUIESCED)
                | flag(backup.waits, WAITS)
                | SEEN,
        };
        match self.rows.iter_mut().find(|known| known.id == id) {
            Some(known) => *known = row,
            None => {
                if self.rows.len() == self.rows.capacity() {
                    // Doubling would waste nearly half: ten points would have room for sixteen.
                    self.rows.reserve_exact(1 + self.rows.len() / 4);
                }
                self.rows.push(row);
            }
        }
    }

    /// The place of a list of claims.
    fn list(&mut self, claims: Arc<[String]>) -> u16 {
        let known = self.lists.iter().position(|known| *known == claims);
        let place = known.unwrap_or_else(|| {
            let used = |place: usize| self.rows.iter().any(|row| usize::from(row.list) == place);
            (0..self.lists.len()).find(|place| !used(*place)).unwrap_or(self.lists.len())
        });
        // More different lists than that are no policy's: such a Backup counts as one without claims.
        let Ok(index) = u16::try_from(place) else { return u16::MAX };
        if let Some(list) = self.lists.get_mut(place) {
            *list = claims;
        } else {
            let lists = std::mem::take(&mut self.lists).into_vec();
            self.lists = lists.into_iter().chain([claims]).collect();
        }
        index
    }

    fn claims(&self, row: &Row) -> Option<&Arc<[String]>> {
        self.lists.get(usize::from(row.list))
    }

    /// Forgets a Backup.
    pub(crate) fn remove(&mut self, id: Id) {
        self.rows.retain(|row| row.id != id);
    }

    /// Whether there is none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether an application of one of them is, or may be, frozen.
    pub(crate) fn any_frozen(&self) -> bool {
        self.rows.iter().any(|row| row.frozen_since != NEVER || row.flags & LEFT_QUIESCED != 0)
    }

    /// How many wait for their turn.
    pub(crate) fn waiting(&self) -> usize {
        self.rows.iter().filter(|row| row.flags & WAITS != 0).count()
    }

    /// The claims of each that is ready.
    pub(crate) fn claims_of_ready(&self) -> impl Iterator<Item = &Arc<[String]>> {
        let ready = self.rows.iter().filter(|row| row.state == PointState::Ready);
        ready.filter_map(|row| self.claims(row))
    }

    /// A list begins: nothing was seen of it.
    pub(crate) fn forget_seen(&mut self) {
        self.rows.iter_mut().for_each(|row| row.flags &= !SEEN);
    }

    /// The list has ended: what it did not show is gone.
    pub(crate) fn keep_seen(&mut self) {
        self.rows.retain(|row| row.flags & SEEN != 0);
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BackupProjection> + '_ {
        let time = |micros: i64| {
            (micros != NEVER).then(|| Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX))
        };
        self.rows.iter().map(move |row| BackupProjection {
            state: row.state,
            held: row.flags & HELD != 0,
            point: time(row.point),
            started: time(row.started),
            frozen_since: time(row.frozen_since),
            left_quiesced: row.flags & LEFT_QUIESCED != 0,
            waits: row.flags & WAITS != 0,
            freeze: (row.freeze_at != 0).then(|| {
                let at = Timestamp::from_second(row.freeze_at.into()).unwrap_or(Timestamp::MAX);
                (at, Duration::from_micros(row.freeze_micros.into()))
            }),
            finished: time(row.finished),
            cut_spread: (!row.cut_spread.is_nan()).then_some(row.cut_spread),
            restore_bytes: row.restore_bytes,
            claims: self.claims(row).cloned().unwrap_or_default(),
        })
    }
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: 64 }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// The one value that is equal to `value`.
    pub(crate) fn one(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(&value) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = 64 + 2 * self.known.len();
        }
        self.known.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_comes_out_as_it_went_in_and_is_small() {
        let at: Timestamp = "2026-11-21T02:00:01.123456Z".parse().unwrap();
        let ready = BackupProjection {
            state: PointState::Ready,
            held: true,
            point: Some(at),
            started: None,
            frozen_since: None,
            left_quiesced: false,
            waits: false,
            freeze: Some(("2026-11-21T02:00:01Z".parse().unwrap(), Duration::from_micros(70_001))),
            finished: Some(at),
            cut_spread: Some(0.25),
            restore_bytes: 1 << 40,
            claims: vec!["data".to_owned()].into(),
        };
        let running = BackupProjection {
            state: PointState::Pending,
            point: None,
            started: Some(at),
            frozen_since: Some(at),
            left_quiesced: true,
            waits: true,
            freeze: None,
            finished: None,
            cut_spread: None,
            ..ready.clone()
        };
        let (ids, mut points) = (Ids::default(), Points::default());
        points.insert(ids.of("a"), ready.clone());
        points.insert(ids.of("b"), ready.clone());
        points.insert(ids.of("b"), running.clone());
        assert_eq!(points.iter().collect::<Vec<_>>(), [ready.clone(), running]);
        assert!(size_of::<Row>() <= 64);
        points.forget_seen();
        points.insert(ids.of("b"), ready.clone());
        points.keep_seen();
        assert_eq!(points.iter().count(), 1);
        points.remove(ids.of("b"));
        assert!(points.is_empty());
    }

    #[test]
    fn each_backup_keeps_its_own_claims() {
        let of = |claim: u32| BackupProjection {
            state: PointState::Ready,
            held: false,
            point: None,
            started: None,
            frozen_since: None,
            left_quiesced: false,
            waits: false,
            freeze: None,
            finished: None,
            cut_spread: None,
            restore_bytes: 0,
            claims: vec![format!("data-{claim}")].into(),
        };
        let (ids, mut points) = (Ids::default(), Points::default());
        (0..40).for_each(|claim| points.insert(ids.of(&format!("b{}", claim / 2)), of(claim)));
        let found: Vec<String> = points.claims_of_ready().map(|claims| claims[0].clone()).collect();
        let expected: Vec<String> = (0..20).map(|number| format!("data-{}", number * 2 + 1)).collect();
        assert_eq!(found, expected);
        // A list that no Backup has any more gives its place away.
        assert!(points.lists.len() <= 21, "{}", points.lists.len());
    }

    #[test]
    fn equal_values_are_one_and_what_nobody_has_is_forgotten() {
        let mut shared = Shared::<str>::default();
        let (one, other) = (shared.one("a".into()), shared.one("a".into()));
        assert!(Arc::ptr_eq(&one, &other));
        (0..1000).for_each(|number| drop(shared.one(number.to_string().into())));
        assert!(shared.known.len() <= 130 && shared.known.contains("a"), "{}", shared.known.len());
    }
}
