//! Compares a restored copy with what the writers were told. Pure: nothing is asked here, and nothing is forgiven.
//!
//! Each writer sends transactions 1, 2, 3 … one after another; each moves an amount that follows from its number from
//! one account of the writer to the other and records it. So a copy is whole if and only if the rows of each writer
//! are 1 to some last one without a gap, the last one is not before what was acknowledged before FROZEN, and the
//! accounts agree with the rows.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// What every account holds before the first transaction.
pub const OPENING: i64 = 1_000_000_000;

/// What one writer did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Transactions sent.
    pub sent: u64,
    /// When the demo read the acknowledgement of transaction 1, 2, 3 …
    pub acknowledged: Vec<Timestamp>,
    /// Why it stopped writing although nobody asked it to.
    pub failed: Option<String>,
}

/// What the copy has of one writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Rows.
    pub rows: u64,
    /// Highest number.
    pub last: u64,
    /// Sum of the amounts in the rows.
    pub moved: i64,
    /// Balance of the account that pays.
    pub payer: i64,
    /// Balance of the account that is paid.
    pub payee: i64,
}

/// The judgement of one writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Commits acknowledged before FROZEN: these must be there.
    pub owed: u64,
    /// Commits in the copy.
    pub found: u64,
    /// Commits acknowledged by the end of the demo.
    pub acknowledged: u64,
    /// What is wrong.
    pub faults: Vec<String>,
}

/// The amount of a transaction.
pub const fn amount(n: u64) -> i64 {
    // Different from neighbour to neighbour, so that a lost and a doubled one cannot cancel out.
    (n % 97) as i64 + 1
}

/// Judges every writer.
pub fn judge(logs: &[Log], frozen: Timestamp, copy: &BTreeMap<usize, Found>) -> Vec<Judged> {
    let judged = logs.iter().enumerate();
    judged
        .map(|(writer, log)| judge_one(log, frozen, copy.get(&writer).copied().unwrap_or_default()))
        .collect()
}

fn judge_one(log: &Log, frozen: Timestamp, found: Found) -> Judged {
    let owed = log.acknowledged.iter().filter(|at| **at < frozen).count() as u64;
    let mut faults = Vec::new();
    if found.last < owed {
        faults.push(format!("{} commits acknowledged before FROZEN are missing", owed - found.last));
    }
    if found.rows != found.last {
        faults
            .push(format!("{} rows, but the last one has number {}: there are gaps", found.rows, found.last));
    }
    if found.last > log.sent {
        faults.push(format!("row {} was never sent: only {} were", found.last, log.sent));
    }
    let moved: i64 = (1..=found.last).map(amount).sum();
    if found.moved != moved {
        faults.push(format!("the rows say that {} was moved; {moved} was", found.moved));
    }
    if (found.payer, found.payee) != (OPENING - moved, OPENING + moved) {
        faults.push(format!(
            "the accounts hold {} and {}, which is not what the rows say: a transaction is torn",
            found.payer, found.payee
        ));
    }
    Judged { owed, found: found.last, acknowledged: log.acknowledged.len() as u64, faults }
}

/// Reads the copy's rows: `writer|rows|last|moved|payer|payee` per line.
pub fn read(answer: &str) -> Option<BTreeMap<usize, Found>> {
    answer
        .lines()
        .map(|line| {
            let mut fields = line.split('|');
            let mut number = || fields.next()?.trim().parse::<i64>().ok();
            let writer = usize::try_from(number()?).ok()?;
            let (rows, last) = (u64::try_from(number()?).ok()?, u64::try_from(number()?).ok()?);
            Some((writer, Found { rows, last, moved: number()?, payer: number()?, payee: number()? }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    /// Ten transactions at 1, 2 … 10 ms.
    fn log() -> Log {
        Log { sent: 10, acknowledged: (1..=10).map(at).collect(), failed: None }
    }

    fn whole(last: u64) -> Found {
        let moved = (1..=last).map(amount).sum();
        Found { rows: last, last, moved, payer: OPENING - moved, payee: OPENING + moved }
    }

    fn faults(found: Found) -> Vec<String> {
        judge(&[log()], at(6), &BTreeMap::from([(0, found)])).remove(0).faults
    }

    #[test]
    fn a_copy_with_everything_acknowledged_before_frozen_is_whole_and_may_have_more() {
        assert_eq!(faults(whole(5)), [""; 0]);
        assert_eq!(faults(whole(10)), [""; 0]);
    }

    #[test]
    fn one_missing_commit_is_seen() {
        assert!(faults(whole(4))[0].contains("1 commits acknowledged before FROZEN are missing"));
        assert!(!judge(&[log()], at(6), &BTreeMap::new())[0].faults.is_empty());
    }

    #[test]
    fn gaps_inventions_and_torn_transactions_are_seen() {
        let with = |change: &dyn Fn(&mut Found)| {
            let mut found = whole(7);
            change(&mut found);
            faults(found).join("; ")
        };
        assert!(with(&|found| found.rows = 6).contains("gaps"));
        assert!(with(&|found| found.payee -= 1).contains("torn"));
        assert!(with(&|found| found.moved += 1).contains("was moved"));
        assert!(faults(whole(11))[0].contains("never sent"));
    }

    #[test]
    fn the_answer_of_the_copy_is_read_or_refused_as_a_whole() {
        let read_back = read("0|2|2|5|999|1001\n1|1|1|2|3|4").unwrap();
        assert_eq!(read_back[&0], Found { rows: 2, last: 2, moved: 5, payer: 999, payee: 1001 });
        assert_eq!(read("0|2|x"), None);
    }
}
