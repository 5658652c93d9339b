//! Loads from tables at computed indices.

use std::marker::PhantomData;

use tilewright_ir::DType;
use tilewright_plan::{Kind, evaluate};

use super::convert::{Conversion, Convert, FromBf16, FromF16, FromU8, Move, Same};
use super::map::Operand;
use crate::isa::{self, Compiled, Isa, Kernel, Machine, select};
use crate::memory::Array;

/// A load.
pub(super) struct Load {
    pub table: usize,
    /// The index of each axis; where `steps` is present, in the first column.
    pub indices: Vec<usize>,
    /// What each index grows by from column to column, where all are linear.
    pub steps: Option<Vec<i64>>,
    pub out: usize,
    /// Bytes of a value.
    size: usize,
    convert: Convert,
    gather: Compiled<Gather>,
    offsets: Compiled<Offsets>,
}

/// An index out of range, for a live element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub axis: usize,
    pub index: i64,
    pub size: usize,
}

/// The lanes that a load runs over, and what it needs of them.
#[derive(Clone, Copy)]
pub(super) struct Lanes<'a> {
    pub rows: usize,
    pub lanes: usize,
    pub out: Operand,
    /// One for each axis of the table, with the kind of its integers.
    pub indices: &'a [(Operand, Kind)],
    /// Whether the element at a row and lane of these counts.
    pub live: &'a dyn Fn(usize, usize) -> bool,
    /// Rows and columns to what will be loaded next; zeros if that is not known.
    pub ahead: (isize, isize),
}

/// Lanes that offsets are computed for at a time.
const CHUNK: usize = 256;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Rows of a table.
struct LinearRows {
    first: *const u8,
    /// Elements from row to row.
    distance: isize,
    /// Elements from lane to lane.
    lane: isize,
}

impl Load {
    /// A load that moves along its table by a constant stride.
    pub fn along_row(
        table: usize,
        dtype: DType,
        kind: Kind,
        bases: Vec<usize>,
        steps: Vec<i64>,
        out: usize,
        isa: Isa,
    ) -> Load {
        Load { steps: Some(steps), ..Load::gather(table, dtype, kind, bases, out, isa) }
    }

    /// A load at any indices.
    pub fn gather(table: usize, dtype: DType, kind: Kind, indices: Vec<usize>, out: usize, isa: Isa) -> Load {
        Load {
            table,
            indices,
            steps: None,
            out,
            size: super::convert::size(kind),
            convert: Convert::new(dtype, isa),
            gather: gather(dtype, isa),
            offsets: select::<ComputeOffsets>(isa),
        }
    }

    /// Loads all lanes.
    ///
    /// # Safety
    /// The operands are good for so many rows and lanes, `table` is the one that the load was compiled for,
    /// and nobody writes it.
    pub unsafe fn run(&self, table: &Array, lanes: &Lanes) -> Result<(), Fault> {
        for row in 0..lanes.rows {
            // SAFETY: as the caller vouches.
            unsafe {
                match &self.steps {
                    Some(steps) if row == 0 && self.copy_rows(table, lanes, 0, lanes.rows, steps) => break,
                    Some(steps) if self.copy_rows(table, lanes, row, 1, steps) => {}
                    Some(steps) => {
                        let index = |axis: usize, lane: usize| {
                            let (operand, kind) = lanes.indices[axis];
                            let first = index_at((operand, kind), row, 0);
                            let index = first.wrapping_add(steps[axis].wrapping_mul(lane as i64));
                            if kind == Kind::I32 { index as i32 as i64 } else { index }
                        };
                        self.each(table, lanes, row, 0..lanes.lanes, index)?
                    }
                    None => self.gather_row(table, lanes, row)?,
                }
            }
        }
        Ok(())
    }

    /// Where rows lie in the table whose elements are values that stand side by side there, at a constant distance;
    /// nothing where they have to be moved. What will be loaded next is asked for.
    ///
    /// # Safety
    /// As [`Load::run`].
    pub unsafe fn in_place(&self, table: &Array, lanes: &Lanes) -> Option<(*mut u8, isize)> {
        let steps = self.steps.as_ref().filter(|_| self.convert.native)?;
        // SAFETY: as the caller vouches.
        let rows =
            unsafe { self.linear_rows(table, lanes, 0, lanes.rows, steps) }.filter(|rows| rows.lane == 1)?;
        self.ask_ahead(&rows, lanes);
        Some((rows.first.cast_mut(), rows.distance * self.convert.size))
    }

    /// Copies rows whose indices are linear, if they are at a constant distance and all their ends are in the table.
    /// Gives whether they were.
    unsafe fn copy_rows(
        &self,
        table: &Array,
        lanes: &Lanes,
        start: usize,
        rows: usize,
        steps: &[i64],
    ) -> bool {
        // SAFETY: as the caller of `run` vouches.
        let Some(from) = (unsafe { self.linear_rows(table, lanes, start, rows, steps) }) else {
            return false;
        };
        let arguments = Move {
            rows,
            lanes: lanes.lanes,
            from: from.first,
            from_row: from.distance * self.convert.size,
            from_lane: from.lane,
            to: lanes.out.data.wrapping_offset(start as isize * lanes.out.row),
            to_row: lanes.out.row,
            to_lane: 1,
        };
        // SAFETY: the first and the last element of each row are in the table, so are those between them.
        unsafe { (self.convert.kernel)(&arguments) };
        self.ask_ahead(&from, &Lanes { rows, ..*lanes });
        true
    }

    /// Rows whose indices are linear, if they are at a constant distance and all their ends are in the table.
    unsafe fn linear_rows(
        &self,
        table: &Array,
        lanes: &Lanes,
        start: usize,
        rows: usize,
        steps: &[i64],
    ) -> Option<LinearRows> {
        // SAFETY: as the caller of `run` vouches.
        let place = |row| unsafe { self.row_place(table, lanes, start + row, steps) };
        let (first, lane) = place(0)?;
        let mut distance = 0;
        for row in 1..rows {
            let (offset, _) = place(row)?;
            if row == 1 {
                distance = offset - first;
            } else if offset != first + row as isize * distance {
                return None;
            }
        }
        let first = table.data.wrapping_offset(first * self.convert.size);
        Some(LinearRows { first, distance, lane })
    }

    /// Asks for what lies as far on as the next tile.
    fn ask_ahead(&self, from: &LinearRows, lanes: &Lanes) {
        let (rows, columns) = lanes.ahead;
        if (rows, columns) == (0, 0) {
            return;
        }
        let size = self.convert.size;
        let next = from.first.wrapping_offset((rows * from.distance + columns * from.lane) * size);
        prefetch(next, (lanes.rows, from.distance * size), (lanes.lanes, from.lane * size));
    }

    /// Where the first element of a row lies in the table, and by how much it moves from lane to lane; none where
    /// an end of the row is outside, or the row passes from negative indices to others.
    unsafe fn row_place(
        &self,
        table: &Array,
        lanes: &Lanes,
        row: usize,
        steps: &[i64],
    ) -> Option<(isize, isize)> {
        let (mut offset, mut stride) = (0, 0);
        for (axis, &step) in steps.iter().enumerate() {
            let size = table.extents[axis] as i128;
            // SAFETY: each row of an index operand has a first element.
            let first = unsafe { index_at(lanes.indices[axis], row, 0) };
            let last = first as i128 + step as i128 * (lanes.lanes as i128 - 1);
            let (least, greatest) = (last.min(first as i128), last.max(first as i128));
            let counted = match (least >= 0 && greatest < size, least >= -size && greatest < 0) {
                (true, _) => first,
                (_, true) => first + size as i64,
                (false, false) => return None,
            };
            offset += counted as isize * table.strides[axis];
            stride += step as isize * table.strides[axis];
        }
        Some((offset, stride))
    }

    /// A row at any indices, a chunk at a time: offsets and their check first, then the elements.
    unsafe fn gather_row(&self, table: &Array, lanes: &Lanes, row: usize) -> Result<(), Fault> {
        let mut offsets = [0i64; CHUNK];
        for start in (0..lanes.lanes).step_by(CHUNK) {
            let count = CHUNK.min(lanes.lanes - start);
            let mut outside = false;
            offsets[..count].fill(0);
            for (axis, &(operand, kind)) in lanes.indices.iter().enumerate() {
                let width = if kind == Kind::I32 { 4 } else { 8 };
                let lane_start = if operand.vector { start as isize * width } else { 0 };
                let arguments = Offsets {
                    index: operand.data.wrapping_offset(row as isize * operand.row + lane_start),
                    wide: kind == Kind::I64,
                    vector: operand.vector,
                    size: table.extents[axis] as i64,
                    stride: table.strides[axis] as i64,
                    offsets: offsets.as_mut_ptr(),
                    count,
                    outside: &mut outside,
                };
                // SAFETY: the operand has elements for these lanes, and `count` is at most `CHUNK`.
                unsafe { (self.offsets)(&arguments) };
            }
            if outside {
                // SAFETY: as the caller of `run` vouches.
                unsafe {
                    let index = |axis: usize, lane: usize| index_at(lanes.indices[axis], row, lane);
                    self.each(table, lanes, row, start..start + count, index)?;
                }
                continue;
            }
            let to = lanes.out.data.wrapping_offset(row as isize * lanes.out.row);
            let arguments = Gather {
                from: table.data,
                offsets: offsets.as_ptr(),
                count,
                to: to.wrapping_add(start * self.size),
            };
            // SAFETY: each index was found to be inside its axis.
            unsafe { (self.gather)(&arguments) };
        }
        Ok(())
    }

    /// Some lanes of a row, one at a time, where an index is out of range: a fault if its element is live.
    unsafe fn each(
        &self,
        table: &Array,
        lanes: &Lanes,
        row: usize,
        range: std::ops::Range<usize>,
        index: impl Fn(usize, usize) -> i64,
    ) -> Result<(), Fault> {
        for lane in range {
            let mut offset = Some(0);
            for (axis, (&size, &stride)) in table.extents.iter().zip(&table.strides).enumerate() {
                let index = index(axis, lane);
                match evaluate::position(index, size) {
                    Some(position) => offset = offset.map(|offset| offset + position as isize * stride),
                    None if (lanes.live)(row, lane) => return Err(Fault { axis, index, size }),
                    None => offset = None,
                }
            }
            let to = lanes.out.data.wrapping_offset(row as isize * lanes.out.row);
            let to = to.wrapping_add(lane * self.size);
            // SAFETY: the lane is one of the output's; the element is in the table.
            unsafe {
                match offset {
                    Some(offset) => {
                        (self.gather)(&Gather { from: table.data, offsets: &(offset as i64), count: 1, to })
                    }
                    None => std::ptr::write_bytes(to, 0, self.size),
                }
            }
        }
        Ok(())
    }
}

/// Asks for the lines of the cache that hold rows of lanes: how many there are of each, and how many bytes apart.
fn prefetch(from: *const u8, rows: (usize, isize), lanes: (usize, isize)) {
    // The lines run along the axis on which elements are nearer.
    let (along, across) = if lanes.1.abs() <= rows.1.abs() { (lanes, rows) } else { (rows, lanes) };
    let length = (along.0 as isize - 1) * along.1;
    for i in 0..across.0 as isize {
        let start = from.wrapping_offset(i * across.1).wrapping_offset(length.min(0));
        for byte in (0..=length.unsigned_abs()).step_by(LINE) {
            isa::prefetch(start.wrapping_add(byte));
        }
    }
}

/// The integer of an operand at a row and lane.
///
/// # Safety
/// The operand has it.
unsafe fn index_at((operand, kind): (Operand, Kind), row: usize, lane: usize) -> i64 {
    let data = operand.data.wrapping_offset(row as isize * operand.row);
    let lane = if operand.vector { lane } else { 0 };
    // SAFETY: as the caller vouches; integers of a program are `I32` or `I64`.
    unsafe {
        match kind {
            Kind::I32 => *data.cast::<i32>().add(lane) as i64,
            _ => *data.cast::<i64>().add(lane),
        }
    }
}

/// The offsets of one axis, added to those of the axes before.
struct Offsets {
    index: *const u8,
    wide: bool,
    vector: bool,
    size: i64,
    stride: i64,
    offsets: *mut i64,
    count: usize,
    /// Set where an index is out of range.
    outside: *mut bool,
}

struct ComputeOffsets;

impl Kernel for ComputeOffsets {
    type Arguments = Offsets;

    #[inline(always)]
    unsafe fn run<M: Machine>(arguments: &Offsets) {
        let &Offsets { index, wide, vector, size, stride, offsets, count, outside } = arguments;
        // SAFETY: the caller vouches for `count` offsets and indices.
        unsafe {
            let offsets = std::slice::from_raw_parts_mut(offsets, count);
            let length = if vector { count } else { 1 };
            *outside |= if wide {
                accumulate(offsets, std::slice::from_raw_parts(index.cast::<i64>(), length), size, stride)
            } else {
                accumulate(offsets, std::slice::from_raw_parts(index.cast::<i32>(), length), size, stride)
            };
        }
    }
}

#[inline(always)]
fn accumulate<T: Copy + Into<i64>>(offsets: &mut [i64], index: &[T], size: i64, stride: i64) -> bool {
    let mut outside = 0;
    let mut add = |offset: &mut i64, index: i64| {
        let index = index.wrapping_add((index >> 63) & size);
        outside |= index | (size - 1).wrapping_sub(index);
        *offset = offset.wrapping_add(index.wrapping_mul(stride));
    };
    match index {
        [index] => offsets.iter_mut().for_each(|offset| add(offset, (*index).into())),
        _ => offsets.iter_mut().zip(index).for_each(|(offset, &index)| add(offset, index.into())),
    }
    outside < 0
}

/// The elements at some offsets.
struct Gather {
    from: *const u8,
    offsets: *const i64,
    count: usize,
    to: *mut u8,
}

struct GatherElements<F>(PhantomData<F>);

impl<F: Conversion> Kernel for GatherElements<F> {
    type Arguments = Gather;

    #[inline(always)]
    unsafe fn run<M: Machine>(arguments: &Gather) {
        let &Gather { from, offsets, count, to } = arguments;
        let (from, to) = (from.cast::<F::From>(), to.cast::<F::To>());
        for lane in 0..count {
            // SAFETY: the caller vouches for the offsets and for `count` lanes.
            unsafe { *to.add(lane) = F::apply(*from.wrapping_offset(*offsets.add(lane) as isize)) };
        }
    }
}

fn gather(dtype: DType, isa: Isa) -> Compiled<Gather> {
    match dtype {
        DType::F64 | DType::I64 => select::<GatherElements<Same<u64>>>(isa),
        DType::F32 | DType::I32 => select::<GatherElements<Same<u32>>>(isa),
        DType::BF16 => select::<GatherElements<FromBf16>>(isa),
        DType::F16 => select::<GatherElements<FromF16>>(isa),
        DType::U8 => select::<GatherElements<FromU8>>(isa),
        DType::Bool => select::<GatherElements<Same<u8>>>(isa),
    }
}
