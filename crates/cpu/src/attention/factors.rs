//! The five products of the backward, and what they multiply.

use std::ops::Range;

use tilewright_ir::Result;
use tilewright_plan::attention::AttentionShape;

use super::backward::{KEYS, STRIDE};
use super::operands::{Layout, Operands, Packed};
use super::pack::Strided;
use super::product::{Left, Target, product, width};
use super::regions::Admitted;
use super::vector::{Dispatch, Scalar, Vector, Work};
use crate::memory::Aligned;
use crate::{Context, Isa};

/// The (batch, head) of an array, and positions along it.
pub(super) type At = ((usize, usize), Range<usize>);

/// Queries, keys, values and the output's cotangent of a call. Panels of pairs are in the score type, their rows
/// [`STRIDE`] apart; those that are read are 0 from their last column on to a whole vector.
pub(super) trait Factors<S: Scalar>: Sync {
    /// The sums of a block of keys, and what else a unit keeps for the products.
    type Sums;

    /// Rows of a panel that pieces of it begin at multiples of.
    const GRAIN: usize;

    /// Runs `work` with the vectors that the products are made for.
    ///
    /// # Safety
    /// The machine has `isa`; besides, what `work` asks for.
    unsafe fn dispatch<W: Work<S>>(&self, isa: Isa, work: W) -> W::Output;

    /// Room for sums.
    fn sums(&self) -> Result<Self::Sums>;

    /// Begins a block of keys.
    fn clear(&self, sums: &mut Self::Sums);

    /// `scores = scale · queries · keysᵀ`.
    ///
    /// # Safety
    /// Here and below: the machine has the vectors, the positions are within the arrays, the keys are of one block and
    /// begin at a multiple of a panel's width, and the panels hold the pairs.
    unsafe fn scores<V: Vector<Scalar = S>>(&self, queries: &At, keys: &At, scores: *mut S);

    /// `slopes = cotangents · valuesᵀ`.
    ///
    /// # Safety
    /// As [`Factors::scores`].
    unsafe fn slopes<V: Vector<Scalar = S>>(&self, queries: &At, keys: &At, slopes: *mut S);

    /// Adds `weightsᵀ · cotangents` to the values' sums.
    ///
    /// # Safety
    /// As [`Factors::scores`].
    unsafe fn add_to_values<V: Vector<Scalar = S>>(
        &self,
        queries: &At,
        keys: &At,
        weights: *const S,
        mask: Option<Admitted>,
        sums: &mut Self::Sums,
    );

    /// Adds `slopes · keys` to the queries' sums, less the scale, if there are any: rows that many elements apart, with
    /// room for [`super::backward::SPARE`] more; and `slopesᵀ · queries` to the keys' sums if they are wanted.
    ///
    /// # Safety
    /// As [`Factors::scores`].
    unsafe fn add_slopes<V: Vector<Scalar = S>>(
        &self,
        queries: &At,
        keys: &At,
        slopes: *const S,
        mask: Option<Admitted>,
        to: (Option<(*mut S, usize)>, bool),
        sums: &mut Self::Sums,
    );

    /// The cotangents of so many keys and of their values.
    ///
    /// # Safety
    /// The rows are within the arrays and nobody else's.
    unsafe fn store(&self, sums: &Self::Sums, keys: &At, to: [Option<&Strided>; 2]);
}

/// All in the score type.
pub(super) struct Packs<S: Scalar> {
    shape: AttentionShape,
    /// Times the scale.
    queries: Packed<S>,
    cotangents: Packed<S>,
    keys: Packed<S>,
    key_rows: Packed<S>,
    values: Packed<S>,
}

impl<S: Dispatch> Packs<S> {
    pub(super) fn new(operands: &Operands, cotangent: Strided, context: &Context) -> Result<Packs<S>> {
        let shape = operands.shape;
        let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, head_size, value_size } =
            shape;
        let queried = |size| [batch, heads, queries, size];
        let keyed = |size| [key_batch, key_heads, keys, size];
        Ok(Packs {
            shape,
            queries: Packed::new(context, operands.query, queried(head_size), operands.scale, Layout::Rows)?,
            cotangents: Packed::new(context, cotangent, queried(value_size), 1.0, Layout::Rows)?,
            keys: Packed::new(context, operands.key, keyed(head_size), 1.0, Layout::Transposed)?,
            key_rows: Packed::new(context, operands.key, keyed(head_size), 1.0, Layout::Rows)?,
            values: Packed::new(context, operands.value, keyed(value_size), 1.0, Layout::Transposed)?,
        })
    }
}

/// `[KEYS × …]`, padded to panels.
pub(super) struct Sums<S: Scalar> {
    keys: Aligned<S>,
    values: Aligned<S>,
}

impl<S: Dispatch> Factors<S> for Packs<S> {
    type Sums = Sums<S>;

    // Products over fewer queries would spend their time on reading and writing sums.
    const GRAIN: usize = 32;

    unsafe fn dispatch<W: Work<S>>(&self, isa: Isa, work: W) -> W::Output {
        // SAFETY: as the caller vouches.
        unsafe { S::dispatch(isa, work) }
    }

    fn sums(&self) -> Result<Sums<S>> {
        let room = |packed: &Packed<S>| Aligned::new(KEYS * packed.padded());
        Ok(Sums { keys: room(&self.queries)?, values: room(&self.cotangents)? })
    }

    fn clear(&self, sums: &mut Sums<S>) {
        sums.keys.fill(S::default());
        sums.values.fill(S::default());
    }

    #[inline(always)]
    unsafe fn scores<V: Vector<Scalar = S>>(&self, queries: &At, keys: &At, scores: *mut S) {
        let extents = (queries.1.len(), self.shape.head_size, keys.1.len().div_ceil(width::<V>()));
        let left = self.queries.left(queries.0, queries.1.start);
        let target = Target { data: scores, row: STRIDE, add: false };
        // SAFETY: as the caller vouches.
        unsafe { product::<V>(extents, left, self.keys.panels(keys.0, keys.1.start), target) }
    }

    #[inline(always)]
    unsafe fn slopes<V: Vector<Scalar = S>>(&self, queries: &At, keys: &At, slopes: *mut S) {
        let extents = (queries.1.len(), self.shape.value_size, keys.1.len().div_ceil(width::<V>()));
        let left = self.cotangents.left(queries.0, queries.1.start);
        let target = Target { data: slopes, row: STRIDE, add: false };
        // SAFETY: as the caller vouches.
        unsafe { product::<V>(extents, left, self.values.panels(keys.0, keys.1.start), target) }
    }

    #[inline(always)]
    unsafe fn add_to_values<V: Vector<Scalar = S>>(
        &self,
        queries: &At,
        keys: &At,
        weights: *const S,
        mask: Option<Admitted>,
        sums: &mut Sums<S>,
    ) {
        let extents = (keys.1.len(), queries.1.len(), self.shape.value_size);
        let left = Left { data: weights, row: 1, column: STRIDE };
        // SAFETY: as the caller vouches.
        unsafe {
            let target = sums_from(&mut sums.values, &self.cotangents, keys);
            add::<V>(extents, left, (&self.cotangents, queries), target, mask, true)
        }
    }

    #[inline(always)]
    unsafe fn add_slopes<V: Vector<Scalar = S>>(
        &self,
        queries: &At,
        keys: &At,
        slopes: *const S,
        mask: Option<Admitted>,
        (query_sums, keys_wanted): (Option<(*mut S, usize)>, bool),
        sums: &mut Sums<S>,
    ) {
        let (rows, columns, size) = (queries.1.len(), keys.1.len(), self.shape.head_size);
        // SAFETY: as the caller vouches.
        unsafe {
            if let Some((data, row)) = query_sums {
                let left = Left { data: slopes, row: STRIDE, column: 1 };
                let target = Target { data, row, add: true };
                add::<V>((rows, columns, size), left, (&self.key_rows, keys), target, mask, false);
            }
            if keys_wanted {
                let left = Left { data: slopes, row: 1, column: STRIDE };
                let target = sums_from(&mut sums.keys, &self.queries, keys);
                add::<V>((columns, rows, size), left, (&self.queries, queries), target, mask, true);
            }
        }
    }

    unsafe fn store(&self, sums: &Sums<S>, (place, keys): &At, [key, value]: [Option<&Strided>; 2]) {
        let AttentionShape { head_size, value_size, .. } = self.shape;
        for (array, sums, size) in [(key, &sums.keys, head_size), (value, &sums.values, value_size)] {
            let Some(array) = array else { continue };
            let stride = sums.len() / KEYS;
            for (row, key) in keys.clone().enumerate() {
                // SAFETY: the caller's own rows.
                unsafe { array.write_row([place.0, place.1, key], &sums[row * stride..][..size]) };
            }
        }
    }
}

/// The sums of some keys of a block, as long as the vectors of `packed`.
fn sums_from<S: Dispatch>(sums: &mut [S], packed: &Packed<S>, keys: &At) -> Target<S> {
    let row = packed.padded();
    Target { data: sums[keys.1.start % KEYS * row..].as_mut_ptr(), row, add: true }
}

/// `target += left · right`, for a right operand packed in rows; over the admitted pairs only where the others might
/// show. `transposed`: the rows of `left` are keys.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn add<V: Vector<Scalar: Dispatch>>(
    (rows, depth, size): (usize, usize, usize),
    left: Left<V::Scalar>,
    (right, (place, range)): (&Packed<V::Scalar>, &At),
    target: Target<V::Scalar>,
    mask: Option<Admitted>,
    transposed: bool,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let columns = right.panels(*place, range.start);
        let extents = (rows, depth, size.div_ceil(width::<V>()));
        match mask {
            Some(mask) if !right.finite::<V>(*place, range.clone()) => {
                mask.product::<V>(extents, left, columns, target, transposed)
            }
            _ => product::<V>(extents, left, columns, target),
        }
    }
}
