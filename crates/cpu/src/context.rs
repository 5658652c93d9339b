//! What every kernel of one run shares: threads, instruction set, block maps.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use tilewright_ir::{Error, Result};

use crate::Isa;
use crate::block_map::Blocks;

/// What every kernel of one run shares.
pub struct Context {
    /// The instruction set to use.
    pub isa: Isa,
    /// How many threads work; 1 means that everything runs on the calling thread.
    pub threads: usize,
    /// The block maps made so far, by slot.
    pub(crate) block_maps: Vec<OnceLock<Blocks>>,
}

impl Context {
    /// Runs `task(i)` for each i in `0..count`, on all threads, and waits for them. What a task computes
    /// must not depend on which others run before it.
    ///
    /// Kernels reach threads through this only: rayon's own functions would use all cores whatever
    /// `threads` says.
    ///
    /// # Errors
    /// The error of the least i that failed among those that ran; once one failed, others may not run.
    /// Which it is does not depend on the number of threads: no i below a failed one is left out.
    pub fn parallel(&self, count: usize, task: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
        match self.threads == 1 || count <= 1 {
            true => (0..count).try_for_each(task),
            false => in_any_order(count, &task),
        }
    }

    /// As [`Context::parallel`], for tasks that begin in the order of their numbers, each on whichever thread is free:
    /// the longest should come first. They work in what `room` makes, once for each thread, and must not depend on what
    /// they find there.
    ///
    /// # Errors
    /// As [`Context::parallel`].
    pub fn parallel_in<T>(
        &self,
        count: usize,
        room: impl Fn() -> Result<T> + Sync,
        task: impl Fn(&mut T, usize) -> Result<()> + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let first: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let failed = || first.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            let mut kept = None;
            // Every number below that of a task that failed has been taken by then.
            while failed().is_none() {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    return;
                }
                let mut run = || match &mut kept {
                    Some(room) => task(room, i),
                    none => task(none.insert(room()?), i),
                };
                if let Err(error) = run() {
                    let mut failed = failed();
                    if failed.as_ref().is_none_or(|(j, _)| *j > i) {
                        *failed = Some((i, error));
                    }
                }
            }
        };
        match self.threads.min(count) {
            0 => {}
            1 => work(),
            workers => on_threads(workers, &work),
        }
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// Runs `task(i)` for each i in `0..count`, on all of rayon's threads. (No generic parameter, here and below: rayon's own
/// functions, of which there are many, are then compiled once.)
fn in_any_order(count: usize, task: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
    let first: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    (0..count).into_par_iter().with_max_len(1).for_each(|i| {
        let lower_failed = |failed: &Option<(usize, Error)>| matches!(failed, Some((j, _)) if *j < i);
        if lower_failed(&first.lock().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        if let Err(error) = task(i) {
            let mut failed = first.lock().unwrap_or_else(PoisonError::into_inner);
            if !lower_failed(&failed) {
                *failed = Some((i, error));
            }
        }
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Runs `work` on so many of rayon's threads.
fn on_threads(workers: usize, work: &(dyn Fn() + Sync)) {
    rayon::scope(|scope| (0..workers).for_each(|_| scope.spawn(|_| work())));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_a_room_of_its_thread() {
        for threads in [1, 2, 5] {
            let context = Context { isa: Isa::Portable, threads, block_maps: Vec::new() };
            let (rooms, runs) = (AtomicUsize::new(0), Mutex::new(vec![0; 100]));
            let room = || Ok(rooms.fetch_add(1, Ordering::Relaxed));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let ran = pool.install(|| {
                context.parallel_in(100, room, |_, i| {
                    runs.lock().unwrap()[i] += 1;
                    Ok(())
                })
            });
            assert_eq!((ran, runs.into_inner().unwrap()), (Ok(()), vec![1; 100]));
            assert!((1..=threads).contains(&rooms.into_inner()));
        }
    }

    #[test]
    fn the_first_task_that_fails_tells() {
        let error = |i: usize| crate::memory::broken(i.to_string());
        for threads in [1, 3] {
            let context = Context { isa: Isa::Portable, threads, block_maps: Vec::new() };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let task = |_: &mut (), i: usize| if i % 7 == 3 { Err(error(i)) } else { Ok(()) };
            assert_eq!(pool.install(|| context.parallel_in(50, || Ok(()), task)), Err(error(3)));
        }
    }
}
