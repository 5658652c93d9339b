//! A scan along contiguous elements: each register is scanned by itself in log₂(width) steps, and the state
//! carried from the registers before it is combined in. Only that last combination waits for the register
//! before, so the chain between registers is one combine long.

use std::array::from_fn;
use std::marker::PhantomData;

use super::lanes::Lanes;
use super::monoid::Monoid;
use crate::isa::{Kernel, Machine};

/// What [`Row`] works on.
pub(super) struct RowArguments<E, const S: usize> {
    /// The state's elements at `count` positions, contiguous.
    pub inputs: [*const E; S],
    /// Where the folded state goes; not written where `live` is false.
    pub outputs: [*mut E; S],
    pub live: [bool; S],
    pub count: usize,
    /// The state before the first position, unless `fresh`; becomes the state after the last.
    pub carry: [*mut E; S],
    pub fresh: bool,
}

/// Scans `count` contiguous positions.
pub(super) struct Row<L, M, const S: usize, const REVERSE: bool>(PhantomData<(L, M)>);

impl<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool> Kernel for Row<L, M, S, REVERSE> {
    type Arguments = RowArguments<L::Element, S>;

    /// # Safety
    /// The pointers are good for `count` elements; inputs and outputs do not overlap.
    #[inline(always)]
    unsafe fn run<Isa: Machine>(arguments: &Self::Arguments) {
        let RowArguments { count, carry, fresh, .. } = arguments;
        let whole = count / L::WIDTH;
        // SAFETY: the carry has one element of each, here and below.
        // SAFETY: the carry has one element of each, here and below.
        let mut state: Option<[L::Element; S]> = (!fresh).then(|| from_fn(|i| unsafe { *carry[i] }));
        for block in 0..whole {
            let at = if REVERSE { count - (block + 1) * L::WIDTH } else { block * L::WIDTH };
            // SAFETY: at + WIDTH ≤ count.
            state = Some(unsafe { scan::<L, M, S, REVERSE>(arguments, at, state) });
        }
        for position in whole * L::WIDTH..*count {
            let at = if REVERSE { count - 1 - position } else { position };
            // SAFETY: at < count.
            state = Some(unsafe { scan::<L::Single, M, S, REVERSE>(arguments, at, state) });
        }
        if let Some(state) = state {
            for i in 0..S {
                // SAFETY: as above.
                unsafe { *carry[i] = state[i] };
            }
        }
    }
}

/// Scans the register at `at`, and gives the state after it.
///
/// The carried state is kept as scalars: were it kept as broadcast vectors, the compiler would sum two
/// broadcasts as the broadcast of a sum, and the shuffle would join the chain from register to register.
///
/// # Safety
/// The pointers are good for `at + WIDTH` elements.
#[inline(always)]
unsafe fn scan<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool>(
    arguments: &RowArguments<L::Element, S>,
    at: usize,
    before: Option<[L::Element; S]>,
) -> [L::Element; S] {
    // SAFETY: the caller's promise, here and below.
    let loaded = from_fn(|i| unsafe { L::load(arguments.inputs[i].add(at)) });
    let (local, end) = L::scan::<M, S>(loaded, REVERSE);
    let (scanned, after) = match before {
        Some(before) => {
            let single = |state: [L::Element; S]| state.map(L::Single::splat);
            let (_, after) = L::Single::scan::<M, S>(M::combine(single(before), single(end)), REVERSE);
            (M::combine(before.map(L::splat), local), after)
        }
        None => (local, end),
    };
    for (i, vector) in scanned.into_iter().enumerate() {
        if arguments.live[i] {
            // SAFETY: as above.
            unsafe { vector.store(arguments.outputs[i].add(at)) };
        }
    }
    after
}
