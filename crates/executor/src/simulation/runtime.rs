//! Runs one world: tasks of replicas are futures that wait for it, polled one at a time in one order.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use jiff::Timestamp;
use stillpoint_api::clock::Mono;

use super::api::{Answer, Request};
use super::replica::{Life, WALL_ORIGIN};
use super::world::{Happening, TaskId, Work, World};
use super::{Micros, Options, Outcome, S};

/// Longest time one request may take, as of the product's adapters.
const REQUEST_TIMEOUT: Duration = crate::context::REQUEST_TIMEOUT;
/// A world that is not over by then is a run that does not end.
const LONGEST: Micros = 3 * 3600 * S;
/// More events than any run needs.
const MOST_EVENTS: u64 = 400_000;
/// A task that goes on this often at one instant is stuck.
const MOST_POLLS: u64 = 20_000;

/// What a task of a replica has of the world.
#[derive(Clone)]
pub struct Handle {
    world: Rc<RefCell<World>>,
    /// The replica.
    pub replica: usize,
    /// Its incarnation.
    pub incarnation: u32,
}

struct Task {
    replica: usize,
    incarnation: u32,
    work: Option<Work>,
}

/// Runs the world of a seed to its end.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let world = Rc::new(RefCell::new(World::new(seed, options)));
    let mut tasks: Vec<Task> = Vec::new();
    loop {
        settle_tasks(&world, &mut tasks);
        let mut world = world.borrow_mut();
        if world.violation.is_some() {
            break;
        }
        world.check();
        if world.violation.is_some() || world.over() {
            break;
        }
        if world.events > MOST_EVENTS || world.now > LONGEST || !world.advance() {
            let left: Vec<String> =
                world.api.backups.iter().map(|one| format!("{:?}", one.status.phase)).collect();
            let detail = format!("after {} events at {} s: {}", world.events, world.now / S, left.join(", "));
            world.broken("every run ends", detail);
            break;
        }
    }
    let mut world = world.borrow_mut();
    if world.violation.is_none() {
        world.check_end();
    }
    world.spawned.clear();
    drop(tasks);
    Outcome {
        violation: world.violation.take(),
        coverage: std::mem::take(&mut world.coverage),
        events: world.events,
        effects: world.effects,
        log: std::mem::take(&mut world.log),
    }
}

fn settle_tasks(world: &Rc<RefCell<World>>, tasks: &mut Vec<Task>) {
    for polls in 0.. {
        if polls > MOST_POLLS {
            let task = world.borrow().current;
            world.borrow_mut().broken("no task spins", format!("task {task}"));
            return;
        }
        let (spawned, starting, next) = {
            let mut inner = world.borrow_mut();
            let spawned = std::mem::take(&mut inner.spawned);
            let starting = std::mem::take(&mut inner.starting);
            let next = inner.ready.pop_front();
            (spawned, starting, next)
        };
        for replica in starting {
            let incarnation = world.borrow().replicas[replica].incarnation;
            let handle = Handle { world: Rc::clone(world), replica, incarnation };
            for work in super::tasks::tasks(&handle) {
                push(world, tasks, replica, incarnation, work);
            }
        }
        for (replica, incarnation, work) in spawned {
            push(world, tasks, replica, incarnation, work);
        }
        let Some(id) = next else {
            if world.borrow().ready.is_empty() {
                return;
            }
            continue;
        };
        let Some(task) = tasks.get_mut(id) else { continue };
        {
            let mut inner = world.borrow_mut();
            let owner = &inner.replicas[task.replica];
            if owner.incarnation != task.incarnation || owner.life == Life::Down {
                drop(inner);
                task.work = None;
                continue;
            }
            if owner.life != Life::Up {
                let replica = task.replica;
                inner.replicas[replica].parked.push(id);
                continue;
            }
            inner.current = id;
        }
        if let Some(work) = &mut task.work
            && work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        {
            task.work = None;
        }
    }
}

fn push(world: &Rc<RefCell<World>>, tasks: &mut Vec<Task>, replica: usize, incarnation: u32, work: Work) {
    let id: TaskId = tasks.len();
    tasks.push(Task { replica, incarnation, work: Some(work) });
    world.borrow_mut().ready.push_back(id);
}

impl Handle {
    /// Looks at the world, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.world.borrow_mut())
    }

    /// Waits until `check` has something. It is asked whenever this task is woken.
    pub async fn until<T>(&self, mut check: impl FnMut(&mut World) -> Option<T>) -> T {
        poll_fn(|_| self.with(&mut check).map_or(Poll::Pending, Poll::Ready)).await
    }

    /// The replica's monotonic clock.
    pub fn mono(&self) -> Mono {
        self.with(|world| world.replicas[self.replica].mono(world.now))
    }

    /// The replica's wall clock.
    pub fn wall(&self) -> Timestamp {
        self.with(|world| {
            let offset = world.replicas[self.replica].wall_offset;
            let micros = i64::try_from(WALL_ORIGIN + world.now).unwrap_or(i64::MAX) + offset;
            Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH)
        })
    }

    /// Lets the task be woken at an instant of true time.
    pub fn wake_at(&self, at: Micros) {
        self.with(|world| {
            let task = world.current;
            world.after(at.saturating_sub(world.now), Happening::Wake(task));
        });
    }

    /// Waits.
    pub async fn sleep(&self, time: Duration) {
        let until = self.with(|world| world.now) + micros(time);
        self.wake_at(until);
        self.until(|world| (world.now >= until).then_some(())).await;
    }

    /// Waits; true when `stop` has something meanwhile.
    pub async fn pause(&self, time: Duration, mut stop: impl FnMut(&mut World) -> bool) -> bool {
        let until = self.with(|world| world.now) + micros(time);
        self.wake_at(until);
        self.until(|world| if stop(world) { Some(true) } else { (world.now >= until).then_some(false) }).await
    }

    /// Asks the API server; none when it does not answer in time.
    pub async fn request(&self, request: Request) -> Option<Answer> {
        let starved = self.with(|world| {
            let starved = world.replicas[self.replica].starved_until > world.now;
            starved && matches!(request, Request::Renew(_))
        });
        let id =
            if starved { None } else { Some(self.with(|world| world.send_request(self.replica, request))) };
        let until = self.with(|world| world.now) + micros(REQUEST_TIMEOUT);
        self.wake_at(until);
        self.until(|world| {
            if let Some(answer) = id.and_then(|id| world.take_answer(id)) {
                return Some(Some(answer));
            }
            if world.now >= until {
                if let Some(id) = id {
                    world.forget_request(id);
                }
                return Some(None);
            }
            None
        })
        .await
    }

    /// Starts a task beside this one.
    pub fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        self.with(|world| world.spawned.push((self.replica, self.incarnation, Box::pin(work))));
    }
}

/// A duration in the world's unit.
pub fn micros(time: Duration) -> Micros {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 4)
}
