//! What the Backups of one policy say, in less than a hundred bytes each.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::Arc;

use jiff::Timestamp;

use crate::facts::PointState;

/// No time, in microseconds since 1970.
const NEVER: i64 = i64::MIN;

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
    pub freeze: Option<(Timestamp, f64)>,
    pub finished: Option<Timestamp>,
    pub cut_spread: Option<f32>,
    pub restore_bytes: u64,
    /// Claims whose data it has; shared between the Backups of a policy that have the same.
    pub claims: Arc<[String]>,
}

/// The Backups of one policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Points {
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
    freeze_at: i64,
    freeze_seconds: f64,
    finished: i64,
    restore_bytes: u64,
    claims: Arc<[String]>,
    /// No number: none.
    cut_spread: f32,
    state: PointState,
    held: bool,
    left_quiesced: bool,
    /// The list that is under way showed it.
    seen: bool,
    started: i64,
    frozen_since: i64,
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
        let same = self.rows.iter().find(|known| known.claims == backup.claims);
        let row = Row {
            id,
            finished: micros(backup.finished),
            restore_bytes: backup.restore_bytes,
            claims: same.map_or(backup.claims, |same| Arc::clone(&same.claims)),
            cut_spread: backup.cut_spread.unwrap_or(f32::NAN),
            point: micros(backup.point),
            freeze_at: micros(backup.freeze.map(|(at, _)| at)),
            freeze_seconds: backup.freeze.map_or(0.0, |(_, seconds)| seconds),
            state: backup.state,
            held: backup.held,
            left_quiesced: backup.left_quiesced,
            seen: true,
            started: micros(backup.started),
            frozen_since: micros(backup.frozen_since),
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

    /// The claims of each that is ready.
    pub(crate) fn claims_of_ready(&self) -> impl Iterator<Item = &Arc<[String]>> {
        self.rows.iter().filter(|row| row.state == PointState::Ready).map(|row| &row.claims)
    }

    /// A list begins: nothing was seen of it.
    pub(crate) fn forget_seen(&mut self) {
        self.rows.iter_mut().for_each(|row| row.seen = false);
    }

    /// The list has ended: what it did not show is gone.
    pub(crate) fn keep_seen(&mut self) {
        self.rows.retain(|row| row.seen);
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BackupProjection> + '_ {
        let time = |micros: i64| {
            (micros != NEVER).then(|| Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX))
        };
        self.rows.iter().map(move |row| BackupProjection {
            state: row.state,
            held: row.held,
            point: time(row.point),
            started: time(row.started),
            frozen_since: time(row.frozen_since),
            left_quiesced: row.left_quiesced,
            freeze: time(row.freeze_at).map(|at| (at, row.freeze_seconds)),
            finished: time(row.finished),
            cut_spread: (!row.cut_spread.is_nan()).then_some(row.cut_spread),
            restore_bytes: row.restore_bytes,
            claims: Arc::clone(&row.claims),
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
            freeze: Some((at, 0.07)),
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
        assert!(size_of::<Row>() <= 96);
        points.forget_seen();
        points.insert(ids.of("b"), ready.clone());
        points.keep_seen();
        assert_eq!(points.iter().count(), 1);
        points.remove(ids.of("b"));
        assert!(points.is_empty());
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
