//! What is checked of one template on one server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use stillpoint_api::template::restored::Check;
use stillpoint_api::template::{Freeze, Recipe};
use stillpoint_executor::hold::HoldLine;

use crate::container::{Container, Server};
use crate::held::Held;
use crate::servers::{Refusal, Row};
use crate::writer::{Ack, Writer};
use crate::{Outcome, library, logins};

/// From the end of a hold until a writer commits again, when it was told to end or its input ended: what a holder promises is
/// a second, a machine under load needs more.
const RELEASED: Duration = Duration::from_secs(5);
/// A hold that hears nothing ends at its lease, or where no server keeps one at the deadline it was given.
const SILENT: Duration = Duration::from_secs(15);
/// The deadline given to holds that are left alone.
const DEADLINE: Duration = Duration::from_secs(8);
/// How long the writer writes before anything is looked at: a copy without rows shows nothing.
const WARM: Duration = Duration::from_millis(2500);
/// Between the cuts of two volumes: the server goes on with what no lock stops.
const APART: Duration = Duration::from_secs(2);
/// How long a hold is held.
const HELD: Duration = Duration::from_millis(2200);

/// What one check found.
pub type Checked = (String, Outcome<String>);

/// The rows of the table for one server.
pub fn run(row: &Row, roots: &Path) -> (String, Vec<Checked>) {
    let container = row.engine.container(roots);
    let version = match row.engine.version(&container) {
        Ok(version) => version,
        Err(why) => return ("unknown".into(), vec![("version".into(), Err(why))]),
    };
    let mut found = Vec::new();
    if let Err(why) = all(row, &container, &mut found) {
        found.push(("set up".into(), Err(why)));
    }
    (version, found)
}

fn all(row: &Row, container: &Container, found: &mut Vec<Checked>) -> Outcome<()> {
    let data = format!("/srv/stillpoint-{}", row.name);
    let copy = format!("{data}-copy");
    let volumes = row.engine.volumes(&data);
    let copies = row.engine.volumes(&copy);
    for directory in volumes.iter().chain(&copies) {
        let outside = container.outside(directory);
        let _ = std::fs::remove_dir_all(&outside);
        let _ = std::fs::remove_file(outside.with_extension("log"));
    }
    std::fs::create_dir_all(container.outside(&data)).map_err(|error| error.to_string())?;
    let recipe = library::recipe(row.template, &row.engine.parameters(&data))?;
    let kept;
    {
        let server = row.engine.start(container, &data)?;
        let writer = Writer::start(row.engine.commit(container, &data)?, 1)?;
        if let Some(rule) = recipe.target.as_ref().and_then(|target| target.role.as_ref()) {
            let done = container.run(&rule.command)?;
            let said = done.stdout.trim().to_owned();
            let good = done.code == Some(0) && rule.accept.contains(&said);
            found.push(("role".into(), if good { Ok(said) } else { Err(format!("{done:?}")) }));
        }
        std::thread::sleep(WARM);
        let began = Instant::now();
        found.push(("prepare".into(), prepare(container, &recipe, began)));
        let (checked, bound) = match &recipe.freeze {
            Some(Freeze::None {}) | None => {
                (cut(&server, container, &volumes, &copies), Bound::Prepared(began))
            }
            Some(Freeze::Session(_) | Freeze::Commands(_)) => {
                let (checked, bound) = hold(row, container, &recipe, &server, &writer, &volumes, &copies);
                found.push(("hold".into(), checked));
                ends(row, container, &recipe, &writer, found);
                (Ok("inside the hold".into()), bound)
            }
        };
        found.push(("cut".into(), checked));
        for refusal in row.engine.refusals() {
            found.push((refusal.name.into(), refused(row, container, &data, &refusal)));
        }
        found.extend(row.engine.more(container, &recipe, &data));
        kept = (writer.acks(), bound);
        drop(writer);
    }
    let (acks, bound) = kept;
    copied(row, container, &copy, &acks, bound, found)?;
    for directory in volumes.iter().chain(&copies) {
        let _ = std::fs::remove_dir_all(container.outside(directory));
    }
    Ok(())
}

/// What a copy must have and cannot have.
#[derive(Clone, Copy)]
enum Bound {
    /// Everything acknowledged before prepare began.
    Prepared(Instant),
    /// Everything acknowledged before FROZEN; what came later may be there.
    Observed(Instant),
    /// Everything acknowledged before the thaw was sent, and nothing that was begun after FROZEN.
    Held { frozen: Instant, thawing: Instant },
    /// It was never held.
    Nothing,
}

fn prepare(container: &Container, recipe: &Recipe, began: Instant) -> Outcome<String> {
    let Some(prepare) = &recipe.prepare else { return Ok("none".into()) };
    let done = container.run(&prepare.command)?;
    if done.code == Some(0) {
        Ok(format!("{:.1} s", began.elapsed().as_secs_f64()))
    } else {
        Err(format!("{done:?}"))
    }
}

/// Stops all of the server, copies the files of a volume, and lets it go on: one instant, as an atomic snapshot. The next volume is cut
/// later.
fn cut(server: &Server, container: &Container, volumes: &[String], copies: &[String]) -> Outcome<String> {
    for (at, (volume, copy)) in volumes.iter().zip(copies).enumerate() {
        if at > 0 {
            std::thread::sleep(APART);
        }
        server.signal("STOP");
        let paths: Vec<PathBuf> = [volume, copy].iter().map(|path| container.outside(path)).collect();
        let done = Command::new("cp").arg("-a").arg("--reflink=auto").args(&paths).status();
        server.signal("CONT");
        match done {
            Ok(status) if status.success() => {}
            other => return Err(format!("cp: {other:?}")),
        }
    }
    Ok("all processes stopped meanwhile".into())
}

fn hold(
    row: &Row,
    container: &Container,
    recipe: &Recipe,
    server: &Server,
    writer: &Writer,
    volumes: &[String],
    copies: &[String],
) -> (Outcome<String>, Bound) {
    let mut bound = Bound::Nothing;
    let checked = (|| {
        let mut held = Held::open_for(container, recipe, row.engine.acquire())?;
        let asked = Instant::now();
        let frozen = held.freeze(Duration::from_secs(60))?;
        cut(server, container, volumes, copies)?;
        let until = Instant::now() + HELD;
        while Instant::now() < until {
            held.beat()?;
            std::thread::sleep(Duration::from_millis(700));
        }
        let (thawing, thawed) = held.close()?;
        let resumed = writer.first_after(thawed, RELEASED)?;
        if held.reports.windows(2).any(|pair| pair[0].identity != pair[1].identity) {
            return Err(format!("another server answered: {:?}", held.reports));
        }
        let gaps = gaps(recipe, &held);
        if !gaps.is_empty() {
            return Err(format!("not durable by what it told: {}; facts {:?}", gaps.join(", "), held.facts));
        }
        let locks = match &recipe.freeze {
            Some(Freeze::Session(session)) => session.locks,
            Some(Freeze::Commands(_)) => true,
            Some(Freeze::None {}) | None => false,
        };
        let inside = writer.acks().iter().filter(|ack| ack.begun > frozen && ack.acked < thawing).count();
        bound = if locks { Bound::Held { frozen, thawing } } else { Bound::Observed(frozen) };
        match (locks, inside) {
            (true, 0) | (false, 1..) => {}
            (true, some) => {
                return Err(format!("{some} commits were begun and acknowledged inside the hold"));
            }
            (false, 0) => return Err("an observer stopped the writers".into()),
        }
        let position = positions(recipe, &held)?;
        Ok(format!(
            "FROZEN after {} ms, held {} ms, THAWED after {} ms, next commit {} ms later; {inside} commits inside{position}",
            (frozen - asked).as_millis(),
            (thawing - frozen).as_millis(),
            (thawed - thawing).as_millis(),
            resumed.as_millis()
        ))
    })();
    (checked, bound)
}

/// The counter that only a commit moves, where the template names one: it runs, and stood still.
fn positions(recipe: &Recipe, held: &Held) -> Outcome<String> {
    let Some(Freeze::Session(session)) = &recipe.freeze else { return Ok(String::new()) };
    let Some(key) = &session.position else { return Ok(String::new()) };
    // READY was before the lock.
    let mut seen: Vec<&str> = held
        .reports
        .iter()
        .skip(1)
        .flat_map(|report| {
            report.position.pairs().filter(|(name, _)| name.as_str() == key).map(|(_, value)| value)
        })
        .collect();
    let all = seen.len();
    seen.dedup();
    match seen.as_slice() {
        [one] if *one != "off" && all > 1 => Ok(format!("; {key} stood still at {one}")),
        other => Err(format!("{key} was {other:?}; facts {:?}", held.facts)),
    }
}

/// Settings that the verdict would miss.
fn gaps(recipe: &Recipe, held: &Held) -> Vec<String> {
    let one_of = |value: &str, values: &[String]| values.iter().any(|one| one.eq_ignore_ascii_case(value));
    let barrier = held.facts.contains_key("barrier");
    let settings = recipe.crash_safe.iter().flat_map(|safe| &safe.settings);
    settings
        .filter(|setting| {
            let asked = setting.when.as_ref().is_none_or(|when| {
                held.facts.get(&when.name).is_none_or(|value| one_of(value, &when.values))
            });
            let good = held.facts.get(&setting.name).is_some_and(|value| one_of(value, &setting.allowed));
            asked && !good && !(setting.or_barrier && barrier)
        })
        .map(|setting| format!("{}={:?}", setting.name, held.facts.get(&setting.name)))
        .collect()
}

/// Every way in which a hold can end without a thaw.
fn ends(row: &Row, container: &Container, recipe: &Recipe, writer: &Writer, found: &mut Vec<Checked>) {
    let mut after = |name: &str, limit: Duration, end: &dyn Fn(&mut Held)| {
        let checked = (|| {
            let mut held = Held::open_for(container, recipe, row.engine.acquire())?;
            held.freeze(DEADLINE)?;
            let at = Instant::now();
            end(&mut held);
            let resumed = writer.first_after(at, limit)?;
            let rest = held.rest(Duration::from_millis(300));
            if rest.contains(&HoldLine::Thawed) {
                return Err("THAWED was printed, and nobody asked for it".into());
            }
            drop(held);
            Ok(format!("a writer commits again after {} ms; no THAWED", resumed.as_millis()))
        })();
        found.push((name.to_owned(), checked));
    };
    after("end of input", RELEASED, &|held| held.end_input());
    after("silence", SILENT, &|_| {});
    after("client killed", SILENT, &|held| {
        held.kill();
        if row.engine.outlives_its_client()
            && let Some(recover) = &recipe.recover
        {
            // Judged by whether a writer goes on.
            if let Ok(recover) = recover.filled(&held.facts) {
                let _ = container.run(&recover.command);
            }
        }
    });
    let canary = (|| {
        let mut held = Held::open(container, recipe)?;
        if !held.canary()? {
            return Ok("none".to_owned());
        }
        let rest = held.rest(Duration::from_secs(10));
        if rest.contains(&HoldLine::Canary) {
            return Err("the client goes on after an error".to_owned());
        }
        Ok("the client ends at its first error".to_owned())
    })();
    found.push(("canary".into(), canary));
}

/// A prepare that must fail and say why.
fn refused(row: &Row, container: &Container, data: &str, refusal: &Refusal) -> Outcome<String> {
    let mut parameters = row.engine.parameters(data);
    parameters.retain(|(name, _)| refusal.parameters.iter().all(|(other, _)| other != name));
    parameters.extend(refusal.parameters.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let recipe = library::recipe(row.template, &parameters)?;
    let mut container = container.clone();
    for (name, value) in &refusal.env {
        container.env.retain(|(other, _)| other != name);
        container.env.push(((*name).to_owned(), (*value).to_owned()));
    }
    let argv = match (&recipe.prepare, &recipe.target) {
        (Some(prepare), _) => &prepare.command,
        (None, Some(target)) => &target.role.as_ref().ok_or("nothing is run before the hold")?.command,
        (None, None) => return Err("nothing is run before the hold".into()),
    };
    let done = container.run(argv)?;
    // What the user reads.
    let (reason, message) = logins::means(&recipe, &done);
    let reason_fits = refusal.reason.is_none_or(|expected| expected == reason);
    if done.code != Some(0) && message.contains(refusal.says) && reason_fits {
        return Ok(format!("{reason}: {message}"));
    }
    Err(format!("it should say {:?}: {done:?}", refusal.says))
}

/// Starts a server on the copy, compares its rows with the writer's log, and runs the checks of the template in it.
fn copied(
    row: &Row,
    container: &Container,
    copy: &str,
    acks: &[Ack],
    bound: Bound,
    found: &mut Vec<Checked>,
) -> Outcome<()> {
    let recipe = library::recipe(row.template, &row.engine.parameters(copy))?;
    let server = row.engine.start(container, copy)?;
    // Steps may be what brings the rows: a repository is restored from by them. Each may run again.
    let steps = after_restore(container, &recipe).and_then(|()| after_restore(container, &recipe));
    let rows = row.engine.rows(container, copy);
    found.push(("copy".into(), rows.and_then(|rows| compared(&rows, acks, bound))));
    if !recipe.checks.is_empty() {
        found.push(("checks".into(), steps.and_then(|()| checked(container, &recipe.checks))));
        if let Some(damaged) = row.engine.damage(container, copy) {
            found.push(("damaged copy".into(), damaged.and_then(|()| noticed(container, &recipe.checks))));
        }
    }
    drop(server);
    Ok(())
}

/// What is to be done in a restored copy before it is used.
fn after_restore(container: &Container, recipe: &Recipe) -> Outcome<()> {
    for step in &recipe.after_restore {
        let done = container.run_within(&step.command, step.within())?;
        if done.code != Some(0) {
            return Err(format!("step {}: {done:?}", step.name));
        }
    }
    Ok(())
}

/// Why a check does not pass.
fn unmet(container: &Container, check: &Check) -> Outcome<Option<String>> {
    let done = container.run_within(&check.command, check.within())?;
    if done.code != Some(0) {
        return Ok(Some(format!("check {}: {done:?}", check.name)));
    }
    let why = check.expect.as_ref().and_then(|expect| expect.unmet(&done.stdout));
    Ok(why.map(|why| format!("check {}: {why}", check.name)))
}

/// That every check passes.
fn checked(container: &Container, checks: &[Check]) -> Outcome<String> {
    for check in checks {
        if let Some(why) = unmet(container, check)? {
            return Err(why);
        }
    }
    Ok(format!("{} checks", checks.len()))
}

/// That one of the checks does not pass.
fn noticed(container: &Container, checks: &[Check]) -> Outcome<String> {
    for check in checks {
        if let Some(why) = unmet(container, check)? {
            return Ok(format!("refused: {why}"));
        }
    }
    Err("every check passed".to_owned())
}

/// The rows of a copy against the writer's log.
fn compared(rows: &BTreeSet<u64>, acks: &[Ack], bound: Bound) -> Outcome<String> {
    let (before, after) = match bound {
        Bound::Prepared(at) | Bound::Observed(at) => (at, None),
        Bound::Held { frozen, thawing } => (thawing, Some(frozen)),
        Bound::Nothing => return Err("there was no hold".into()),
    };
    let expected: Vec<u64> = acks.iter().filter(|ack| ack.acked < before).map(|ack| ack.row).collect();
    let missing: Vec<&u64> = expected.iter().filter(|row| !rows.contains(row)).collect();
    let impossible =
        acks.iter().filter(|ack| after.is_some_and(|after| ack.begun > after) && rows.contains(&ack.row));
    let impossible = impossible.count();
    if expected.is_empty() || !missing.is_empty() || impossible > 0 {
        return Err(format!(
            "{} of {} rows are missing ({:?}…), {impossible} are there that cannot be",
            missing.len(),
            expected.len(),
            missing.first()
        ));
    }
    Ok(format!(
        "{} acknowledged rows, none missing, none that cannot be; {} in all",
        expected.len(),
        rows.len()
    ))
}
