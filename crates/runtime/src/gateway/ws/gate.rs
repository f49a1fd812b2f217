//! A gate in front of a poll: a source is polled only after it has woken the task.
//!
//! A task that waits for several sources is woken by one of them and then polls them all. For some that is expensive:
//! polling a socket clears its read buffer. A source behind a gate is polled only if it was the one to wake the task.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::{Mutex, MutexGuard};

pub struct Gate {
    called: Arc<Called>,
    /// The waker that is given to the source behind the gate.
    waker: Waker,
    /// The task's waker, as registered in `called`.
    task: Waker,
}

struct Called {
    open: AtomicBool,
    /// The task's waker. It stays registered, so it is only written when the task changes.
    task: Mutex<Waker>,
}

impl Called {
    fn task(&self) -> MutexGuard<'_, Waker> {
        self.task.lock()
    }
}

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.open.store(true, Ordering::Release);
        self.task().wake_by_ref();
    }
}

impl Default for Gate {
    /// An open gate: the source has not been polled yet, so it could not wake anybody.
    fn default() -> Self {
        let task = Waker::noop().clone();
        let called = Arc::new(Called { open: true.into(), task: Mutex::new(task.clone()) });
        Self { waker: called.clone().into(), called, task }
    }
}

impl Gate {
    /// Opens the gate, because the source was changed and has to be polled again.
    pub fn open(&self) {
        self.called.open.store(true, Ordering::Release);
    }

    pub fn poll<T>(
        &mut self,
        context: &Context<'_>,
        ask: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        // The waker is registered before the gate is checked: a wake in between reaches the right task.
        if !self.task.will_wake(context.waker()) {
            self.task.clone_from(context.waker());
            self.called.task().clone_from(context.waker());
        }
        // The gate is mostly closed, and a load is cheaper than a swap.
        if !self.called.open.load(Ordering::Acquire)
            || !self.called.open.swap(false, Ordering::AcqRel)
        {
            return Poll::Pending;
        }
        let answer = ask(&mut Context::from_waker(&self.waker));
        if answer.is_ready() {
            // The source may have more.
            self.open();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_what_has_called_is_asked() {
        let mut gate = Gate::default();
        let (task, other) = (Arc::new(Task::default()), Arc::new(Task::default()));
        let waker: Waker = task.clone().into();
        let mut inside = None;
        let mut ask = |gate: &mut Gate, waker: &Waker, answer: Poll<()>| {
            let mut asked = false;
            let got = gate.poll(&Context::from_waker(waker), |cx| {
                asked = true;
                inside = Some(cx.waker().clone());
                answer
            });
            (asked, got, inside.clone().unwrap())
        };
        let (asked, _, call) = ask(&mut gate, &waker, Poll::Pending);
        assert!(asked, "nobody knows yet");
        assert!(!ask(&mut gate, &waker, Poll::Pending).0);
        for round in 1..=2 {
            call.wake_by_ref();
            assert_eq!(task.0.load(Ordering::SeqCst), round);
            assert_eq!(ask(&mut gate, &waker, Poll::Ready(())).1, Poll::Ready(()));
            assert!(ask(&mut gate, &waker, Poll::Pending).0, "there may have been more");
            assert!(!ask(&mut gate, &waker, Poll::Pending).0);
        }
        gate.open();
        assert!(ask(&mut gate, &waker, Poll::Pending).0);
        // Another task takes over.
        let second: Waker = other.clone().into();
        assert!(!ask(&mut gate, &second, Poll::Pending).0);
        call.wake_by_ref();
        assert_eq!((task.0.load(Ordering::SeqCst), other.0.load(Ordering::SeqCst)), (2, 1));
        assert!(ask(&mut gate, &second, Poll::Pending).0);
    }
}
