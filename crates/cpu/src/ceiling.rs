//! What this machine can do at most: the limits that measurements are held against.

use std::hint::black_box;
use std::time::Instant;

use crate::Isa;
use crate::isa::{Kernel, Machine, select};

/// Rounds of one measurement: several milliseconds, beside which the start of a thread is nothing.
const ROUNDS: usize = 2_000_000;

/// Independent chains of multiply-adds, enough to fill the units of the narrower instruction sets.
const NARROW: usize = 80;

/// As [`NARROW`], for 512-bit registers, of which there are twice as many.
const WIDE: usize = 192;

struct Chains<const LANES: usize>;

impl<const LANES: usize> Kernel for Chains<LANES> {
    type Arguments = std::cell::Cell<f32>;

    #[inline(always)]
    unsafe fn run<M: Machine>(arguments: &Self::Arguments) {
        let factor = arguments.get();
        let mut sums = [1.0f32; LANES];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = M::multiply_add(*sum, factor, 1e-9);
            }
        }
        arguments.set(sums.iter().sum());
    }
}

/// Floating-point operations a second (a multiply-add counts twice) of `threads` threads at once, in `f32`: the best
/// of several tries.
pub fn multiply_add_rate(isa: Isa, threads: usize) -> f64 {
    let wide = matches!(isa.name(), "avx512" | "avx512bf16" | "amx");
    let work = move || {
        let cell = std::cell::Cell::new(black_box(0.999_999));
        // SAFETY: the kernel reads and writes only its argument; the caller names a set that the machine has.
        unsafe {
            if wide { select::<Chains<WIDE>>(isa)(&cell) } else { select::<Chains<NARROW>>(isa)(&cell) }
        }
        black_box(cell.get());
    };
    let lanes = if wide { WIDE } else { NARROW };
    let operations = (2 * lanes * ROUNDS * threads.max(1)) as f64;
    operations / best_of(9, threads, work)
}

/// Bytes a second, read and written, of a copy between arrays far larger than the caches by `threads` threads at once:
/// the best of several tries.
pub fn copy_rate(threads: usize) -> f64 {
    const BYTES: usize = 64 << 20;
    let threads = threads.max(1);
    let source = vec![1u8; BYTES];
    let mut target = vec![0u8; BYTES];
    let share = BYTES.div_ceil(threads);
    let mut best = f64::INFINITY;
    for _ in 0..7 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (to, from) in target.chunks_mut(share).zip(source.chunks(share)) {
                scope.spawn(move || to.copy_from_slice(from));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
        black_box(&target);
    }
    2.0 * BYTES as f64 / best
}

/// Seconds that `work` takes on each of so many threads at once, the best of `tries`.
fn best_of(tries: usize, threads: usize, work: impl Fn() + Sync) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..tries {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(&work);
            }
            work();
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}
