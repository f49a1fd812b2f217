//! Runs futures in virtual time, one after the other, in an order that the seed decides. A thread runs one schedule.
//!
//! A task belongs to a process or to the world around the processes. Those of a stopped process wait, those of a dead
//! one are dropped where they stand: between any two steps, as a real process is.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Tasks of the world around the processes, which nothing stops.
pub const WORLD: usize = 0;

struct Task {
    process: usize,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

#[derive(Default)]
struct Process {
    dead: bool,
    stopped_until: i64,
    /// Clocks of two machines have nothing in common, and run at slightly different speeds.
    offset_ms: i64,
    per_mille: i64,
}

struct Exec {
    now: Cell<i64>,
    steps: Cell<u64>,
    current: Cell<usize>,
    process: Cell<usize>,
    /// Time, step and task in one number, as comparing them is what most of the time goes into.
    due: RefCell<BinaryHeap<Reverse<u128>>>,
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    processes: RefCell<Vec<Process>>,
    rng: RefCell<SmallRng>,
    /// By step: a timer that nobody waits for any more.
    cancelled: RefCell<Vec<bool>>,
}

thread_local! {
    static EXEC: Exec = Exec {
        now: Cell::new(0),
        steps: Cell::new(0),
        current: Cell::new(0),
        process: Cell::new(WORLD),
        due: RefCell::default(),
        tasks: RefCell::default(),
        free: RefCell::default(),
        processes: RefCell::default(),
        rng: RefCell::new(SmallRng::seed_from_u64(0)),
        cancelled: RefCell::default(),
    };
}

/// Forgets everything and begins a schedule.
pub fn reset(seed: u64) {
    let tasks = EXEC.with(|e| {
        e.free.borrow_mut().clear();
        std::mem::take(&mut *e.tasks.borrow_mut())
    });
    // What ends with them may still spawn; that goes the same way.
    drop(tasks);
    EXEC.with(|e| {
        drop(std::mem::take(&mut *e.tasks.borrow_mut()));
        e.due.borrow_mut().clear();
        e.free.borrow_mut().clear();
        e.cancelled.borrow_mut().clear();
        e.now.set(0);
        e.steps.set(0);
        *e.processes.borrow_mut() = vec![Process::default()];
        *e.rng.borrow_mut() = SmallRng::seed_from_u64(seed);
    });
}

pub fn now() -> i64 {
    EXEC.with(|e| e.now.get())
}

/// How many there were in this schedule.
pub fn steps() -> u64 {
    EXEC.with(|e| e.steps.get())
}

/// The clock of the lease on the machine whose task runs.
pub fn clock_ms() -> i64 {
    EXEC.with(|e| clock(e, e.process.get()))
}

fn clock(e: &Exec, process: usize) -> i64 {
    let now = e.now.get();
    let process = &e.processes.borrow()[process];
    now + now * process.per_mille / 1_000 + process.offset_ms
}

pub fn clock_of(process: usize) -> i64 {
    EXEC.with(|e| clock(e, process))
}

pub fn between(from: i64, to: i64) -> i64 {
    EXEC.with(|e| e.rng.borrow_mut().random_range(from..=to))
}

pub fn one_in(n: u32) -> bool {
    EXEC.with(|e| e.rng.borrow_mut().random_range(0..n) == 0)
}

pub fn pick<T: Copy>(of: &[T]) -> Option<T> {
    (!of.is_empty()).then(|| of[between(0, of.len() as i64 - 1) as usize])
}

pub fn new_process() -> usize {
    let process = Process {
        offset_ms: between(0, 1_000_000_000),
        per_mille: between(-10, 10),
        ..Process::default()
    };
    EXEC.with(|e| {
        e.processes.borrow_mut().push(process);
        e.processes.borrow().len() - 1
    })
}

pub fn stop_until(process: usize, at: i64) {
    EXEC.with(|e| e.processes.borrow_mut()[process].stopped_until = at);
}

pub fn stopped_until(process: usize) -> i64 {
    EXEC.with(|e| e.processes.borrow()[process].stopped_until)
}

pub fn kill(process: usize) {
    let ended: Vec<Task> = EXEC.with(|e| {
        e.processes.borrow_mut()[process].dead = true;
        let mut tasks = e.tasks.borrow_mut();
        let theirs = tasks.iter_mut().enumerate().filter_map(|(id, task)| {
            let ends = task.as_ref().is_some_and(|task| task.process == process);
            ends.then(|| {
                e.free.borrow_mut().push(id);
                task.take().expect("it is there")
            })
        });
        theirs.collect()
    });
    drop(ended);
}

pub fn spawn(process: usize, work: impl Future<Output = ()> + 'static) {
    spawn_later(0, process, work);
}

pub fn spawn_later(ms: i64, process: usize, work: impl Future<Output = ()> + 'static) {
    EXEC.with(|e| {
        let task = Some(Task { process, future: Box::pin(work) });
        let mut tasks = e.tasks.borrow_mut();
        let id = match e.free.borrow_mut().pop() {
            Some(id) => {
                tasks[id] = task;
                id
            }
            None => {
                tasks.push(task);
                tasks.len() - 1
            }
        };
        wake_at(e, e.now.get() + ms, id);
    });
}

fn wake_at(e: &Exec, at: i64, task: usize) -> u64 {
    let step = e.steps.get() + 1;
    e.steps.set(step);
    e.due.borrow_mut().push(Reverse((at as u128) << 64 | u128::from(step) << 32 | task as u128));
    step
}

fn wake(task: usize) {
    EXEC.with(|e| wake_at(e, e.now.get(), task));
}

fn current() -> usize {
    EXEC.with(|e| e.current.get())
}

/// Lets the schedule go on until `until`, or `done` says so. Called by nobody who is a task.
pub fn run(until: i64, mut done: impl FnMut() -> bool) {
    EXEC.with(|e| {
        while !done() {
            let next = e.due.borrow().peek().map_or(u128::MAX, |Reverse(next)| *next);
            if next >> 64 > until as u128 {
                e.now.set(until);
                return;
            }
            let (at, step, id) = ((next >> 64) as i64, (next as u64) >> 32, next as u32 as usize);
            e.due.borrow_mut().pop();
            if e.cancelled.borrow().get(step as usize).is_some_and(|cancelled| *cancelled) {
                continue;
            }
            e.now.set(at);
            let Some(process) =
                e.tasks.borrow().get(id).and_then(Option::as_ref).map(|task| task.process)
            else {
                continue;
            };
            let (dead, stopped_until) = {
                let process = &e.processes.borrow()[process];
                (process.dead, process.stopped_until)
            };
            if stopped_until > at && !dead {
                // What becomes runnable while a process is stopped runs in any order.
                let again = (stopped_until + e.rng.borrow_mut().random_range(0..5)).min(at + 500);
                wake_at(e, again, id);
                continue;
            }
            let Some(mut task) = e.tasks.borrow_mut()[id].take() else { continue };
            e.current.set(id);
            e.process.set(process);
            let ended = dead
                || task.future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            e.process.set(WORLD);
            // It may have ended its own process.
            if ended || e.processes.borrow()[process].dead {
                drop(task);
                e.free.borrow_mut().push(id);
            } else {
                e.tasks.borrow_mut()[id] = Some(task);
            }
        }
    });
}

pub struct Sleep {
    until: i64,
    step: Option<u64>,
}

pub fn sleep(ms: i64) -> Sleep {
    Sleep { until: now() + ms, step: None }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if now() >= self.until {
            self.step = None;
            return Poll::Ready(());
        }
        if self.step.is_none() {
            self.step = Some(EXEC.with(|e| wake_at(e, self.until, e.current.get())));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(step) = self.step {
            EXEC.with(|e| {
                let mut cancelled = e.cancelled.borrow_mut();
                let len = cancelled.len().max(step as usize + 1);
                cancelled.resize(len, false);
                cancelled[step as usize] = true;
            });
        }
    }
}

/// As tokio's: what is ready wins over the time that has passed.
pub async fn timeout<F: Future>(ms: i64, work: F) -> Option<F::Output> {
    let mut work = pin!(work);
    let mut late = sleep(ms);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Pin::new(&mut late).poll(cx).map(|()| None),
    })
    .await
}

/// Something has happened; one task waits for it.
#[derive(Clone, Default)]
pub struct Bell(Rc<(Cell<bool>, Cell<Option<usize>>)>);

impl Bell {
    pub fn ring(&self) {
        self.0.0.set(true);
        if let Some(task) = self.0.1.take() {
            wake(task);
        }
    }

    pub async fn rung(&self) {
        poll_fn(|_| {
            if self.0.0.replace(false) {
                return Poll::Ready(());
            }
            self.0.1.set(Some(current()));
            Poll::Pending
        })
        .await;
    }
}

/// A queue with one reader.
pub struct Queue<T>(Rc<(RefCell<VecDeque<T>>, Bell)>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self(Rc::new((RefCell::default(), Bell::default())))
    }
}

impl<T> Queue<T> {
    pub fn push(&self, item: T) {
        self.0.0.borrow_mut().push_back(item);
        self.0.1.ring();
    }

    /// Its reader, which waits already, hears of it later.
    pub fn push_later(&self, ms: i64, item: T) {
        self.0.0.borrow_mut().push_back(item);
        if let Some(task) = self.0.1.0.1.take() {
            EXEC.with(|e| wake_at(e, e.now.get() + ms, task));
        }
    }

    pub fn try_pop(&self) -> Option<T> {
        self.0.0.borrow_mut().pop_front()
    }

    pub fn is_empty(&self) -> bool {
        self.0.0.borrow().is_empty()
    }

    pub async fn pop(&self) -> T {
        poll_fn(|_| match self.try_pop() {
            Some(item) => Poll::Ready(item),
            None => {
                self.0.1.0.1.set(Some(current()));
                Poll::Pending
            }
        })
        .await
    }
}
