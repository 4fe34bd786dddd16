//! The Backups of one policy in less than a hundred bytes each.
//!
//! What is put in comes out equal: a view that does not fit the small form, because its name, its UID or a time is not of the
//! usual kind, is kept as it is. The usual name says policy and slot, and a UID is sixteen bytes.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use jiff::Timestamp;

use crate::projection::{BackupView, Failure};
use crate::retention::Standing;
use crate::slots::base36;

/// No time, in microseconds since 1970.
const NEVER: i64 = i64::MIN;

/// The Backups of one policy, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed {
    /// What the usual names have in common: everything before the slot.
    stem: Option<Box<str>>,
    /// UID of the policy that the usual ones were created for.
    policy: Option<[u8; 16]>,
    rows: Vec<Row>,
}

/// Equal values, one of each: most policies have one application, and many call it the same.
#[derive(Debug)]
pub(crate) struct Names<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// When so many are known, those that nobody has are forgotten.
    sweep_at: usize,
}

/// A UID: sixteen bytes when it is written as the API server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Uid {
    Bytes([u8; 16]),
    Text(Box<str>),
}

/// One Backup.
#[derive(Clone, Debug)]
struct Row {
    /// The slot's minute, which ends the name.
    minute: u32,
    snapshots: u16,
    standing: Standing,
    flags: u8,
    uid: [u8; 16],
    slot: i64,
    created: i64,
    finished: i64,
    cut: i64,
    applications: Arc<[String]>,
    rest: Rest,
}

/// What most rows do not have.
#[derive(Clone, Debug)]
enum Rest {
    Nothing,
    Failed(Box<Failure>),
    /// The view does not fit; nothing else of the row but its seen mark counts.
    Whole(Box<BackupView>),
}

const FREEZING: u8 = 1;
const DELETING: u8 = 2;
const CANCELLED: u8 = 4;
const HELD: u8 = 8;
const OF_POLICY: u8 = 16;
/// The list that is under way showed it.
const SEEN: u8 = 32;

impl Packed {
    /// Notes a Backup; what was known of that name before.
    pub(crate) fn insert(&mut self, mut view: BackupView, names: &mut Names<[String]>) -> Option<BackupView> {
        view.applications = names.intern(&view.applications);
        if self.stem.is_none()
            && view.slot.is_some()
            && let Some((stem, _)) = view.name.rsplit_once('-')
        {
            self.stem = Some(format!("{stem}-").into());
        }
        if self.policy.is_none() {
            self.policy = view.policy_uid.as_deref().and_then(bytes_of);
        }
        let place = self.place(&view.name);
        let mut row = self.pack(&view);
        row.flags |= SEEN;
        match place.and_then(|place| self.rows.get_mut(place)) {
            Some(known) => {
                let before = std::mem::replace(known, row);
                Some(self.unpack(&before))
            }
            None => {
                if self.rows.len() == self.rows.capacity() {
                    // Doubling would waste nearly half: ten points would have room for sixteen.
                    self.rows.reserve_exact(1 + self.rows.len() / 4);
                }
                self.rows.push(row);
                None
            }
        }
    }

    /// Forgets a Backup.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Some(place) = self.place(name) {
            self.rows.swap_remove(place);
        }
    }

    /// The Backup of this name.
    pub(crate) fn get(&self, name: &str) -> Option<BackupView> {
        self.place(name).and_then(|place| self.rows.get(place)).map(|row| self.unpack(row))
    }

    /// All of them, in no order.
    pub(crate) fn views(&self) -> impl Iterator<Item = BackupView> + '_ {
        self.rows.iter().map(|row| self.unpack(row))
    }

    /// Whether there is none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether a run of the policy is not finished.
    pub(crate) fn runs(&self) -> bool {
        self.rows.iter().any(|row| match &row.rest {
            Rest::Whole(view) => view.standing == Standing::Unfinished,
            Rest::Nothing | Rest::Failed(_) => row.standing == Standing::Unfinished,
        })
    }

    /// A list begins: nothing was seen of it.
    pub(crate) fn forget_seen(&mut self) {
        self.rows.iter_mut().for_each(|row| row.flags &= !SEEN);
    }

    /// A list has ended: what it did not show is gone. Whether something was.
    pub(crate) fn keep_seen(&mut self) -> bool {
        let before = self.rows.len();
        self.rows.retain(|row| row.flags & SEEN != 0);
        self.rows.len() != before
    }

    fn place(&self, name: &str) -> Option<usize> {
        let minute = self.minute_of(name);
        self.rows.iter().position(|row| match &row.rest {
            Rest::Whole(view) => view.name == name,
            Rest::Nothing | Rest::Failed(_) => minute == Some(row.minute),
        })
    }

    /// The minute that ends a usual name.
    fn minute_of(&self, name: &str) -> Option<u32> {
        let end = name.strip_prefix(self.stem.as_deref()?)?;
        let minute = u32::from_str_radix(end, 36).ok()?;
        (base36(minute.into()) == end).then_some(minute)
    }

    fn pack(&self, view: &BackupView) -> Row {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let micros = |at: Option<Timestamp>| at.map_or(NEVER, |at| at.as_microsecond());
        let mut row = Row {
            minute: self.minute_of(&view.name).unwrap_or(0),
            snapshots: view.snapshots,
            standing: view.standing,
            flags: flag(view.freezing, FREEZING)
                | flag(view.deleting, DELETING)
                | flag(view.cancelled, CANCELLED)
                | flag(view.held, HELD)
                | flag(view.policy_uid.is_some(), OF_POLICY),
            uid: bytes_of(&view.uid).unwrap_or_default(),
            slot: micros(view.slot),
            created: micros(Some(view.created)),
            finished: micros(view.finished),
            cut: micros(view.cut),
            applications: view.applications.clone(),
            rest: match &view.failure {
                None => Rest::Nothing,
                Some(failure) => Rest::Failed(Box::new(failure.clone())),
            },
        };
        if self.unpack(&row) != *view {
            row.rest = Rest::Whole(Box::new(view.clone()));
        }
        row
    }

    fn unpack(&self, row: &Row) -> BackupView {
        let failure = match &row.rest {
            Rest::Whole(view) => return BackupView::clone(view),
            Rest::Failed(failure) => Some(Failure::clone(failure)),
            Rest::Nothing => None,
        };
        let is = |flag: u8| row.flags & flag != 0;
        let time = |micros: i64| {
            (micros != NEVER).then(|| Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX))
        };
        BackupView {
            name: format!("{}{}", self.stem.as_deref().unwrap_or_default(), base36(row.minute.into())),
            uid: text_of(&row.uid),
            policy_uid: is(OF_POLICY).then(|| self.policy.as_ref().map(text_of).unwrap_or_default()),
            slot: time(row.slot),
            created: time(row.created).unwrap_or(Timestamp::UNIX_EPOCH),
            finished: time(row.finished),
            standing: row.standing,
            freezing: is(FREEZING),
            deleting: is(DELETING),
            cancelled: is(CANCELLED),
            held: is(HELD),
            cut: time(row.cut),
            applications: row.applications.clone(),
            failure,
            snapshots: row.snapshots,
        }
    }
}

impl<T: ?Sized> Default for Names<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: 64 }
    }
}

impl<T: ?Sized + Eq + Hash> Names<T> {
    /// The one value that is equal to `value`.
    pub(crate) fn intern(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(value) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = 64 + 2 * self.known.len();
        }
        self.known.insert(value.clone());
        value.clone()
    }
}

impl Uid {
    /// The UID as it is written in `text`.
    pub(crate) fn of(text: &str) -> Self {
        bytes_of(text).map_or_else(|| Self::Text(text.into()), Self::Bytes)
    }

    /// As it is written.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Bytes(bytes) => text_of(bytes),
            Self::Text(text) => text.to_string(),
        }
    }
}

/// The sixteen bytes of a UUID as the API server writes it.
fn bytes_of(uid: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    let mut digits = uid.bytes().filter(|byte| *byte != b'-');
    for byte in &mut bytes {
        let mut digit = || digits.next().and_then(|byte| char::from(byte).to_digit(16));
        *byte = u8::try_from(digit()? * 16 + digit()?).ok()?;
    }
    (digits.next().is_none() && text_of(&bytes) == uid).then_some(bytes)
}

fn text_of(bytes: &[u8; 16]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(36);
    for (number, byte) in bytes.iter().enumerate() {
        if matches!(number, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for half in [byte >> 4, byte & 15] {
            text.push(DIGITS.get(usize::from(half)).copied().map_or('0', char::from));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::backup_name;

    const POLICY: &str = "5a1e0001-0001-4c0d-9f5b-000000000001";

    fn view(slot: &str) -> BackupView {
        let slot: Timestamp = slot.parse().unwrap();
        BackupView {
            name: backup_name("nightly", POLICY, slot),
            uid: "b0000001-0001-4a0d-8f5b-0000000000ff".into(),
            policy_uid: Some(POLICY.into()),
            slot: Some(slot),
            created: slot,
            finished: Some("2026-11-21T02:00:03.123456Z".parse().unwrap()),
            standing: Standing::Proven,
            freezing: false,
            deleting: false,
            cancelled: true,
            held: true,
            cut: Some("2026-11-21T02:00:01.5Z".parse().unwrap()),
            applications: vec!["db".to_owned()].into(),
            failure: None,
            snapshots: 3,
        }
    }

    fn usual(row: &Row) -> bool {
        match row.rest {
            Rest::Nothing | Rest::Failed(_) => true,
            Rest::Whole(_) => false,
        }
    }

    #[test]
    fn a_usual_backup_takes_less_than_a_hundred_bytes_and_comes_out_equal() {
        let (mut packed, mut names) = (Packed::default(), Names::default());
        assert!(size_of::<Row>() < 100, "{}", size_of::<Row>());
        for day in 10..20 {
            let view = view(&format!("2026-11-{day}T02:00:00Z"));
            assert_eq!(packed.insert(view.clone(), &mut names), None);
            assert_eq!(packed.get(&view.name), Some(view.clone()));
            assert_eq!(packed.insert(view.clone(), &mut names), Some(view));
        }
        assert!(packed.rows.iter().all(usual) && packed.rows.len() == 10 && packed.rows.capacity() <= 13);
    }

    #[test]
    fn whatever_is_unusual_comes_out_equal_too() {
        let usual_one = view("2026-11-10T02:00:00Z");
        let failure = Failure { reason: "NoPods".into(), message: "none".into() };
        let odd = [
            BackupView { name: "by-hand".into(), slot: None, policy_uid: None, ..usual_one.clone() },
            BackupView { name: "by-hand-0a".into(), slot: None, ..usual_one.clone() },
            BackupView { name: format!("{}-b", usual_one.name), ..usual_one.clone() },
            BackupView { uid: "no-uuid".into(), ..view("2026-11-11T02:00:00Z") },
            BackupView { policy_uid: Some("another".into()), ..view("2026-11-12T02:00:00Z") },
            BackupView {
                cut: Some("2026-11-21T02:00:01.123456789Z".parse().unwrap()),
                ..view("2026-11-13T02:00:00Z")
            },
            BackupView { failure: Some(failure), standing: Standing::Failed, ..view("2026-11-14T02:00:00Z") },
            BackupView { slot: Some(Timestamp::MAX), ..view("2026-11-15T02:00:00Z") },
        ];
        // Whichever comes first.
        for first in 0..odd.len() {
            let (mut packed, mut names) = (Packed::default(), Names::default());
            packed.insert(odd[first].clone(), &mut names);
            for view in odd.iter().chain([&usual_one]) {
                packed.insert(view.clone(), &mut names);
            }
            for view in odd.iter().chain([&usual_one]) {
                assert_eq!(packed.get(&view.name).as_ref(), Some(view));
            }
            assert_eq!(packed.rows.len(), odd.len() + 1);
            packed.remove("by-hand");
            assert_eq!(packed.get("by-hand"), None);
            assert_eq!(packed.views().count(), odd.len());
        }
    }

    #[test]
    fn what_a_list_does_not_show_is_gone() {
        let (mut packed, mut names) = (Packed::default(), Names::default());
        let (one, other) = (view("2026-11-10T02:00:00Z"), view("2026-11-11T02:00:00Z"));
        packed.insert(one.clone(), &mut names);
        packed.insert(other.clone(), &mut names);
        packed.forget_seen();
        packed.insert(one.clone(), &mut names);
        assert!(packed.keep_seen() && !packed.keep_seen());
        assert_eq!(packed.views().collect::<Vec<_>>(), [one]);
    }

    #[test]
    fn equal_lists_of_applications_are_one() {
        let mut names = Names::<[String]>::default();
        let lists: Vec<Arc<[String]>> = (0..3).map(|_| names.intern(&vec!["db".to_owned()].into())).collect();
        assert!(Arc::ptr_eq(&lists[0], &lists[2]) && names.known.len() == 1);
    }
}
