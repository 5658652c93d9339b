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
    /// Where the folded state goes; null where it is not wanted.
    pub outputs: [*mut E; S],
    /// Whether it goes there past the caches: all outputs are then equally far from a multiple of a vector.
    pub stream: bool,
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
        let RowArguments { outputs, stream, count, carry, fresh, .. } = arguments;
        let first = outputs.iter().find(|output| !output.is_null());
        let head = match first {
            Some(&output) if *stream && REVERSE => past::<L>(output.wrapping_add(*count)),
            Some(&output) if *stream => (L::WIDTH - past::<L>(output)) % L::WIDTH,
            _ => 0,
        };
        let head = head.min(*count);
        let whole = head + (count - head) / L::WIDTH * L::WIDTH;
        let place = |position: usize, width: usize| {
            if REVERSE { count - position - width } else { position }
        };
        // SAFETY: the carry has one element of each, here and below.
        let mut state: Option<[L::Element; S]> = (!fresh).then(|| from_fn(|i| unsafe { *carry[i] }));
        for position in 0..head {
            // SAFETY: position < count.
            state = Some(unsafe {
                scan::<L::Single, M, S, REVERSE>(arguments, place(position, 1), state, false)
            });
        }
        for position in (head..whole).step_by(L::WIDTH) {
            // SAFETY: position + WIDTH ≤ count; past `head`, outputs are aligned.
            state = Some(unsafe {
                scan::<L, M, S, REVERSE>(arguments, place(position, L::WIDTH), state, *stream)
            });
        }
        for position in whole..*count {
            // SAFETY: position < count.
            state = Some(unsafe {
                scan::<L::Single, M, S, REVERSE>(arguments, place(position, 1), state, false)
            });
        }
        if let Some(state) = state {
            for i in 0..S {
                // SAFETY: as above.
                unsafe { *carry[i] = state[i] };
            }
        }
    }
}

/// How many elements an address is past a multiple of a vector.
#[inline(always)]
pub(super) fn past<L: Lanes>(pointer: *mut L::Element) -> usize {
    pointer.addr() / size_of::<L::Element>() % L::WIDTH
}

/// Scans the register at `at`, and gives the state after it.
///
/// The carried state is kept as scalars: were it kept as broadcast vectors, the compiler would sum two
/// broadcasts as the broadcast of a sum, and the shuffle would join the chain from register to register.
///
/// # Safety
/// The pointers are good for `at + WIDTH` elements; outputs are aligned there where `stream`.
#[inline(always)]
unsafe fn scan<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool>(
    arguments: &RowArguments<L::Element, S>,
    at: usize,
    before: Option<[L::Element; S]>,
    stream: bool,
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
    for (vector, output) in scanned.into_iter().zip(arguments.outputs) {
        if !output.is_null() {
            // SAFETY: as above.
            unsafe { if stream { vector.stream(output.add(at)) } else { vector.store(output.add(at)) } }
        }
    }
    after
}
