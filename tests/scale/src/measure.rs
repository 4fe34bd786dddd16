//! What is measured of one population, in this order: the raw rate, readiness, memory, idleness, a scrape, a restart, missed
//! slots, the herd, and a leader that is killed in the middle of one. Beyond [`RUNS_END_UP_TO`] the last comes with a population
//! of its own: the runs of the herd before it would still be going on, and a policy that runs starts nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use stillpoint_api::clock::SharedClock;

use crate::controller::{Controller, Memory, Options, cpu_of};
use crate::failure::{Outcome, Present as _};
use crate::herd::{CaughtUp, Herd, quantile};
use crate::population::{Class, members};
use crate::raw;
use crate::report::Report;
use crate::target::{Created, Target, Which};

/// Recovery points of each policy.
const POINTS: usize = 10;
/// How long idleness is watched.
const IDLE: Duration = Duration::from_secs(30);
/// Backups created for the raw rate, at most.
const RAW_AT_MOST: usize = 20_000;
/// Up to this size runs are waited for: beyond it the runs of a herd alone take long.
const RUNS_END_UP_TO: usize = 10_000;
/// Policies a second that take up an edited schedule, at least: the herd waits for the last of them.
const EDITS_PER_SECOND: usize = 350;
/// docs/design/schedule.md §3 and the limits that users are promised.
const RSS_PER_POLICY: f64 = 4096.0;
const IDLE_CPU: f64 = 0.01;
const OF_RAW_RATE: f64 = 0.8;
const SCRAPE: Duration = Duration::from_secs(1);
/// The lease and two seconds.
const REPLACED_WITHIN: Duration = Duration::from_secs(17);

/// How long starts are looked for after the last that was expected: one that is too many comes late.
const TOO_MANY: Duration = Duration::from_secs(5);

/// What is measured; the raw rate and the first readiness always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Memory, idleness, a scrape.
    Steady,
    /// A restart.
    Restart,
    /// Slots that pass while no controller is there.
    Missed,
    /// One slot of all.
    Herd,
    /// The leader is killed in a herd.
    Failover,
}

impl Part {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Steady, Self::Restart, Self::Missed, Self::Herd, Self::Failover];

    /// As it is written in `PARTS`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Restart => "restart",
            Self::Missed => "missed",
            Self::Herd => "herd",
            Self::Failover => "failover",
        }
    }
}

/// One population.
pub struct Bench<'a> {
    /// Policies.
    pub size: usize,
    /// Its name in the report.
    pub label: String,
    /// Against which API server.
    pub which: Which,
    /// What is measured.
    pub parts: &'a [Part],
    /// The controller.
    pub binary: &'a Path,
    /// Logs.
    pub work: &'a Path,
    /// Memory of a controller without policies.
    pub empty: Memory,
    /// Time.
    pub clock: SharedClock,
}

/// A bound, and whether it was kept.
fn judged(figure: String, bound: &str, kept: bool) -> String {
    format!("{figure} ({}: {bound})", if kept { "kept" } else { "missed" })
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

impl Bench<'_> {
    fn controller(&self, target: &Target, replica: &str) -> Outcome<Controller> {
        Controller::start(Options::new(self.binary, target.kubeconfig(), self.work, replica), &self.clock)
    }

    fn put(&self, report: &mut Report, row: &str, value: impl Into<String>) {
        report.put(&self.label, row, value);
    }

    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// An API server with the population, and how many Backups a second anybody gets from it.
    async fn target(&self) -> Outcome<(Target, Timestamp, f64)> {
        let mut target = Target::start(self.which, self.work, &self.clock).await?;
        let made = target.now();
        target.load(self.size, POINTS).await?;
        let raw = raw::rate(target.config().await?, self.size.min(RAW_AT_MOST), &self.clock).await?;
        target.purge().await?;
        target.take().await?;
        Ok((target, made, raw))
    }

    /// Measures; `false` when a slot was lost or ran twice.
    ///
    /// # Errors
    /// Something ended or did not come.
    pub async fn measure(&self, report: &mut Report) -> Outcome<bool> {
        let size = self.size;
        let (mut target, mut made, raw) = self.target().await?;
        self.put(report, "raw creates by one client", format!("{raw:.0} /s"));

        let mut controller = self.controller(&target, "first")?;
        self.put(report, "start to ready", seconds(controller.until_ready().await?));
        let settled = controller.until_settled(size).await?;
        self.put(report, "ready to every policy looked at and its status written", seconds(settled));
        self.memory(&controller, report, "RSS per policy")?;
        if self.wants(Part::Steady) {
            self.steady(&controller, report).await?;
        }
        if self.wants(Part::Restart) {
            controller.kill();
            controller = self.controller(&target, "first")?;
            self.put(report, "SIGKILL, start to ready", seconds(controller.until_ready().await?));
            let settled = controller.until_settled(size).await?;
            let figure = format!("{} (with the old leader's lease)", seconds(settled));
            self.put(report, "then to every policy looked at", figure);
            self.memory(&controller, report, "RSS per policy after a restart")?;
        }
        let mut exact = true;
        if self.wants(Part::Missed) {
            let (again, caught) = self.missed_slots(&mut target, controller, report).await?;
            controller = again;
            exact &= caught;
        }
        if self.wants(Part::Herd) {
            exact &= self.herd(&mut target, &controller, report, made, raw).await?;
            if size > RUNS_END_UP_TO && self.wants(Part::Failover) {
                controller.kill();
                target.end().await;
                (target, made, _) = self.target().await?;
                controller = self.controller(&target, "first")?;
                controller.until_settled(size).await?;
            }
        }
        if self.wants(Part::Failover) {
            exact &= self.failover(&mut target, controller, report, made).await?;
        } else {
            controller.kill();
        }
        target.end().await;
        Ok(exact)
    }

    async fn steady(&self, controller: &Controller, report: &mut Report) -> Outcome<()> {
        let (before, begun) = (controller.cpu()?, self.clock.mono());
        tokio::time::sleep(IDLE).await;
        let cpu = (controller.cpu()? - before) / self.clock.mono().since(begun).as_secs_f64();
        let kept = cpu <= IDLE_CPU || self.size > 10_000;
        let figure = format!("{:.2} % of a core", cpu * 100.0);
        self.put(report, "CPU when idle", judged(figure, "1 % at 10 000", kept));
        let scrape = controller.scrape()?;
        let figure = format!(
            "{} of {}, first byte after {}",
            seconds(scrape.whole),
            mib(scrape.size as u64),
            seconds(scrape.first_byte)
        );
        let kept = scrape.whole <= SCRAPE || self.size > 10_000;
        self.put(report, "scrape", judged(figure, "1 s at 10 000", kept));
        self.put(report, "series", scrape.series.to_string());
        self.memory(controller, report, "RSS per policy after a scrape")
    }

    fn memory(&self, controller: &Controller, report: &mut Report, row: &str) -> Outcome<()> {
        let memory = controller.memory()?;
        let each = memory.resident.saturating_sub(self.empty.resident) as f64 / self.size as f64;
        let figure = format!("{each:.0} B ({} in all, peak {})", mib(memory.resident), mib(memory.peak));
        self.put(report, row, judged(figure, "4096 B", each <= RSS_PER_POLICY));
        Ok(())
    }

    /// The controller is away while minutely slots pass: the newest of each policy is caught up once, the older ones never.
    async fn missed_slots(
        &self,
        target: &mut Target,
        controller: Controller,
        report: &mut Report,
    ) -> Outcome<(Controller, bool)> {
        let minutely = target.suspend(false).await?;
        self.after_minute(target, 0, 1).await;
        controller.until_idle(self.size).await?;
        // Between two slots: the kill is after the start of one and before the next.
        self.after_minute(target, 0, 20).await;
        controller.kill();
        target.take().await?;
        let missed = target.now().as_second() / 60 + 1;
        self.after_minute(target, 2, 5).await;
        let controller = self.controller(target, "first")?;
        let begun = target.now();
        controller.until_settled(self.size).await?;
        let created = target.take().await?;
        let caught = CaughtUp::of(&created, missed);
        let once = caught.policies == minutely && caught.older == 0 && caught.doubled == 0;
        let took = (caught.last - begun.as_microsecond()) as f64 / 1e6;
        let figure = format!("{} of {minutely}, the last {took:.1} s after the start", caught.policies);
        self.put(
            report,
            "missed slots of minutely policies caught up",
            judged(figure, "each once, none of the older ones", once),
        );
        target.suspend(true).await?;
        controller.until_idle(self.size).await?;
        target.take().await?;
        Ok((controller, once))
    }

    /// Sleeps until `second` of the minute that comes after `minutes` more have passed.
    async fn after_minute(&self, target: &Target, minutes: i64, second: i64) {
        let now = target.now();
        let mut at = now.as_second() / 60 * 60 + minutes * 60 + second;
        if at <= now.as_second() {
            at += 60;
        }
        let wait = at * 1_000_000 - now.as_microsecond();
        tokio::time::sleep(Duration::from_micros(u64::try_from(wait).unwrap_or(0))).await;
    }

    fn due(&self, made: Timestamp) -> BTreeSet<(String, String)> {
        let all = members(self.size, made).filter(|member| member.class != Class::Minutely);
        all.map(|member| (member.namespace, member.name)).collect()
    }

    /// Gives all policies one slot and returns it, in seconds since 1970, when they have it.
    async fn gather(&self, target: &mut Target, controller: &Controller) -> Outcome<i64> {
        let need = 20 + (self.size / EDITS_PER_SECOND) as i64;
        let instant = (target.now().as_second() + need) / 60 * 60 + 60;
        let at = Timestamp::from_second(instant).present("choose an instant")?;
        target.schedule(&at.strftime("%-M %-H * * *").to_string()).await?;
        controller.until_idle(self.size).await?;
        target.take().await?;
        Ok(instant)
    }

    /// Waits until `wanted` Backups were created, or none comes any more.
    async fn reached(&self, target: &mut Target, instant: i64, wanted: usize) -> Outcome<()> {
        let until = instant - target.now().as_second();
        tokio::time::sleep(Duration::from_secs(u64::try_from(until).unwrap_or(0))).await;
        let (mut count, mut looks) = (0, 0);
        // Thirty seconds without a start, and a new leader takes up to 17, are the end.
        while count < wanted && looks < 60 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = target.count().await?;
            looks = if now == count { looks + 1 } else { 0 };
            count = now;
        }
        Ok(())
    }

    /// Takes what was created, with what came too many.
    async fn starts(&self, target: &mut Target) -> Outcome<Vec<Created>> {
        tokio::time::sleep(TOO_MANY).await;
        target.take().await
    }

    async fn herd(
        &self,
        target: &mut Target,
        controller: &Controller,
        report: &mut Report,
        made: Timestamp,
        raw: f64,
    ) -> Outcome<bool> {
        let due = self.due(made);
        let instant = self.gather(target, controller).await?;
        let late = target.now().as_second() >= instant;
        let server = target.processes();
        let cpu = || server.iter().filter_map(|process| cpu_of(*process).ok()).sum::<f64>();
        let before = (controller.cpu()?, cpu());
        self.reached(target, instant, due.len()).await?;
        let after = (controller.cpu()?, cpu());
        let created = self.starts(target).await?;
        let herd = Herd::of(&created, &due, instant);
        let size = self.size;
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| quantile(&herd.delays, part));
        self.put(
            report,
            "herd: starts, lost, doubled",
            format!("{}, {}, {}", herd.delays.len(), herd.lost, herd.doubled),
        );
        if late {
            report.note(format!(
                "{}: not every policy had its slot in time; the delays of the herd are too long by that",
                self.label
            ));
        }
        self.put(report, "herd: delay p50 / p99 / max", format!("{p50:.2} / {p99:.2} / {max:.2} s"));
        let share = herd.rate() / raw;
        let figure = format!("{:.0} /s, {:.0} % of raw", herd.rate(), share * 100.0);
        self.put(report, "herd: starts a second", judged(figure, "80 %", share >= OF_RAW_RATE));
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| quantile(&herd.small, part));
        let figure = format!("{p50:.2} / {p99:.2} / {max:.2} s of {}", herd.small.len());
        self.put(report, "herd: delay of the tenth in small namespaces", figure);
        self.put(
            report,
            "herd: CPU of controller and API server",
            format!("{:.1} s, {:.1} s", after.0 - before.0, after.1 - before.1),
        );
        self.memory(controller, report, "RSS per policy in the herd")?;
        if size <= RUNS_END_UP_TO {
            let begun = target.now();
            controller.until_idle(size).await?;
            let took = target.now().duration_since(begun).as_secs_f64();
            self.put(report, "herd: until every run has ended, without pods", format!("{took:.1} s"));
            self.memory(controller, report, "RSS per policy after the herd")?;
        }
        Ok(herd.lost == 0 && herd.doubled == 0)
    }

    /// Two replicas, and the one that leads is killed a moment after the instant.
    async fn failover(
        &self,
        target: &mut Target,
        leader: Controller,
        report: &mut Report,
        made: Timestamp,
    ) -> Outcome<bool> {
        let second = self.controller(target, "second")?;
        second.until_ready().await?;
        let due = self.due(made);
        let instant = self.gather(target, &leader).await?;
        let wait = instant * 1_000_000 - target.now().as_microsecond() + 200_000;
        tokio::time::sleep(Duration::from_micros(u64::try_from(wait).unwrap_or(0))).await;
        leader.kill();
        let took = second.until("the other replica leads", Controller::leads).await?;
        self.reached(target, instant, due.len()).await?;
        let created = self.starts(target).await?;
        let herd = Herd::of(&created, &due, instant);
        let killed = instant as f64 + 0.2;
        let before = herd.delays.iter().filter(|late| instant as f64 + **late <= killed).count();
        self.put(
            report,
            "leader killed 0.2 s into a herd: another leads",
            judged(seconds(took), "17 s", took <= REPLACED_WITHIN),
        );
        let figure = format!(
            "{} of {}, {}, {} ({before} before the kill)",
            herd.delays.len(),
            due.len(),
            herd.lost,
            herd.doubled
        );
        let exact = herd.lost == 0 && herd.doubled == 0;
        self.put(report, "then: starts, lost, doubled", judged(figure, "none lost, none doubled", exact));
        second.kill();
        Ok(exact)
    }
}
