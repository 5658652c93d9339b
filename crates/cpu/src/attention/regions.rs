//! The user's functions on tiles of pairs: what the mask admits, and what becomes of scores.

use std::ops::Range;

use tilewright_ir::{DType, Result, Scalar};
use tilewright_plan::attention::Attention;
use tilewright_plan::{Program, Table};

use super::product::{Left, Panels, Target as Sums, WIDTH};
use super::vector::{Scalar as Float, Vector};
use crate::block_map::Blocks;
use crate::memory::{Array, Memory, broken};
use crate::tile::{Argument, Feed, Live, Scratch, Stage, Target, Tile, TileProgram, Variance};
use crate::{Context, Isa};

/// Keys of the widest tile.
const WIDEST: usize = {
    let (forward, backward) = (super::forward::KEYS, super::backward::KEYS);
    if forward > backward { forward } else { backward }
};

/// A tile of pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pairs {
    pub batch: usize,
    pub head: usize,
    /// The first query.
    pub query: usize,
    /// The first key.
    pub key: usize,
    /// Queries.
    pub rows: usize,
    /// Keys.
    pub columns: usize,
}

/// What feeds `b, h, q, k`.
const POSITIONS: [Feed; 4] = [Feed::Uniform, Feed::Uniform, Feed::RowPosition, Feed::ColumnPosition];

impl Pairs {
    /// Some rows and columns of them.
    pub(super) fn piece(&self, rows: &Range<usize>, columns: &Range<usize>) -> Pairs {
        let (query, key) = (self.query + rows.start, self.key + columns.start);
        Pairs { query, key, rows: rows.len(), columns: columns.len(), ..*self }
    }

    /// What feeds `b, h, q, k`.
    pub(super) fn positions(&self) -> [Argument; 4] {
        let number = |x: usize| Argument::Scalar(Scalar::Integer(x as i64));
        [number(self.batch), number(self.head), number(self.query), number(self.key)]
    }
}

/// A panel of numbers, a row for each query of a tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub data: *mut u8,
    pub dtype: DType,
    /// Elements between rows.
    pub stride: usize,
}

impl Panel {
    pub(super) fn argument(self) -> Argument {
        Argument::Array { data: self.data, row_stride: self.stride as isize, column_stride: 1 }
    }

    pub(super) fn target(self) -> Target {
        let Panel { data, dtype, stride } = self;
        Target::Array { data, dtype, row_stride: stride as isize, column_stride: 1 }
    }
}

/// What a call's mask and its score or joint function share.
pub(super) struct Regions<'a> {
    pub blocks: Option<&'a Blocks>,
    mask: Option<TileProgram>,
    /// The score function, or the joint function of the backward.
    pub function: Option<TileProgram>,
    pub tables: Vec<Array>,
}

impl<'a> Regions<'a> {
    /// The regions of a forward.
    pub(super) fn forward(
        attention: &Attention,
        score: Option<&Program>,
        memory: &Memory,
        context: &'a Context,
    ) -> Result<Regions<'a>> {
        let feeds = feeds(attention.dtype, 1);
        let compile = |score| TileProgram::compile(score, &feeds, &attention.tables, context.isa);
        Regions::new(attention, score.map(compile).transpose()?, memory, context)
    }

    /// The regions of a backward.
    pub(super) fn backward(
        attention: &Attention,
        joint: Option<&Program>,
        memory: &Memory,
        context: &'a Context,
    ) -> Result<Regions<'a>> {
        let feeds = feeds(attention.dtype, 2);
        let compile =
            |joint| TileProgram::compile_staged(joint, &feeds, &attention.tables, context.isa, &[5], 1);
        Regions::new(attention, joint.map(compile).transpose()?, memory, context)
    }

    fn new(
        attention: &Attention,
        function: Option<TileProgram>,
        memory: &Memory,
        context: &'a Context,
    ) -> Result<Regions<'a>> {
        let compile = |mask| TileProgram::compile(mask, &POSITIONS, &attention.tables, context.isa);
        let blocks = |slot: usize| {
            let blocks = context.block_maps.get(slot).and_then(|blocks| blocks.get());
            blocks.ok_or_else(|| broken("a block map is read before it is made"))
        };
        Ok(Regions {
            blocks: attention.block_map.map(blocks).transpose()?,
            mask: attention.mask.as_ref().map(compile).transpose()?,
            function,
            tables: memory.tables(&attention.tables)?,
        })
    }

    /// Evaluates the mask: one byte for each pair.
    pub(super) fn admit(
        &self,
        pairs: Pairs,
        live: &mut [u8],
        stride: usize,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Some(mask) = &self.mask else {
            live.fill(1);
            return Ok(());
        };
        debug_assert!((pairs.rows - 1) * stride + pairs.columns <= live.len());
        let target = Panel { data: live.as_mut_ptr(), dtype: DType::Bool, stride }.target();
        let tile = Tile {
            rows: pairs.rows,
            columns: pairs.columns,
            arguments: &pairs.positions(),
            targets: &[target],
            tables: &self.tables,
            live: None,
        };
        // SAFETY: `live` is ours and holds the tile; tables were checked by `Memory`.
        unsafe { mask.run(Stage::Early, &tile, scratch) }
    }
}

/// What feeds a score function (1 array: scores) or a joint one (2: cotangents too).
fn feeds(dtype: DType, arrays: usize) -> Vec<Feed> {
    let array = Feed::Array(Variance::Full, super::score_dtype(dtype));
    POSITIONS.into_iter().chain(std::iter::repeat_n(array, arrays)).collect()
}

/// The mask's bytes of a tile that is not full.
#[derive(Clone, Copy)]
pub(super) struct Admitted<'a> {
    pub bytes: &'a [u8],
    pub stride: usize,
}

/// Keys that pieces of a tile begin and end at, a multiple of every panel's width: products are made of whole panels.
const ALIGNMENT: usize = 32;

impl<'a> Admitted<'a> {
    /// The pieces of a tile that hold all its admitted pairs: rows, at multiples of `grain` of them, and columns from the
    /// first of an admitted pair to the last, as far as panels can be cut. Where the edge of a mask runs across a tile,
    /// they are little more than half of it.
    pub(super) fn pieces(&self, pairs: &Pairs, grain: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let mut pieces: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        let mut any = [0u8; WIDEST];
        let any = &mut any[..pairs.columns];
        for first in (0..pairs.rows).step_by(grain) {
            let rows = first..(first + grain).min(pairs.rows);
            any.fill(0);
            for row in rows.clone() {
                any.iter_mut().zip(self.row(row)).for_each(|(any, &byte)| *any |= byte);
            }
            let Some(begin) = any.iter().position(|&byte| byte != 0) else { continue };
            let end = any.iter().rposition(|&byte| byte != 0).map_or(begin, |last| last + 1);
            let begin = ((pairs.key + begin) / ALIGNMENT * ALIGNMENT).max(pairs.key) - pairs.key;
            let end = ((pairs.key + end).next_multiple_of(ALIGNMENT) - pairs.key).min(pairs.columns);
            match pieces.last_mut() {
                Some((above, columns)) if above.end == rows.start && *columns == (begin..end) => {
                    above.end = rows.end;
                }
                _ => pieces.push((rows, begin..end)),
            }
        }
        pieces
    }

    /// From a row and a column of its tile on.
    pub(super) fn from(self, row: usize, column: usize) -> Admitted<'a> {
        Admitted { bytes: &self.bytes[row * self.stride + column..], ..self }
    }

    pub(super) fn live(&self) -> Live {
        Live { data: self.bytes.as_ptr(), row_stride: self.stride as isize }
    }

    /// The bytes of a row.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[u8] {
        &self.bytes[row * self.stride..]
    }

    /// Overwrites what the mask does not admit.
    #[inline(always)]
    pub(super) fn overwrite<S: Float>(&self, row: usize, numbers: &mut [S], with: S) {
        for (x, &admitted) in numbers.iter_mut().zip(self.row(row)) {
            *x = if admitted == 0 { with } else { *x };
        }
    }

    /// [`super::product::product`] over admitted pairs only, for right operands that are not finite: 0 times
    /// such a number would show. `transposed`: the rows of `left` are keys. `right` is packed in rows. Where all
    /// numbers are finite the sums have the same bits.
    ///
    /// # Safety
    /// As [`super::product::product`].
    #[inline(always)]
    pub(super) unsafe fn product<V: Vector>(
        &self,
        (rows, depth, panels): (usize, usize, usize),
        left: Left<V::Scalar>,
        right: Panels<V::Scalar>,
        target: Sums<V::Scalar>,
        transposed: bool,
    ) {
        for row in 0..rows {
            for vector in 0..panels * WIDTH {
                // SAFETY: within the extents that the caller vouches for.
                unsafe {
                    let mut sum = V::splat(Default::default());
                    for step in 0..depth {
                        let (query, key) = if transposed { (step, row) } else { (row, step) };
                        if self.row(query)[key] != 0 {
                            let factor = V::splat(*left.data.add(row * left.row + step * left.column));
                            let columns = V::load(right.data.add(step * right.row + vector * V::LANES));
                            sum = factor.fma(columns, sum);
                        }
                    }
                    let to = target.data.add(row * target.row + vector * V::LANES);
                    if target.add { V::load(to).add(sum).store(to) } else { sum.store(to) }
                }
            }
        }
    }
}

/// Compiles a program over `b, h, q, k` (and the score, where `scored`) for tiles of pairs.
pub(super) fn compile_indices(
    program: &Program,
    tables: &[Table],
    dtype: DType,
    scored: bool,
    isa: Isa,
) -> Result<TileProgram> {
    TileProgram::compile(program, &feeds(dtype, scored as usize), tables, isa)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of `rows` × `columns` pairs from a query and a key on are admitted by `mask`, in pieces by `grain`.
    fn pieces_of(
        mask: impl Fn(usize, usize) -> bool,
        (query, key): (usize, usize),
        (rows, columns): (usize, usize),
        grain: usize,
    ) -> Vec<(Range<usize>, Range<usize>)> {
        let mut bytes = vec![0; rows * WIDEST];
        for row in 0..rows {
            for column in 0..columns {
                bytes[row * WIDEST + column] = mask(query + row, key + column) as u8;
            }
        }
        let pairs = Pairs { batch: 0, head: 0, query, key, rows, columns };
        Admitted { bytes: &bytes, stride: WIDEST }.pieces(&pairs, grain)
    }

    #[test]
    fn pieces_hold_what_a_mask_admits_and_little_else() {
        let causal = |query, key| key <= query;
        assert_eq!(pieces_of(causal, (128, 128), (64, 128), 16), [(0..32, 0..32), (32..64, 0..64)]);
        assert_eq!(pieces_of(causal, (192, 128), (64, 128), 64), [(0..64, 0..128)]);
        // Rows without a pair belong to no piece, and columns are cut at multiples of a panel's width, but for the ends.
        let corner = |query, key| query >= 100 && key >= 170;
        assert_eq!(pieces_of(corner, (64, 128), (60, 50), 16), [(32..60, 32..50)]);
        let one = |query, key| (query, key) == (70, 133);
        assert_eq!(pieces_of(one, (64, 131), (64, 100), 16), [(0..16, 0..29)]);
        assert_eq!(pieces_of(|_, _| false, (0, 0), (64, 128), 16), []);
    }
}
