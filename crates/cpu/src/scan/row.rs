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
    /// What vectors are aligned to, whether anything is stored or not; null where it does not matter. How elements are
    /// grouped depends on it, and so do the last bits of their fold.
    pub aligned: *mut E,
    pub count: usize,
    /// The state before the first position, unless `fresh`; becomes the state after the last.
    pub carry: [*mut E; S],
    pub fresh: bool,
    /// The fold of these positions and those before them in the chunk, unless `alone`; null where it is not wanted.
    pub total: [*mut E; S],
    pub alone: bool,
    /// Whether the carry of what stands aside ([`Monoid::ASIDE`]) is wanted. If not, it is 0: a product of many
    /// coefficients becomes subnormal, which is slow.
    pub aside: bool,
}

/// Scans `count` contiguous positions.
pub(super) struct Row<L, M, const S: usize, const REVERSE: bool>(PhantomData<(L, M)>);

impl<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool> Kernel for Row<L, M, S, REVERSE> {
    type Arguments = RowArguments<L::Element, S>;

    /// # Safety
    /// The pointers are good for `count` elements; inputs and outputs do not overlap.
    #[inline(always)]
    unsafe fn run<Isa: Machine>(arguments: &Self::Arguments) {
        let RowArguments { outputs, stream, aligned, count, carry, fresh, total, alone, .. } = arguments;
        let head = match aligned {
            aligned if aligned.is_null() => 0,
            aligned if REVERSE => past::<L>(aligned.wrapping_add(*count)),
            aligned => (L::WIDTH - past::<L>(*aligned)) % L::WIDTH,
        };
        let head = head.min(*count);
        let whole = head + (count - head) / L::WIDTH * L::WIDTH;
        let place = |position: usize, width: usize| {
            if REVERSE { count - position - width } else { position }
        };
        let wanted = outputs.iter().any(|output| !output.is_null());
        // SAFETY: the carry has one element of each, and so has the total, here and below.
        let mut folds: Folds<L, S> = unsafe {
            Folds {
                carry: (!fresh).then(|| from_fn(|i| *carry[i])),
                totals: !total[0].is_null(),
                total: (!total[0].is_null() && !alone).then(|| from_fn(|i| *total[i])),
            }
        };
        folds.settle::<M>(arguments.aside);
        for position in 0..head {
            // SAFETY: position < count.
            let end = unsafe {
                scan::<L::Single, M, S, REVERSE>(arguments, place(position, 1), folds.carry, false)
            };
            folds.add::<M, REVERSE>(end, arguments.aside);
        }
        let mut next = head;
        if wanted && folds.carry.is_none() && next < whole {
            // SAFETY: next + WIDTH ≤ count; past `head`, outputs are aligned, here and below.
            let end = unsafe { scan::<L, M, S, REVERSE>(arguments, place(next, L::WIDTH), None, *stream) };
            folds.add::<M, REVERSE>(end, arguments.aside);
            next += L::WIDTH;
        }
        while L::BLOCKS && next + 4 * L::WIDTH <= whole {
            let at = place(next, 4 * L::WIDTH);
            // SAFETY: next + 4 · WIDTH ≤ count.
            let end = unsafe {
                match folds.carry {
                    Some(before) if wanted => block::<L, M, S, REVERSE>(arguments, at, before, *stream),
                    _ => fold::<L, M, S, REVERSE>(arguments, at),
                }
            };
            folds.add::<M, REVERSE>(end, arguments.aside);
            next += 4 * L::WIDTH;
        }
        for position in (next..whole).step_by(L::WIDTH) {
            // SAFETY: position + WIDTH ≤ count.
            let end = unsafe {
                scan::<L, M, S, REVERSE>(arguments, place(position, L::WIDTH), folds.carry, *stream)
            };
            folds.add::<M, REVERSE>(end, arguments.aside);
        }
        for position in whole..*count {
            // SAFETY: position < count.
            let end = unsafe {
                scan::<L::Single, M, S, REVERSE>(arguments, place(position, 1), folds.carry, false)
            };
            folds.add::<M, REVERSE>(end, arguments.aside);
        }
        for (folded, to) in [(folds.carry, carry), (folds.total, total)] {
            let Some(folded) = folded else { continue };
            for i in 0..S {
                // SAFETY: as above.
                unsafe { *to[i] = folded[i] };
            }
        }
    }
}

/// What is folded so far.
struct Folds<L: Lanes, const S: usize> {
    carry: Option<[L::Element; S]>,
    /// Whether a total is asked for.
    totals: bool,
    total: Option<[L::Element; S]>,
}

impl<L: Lanes, const S: usize> Folds<L, S> {
    /// Adds what further elements come to.
    #[inline(always)]
    fn add<M: Monoid<S>, const REVERSE: bool>(&mut self, end: [L::Element; S], aside: bool) {
        self.carry = Some(after::<L, M, S, REVERSE>(self.carry, end));
        self.settle::<M>(aside);
        if self.totals {
            self.total = Some(after::<L, M, S, REVERSE>(self.total, end));
        }
    }

    #[inline(always)]
    fn settle<M: Monoid<S>>(&mut self, aside: bool) {
        if let Some(carry) = &mut self.carry
            && !aside
        {
            carry[..M::ASIDE].fill(L::Element::default());
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

/// The state before some elements, if there is any, and what they come to, combined.
#[inline(always)]
fn after<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool>(
    before: Option<[L::Element; S]>,
    end: [L::Element; S],
) -> [L::Element; S] {
    let Some(before) = before else { return end };
    let single = |state: [L::Element; S]| state.map(L::Single::splat);
    L::Single::scan::<M, S>(M::combine(single(before), single(end)), REVERSE).1
}

/// What the block at `at` comes to.
///
/// # Safety
/// As [`runs`].
#[inline(always)]
unsafe fn fold<L: Lanes, M: Monoid<S>, const S: usize, const REVERSE: bool>(
    arguments: &RowArguments<L::Element, S>,
    at: usize,
) -> [L::Element; S] {
    // SAFETY: the caller's promise.
    let (_, totals) = unsafe { runs::<L, M, S, REVERSE>(arguments, at) };
    L::scan::<M, S>(totals, REVERSE).1
}

/// Scans the block at `at`, and gives what it comes to by itself.
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
    end
}

/// Scans the register at `at`, and gives what it comes to by itself.
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
    let scanned = match before {
        Some(before) => M::combine(before.map(L::splat), local),
        None => local,
    };
    for (vector, output) in scanned.into_iter().zip(arguments.outputs) {
        if !output.is_null() {
            // SAFETY: as above.
            unsafe { if stream { vector.stream(output.add(at)) } else { vector.store(output.add(at)) } }
        }
    }
    end
}
