#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Mutex;

use futures::FutureExt;
use stillpoint_api::clock::{SharedClock, SystemClock};

use super::*;
use crate::exec::{ExecEvent, StdoutMode};

const NONCE: &str = "k3v9k3v9k3v9k3v9";

/// A container whose commands are one word each; what they did is kept in order.
#[derive(Default)]
struct Container {
    log: Mutex<Vec<String>>,
    /// Thaws that fail before one succeeds.
    failing_thaws: Mutex<u32>,
    frozen_before: bool,
    hanging_freeze: bool,
    failing_barrier: bool,
}

impl Container {
    fn frozen(&self) -> bool {
        let log = self.log.lock().unwrap();
        let last = log.iter().rev().find(|word| *word == "freeze" || *word == "thaw");
        last.map_or(self.frozen_before, |word| word == "freeze")
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

impl Exec for Container {
    fn open<'a>(
        &'a self,
        target: &'a ExecTarget,
        limits: ExecLimits,
    ) -> BoxFuture<'a, Result<ExecHandle, ExecError>> {
        let (handle, mut side) = pair(limits, self.clock(), true);
        assert!(matches!(limits.stdout, StdoutMode::Capture { .. }));
        let word = target.argv[0].clone();
        let code = match word.as_str() {
            "probe" => i32::from(!self.frozen()),
            "thaw" if *self.failing_thaws.lock().unwrap() > 0 => {
                *self.failing_thaws.lock().unwrap() -= 1;
                7
            }
            "barrier" if self.failing_barrier => 5,
            _ => 0,
        };
        if code == 0 && word != "probe" {
            self.log.lock().unwrap().push(word.clone());
        }
        if word == "freeze" && self.hanging_freeze {
            std::mem::forget(side);
        } else {
            side.end(Outcome::Exited(code), None);
        }
        async move { Ok(handle) }.boxed()
    }

    fn clock(&self) -> SharedClock {
        SystemClock::shared()
    }
}

fn hold(container: &Arc<Container>, probe: bool) -> ExecHandle {
    hold_with(container, probe, false)
}

fn hold_with(container: &Arc<Container>, probe: bool, barrier: bool) -> ExecHandle {
    let word = |word: &str| vec![word.to_owned()];
    let commands = Commands {
        barrier: if barrier { word("barrier") } else { Vec::new() },
        freeze: word("freeze"),
        thaw: word("thaw"),
        probe: if probe { word("probe") } else { Vec::new() },
        ..Commands::default()
    };
    let target = ExecTarget {
        namespace: "n".into(),
        pod: "db-0".into(),
        pod_uid: "u".into(),
        container: "db".into(),
        argv: Vec::new(),
        stdin: true,
        impersonate: None,
    };
    let exec: Arc<dyn Exec> = Arc::clone(container) as Arc<dyn Exec>;
    open(exec, target, commands, Nonce::try_from(NONCE.to_owned()).unwrap())
}

/// The next line, or `None` at the end.
async fn line(handle: &mut ExecHandle) -> Option<String> {
    loop {
        match handle.events.next().await? {
            ExecEvent::Line { text, .. } => return Some(text),
            ExecEvent::Opened { .. } | ExecEvent::Written { .. } | ExecEvent::Ended(_) => {}
        }
    }
}

async fn until_log(container: &Container, words: &[&str]) {
    while container.log() != words {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_execs_speak_the_protocol_of_a_held_process() {
    let container = Arc::new(Container::default());
    let mut handle = hold(&container, true);
    assert_eq!(line(&mut handle).await.unwrap(), format!("READY {NONCE} host=db-0 local=exec"));
    handle.sender.send(format!("freeze {NONCE} 30\n")).unwrap();
    assert_eq!(line(&mut handle).await.unwrap(), format!("FROZEN {NONCE} 0 host=db-0 local=exec"));
    handle.sender.send(format!("beat {NONCE} 4\nthaw {NONCE}\n")).unwrap();
    assert_eq!(line(&mut handle).await.unwrap(), format!("HELD {NONCE} 4 host=db-0 local=exec"));
    assert_eq!(line(&mut handle).await.unwrap(), format!("THAWED {NONCE}"));
    assert_eq!(line(&mut handle).await, None);
    assert_eq!(container.log(), ["freeze", "thaw"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_frozen_already_is_neither_frozen_nor_thawed() {
    let container = Arc::new(Container { frozen_before: true, ..Container::default() });
    let mut handle = hold(&container, true);
    assert_eq!(line(&mut handle).await.unwrap(), format!("EVIDENCE {NONCE} foreign_freeze=1"));
    assert_eq!(line(&mut handle).await, None);
    assert_eq!(container.log(), [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_is_thawed_until_that_succeeds_and_nothing_is_said() {
    for close in [true, false] {
        let container = Arc::new(Container { failing_thaws: Mutex::new(2), ..Container::default() });
        let mut handle = hold(&container, false);
        line(&mut handle).await.unwrap();
        handle.sender.send(format!("freeze {NONCE} 30\n")).unwrap();
        line(&mut handle).await.unwrap();
        if close {
            handle.sender.close();
            assert_eq!(line(&mut handle).await, None, "the stream ends before the thaw");
        } else {
            drop(handle);
        }
        until_log(&container, &["freeze", "thaw"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_hangs_is_thawed_when_told_and_at_the_deadline() {
    let container = Arc::new(Container { hanging_freeze: true, ..Container::default() });
    let mut handle = hold(&container, false);
    line(&mut handle).await.unwrap();
    handle.sender.send(format!("freeze {NONCE} 30\n")).unwrap();
    handle.sender.send(format!("beat {NONCE} 1\nthaw {NONCE}\n")).unwrap();
    assert_eq!(line(&mut handle).await.unwrap(), format!("THAWED {NONCE}"), "and no HELD");
    assert_eq!(container.log(), ["freeze", "thaw"]);
}

#[tokio::test(start_paused = true)]
async fn a_barrier_is_told_between_the_freeze_and_frozen() {
    for failing_barrier in [false, true] {
        let container = Arc::new(Container { failing_barrier, ..Container::default() });
        let mut handle = hold_with(&container, false, true);
        line(&mut handle).await.unwrap();
        handle.sender.send(format!("freeze {NONCE} 30\n")).unwrap();
        let told = if failing_barrier { "barrier_failed=5" } else { "barrier=command" };
        assert_eq!(line(&mut handle).await.unwrap(), format!("EVIDENCE {NONCE} {told}"));
        assert!(line(&mut handle).await.unwrap().starts_with("FROZEN "), "the freeze stands");
        handle.sender.send(format!("thaw {NONCE}\n")).unwrap();
        assert_eq!(line(&mut handle).await.unwrap(), format!("THAWED {NONCE}"));
        assert_eq!(container.log().len(), if failing_barrier { 2 } else { 3 }, "{:?}", container.log());
    }
}
