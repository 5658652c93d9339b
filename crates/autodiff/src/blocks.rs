//! Products with blocks of a scan's Jacobian, in the compact form that [`crate::jacobian`] describes: the
//! block (i, j) has the shape of leaf i, then an axis for each mixed axis of leaf j.

use tilewright_ir::{DotAxes, Result, Type, Value};

use crate::emit::{Emit, inverse};

/// One leaf of the scan.
pub(crate) struct Leaf {
    /// The type of its slice.
    pub ty: Type,
    /// The mixed axes, ascending; as all axes in this file, counted without those of extent 1.
    pub mixed: Vec<usize>,
}

impl Leaf {
    /// The extents other than 1.
    pub fn extents(&self) -> Vec<usize> {
        self.ty.shape.iter().copied().filter(|&extent| extent != 1).collect()
    }

    /// The extents of the mixed axes.
    pub fn mixed_extents(&self) -> Vec<usize> {
        let extents = self.extents();
        self.mixed.iter().map(|&axis| extents[axis]).collect()
    }
}

/// The block (i, k) that is the product of blocks (i, j) and (j, k), for the given leaves i, j and k;
/// `alignment` is that of (i, j).
pub(crate) fn product(
    e: &mut Emit,
    [i, j, k]: [&Leaf; 3],
    alignment: &[Option<usize>],
    [outer, inner]: [Value; 2],
) -> Result<Value> {
    let rows = i.extents();
    let compact = [&rows[..], &k.mixed_extents()].concat();
    let full = [&i.ty.shape[..], &k.mixed_extents()].concat();
    let inner = e.cast(inner, i.ty.dtype)?;
    let outer = e.reshape(outer, &[&rows[..], &j.mixed_extents()].concat())?;
    let inner = e.reshape(inner, &[&j.extents()[..], &k.mixed_extents()].concat())?;
    let columns = j.extents().len()..j.extents().len() + k.mixed.len();

    let product = if j.mixed.is_empty() {
        let outer = e.broadcast(outer, &compact, &(0..rows.len()).collect::<Vec<_>>())?;
        let mut places: Vec<usize> = alignment.iter().copied().flatten().collect();
        places.extend(rows.len()..compact.len());
        let inner = spread(e, inner, &compact, &places)?;
        e.mul(outer, inner)?
    } else {
        let (left_batch, right_batch): (Vec<usize>, Vec<usize>) = aligned(alignment).unzip();
        let unmatched = (0..rows.len()).filter(|axis| !left_batch.contains(axis));
        let order: Vec<usize> =
            left_batch.iter().copied().chain(unmatched).chain(rows.len()..compact.len()).collect();
        debug_assert_eq!(columns.len(), compact.len() - rows.len());
        let axes = DotAxes {
            left_batch,
            right_batch,
            left_contract: (rows.len()..rows.len() + j.mixed.len()).collect(),
            right_contract: j.mixed.clone(),
        };
        let product = e.dot(outer, inner, axes)?;
        e.transpose(product, &inverse(&order))?
    };
    e.reshape(product, &full)
}

/// The part of leaf j's cotangent that block (i, j) makes of `cotangent`, that of leaf i.
pub(crate) fn transposed_product(
    e: &mut Emit,
    [i, j]: [&Leaf; 2],
    alignment: &[Option<usize>],
    block: Value,
    cotangent: Value,
) -> Result<Value> {
    let rows = i.extents();
    let block = e.reshape(block, &[&rows[..], &j.mixed_extents()].concat())?;
    let cotangent = e.reshape(cotangent, &rows)?;
    let (places, axes): (Vec<usize>, Vec<usize>) = aligned(alignment).unzip();
    let summed: Vec<usize> = (0..rows.len()).filter(|axis| !places.contains(axis)).collect();

    let (product, order) = if j.mixed.is_empty() {
        let product = e.mul(block, cotangent)?;
        let mut pairs: Vec<(usize, usize)> = aligned(alignment).collect();
        pairs.sort_unstable();
        (e.sum(product, &summed)?, pairs.into_iter().map(|(_, axis)| axis).collect())
    } else {
        let dot = DotAxes {
            left_batch: places.clone(),
            right_batch: places,
            left_contract: summed.clone(),
            right_contract: summed,
        };
        (e.dot(block, cotangent, dot)?, [&axes[..], &j.mixed].concat())
    };
    let product = e.transpose(product, &inverse(&order))?;
    let product = e.cast(product, j.ty.dtype)?;
    e.reshape(product, &j.ty.shape)
}

/// The aligned axes: (axis of leaf i, axis of leaf j).
fn aligned(alignment: &[Option<usize>]) -> impl Iterator<Item = (usize, usize)> {
    alignment.iter().enumerate().filter_map(|(axis, place)| Some(((*place)?, axis)))
}

/// `x` repeated to `shape`, its axis a at `places[a]` (in any order).
fn spread(e: &mut Emit, x: Value, shape: &[usize], places: &[usize]) -> Result<Value> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_unstable_by_key(|&axis| places[axis]);
    let x = e.transpose(x, &order)?;
    let axes: Vec<usize> = order.iter().map(|&axis| places[axis]).collect();
    e.broadcast(x, shape, &axes)
}
