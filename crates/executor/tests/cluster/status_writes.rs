//! Status writes that are refused, fail, or succeed without an answer: the journal stays what happened, once.

use stillpoint_api::Backup;
use stillpoint_api::backup::JournalKind;
use stillpoint_api::evidence::Consistency;
use stillpoint_simcluster::{Fault, FaultAction};

use crate::stage::{Stage, journal, why};

fn went_straight(backup: &Backup, told: &str) {
    assert_eq!(why(backup), "Completed", "{told}: {:#?}", backup.status);
    let status = backup.status.as_ref().unwrap();
    assert_eq!((status.attempt, status.consistency), (1, Some(Consistency::Application)), "{told}");
    let kinds: Vec<JournalKind> = journal(backup).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [JournalKind::Freezing, JournalKind::Thawed], "{told}");
}

#[tokio::test]
async fn conflicts_and_errors_of_status_writes_are_got_over() {
    let stage = Stage::faithful("writes").await;
    for (index, code) in [409, 500].into_iter().enumerate() {
        // The claim, the entry before the freeze, the entry after it, the end.
        for write in 0..4 {
            stage
                .cluster
                .faults()
                .inject(Fault::new("update", "backups/status", FaultAction::Status(code)).after(write));
        }
        let name = format!("b{index}");
        stage.back_up(&name).await;
        went_straight(&stage.finished(&name).await, &format!("status {code}"));
        assert_eq!(stage.cluster.faults().hits(), 4 * (index as u64 + 1));
    }
    stage.end().await;
}

#[tokio::test]
async fn a_status_write_whose_answer_was_lost_is_neither_repeated_nor_disowned() {
    let stage = Stage::faithful("lost-writes").await;
    for (write, what) in ["the claim", "Freezing", "Thawed", "the end"].into_iter().enumerate() {
        let lost = Fault::new("update", "backups/status", FaultAction::LoseResponse);
        stage.cluster.faults().inject(lost.after(u32::try_from(write).unwrap()));
        let name = format!("b{write}");
        stage.back_up(&name).await;
        went_straight(&stage.finished(&name).await, what);
    }
    // The answer to the end is lost after it was seen: the hit is the fourth in any case.
    assert_eq!(stage.cluster.faults().hits(), 4);
    stage.end().await;
}
