//! One hold of a template, driven as the executor drives it: the same argv, texts and reading of lines.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use stillpoint_api::evidence::ContainerState;
use stillpoint_api::template::Recipe;
use stillpoint_executor::hold::{HoldLine, HoldRecipe, Nonce, Parsed, Report, SystemEntropy};
use stillpoint_executor::run::HoldPlan;

use crate::Outcome;
use crate::container::{Container, signal_group};

/// For what takes moments; a busy machine may take its time.
const SOON: Duration = Duration::from_secs(30);
/// For the client's start. mongosh takes more than a second of processor time before it reads its first line, and on a busy machine
/// 10 to 23 s (24 starts). As long as the shell in front of it waits for the freeze.
const STARTED: Duration = Duration::from_secs(60);
/// `acquireTimeout` of most rows.
pub const ACQUIRE: Duration = Duration::from_secs(8);

/// A hold that is open.
pub struct Held {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<(Instant, String)>,
    nonce: Nonce,
    plan: HoldPlan,
    recipe: HoldRecipe,
    beats: u32,
    acquire: Duration,
    /// What EVIDENCE lines said.
    pub facts: BTreeMap<String, String>,
    /// What READY, FROZEN and HELD said.
    pub reports: Vec<Report>,
    /// What the client complained about, once it ended.
    stderr: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Held {
    /// Opens the hold and waits for READY.
    pub fn open(container: &Container, recipe: &Recipe) -> Outcome<Self> {
        Self::open_for(container, recipe, ACQUIRE)
    }

    /// The same with another `acquireTimeout`.
    pub fn open_for(container: &Container, recipe: &Recipe, acquire: Duration) -> Outcome<Self> {
        let nonce = Nonce::generate(&SystemEntropy).map_err(|error| error.to_string())?;
        let how = HoldRecipe::of(recipe, &nonce)
            .map_err(|error| error.to_string())?
            .ok_or("the template holds nothing")?;
        let mut child = container
            .command(&how.argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send((Instant::now(), line));
            }
        });
        let stderr = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let (mut errors, kept) = (child.stderr.take().ok_or("no stderr")?, std::sync::Arc::clone(&stderr));
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = errors.read_to_end(&mut bytes);
            if let Ok(mut kept) = kept.lock() {
                *kept = String::from_utf8_lossy(&bytes).into_owned();
            }
        });
        let plan = HoldPlan {
            application: "application".into(),
            pod_name: "pod".into(),
            pod_uid: "uid".into(),
            container: "container".into(),
            container_state: ContainerState::default(),
            nonce: nonce.to_string(),
            locks: how.locks,
            lease: how.lease,
            lease_unit: how.lease_unit,
            order: 0,
            stages: 1,
            canary: how.canary,
            stall_probe: false,
            end_blocker: false,
            local: how.local.clone(),
            data_paths: Vec::new(),
            recovery_needs: Vec::new(),
            mount_paths: Vec::new(),
            foreign_mounts: Vec::new(),
        };
        let stdin = child.stdin.take();
        let mut held = Self {
            child,
            stdin,
            lines,
            nonce,
            plan,
            recipe: how,
            beats: 0,
            acquire,
            facts: BTreeMap::new(),
            reports: Vec::new(),
            stderr,
        };
        let lease = held.recipe.lease;
        let text = held.recipe.texts.open(&held.plan, &held.nonce, lease, acquire);
        held.write(&text.map_err(|error| error.to_string())?)?;
        held.until_for("READY", STARTED, |line| matches!(line, HoldLine::Ready(_)))?;
        Ok(held)
    }

    /// Freezes, told to end by itself after `within`; when FROZEN was read.
    pub fn freeze(&mut self, within: Duration) -> Outcome<Instant> {
        let lease = self.recipe.lease;
        let text = self.recipe.texts.freeze(&self.plan, &self.nonce, lease, self.acquire, within);
        self.write(&text.map_err(|error| error.to_string())?)?;
        self.until_for("FROZEN", SOON + self.acquire, |line| {
            matches!(line, HoldLine::Frozen { stage: 0, .. })
        })
    }

    /// One beat; when it was answered.
    pub fn beat(&mut self) -> Outcome<Instant> {
        self.beats += 1;
        let (lease, index) = (self.recipe.lease, self.beats);
        let text = self.recipe.texts.beat(&self.plan, &self.nonce, lease, index);
        self.write(&text.map_err(|error| error.to_string())?)?;
        self.until("HELD", |line| matches!(line, HoldLine::Held { beat, .. } if *beat == u64::from(index)))
    }

    /// Sends a beat; whether it stays without an answer for so long.
    pub fn beat_unanswered(&mut self, limit: Duration) -> Outcome<bool> {
        self.beats += 1;
        let text = self.recipe.texts.beat(&self.plan, &self.nonce, self.recipe.lease, self.beats);
        self.write(&text.map_err(|error| error.to_string())?)?;
        Ok(!self.rest(limit).iter().any(|line| matches!(line, HoldLine::Held { .. })))
    }

    /// The closing beat and the thaw in one write; when it was sent, and when THAWED was read.
    pub fn close(&mut self) -> Outcome<(Instant, Instant)> {
        self.beats += 1;
        let (lease, index) = (self.recipe.lease, self.beats);
        let text = self.recipe.texts.closing(&self.plan, &self.nonce, lease, index);
        let sent = Instant::now();
        self.write(&text.map_err(|error| error.to_string())?)?;
        self.until("HELD", |line| matches!(line, HoldLine::Held { beat, .. } if *beat == u64::from(index)))?;
        let thawed = self.until("THAWED", |line| *line == HoldLine::Thawed)?;
        Ok((sent, thawed))
    }

    /// The thaw alone, without a beat before it; when THAWED was read.
    pub fn thaw_alone(&mut self) -> Outcome<Instant> {
        let text = self.recipe.texts.thaw(&self.plan, &self.nonce);
        self.write(&text.map_err(|error| error.to_string())?)?;
        self.until("THAWED", |line| *line == HoldLine::Thawed)
    }

    /// Ends the input, as a lost connection does.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Kills everything that was started for this hold.
    pub fn kill(&mut self) {
        signal_group(self.child.id(), "KILL");
    }

    /// Every line that counts until the output ends or `limit` is over.
    pub fn rest(&mut self, limit: Duration) -> Vec<HoldLine> {
        let until = Instant::now() + limit;
        let mut rest = Vec::new();
        while let Ok((_, text)) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if let Parsed::Line(line) = HoldLine::parse(&text, &self.nonce) {
                rest.push(line);
            }
        }
        rest
    }

    /// The text that fails and then prints CANARY, where the template has one; written to this hold.
    pub fn canary(&mut self) -> Outcome<bool> {
        let stillpoint_executor::hold::HoldTexts::Session(texts) = &self.recipe.texts else {
            return Ok(false);
        };
        let Some(text) = texts.canary(&self.nonce).map_err(|error| error.to_string())? else {
            return Ok(false);
        };
        self.write(&text)?;
        Ok(true)
    }

    fn write(&mut self, text: &[u8]) -> Outcome<()> {
        if text.is_empty() {
            return Ok(());
        }
        let stdin = self.stdin.as_mut().ok_or("the input was ended")?;
        stdin
            .write_all(text)
            .and_then(|()| stdin.flush())
            .map_err(|error| self.with_stderr(&error.to_string()))
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&HoldLine) -> bool) -> Outcome<Instant> {
        self.until_for(what, SOON, wanted)
    }

    fn until_for(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&HoldLine) -> bool,
    ) -> Outcome<Instant> {
        let until = Instant::now() + limit;
        let mut foreign: Vec<String> = Vec::new();
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((at, text)) => match HoldLine::parse(&text, &self.nonce) {
                    Parsed::Line(line) => {
                        self.reports.extend(line.report().cloned());
                        if let HoldLine::Evidence { key, value } = &line {
                            self.facts.insert(key.clone(), value.clone());
                        }
                        if wanted(&line) {
                            return Ok(at);
                        }
                    }
                    Parsed::Foreign(line) => foreign.push(format!("{}: {}", line.reason.as_str(), line.text)),
                },
                Err(RecvTimeoutError::Timeout) => {
                    return Err(
                        self.with_stderr(&format!("no {what} within {limit:?}; other lines: {foreign:?}"))
                    );
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.child.wait();
                    std::thread::sleep(Duration::from_millis(50));
                    return Err(self.with_stderr(&format!(
                        "it ended instead of {what}; facts {:?}, other lines: {foreign:?}",
                        self.facts
                    )));
                }
            }
        }
    }

    fn with_stderr(&self, what: &str) -> String {
        let said = self.stderr.lock().map(|said| said.trim().to_owned()).unwrap_or_default();
        format!("{what}; stderr: {said}")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stdin = None;
        // A holder thaws by itself when its input ends.
        let until = Instant::now() + Duration::from_secs(8);
        while Instant::now() < until && self.child.try_wait().ok().flatten().is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
        let _ = self.child.wait();
    }
}
