//! A scan across lanes: neighbouring lanes lie next to each other, and each step folds some more positions
//! into all of them. The state is an array that stays in the first-level cache.
//!
//! A position's lanes are a short stretch of memory, far from the next position's, and a machine that waits for one
//! stretch after the other is idle half of the time. So several positions are walked over side by side, and what is
//! streamed is streamed in whole cache lines.

use std::array::from_fn;
use std::marker::PhantomData;

use super::engine::VECTOR;
use super::lanes::Lanes;
use super::monoid::Monoid;
use super::row::past;
use crate::isa::{Kernel, Machine};

/// Positions that are folded together.
pub(super) const POSITIONS: usize = 4;

/// Vectors that make a cache line.
const LINE: usize = 64 / VECTOR;

/// What [`Column`] works on.
pub(super) struct ColumnArguments<E, const S: usize> {
    /// For each position the state's elements, for `count` lanes.
    pub inputs: [[*const E; S]; POSITIONS],
    /// The folded state of each lane, before and after.
    pub state: [*mut E; S],
    /// For each position where else the folded state goes; null where nowhere.
    pub outputs: [[*mut E; S]; POSITIONS],
    /// Whether it goes there past the caches: all outputs are then equally far from a multiple of a vector.
    pub stream: bool,
    /// How many positions there are: 1, or [`POSITIONS`].
    pub positions: usize,
    pub count: usize,
    /// Whether nothing is folded yet: the state is not read.
    pub fresh: bool,
    /// Whether the fold of what stands aside ([`Monoid::ASIDE`]) is wanted; if not, its state stays as it is.
    pub aside: bool,
}

/// Folds positions into `count` lanes: for one after the other, state = combine(state, input).
pub(super) struct Column<L, M, const S: usize>(PhantomData<(L, M)>);

impl<L: Lanes, M: Monoid<S>, const S: usize> Kernel for Column<L, M, S> {
    type Arguments = ColumnArguments<L::Element, S>;

    /// # Safety
    /// The pointers are good for `count` elements; inputs, state and outputs do not overlap.
    #[inline(always)]
    unsafe fn run<Isa: Machine>(arguments: &Self::Arguments) {
        // SAFETY: the caller's promise.
        unsafe {
            match (arguments.aside || M::ASIDE == 0, arguments.positions) {
                (true, POSITIONS) => step::<L, M, S, true, POSITIONS>(arguments),
                (true, _) => step::<L, M, S, true, 1>(arguments),
                (false, POSITIONS) => step::<L, M, S, false, POSITIONS>(arguments),
                (false, _) => step::<L, M, S, false, 1>(arguments),
            }
        }
    }
}

/// # Safety
/// As [`Column::run`]; there are `P` positions.
#[inline(always)]
unsafe fn step<L: Lanes, M: Monoid<S>, const S: usize, const ASIDE: bool, const P: usize>(
    arguments: &ColumnArguments<L::Element, S>,
) {
    let ColumnArguments { outputs, stream, count, .. } = arguments;
    let line = LINE * L::WIDTH;
    let head = match outputs[0].iter().find(|output| !output.is_null()) {
        Some(&output) if *stream => {
            let vector = (L::WIDTH - past::<L>(output)) % L::WIDTH;
            let aligned = output.wrapping_add(vector).addr().is_multiple_of(line * size_of::<L::Element>());
            (if aligned { vector } else { vector + L::WIDTH }).min(*count)
        }
        _ => 0,
    };
    let lines = head + (count - head) / line * line;
    let whole = lines + (count - lines) / L::WIDTH * L::WIDTH;
    // SAFETY: every lane is below `count`; past `head`, outputs are aligned.
    unsafe {
        for at in (0..head).chain(whole..*count) {
            fold::<L::Single, M, S, ASIDE, P, 1>(arguments, at, false);
        }
        for at in (head..lines).step_by(line) {
            fold::<L, M, S, ASIDE, P, LINE>(arguments, at, *stream);
        }
        for at in (lines..whole).step_by(L::WIDTH) {
            fold::<L, M, S, ASIDE, P, 1>(arguments, at, *stream);
        }
    }
}

/// Folds `P` positions into the lanes of `V` vectors.
///
/// # Safety
/// The pointers are good for `at + V · WIDTH` elements; outputs are aligned there where `stream`.
#[inline(always)]
unsafe fn fold<L: Lanes, M: Monoid<S>, const S: usize, const ASIDE: bool, const P: usize, const V: usize>(
    arguments: &ColumnArguments<L::Element, S>,
    at: usize,
    stream: bool,
) {
    let ColumnArguments { inputs, state, outputs, fresh, .. } = arguments;
    let kept = if ASIDE { 0 } else { M::ASIDE }..S;
    // SAFETY: the caller's promise, here and below.
    let read = |from: [*const L::Element; S]| -> [[L; S]; V] {
        from_fn(|v| from_fn(|i| unsafe { L::load(from[i].add(at + v * L::WIDTH)) }))
    };
    let mut folded = read(if *fresh { inputs[0] } else { state.map(|state| state.cast_const()) });
    for (position, (&input, output)) in inputs.iter().zip(outputs).take(P).enumerate() {
        if position > 0 || !fresh {
            let input = read(input);
            folded = from_fn(|v| M::combine(folded[v], input[v]));
        }
        for (v, folded) in folded.iter().enumerate() {
            for i in kept.clone() {
                // SAFETY: as above.
                unsafe {
                    match output[i] {
                        output if output.is_null() => {}
                        output if stream => folded[i].stream(output.add(at + v * L::WIDTH)),
                        output => folded[i].store(output.add(at + v * L::WIDTH)),
                    }
                }
            }
        }
    }
    for (v, folded) in folded.iter().enumerate() {
        for i in kept.clone() {
            // SAFETY: as above.
            unsafe { folded[i].store(state[i].add(at + v * L::WIDTH)) };
        }
    }
}
