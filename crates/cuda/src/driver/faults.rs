//! Reads out of range, on their way from kernels to the host.
//!
//! Each compiled program has one word in the host's memory that its kernels see too. A kernel that meets an index
//! out of range leaves the least `site << 32 | index` there, and goes on. So nothing waits for the word: it is
//! looked at when the device is waited for anyway, or whenever somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cudarc::driver::result;
use tilewright_ir::{Error, Result};

use super::Device;
use super::device::{failed, lock};
use crate::codegen::{Site, fault};

/// What a word holds where there was no fault.
const NONE: u64 = u64::MAX;

/// Words of a page.
const WORDS: usize = 512;

/// Words that kernels and the host see. They are never freed, nor used twice: a graph that somebody captured may run
/// kernels of a program after the program was dropped.
#[derive(Debug, Default)]
pub(super) struct Words(Mutex<&'static [AtomicU64]>);

impl Words {
    /// A word of its own for a program. The device's context is current.
    fn next(&self) -> Result<&'static AtomicU64> {
        let mut left = lock(&self.0);
        if left.is_empty() {
            // Memory that the driver allocates on the host is seen by the device at the same address.
            // SAFETY: a page, never freed.
            let page = unsafe { result::malloc_host(8 * WORDS, 0) }.map_err(failed)?.cast::<u64>();
            for i in 0..WORDS {
                // SAFETY: as many words as were allocated.
                unsafe { page.add(i).write(NONE) };
            }
            // SAFETY: initialised just now, aligned to a page; an atomic has the bytes of its number.
            *left = unsafe { std::slice::from_raw_parts(page.cast::<AtomicU64>(), WORDS) };
        }
        let (word, rest) = left.split_first().expect("a page has words");
        *left = rest;
        Ok(word)
    }
}

/// A program's fault word, and what it says.
#[derive(Debug)]
pub(super) struct Faults {
    word: &'static AtomicU64,
    sites: Vec<Site>,
}

impl Faults {
    pub fn new(device: &Arc<Device>, sites: Vec<Site>) -> Result<Arc<Faults>> {
        let _entered = device.enter()?;
        let faults = Arc::new(Faults { word: device.words.next()?, sites });
        device.watch(&faults);
        Ok(faults)
    }

    /// The word's address, for kernels.
    pub fn address(&self) -> u64 {
        std::ptr::from_ref(self.word).expose_provenance() as u64
    }

    /// The word as it is now; it then says that there was no fault.
    pub fn take_word(&self) -> u64 {
        self.word.swap(NONE, Ordering::AcqRel)
    }

    /// The fault that kernels left until now, if any; it is not given twice.
    pub fn take(&self) -> Option<Error> {
        // Mostly there is none, and then nothing is written.
        if self.word.load(Ordering::Acquire) == NONE { None } else { fault(&self.sites, self.take_word()) }
    }
}
