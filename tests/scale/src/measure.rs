//! What is measured of one size, in this order: the raw rate, readiness, memory, idleness, a scrape, a restart, missed slots,
//! the herd, and a leader that is killed in the middle of one.

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
use crate::target::{Created, Target};

/// Recovery points of each policy.
const POINTS: usize = 10;
/// How long idleness is watched.
const IDLE: Duration = Duration::from_secs(30);
/// Backups created for the raw rate, at most.
const RAW_AT_MOST: usize = 20_000;
/// Up to this size runs are waited for, and a leader is killed: beyond it the runs of a herd alone take long.
const RUNS_END_UP_TO: usize = 10_000;
/// Policies a second that take up an edited schedule, at least: the herd waits for the last of them.
const EDITS_PER_SECOND: usize = 350;
/// docs/design/schedule.md §3 and the limits that users are promised.
const RSS_PER_POLICY: f64 = 4096.0;
const IDLE_CPU: f64 = 0.01;
const OF_RAW_RATE: f64 = 0.8;
/// The lease and two seconds.
const REPLACED_WITHIN: Duration = Duration::from_secs(17);

/// One size.
pub struct Bench<'a> {
    /// Policies.
    pub size: usize,
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

    /// Measures; `false` when a slot was lost or ran twice.
    ///
    /// # Errors
    /// Something ended or did not come.
    pub async fn measure(&self, report: &mut Report) -> Outcome<bool> {
        let size = self.size;
        let mut target = Target::start(self.work, &self.clock).await?;
        let made = target.now();
        target.load(size, POINTS).await?;
        let raw = raw::rate(target.config().await?, size.min(RAW_AT_MOST), &self.clock).await?;
        target.purge().await?;
        target.take().await?;
        report.put(size, "raw creates by one client", format!("{raw:.0} /s"));

        let controller = self.controller(&target, "first")?;
        report.put(size, "start to ready", seconds(controller.until_ready().await?));
        let settled = controller.until_settled(size).await?;
        report.put(size, "ready to every policy looked at and its status written", seconds(settled));
        self.memory(&controller, report, "RSS per policy")?;
        let (before, begun) = (controller.cpu()?, self.clock.mono());
        tokio::time::sleep(IDLE).await;
        let cpu = (controller.cpu()? - before) / self.clock.mono().since(begun).as_secs_f64();
        let kept = cpu <= IDLE_CPU || size > 10_000;
        report.put(
            size,
            "CPU when idle",
            judged(format!("{:.2} % of a core", cpu * 100.0), "1 % at 10 000", kept),
        );
        let scrape = controller.scrape()?;
        report.put(
            size,
            "scrape",
            format!(
                "{} of {}, first byte after {}",
                seconds(scrape.whole),
                mib(scrape.size as u64),
                seconds(scrape.first_byte)
            ),
        );
        report.put(size, "series", scrape.series.to_string());
        self.memory(&controller, report, "RSS per policy after a scrape")?;

        controller.kill();
        let controller = self.controller(&target, "first")?;
        report.put(size, "SIGKILL, start to ready", seconds(controller.until_ready().await?));
        let settled = controller.until_settled(size).await?;
        report.put(
            size,
            "then to every policy looked at",
            format!("{} (with the old leader's lease)", seconds(settled)),
        );
        self.memory(&controller, report, "RSS per policy after a restart")?;

        let (controller, caught) = self.missed_slots(&mut target, controller, report).await?;
        let herd = self.herd(&mut target, &controller, report, made, raw).await?;
        let mut exact = caught && herd;
        if size <= RUNS_END_UP_TO {
            exact &= self.failover(&mut target, controller, report, made).await?;
        }
        target.end().await;
        Ok(exact)
    }

    fn memory(&self, controller: &Controller, report: &mut Report, row: &str) -> Outcome<()> {
        let memory = controller.memory()?;
        let each = memory.resident.saturating_sub(self.empty.resident) as f64 / self.size as f64;
        let figure = format!("{each:.0} B ({} in all, peak {})", mib(memory.resident), mib(memory.peak));
        report.put(self.size, row, judged(figure, "4096 B", each <= RSS_PER_POLICY));
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
        report.put(
            self.size,
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

    /// Waits until `wanted` Backups were created, or none comes any more, and takes them.
    async fn starts(&self, target: &mut Target, instant: i64, wanted: usize) -> Outcome<Vec<Created>> {
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
        let server = target.process();
        let cpu = |which: Option<u32>| which.and_then(|process| cpu_of(process).ok()).unwrap_or_default();
        let before = (controller.cpu()?, cpu(server));
        let created = self.starts(target, instant, due.len()).await?;
        let after = (controller.cpu()?, cpu(server));
        let herd = Herd::of(&created, &due, instant);
        let size = self.size;
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| quantile(&herd.delays, part));
        report.put(
            size,
            "herd: starts, lost, doubled",
            format!("{}, {}, {}", herd.delays.len(), herd.lost, herd.doubled),
        );
        if late {
            report.note(format!(
                "{size}: not every policy had its slot in time; the delays of the herd are too long by that"
            ));
        }
        report.put(size, "herd: delay p50 / p99 / max", format!("{p50:.2} / {p99:.2} / {max:.2} s"));
        let share = herd.rate() / raw;
        let figure = format!("{:.0} /s, {:.0} % of raw", herd.rate(), share * 100.0);
        report.put(size, "herd: starts a second", judged(figure, "80 %", share >= OF_RAW_RATE));
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| quantile(&herd.small, part));
        let figure = format!("{p50:.2} / {p99:.2} / {max:.2} s of {}", herd.small.len());
        report.put(size, "herd: delay of the tenth in small namespaces", figure);
        report.put(
            size,
            "herd: CPU of controller and API server",
            format!("{:.1} s, {:.1} s", after.0 - before.0, after.1 - before.1),
        );
        self.memory(controller, report, "RSS per policy in the herd")?;
        if size <= RUNS_END_UP_TO {
            let begun = target.now();
            controller.until_idle(size).await?;
            let took = target.now().duration_since(begun).as_secs_f64();
            report.put(size, "herd: until every run has ended, without pods", format!("{took:.1} s"));
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
        let created = self.starts(target, instant, due.len()).await?;
        let herd = Herd::of(&created, &due, instant);
        let killed = instant as f64 + 0.2;
        let before = herd.delays.iter().filter(|late| instant as f64 + **late <= killed).count();
        let size = self.size;
        report.put(
            size,
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
        report.put(size, "then: starts, lost, doubled", judged(figure, "none lost, none doubled", exact));
        second.kill();
        Ok(exact)
    }
}
