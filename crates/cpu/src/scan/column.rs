//! A scan across lanes: neighbouring lanes lie next to each other, and each step folds one more position
//! into all of them. The state is an array that stays in the first-level cache.

use std::array::from_fn;
use std::marker::PhantomData;

use super::lanes::Lanes;
use super::monoid::Monoid;
use crate::isa::{Kernel, Machine};

/// What [`Column`] works on.
pub(super) struct ColumnArguments<E, const S: usize> {
    /// The state's elements at one position, for `count` lanes.
    pub inputs: [*const E; S],
    /// The folded state of each lane, before and after.
    pub state: [*mut E; S],
    pub count: usize,
    /// Whether nothing is folded yet: the state is not read.
    pub fresh: bool,
}

/// Folds one position into `count` lanes: state = combine(state, input).
pub(super) struct Column<L, M, const S: usize>(PhantomData<(L, M)>);

impl<L: Lanes, M: Monoid<S>, const S: usize> Kernel for Column<L, M, S> {
    type Arguments = ColumnArguments<L::Element, S>;

    /// # Safety
    /// The pointers are good for `count` elements; inputs and state do not overlap.
    #[inline(always)]
    unsafe fn run<Isa: Machine>(arguments: &Self::Arguments) {
        let whole = arguments.count / L::WIDTH * L::WIDTH;
        for at in (0..whole).step_by(L::WIDTH) {
            // SAFETY: at + WIDTH ≤ count.
            unsafe { fold::<L, M, S>(arguments, at) };
        }
        for at in whole..arguments.count {
            // SAFETY: at < count.
            unsafe { fold::<L::Single, M, S>(arguments, at) };
        }
    }
}

/// # Safety
/// The pointers are good for `at + WIDTH` elements.
#[inline(always)]
unsafe fn fold<L: Lanes, M: Monoid<S>, const S: usize>(
    arguments: &ColumnArguments<L::Element, S>,
    at: usize,
) {
    let ColumnArguments { inputs, state, fresh, .. } = arguments;
    // SAFETY: the caller's promise, here and below.
    let input = from_fn(|i| unsafe { L::load(inputs[i].add(at)) });
    let folded =
        if *fresh { input } else { M::combine(from_fn(|i| unsafe { L::load(state[i].add(at)) }), input) };
    for i in 0..S {
        // SAFETY: as above.
        unsafe { folded[i].store(state[i].add(at)) };
    }
}
