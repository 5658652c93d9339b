//! Threads along one scan: chained scan with decoupled aggregates (Merrill and Garland 2016), as CPU
//! threads need it.
//!
//! The work is `groups` independent scans, each cut into `chunks`. Which cuts are made depends on sizes
//! only. Threads take chunks in ascending order. Where the state before a chunk is there already, a thread scans the
//! chunk and folds it by itself in one pass. Else it first only folds the chunk, which leaves it in its cache; then
//! waits for the state before, publishes the state after, and only then scans the chunk with output. So the wait is
//! short: a chunk's state is published one combine after its predecessor's. Either way a state is the same bits: the
//! one before, combined with the chunk's own fold. Nobody waits for a chunk that no running thread has taken.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tilewright_ir::{Error, Result};

use crate::Context;

/// One chunk of one group.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub group: usize,
    pub chunk: usize,
}

/// One kind of chunk work. `Scratch` is what a thread keeps between chunks.
pub(super) trait Chunks: Sync {
    /// The folded state between two chunks.
    type State: Send + Sync;
    type Scratch;

    fn scratch(&self) -> Result<Self::Scratch>;
    /// Whether [`Chunks::apply`] can give a chunk's fold, the same bits as [`Chunks::aggregate`].
    fn has_totals(&self) -> bool;
    /// The fold of one chunk by itself.
    fn aggregate(&self, scratch: &mut Self::Scratch, task: Task) -> Result<Self::State>;
    /// The fold of two neighbouring runs.
    fn join(
        &self,
        scratch: &mut Self::Scratch,
        group: usize,
        left: &Self::State,
        right: &Self::State,
    ) -> Result<Self::State>;
    /// Scans one chunk, given the state before it; where `totals`, gives its fold by itself.
    fn apply(
        &self,
        scratch: &mut Self::Scratch,
        task: Task,
        before: Option<&Self::State>,
        totals: bool,
    ) -> Result<Option<Self::State>>;
}

/// Scans all chunks of all groups.
///
/// # Errors
/// The error of the first chunk that failed.
pub(super) fn run<C: Chunks>(context: &Context, groups: usize, chunks: usize, work: &C) -> Result<()> {
    let tasks = groups * chunks;
    // Empty where the chunk or one before it failed.
    let states: Vec<OnceLock<Option<C::State>>> =
        if chunks > 1 { (0..tasks).map(|_| OnceLock::new()).collect() } else { Vec::new() };
    let next = AtomicUsize::new(0);
    let abandoned = AtomicBool::new(false);
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let fail = |task: usize, error: Error| {
        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.as_ref().is_none_or(|(earlier, _)| *earlier > task) {
            *failed = Some((task, error));
        }
    };
    let worker = |_: usize| {
        let guard = Abandon(&abandoned);
        let mut scratch = work.scratch()?;
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&task| task < tasks);
        let place = |task: usize| Task { group: task / chunks, chunk: task % chunks };
        while let Some(task) = take() {
            if guard.0.load(Ordering::Relaxed) {
                return Ok(());
            }
            let at = place(task);
            let is_last = at.chunk + 1 == chunks;
            let publish = |before: Option<&C::State>, own: Result<C::State>, scratch: &mut C::Scratch| {
                let after = own.and_then(|own| match before {
                    Some(before) => work.join(scratch, at.group, before, &own),
                    None => Ok(own),
                });
                // A chunk that cannot be folded fails here; scanning it would fail alike.
                let _ = states[task].set(after.map_err(|error| fail(task, error)).ok());
            };
            let ready = match at.chunk {
                0 => Some(None),
                _ => states[task - 1].get().and_then(Option::as_ref).map(Some),
            };
            if let Some(before) = ready.filter(|_| is_last || work.has_totals()) {
                match work.apply(&mut scratch, at, before, !is_last) {
                    Ok(None) => {}
                    Ok(Some(own)) => publish(before, Ok(own), &mut scratch),
                    Err(error) if is_last => fail(task, error),
                    Err(error) => publish(before, Err(error), &mut scratch),
                }
                continue;
            }
            let aggregate = (!is_last).then(|| work.aggregate(&mut scratch, at));
            let before = match at.chunk {
                0 => None,
                _ => match wait(&states[task - 1], &abandoned) {
                    Some(state) => Some(state),
                    None => {
                        let _ = states[task].set(None);
                        continue;
                    }
                },
            };
            if let Some(aggregate) = aggregate {
                publish(before, aggregate, &mut scratch);
            }
            if let Err(error) = work.apply(&mut scratch, at, before, false) {
                fail(task, error);
            }
        }
        Ok(())
    };
    context.parallel(context.threads.min(tasks), worker)?;
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Waits for a state; none where it will not come.
fn wait<'a, S>(slot: &'a OnceLock<Option<S>>, abandoned: &AtomicBool) -> Option<&'a S> {
    let mut spins = 0u32;
    loop {
        if let Some(state) = slot.get() {
            return state.as_ref();
        }
        if abandoned.load(Ordering::Relaxed) {
            return None;
        }
        // A waiter's predecessor may be waiting for this very core.
        spins += 1;
        if spins < 64 { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

/// Tells waiting threads that a thread's states will not come, should it panic.
struct Abandon<'a>(&'a AtomicBool);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
