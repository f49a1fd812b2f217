//! Timers that are being fired, and the reasons of failed ones.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::persistence::timers::{DueTimer, Failed};

/// The timers of a node that are being fired. Cheap to clone.
#[derive(Clone, Default)]
pub struct Fires(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By the id of their scheduling.
    under_way: HashSet<String>,
    /// Bounded by what is fired between two looks at it.
    failed: Vec<Failed>,
}

impl Fires {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Begins to fire a timer. `None`: it is being fired already.
    pub fn begin(&self, timer: &DueTimer) -> Option<Firing> {
        let new = self.lock().under_way.insert(timer.id.clone());
        new.then(|| Firing(Some(Box::new(Begun { fires: self.clone(), timer: failed(timer, "") }))))
    }

    pub fn under_way(&self) -> usize {
        self.lock().under_way.len()
    }

    pub fn note(&self, timer: &DueTimer, reason: &str) {
        self.lock().failed.push(failed(timer, reason));
    }

    pub fn take_failed(&self) -> Vec<Failed> {
        std::mem::take(&mut self.lock().failed)
    }
}

fn failed(timer: &DueTimer, reason: &str) -> Failed {
    Failed {
        kind: timer.kind.clone(),
        key: timer.key.clone(),
        name: timer.name.clone(),
        id: timer.id.clone(),
        reason: reason.into(),
    }
}

/// A guard of one timer that is being fired, dropped when that has ended, whichever way.
#[derive(Default)]
pub struct Firing(Option<Box<Begun>>);

struct Begun {
    fires: Fires,
    timer: Failed,
}

impl Firing {
    /// Notes that it failed. The first reason counts.
    pub fn failed(&mut self, reason: impl Into<String>) {
        if let Some(begun) = self.0.as_mut().filter(|begun| begun.timer.reason.is_empty()) {
            begun.timer.reason = reason.into();
        }
    }
}

impl Drop for Firing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failed("its entity panicked");
        }
        if let Some(begun) = self.0.take() {
            let mut state = begun.fires.lock();
            state.under_way.remove(&begun.timer.id);
            if !begun.timer.reason.is_empty() {
                state.failed.push(begun.timer);
            }
        }
    }
}
