//! A scan along contiguous elements.
//!
//! They are taken in blocks of four registers, which are transposed: then three combines of registers scan each
//! run of four elements, and only what these runs come to, one register of them, is scanned across its lanes, in
//! log₂(width) steps. The state carried from the block before is combined in last; nothing else waits for that
//! block, so the chain between blocks is one combine long. What is left is taken register by register, and at the
//! ends element by element, in the same way.

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
        let mut next = head;
        let wanted = first.is_some();
        if wanted && state.is_none() && next < whole {
            // SAFETY: next + WIDTH ≤ count; past `head`, outputs are aligned, here and below.
            state =
                Some(unsafe { scan::<L, M, S, REVERSE>(arguments, place(next, L::WIDTH), None, *stream) });
            next += L::WIDTH;
        }
        while L::BLOCKS && next + 4 * L::WIDTH <= whole {
            let at = place(next, 4 * L::WIDTH);
            // SAFETY: next + 4 · WIDTH ≤ count.
            state = Some(unsafe {
                match state {
                    Some(before) if wanted => block::<L, M, S, REVERSE>(arguments, at, before, *stream),
                    before => fold::<L, M, S, REVERSE>(arguments, at, before),
                }
            });
            next += 4 * L::WIDTH;
        }
        for position in (next..whole).step_by(L::WIDTH) {
            // SAFETY: position + WIDTH ≤ count.
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

/// The runs of four elements of the block at `at`, each scanned, transposed; and what each run comes to.
///
/// # Safety
/// The inputs are good for `at + 4 · WIDTH` elements.
#[allow(
    clippy::needless_range_loop,
    reason = "the loop is over elements of the state, which columns hold inside"
)]
#[inline(always)]
unsafe fn runs<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool>(
    arguments: &RowArguments<L::Element, S>,
    at: usize,
) -> ([[L; S]; 4], [L; S]) {
    // Plain loops: what `from_fn` and `map` call is not always inlined, and outside of the kernel the machine's
    // features are not there.
    // SAFETY: the caller's promise, here and below.
    let mut columns: [[L; S]; 4] = [from_fn(|i| unsafe { L::load(arguments.inputs[i].add(at)) }); 4];
    for i in 0..S {
        // SAFETY: as above.
        let [second, third, fourth] = unsafe {
            let from = arguments.inputs[i].add(at);
            [L::load(from.add(L::WIDTH)), L::load(from.add(2 * L::WIDTH)), L::load(from.add(3 * L::WIDTH))]
        };
        let transposed = L::transpose([columns[0][i], second, third, fourth]);
        for k in 0..4 {
            columns[k][i] = transposed[k];
        }
    }
    let mut totals;
    if REVERSE {
        for k in (0..3).rev() {
            columns[k] = M::combine(columns[k + 1], columns[k]);
        }
        totals = columns[0];
    } else {
        for k in 1..4 {
            columns[k] = M::combine(columns[k - 1], columns[k]);
        }
        totals = columns[3];
    }
    for total in &mut totals {
        *total = total.in_order();
    }
    (columns, totals)
}

/// The state before some elements and what they come to, combined.
#[inline(always)]
fn after<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool>(
    before: [L::Element; S],
    end: [L::Element; S],
) -> [L::Element; S] {
    let single = |state: [L::Element; S]| state.map(L::Single::splat);
    L::Single::scan::<M, S>(M::combine(single(before), single(end)), REVERSE).1
}

/// Folds the block at `at`, and gives the state after it.
///
/// # Safety
/// As [`runs`].
#[inline(always)]
unsafe fn fold<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool>(
    arguments: &RowArguments<L::Element, S>,
    at: usize,
    before: Option<[L::Element; S]>,
) -> [L::Element; S] {
    // SAFETY: the caller's promise.
    let (_, totals) = unsafe { runs::<L, M, S, REVERSE>(arguments, at) };
    let (_, end) = L::scan::<M, S>(totals, REVERSE);
    before.map_or(end, |before| after::<L, M, S, REVERSE>(before, end))
}

/// Scans the block at `at`, and gives the state after it.
///
/// # Safety
/// The pointers are good for `at + 4 · WIDTH` elements; outputs are aligned there where `stream`.
#[allow(
    clippy::needless_range_loop,
    reason = "the loop is over elements of the state, which columns hold inside"
)]
#[inline(always)]
unsafe fn block<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool>(
    arguments: &RowArguments<L::Element, S>,
    at: usize,
    before: [L::Element; S],
    stream: bool,
) -> [L::Element; S] {
    // SAFETY: the caller's promise.
    let (mut columns, totals) = unsafe { runs::<L, M, S, REVERSE>(arguments, at) };
    let (scanned, end) = L::scan::<M, S>(totals, REVERSE);
    let splat = before.map(L::splat);
    let scanned = M::combine(splat, scanned);
    let mut earlier = scanned;
    for i in 0..S {
        earlier[i] = scanned[i].before_each(splat[i], REVERSE);
    }
    for column in &mut columns {
        *column = M::combine(earlier, *column);
    }
    for i in 0..S {
        let output = arguments.outputs[i];
        if output.is_null() {
            continue;
        }
        let vectors = L::transpose([columns[0][i], columns[1][i], columns[2][i], columns[3][i]]);
        for (k, vector) in vectors.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                let to = output.add(at + k * L::WIDTH);
                if stream { vector.stream(to) } else { vector.store(to) }
            }
        }
    }
    after::<L, M, S, REVERSE>(before, end)
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
        Some(before) => (M::combine(before.map(L::splat), local), after::<L, M, S, REVERSE>(before, end)),
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
