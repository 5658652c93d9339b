//! Arrays of `bf16`, rearranged once for a call as its products read them; no element is converted.

use tilewright_ir::Result;

use super::product::{BLOCK, Rows};
use crate::Context;
use crate::attention::operands::Shared;
use crate::attention::pack::Strided;
use crate::attention::product::Panels;
use crate::memory::Aligned;

/// Rows that one task rearranges; a multiple of every layout's period.
const ROWS_PER_TASK: usize = 512;

/// Positions of a window of [`Layout::Across`]: the queries of a panel of pairs.
pub(super) const WINDOW: usize = 64;

/// How an array is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Rows: the left operand of products over the vectors' elements.
    Along,
    /// Windows of positions, transposed: the left operand of products over the length.
    Across,
    /// Panels of [`BLOCK`] positions, a row of couples for two elements of the vectors: the right operand of products
    /// over the vectors' elements.
    CouplesAlong,
    /// A row of couples for two positions: the right operand of products over the length.
    CouplesAcross,
}

/// A `[batch, heads, length, size]` array, whose vectors are padded with zeros to a multiple of [`BLOCK`].
pub(super) struct Held {
    data: Aligned<u16>,
    /// Whether it holds finite numbers only.
    pub finite: bool,
    layout: Layout,
    heads: usize,
    length: usize,
    /// Of a vector, padded.
    pub size: usize,
}

impl Held {
    pub(super) fn new(
        context: &Context,
        array: Strided,
        [batch, heads, length, size]: [usize; 4],
        layout: Layout,
    ) -> Result<Held> {
        let padded = size.next_multiple_of(BLOCK);
        let mut held = Held { data: Aligned::new(0)?, finite: true, layout, heads, length, size: padded };
        let data = Shared::new(batch * heads * held.per_head())?;
        let tasks = length.div_ceil(ROWS_PER_TASK);
        let finite = Shared::<u8>::new(batch * heads * tasks)?;
        context.parallel(batch * heads * tasks, |i| {
            let (head, first) = (i / tasks, i % tasks * ROWS_PER_TASK);
            let rows = ROWS_PER_TASK.min(length - first);
            let place = (head / heads, head % heads, first);
            // SAFETY: the rows are within the array; tasks write disjoint places, multiples of every layout's period.
            unsafe {
                let to = data.at(head * held.per_head() + first * padded);
                *finite.at(i) = arrange(array, place, (rows, size, padded), layout, to) as u8;
            }
            Ok(())
        })?;
        held.finite = finite.into_inner().iter().all(|&finite| finite != 0);
        held.data = data.into_inner();
        Ok(held)
    }

    /// Elements of a head. Rows may be read, but not used, a panel beyond the end.
    fn per_head(&self) -> usize {
        let rows = match self.layout {
            Layout::Along => self.length + WINDOW,
            Layout::Across => self.length.next_multiple_of(WINDOW),
            Layout::CouplesAlong | Layout::CouplesAcross => self.length.next_multiple_of(BLOCK),
        };
        rows * self.size
    }

    fn at(&self, (batch, head): (usize, usize), position: usize) -> *const u16 {
        self.data[(batch * self.heads + head) * self.per_head() + position * self.size..].as_ptr()
    }

    /// As a left operand: rows from any position on, or the window that begins at one.
    pub(super) fn left(&self, place: (usize, usize), position: usize) -> Rows {
        let row = match self.layout {
            Layout::Along => self.size,
            Layout::Across => WINDOW,
            Layout::CouplesAlong | Layout::CouplesAcross => unreachable!("couples are right operands"),
        };
        Rows { data: self.at(place, position), row }
    }

    /// As a right operand, from a position on that is a multiple of [`BLOCK`].
    pub(super) fn right(&self, place: (usize, usize), position: usize) -> Panels<u32> {
        debug_assert!(position.is_multiple_of(BLOCK));
        let data = self.at(place, position).cast();
        match self.layout {
            Layout::CouplesAlong => Panels { data, stride: self.size / 2 * BLOCK, row: BLOCK },
            Layout::CouplesAcross => Panels { data, stride: BLOCK, row: self.size },
            Layout::Along | Layout::Across => unreachable!("rows are left operands"),
        }
    }
}

/// Puts `rows` rows of `array` in their places from `to` on. Gives whether they hold finite numbers only.
///
/// # Safety
/// The rows are within the array, their places good and this task's own.
unsafe fn arrange(
    array: Strided,
    (batch, head, first): (usize, usize, usize),
    (rows, size, padded): (usize, usize, usize),
    layout: Layout,
    to: *mut u16,
) -> bool {
    let mut finite = true;
    let mut couple = [vec![0u16; padded], vec![0u16; padded]];
    for i in 0..rows {
        let row = &mut couple[i % 2];
        // SAFETY: as the caller vouches.
        unsafe { array.copy_row([batch, head, first + i], &mut row[..size]) };
        finite &= row.iter().fold(true, |finite, x| finite & (x & 0x7F80 != 0x7F80));
        // SAFETY: each element's place in its layout.
        unsafe {
            match layout {
                Layout::Along => to.add(i * padded).copy_from_nonoverlapping(row.as_ptr(), padded),
                Layout::Across => {
                    let column = to.add(i / WINDOW * WINDOW * padded + i % WINDOW);
                    row.iter().enumerate().for_each(|(c, &x)| *column.add(c * WINDOW) = x);
                }
                Layout::CouplesAlong => {
                    let column = to.add(i / BLOCK * BLOCK * padded).cast::<u32>().add(i % BLOCK);
                    for (step, couple) in row.chunks_exact(2).enumerate() {
                        *column.add(step * BLOCK) = u32::from(couple[0]) | u32::from(couple[1]) << 16;
                    }
                }
                Layout::CouplesAcross if i % 2 == 0 && i + 1 < rows => {}
                Layout::CouplesAcross => {
                    if i % 2 == 0 {
                        couple[1].fill(0);
                    }
                    let to = std::slice::from_raw_parts_mut(to.add(i / 2 * 2 * padded).cast::<u32>(), padded);
                    for (to, (&even, &odd)) in to.iter_mut().zip(couple[0].iter().zip(&couple[1])) {
                        *to = u32::from(even) | u32::from(odd) << 16;
                    }
                }
            }
        }
    }
    finite
}
