//! What every kernel of one run shares: threads, instruction set, block maps.

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
        if self.threads == 1 || count <= 1 {
            return (0..count).try_for_each(task);
        }
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
}
