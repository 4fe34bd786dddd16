//! The Backups of one policy in fifty-six bytes each.
//!
//! What is put in comes out equal: a view that does not fit the small form, because its name, its UID or a time is not of the
//! usual kind, is kept as it is. The usual name says policy and slot, a UID is sixteen bytes, an object is created in a whole
//! second, and the Backups of a policy have few different lists of applications.

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
    /// The lists of applications that rows have, each once; a place that no row has is used again.
    lists: Box<[Arc<[String]>]>,
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
    finished: i64,
    cut: i64,
    /// What most rows do not have.
    rest: Option<Box<Rest>>,
    /// Seconds since 1970.
    created: u32,
    /// Which of the lists of applications.
    list: u8,
}

/// What most rows do not have.
#[derive(Clone, Debug)]
enum Rest {
    Failed(Failure),
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
/// It has a slot, which is the minute.
const OF_SLOT: u8 = 64;

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
        let list = self.list(&view.applications);
        let mut row = self.pack(&view, list);
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
        let standing = |row: &Row| row.whole().map_or(row.standing, |view| view.standing);
        self.rows.iter().any(|row| standing(row) == Standing::Unfinished)
    }

    /// Whether one of them is noted as an orphan: such a view is never of the usual kind.
    pub(crate) fn orphaned(&self) -> bool {
        self.rows.iter().any(|row| match row.rest.as_deref() {
            Some(Rest::Whole(view)) => view.orphaned.is_some(),
            None | Some(Rest::Failed(_)) => false,
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
        self.rows.iter().position(|row| match row.whole() {
            Some(view) => view.name == name,
            None => minute == Some(row.minute),
        })
    }

    /// The place of a list of applications: none when there are more than rows can tell apart.
    fn list(&mut self, applications: &Arc<[String]>) -> Option<u8> {
        let known = self.lists.iter().position(|known| known == applications);
        let place = known.unwrap_or_else(|| {
            let used = |place: usize| self.rows.iter().any(|row| usize::from(row.list) == place);
            (0..self.lists.len()).find(|place| !used(*place)).unwrap_or(self.lists.len())
        });
        let index = u8::try_from(place).ok()?;
        match self.lists.get_mut(place) {
            Some(list) => *list = applications.clone(),
            None => {
                let lists = std::mem::take(&mut self.lists).into_vec();
                self.lists = lists.into_iter().chain([applications.clone()]).collect();
            }
        }
        Some(index)
    }

    /// The minute that ends a usual name.
    fn minute_of(&self, name: &str) -> Option<u32> {
        let end = name.strip_prefix(self.stem.as_deref()?)?;
        let minute = u32::from_str_radix(end, 36).ok()?;
        (base36(minute.into()) == end).then_some(minute)
    }

    /// `list`: the place of its applications.
    fn pack(&self, view: &BackupView, list: Option<u8>) -> Row {
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
                | flag(view.policy_uid.is_some(), OF_POLICY)
                | flag(view.slot.is_some(), OF_SLOT),
            uid: bytes_of(&view.uid).unwrap_or_default(),
            finished: micros(view.finished),
            cut: micros(view.cut),
            rest: view.failure.clone().map(|failure| Box::new(Rest::Failed(failure))),
            created: u32::try_from(view.created.as_second()).unwrap_or(0),
            list: list.unwrap_or(0),
        };
        if self.unpack(&row) != *view {
            row.rest = Some(Box::new(Rest::Whole(Box::new(view.clone()))));
        }
        row
    }

    fn unpack(&self, row: &Row) -> BackupView {
        let failure = match row.rest.as_deref() {
            Some(Rest::Whole(view)) => return BackupView::clone(view),
            Some(Rest::Failed(failure)) => Some(failure.clone()),
            None => None,
        };
        let is = |flag: u8| row.flags & flag != 0;
        let time = |micros: i64| {
            (micros != NEVER).then(|| Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX))
        };
        let second = |second: i64| Timestamp::from_second(second).unwrap_or(Timestamp::MAX);
        BackupView {
            name: format!("{}{}", self.stem.as_deref().unwrap_or_default(), base36(row.minute.into())),
            uid: text_of(&row.uid),
            policy_uid: is(OF_POLICY).then(|| self.policy.as_ref().map(text_of).unwrap_or_default()),
            slot: is(OF_SLOT).then(|| second(i64::from(row.minute) * 60)),
            created: second(row.created.into()),
            finished: time(row.finished),
            standing: row.standing,
            freezing: is(FREEZING),
            deleting: is(DELETING),
            cancelled: is(CANCELLED),
            held: is(HELD),
            cut: time(row.cut),
            applications: self.lists.get(usize::from(row.list)).cloned().unwrap_or_default(),
            failure,
            snapshots: row.snapshots,
            orphaned: None,
        }
    }
}

impl Row {
    /// The view that does not fit.
    fn whole(&self) -> Option<&BackupView> {
        match self.rest.as_deref() {
            Some(Rest::Whole(view)) => Some(view),
            Some(Rest::Failed(_)) | None => None,
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
            orphaned: None,
        }
    }

    fn usual(row: &Row) -> bool {
        row.whole().is_none()
    }

    #[test]
    fn a_usual_backup_takes_fifty_six_bytes_and_comes_out_equal() {
        let (mut packed, mut names) = (Packed::default(), Names::default());
        assert!(size_of::<Row>() <= 56, "{}", size_of::<Row>());
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
            BackupView { orphaned: Some(Timestamp::UNIX_EPOCH), ..view("2026-11-19T02:00:00Z") },
            BackupView { slot: Some(Timestamp::MAX), ..view("2026-11-15T02:00:00Z") },
            BackupView { created: "2026-11-21T02:00:01.5Z".parse().unwrap(), ..view("2026-11-16T02:00:00Z") },
            BackupView { created: "1969-11-21T02:00:01Z".parse().unwrap(), ..view("2026-11-17T02:00:00Z") },
            BackupView { applications: Arc::default(), ..view("2026-11-18T02:00:00Z") },
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
    fn each_backup_keeps_its_own_applications_however_many_lists_there_are() {
        let (mut packed, mut names) = (Packed::default(), Names::default());
        let first: Timestamp = "2026-11-10T02:00:00Z".parse().unwrap();
        let of = |hour: i64| {
            let slot = Timestamp::from_second(first.as_second() + hour * 3600).unwrap();
            BackupView {
                applications: vec![format!("db{hour}"), "web".to_owned()].into(),
                ..view(&slot.to_string())
            }
        };
        let all: Vec<BackupView> = (0..300).map(of).collect();
        for view in &all {
            packed.insert(view.clone(), &mut names);
        }
        assert_eq!(packed.views().collect::<Vec<_>>(), all);
        // Beyond what rows can tell apart a view is kept whole.
        assert_eq!((packed.lists.len(), packed.rows.iter().filter(|row| usual(row)).count()), (256, 256));
        // One that changes its list frees the place of the old one, and takes none from the others.
        let changed = BackupView { applications: vec!["other".to_owned()].into(), ..all[7].clone() };
        packed.remove(&all[8].name);
        packed.insert(changed.clone(), &mut names);
        assert_eq!(packed.get(&changed.name), Some(changed));
        assert_eq!(packed.get(&all[9].name).as_ref(), Some(&all[9]));
        assert_eq!(packed.lists.len(), 256);
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
