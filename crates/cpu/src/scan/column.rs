//! A scan across lanes: neighbouring lanes lie next to each other, and each step folds one more position
//! into all of them. The state is an array that stays in the first-level cache.

use std::array::from_fn;
use std::marker::PhantomData;

use super::lanes::Lanes;
use super::monoid::Monoid;
use super::row::past;
use crate::isa::{Kernel, Machine};

/// What [`Column`] works on.
pub(super) struct ColumnArguments<E, const S: usize> {
    /// The state's elements at one position, for `count` lanes.
    pub inputs: [*const E; S],
    /// The folded state of each lane, before and after.
    pub state: [*mut E; S],
    /// Where else the folded state goes; null where nowhere.
    pub outputs: [*mut E; S],
    /// Whether it goes there past the caches: all outputs are then equally far from a multiple of a vector.
    pub stream: bool,
    pub count: usize,
    /// Whether nothing is folded yet: the state is not read.
    pub fresh: bool,
    /// Whether the fold of what stands aside ([`Monoid::ASIDE`]) is wanted; if not, its state stays as it is.
    pub aside: bool,
}

/// Folds one position into `count` lanes: state = combine(state, input).
pub(super) struct Column<L, M, const S: usize>(PhantomData<(L, M)>);

impl<L: Lanes, M: Monoid<S>, const S: usize> Kernel for Column<L, M, S> {
    type Arguments = ColumnArguments<L::Element, S>;

    /// # Safety
    /// The pointers are good for `count` elements; inputs, state and outputs do not overlap.
    #[inline(always)]
    unsafe fn run<Isa: Machine>(arguments: &Self::Arguments) {
        if arguments.aside || M::ASIDE == 0 {
            // SAFETY: the caller's promise.
            unsafe { step::<L, M, S, true>(arguments) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { step::<L, M, S, false>(arguments) }
        }
    }
}

/// # Safety
/// As [`Column::run`].
#[inline(always)]
unsafe fn step<L: Lanes, M: Monoid<S>, const S: usize, const ASIDE: bool>(
    arguments: &ColumnArguments<L::Element, S>,
) {
    let ColumnArguments { outputs, stream, count, .. } = arguments;
    let head = match outputs.iter().find(|output| !output.is_null()) {
        Some(&output) if *stream => ((L::WIDTH - past::<L>(output)) % L::WIDTH).min(*count),
        _ => 0,
    };
    let whole = head + (count - head) / L::WIDTH * L::WIDTH;
    for at in (0..head).chain(whole..*count) {
        // SAFETY: at < count.
        unsafe { fold::<L::Single, M, S, ASIDE>(arguments, at, false) };
    }
    for at in (head..whole).step_by(L::WIDTH) {
        // SAFETY: at + WIDTH ≤ count; past `head`, outputs are aligned.
        unsafe { fold::<L, M, S, ASIDE>(arguments, at, *stream) };
    }
}

/// # Safety
/// The pointers are good for `at + WIDTH` elements; outputs are aligned there where `stream`.
#[inline(always)]
unsafe fn fold<L: Lanes, M: Monoid<S>, const S: usize, const ASIDE: bool>(
    arguments: &ColumnArguments<L::Element, S>,
    at: usize,
    stream: bool,
) {
    let ColumnArguments { inputs, state, outputs, fresh, .. } = arguments;
    // SAFETY: the caller's promise, here and below.
    let input = from_fn(|i| unsafe { L::load(inputs[i].add(at)) });
    let folded =
        if *fresh { input } else { M::combine(from_fn(|i| unsafe { L::load(state[i].add(at)) }), input) };
    for i in if ASIDE { 0 } else { M::ASIDE }..S {
        // SAFETY: as above.
        unsafe {
            folded[i].store(state[i].add(at));
            match outputs[i] {
                output if output.is_null() => {}
                output if stream => folded[i].stream(output.add(at)),
                output => folded[i].store(output.add(at)),
            }
        }
    }
}
