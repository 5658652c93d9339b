//! Runs the steps of a compiled program over one tile.

use tilewright_ir::{DType, Error, ErrorKind, Result, Scalar};
use tilewright_plan::Kind;

use super::compile::{Section, Step, TileProgram, ValuePlace};
use super::convert::{self, Convert, Move};
use super::load::{Fault, Lanes};
use super::map::{Operand, Span};
use super::{Argument, Feed, Live, Stage, Target, Tile, Variance};
use crate::isa::Isa;
use crate::memory::{ALIGNMENT, Aligned, broken};

/// Elements that a strip has at most, unless one row has more: with a few registers at work, strips of
/// `f32` fill half of a first-level cache.
const STRIP: usize = 1024;

/// Working memory for tile programs: reused from tile to tile, one for each thread.
#[derive(Default)]
pub struct Scratch {
    bytes: Option<Aligned<u8>>,
    locations: Vec<Location>,
}

/// Where a value lies during one tile.
#[derive(Clone, Copy)]
struct Location {
    data: *mut u8,
    /// Bytes from row to row of the tile; for a strip, from row to row of the strip.
    row: isize,
    /// Whether `data` is that of the tile's first row, else that of the strip's.
    whole: bool,
}

// SAFETY: locations are only looked at while the tile that they were made for runs.
unsafe impl Send for Scratch {}

impl Scratch {
    /// Working memory, none yet.
    pub fn new() -> Scratch {
        Scratch::default()
    }

    fn reserve(&mut self, bytes: usize) -> Result<*mut u8> {
        if self.bytes.as_ref().is_none_or(|held| held.len() < bytes) {
            self.bytes = None;
            self.bytes = Some(Aligned::new(bytes)?);
        }
        Ok(self.bytes.as_mut().expect("just made").as_mut_ptr())
    }
}

/// One tile at work.
struct Run<'a> {
    program: &'a TileProgram,
    tile: &'a Tile<'a>,
    locations: &'a mut [Location],
    /// Places that loads of the strip are read in instead of their own.
    moved: Vec<(usize, Location)>,
    /// The first row of the strip.
    start: usize,
    /// Rows of the strip.
    rows: usize,
    /// Rows and columns to the tile that comes next.
    ahead: (isize, isize),
    isa: Isa,
}

impl TileProgram {
    /// Runs one stage of the program over a tile.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] for a load out of range by a live element; [`ErrorKind::OutOfMemory`];
    /// [`ErrorKind::Invariant`] where the tile does not fit the program.
    ///
    /// # Safety
    /// The arguments' arrays can be read, and the targets' arrays written by this thread alone, for all rows
    /// and columns of the tile; so can `live` be read. Their elements have the types of feeds and targets.
    /// No array is both, but a target that is exactly an argument's array. The tables can be read. The
    /// machine has the instruction set that the program was compiled for.
    pub unsafe fn run(&self, stage: Stage, tile: &Tile, scratch: &mut Scratch) -> Result<()> {
        // SAFETY: as the caller vouches.
        unsafe { self.run_ahead(stage, tile, (0, 0), scratch) }
    }

    /// As [`TileProgram::run`]; and what loads along rows will read in the tile that begins so many rows and columns
    /// further on is asked for, as memory is slow to answer where each row lies in another page.
    ///
    /// # Errors
    /// As [`TileProgram::run`].
    ///
    /// # Safety
    /// As [`TileProgram::run`].
    pub(crate) unsafe fn run_ahead(
        &self,
        stage: Stage,
        tile: &Tile,
        ahead: (isize, isize),
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.check(stage, tile)?;
        self.locate(stage, tile, scratch)?;
        let mut run = Run {
            program: self,
            tile,
            locations: &mut scratch.locations,
            moved: Vec::new(),
            start: 0,
            rows: tile.rows,
            ahead,
            isa: self.isa,
        };
        for section in &self.stages[stage as usize] {
            // SAFETY: as the caller vouches; the locations are those of this tile.
            let done = unsafe { run.section(section) };
            done.map_err(|(table, Fault { axis, index, size })| {
                let table = &self.tables[table];
                let buffer = table.name.clone();
                Error::new(ErrorKind::Index { buffer, axis, index, size }).at(table.origin.clone())
            })?;
        }
        Ok(())
    }

    fn check(&self, stage: Stage, tile: &Tile) -> Result<()> {
        let fits = tile.rows > 0
            && tile.columns > 0
            && tile.arguments.len() == self.inputs.len()
            && tile.targets.len() == self.results.len()
            && tile.tables.len() == self.tables.len()
            && tile
                .tables
                .iter()
                .zip(&self.tables)
                .all(|(array, info)| array.dtype == info.dtype && array.extents.len() == info.rank);
        if !fits {
            return Err(broken("a tile does not fit its program"));
        }
        for (i, (feed, argument)) in self.inputs.iter().zip(tile.arguments).enumerate() {
            let fits = match (feed, argument) {
                (_, Argument::Absent) => !self.used[stage as usize][i],
                (Feed::Array(..), Argument::Array { .. }) => true,
                (Feed::Uniform | Feed::RowPosition | Feed::ColumnPosition, Argument::Scalar(_)) => true,
                (Feed::Array(..), Argument::Scalar(_)) => false,
                (Feed::Uniform | Feed::RowPosition | Feed::ColumnPosition, Argument::Array { .. }) => false,
            };
            if !fits {
                return Err(broken(format!(
                    "argument {i} of a tile is not what its program was compiled for"
                )));
            }
        }
        for (result, target) in self.results.iter().zip(tile.targets) {
            if let Target::Array { dtype, .. } = target
                && Kind::of(*dtype) != self.values[result.value].kind
            {
                return Err(broken("a target has not the type of its result"));
            }
        }
        Ok(())
    }

    /// Finds a place for each value. The late stage keeps the places that the early one gave.
    fn locate(&self, stage: Stage, tile: &Tile, scratch: &mut Scratch) -> Result<()> {
        let (rows, columns) = (tile.rows, tile.columns);
        let lanes = |count: usize| (count * 8).next_multiple_of(ALIGNMENT);
        let row_vector = lanes(rows);
        let column_vector = lanes(columns);
        let diagonal_vector = lanes(rows + columns - 1);
        let strip = lanes(strip_rows(columns).min(rows) * columns) + ALIGNMENT;
        let panel = lanes(rows * columns);
        let uniforms = lanes(self.uniforms.len());
        let row_vectors = uniforms;
        let column_vectors = row_vectors + self.row_vectors * row_vector;
        let diagonal_vectors = column_vectors + self.column_vectors * column_vector;
        let strips = diagonal_vectors + self.diagonal_vectors * diagonal_vector;
        let panels = strips + self.strips * strip;
        let base = scratch.reserve(panels + self.panels * panel)?;
        if stage == Stage::Early {
            for (i, &bits) in self.uniforms.iter().enumerate() {
                // SAFETY: the scratch begins with so many numbers, aligned.
                unsafe { *base.cast::<u64>().add(i) = bits };
            }
        }
        scratch.locations.clear();
        scratch.locations.extend(self.values.iter().map(|value| {
            let row = (columns * convert::size(value.kind)) as isize;
            let (start, row, whole) = match value.place {
                ValuePlace::Uniform(i) => (i * 8, 0, true),
                ValuePlace::RowVector(i) => (row_vectors + i * row_vector, 0, true),
                ValuePlace::ColumnVector(i) => (column_vectors + i * column_vector, 0, true),
                ValuePlace::DiagonalVector(i) => (diagonal_vectors + i * diagonal_vector, 0, true),
                ValuePlace::Strip(i) => (strips + i * strip, row, false),
                ValuePlace::Panel(i) => (panels + i * panel, row, true),
                ValuePlace::Unplaced => (0, 0, true),
            };
            Location { data: base.wrapping_add(start), row, whole }
        }));
        self.locate_outside(stage, tile, &mut scratch.locations);
        Ok(())
    }

    /// Values that are elements in memory as they lie there are read in place, and results computed in place.
    fn locate_outside(&self, stage: Stage, tile: &Tile, locations: &mut [Location]) {
        for section in &self.stages[stage as usize] {
            for step in &section.steps {
                match step {
                    Step::Input { argument, out, convert: Some(convert) } if convert.native => {
                        let value = &self.values[*out];
                        let Argument::Array { data, row_stride, column_stride } = tile.arguments[*argument]
                        else {
                            continue;
                        };
                        let side_by_side = match value.place {
                            ValuePlace::Strip(_) | ValuePlace::ColumnVector(_) => column_stride == 1,
                            ValuePlace::RowVector(_) => row_stride == 1,
                            ValuePlace::Uniform(_)
                            | ValuePlace::DiagonalVector(_)
                            | ValuePlace::Panel(_)
                            | ValuePlace::Unplaced => false,
                        };
                        if side_by_side {
                            let row =
                                if value.variance == Variance::Full { row_stride * convert.size } else { 0 };
                            locations[*out] = Location { data: data.cast_mut(), row, whole: true };
                        }
                    }
                    Step::Store { result, value, direct: true } => {
                        if let Target::Array { data, dtype, row_stride, column_stride: 1 } =
                            tile.targets[*result]
                            && convert::native(dtype)
                            && matches!(self.values[*value].place, ValuePlace::Strip(_))
                            && !tile.arguments.iter().any(|argument| argument.is_at(data))
                        {
                            let row = row_stride * dtype.size() as isize;
                            locations[*value] = Location { data, row, whole: true };
                        }
                    }
                    Step::Input { .. }
                    | Step::Store { .. }
                    | Step::Map { .. }
                    | Step::Ramp { .. }
                    | Step::Load(_) => {}
                }
            }
        }
    }
}

impl Argument {
    fn is_at(&self, place: *const u8) -> bool {
        matches!(self, Argument::Array { data, .. } if *data == place)
    }
}

fn strip_rows(columns: usize) -> usize {
    (STRIP / columns).max(1)
}

impl Run<'_> {
    /// # Safety
    /// As [`TileProgram::run`].
    unsafe fn section(&mut self, section: &Section) -> std::result::Result<(), (usize, Fault)> {
        if section.steps.is_empty() {
            return Ok(());
        }
        let strip = match section.variance {
            Variance::Full => strip_rows(self.tile.columns),
            Variance::Uniform | Variance::Row | Variance::Column | Variance::Diagonal => self.tile.rows,
        };
        for start in (0..self.tile.rows).step_by(strip) {
            (self.start, self.rows) = (start, strip.min(self.tile.rows - start));
            for (value, own) in self.moved.drain(..) {
                self.locations[value] = own;
            }
            for step in &section.steps {
                // SAFETY: as the caller vouches.
                unsafe { self.step(section.variance, step)? };
            }
        }
        Ok(())
    }

    /// How a step at some variance sees a value: as rows of lanes.
    fn operand(&self, at: Variance, value: usize) -> Operand {
        let info = &self.program.values[value];
        let Location { data, row, whole } = self.locations[value];
        let size = convert::size(info.kind) as isize;
        match (at, info.variance) {
            (Variance::Full, Variance::Full) => {
                let start = if whole { self.start as isize * row } else { 0 };
                Operand { data: data.wrapping_offset(start), row, vector: true }
            }
            (Variance::Full, Variance::Row) => {
                Operand { data: data.wrapping_offset(self.start as isize * size), row: size, vector: false }
            }
            (Variance::Full, Variance::Column) => Operand { data, row: 0, vector: true },
            // Diagonals are counted from the one that begins in the last row.
            (Variance::Full, Variance::Diagonal) => {
                let first = (self.tile.rows - 1 - self.start) as isize;
                Operand { data: data.wrapping_offset(first * size), row: -size, vector: true }
            }
            (Variance::Diagonal, Variance::Row) => {
                let last = self.tile.rows as isize - 1;
                Operand { data: data.wrapping_offset(last * size), row: 0, vector: false }
            }
            (Variance::Full, Variance::Uniform) => Operand { data, row: 0, vector: false },
            (at, variance) => Operand { data, row: 0, vector: variance == at },
        }
    }

    /// Rows and lanes of a step at some variance.
    fn extent(&self, at: Variance) -> (usize, usize) {
        match at {
            Variance::Uniform => (1, 1),
            Variance::Row => (1, self.tile.rows),
            Variance::Column => (1, self.tile.columns),
            Variance::Diagonal => (1, self.tile.rows + self.tile.columns - 1),
            Variance::Full => (self.rows, self.tile.columns),
        }
    }

    /// # Safety
    /// As [`TileProgram::run`].
    unsafe fn step(&mut self, at: Variance, step: &Step) -> std::result::Result<(), (usize, Fault)> {
        let (rows, lanes) = self.extent(at);
        // SAFETY (all blocks): each location has room for the tile or strip, by construction or as the
        // caller vouches, and an output shares its buffer with no operand.
        match step {
            Step::Map { kernel, out, operands } => {
                let mut span = Span { rows, lanes, out: self.operand(at, *out), operands: [NOTHING; 3] };
                for (slot, &operand) in span.operands.iter_mut().zip(operands) {
                    *slot = self.operand(at, operand);
                }
                self.flatten(&mut span, *out, operands);
                unsafe { kernel(&span) }
            }
            Step::Ramp { kernel, out, base, step } => {
                let out = self.operand(at, *out);
                let operands = [self.operand(at, *base), self.operand(at, *step), NOTHING];
                unsafe { kernel(&Span { rows, lanes, out, operands }) }
            }
            Step::Input { argument, out, convert } => unsafe { self.input(at, *argument, *out, convert) },
            Step::Store { result, value, .. } => unsafe { self.store(*result, *value) },
            Step::Load(load) => {
                let indices: Vec<(Operand, Kind)> = load
                    .indices
                    .iter()
                    .map(|&index| (self.operand(at, index), self.program.values[index].kind))
                    .collect();
                let live = |row: usize, lane: usize| self.live(at, row, lane);
                let ahead = if at == Variance::Full { self.ahead } else { (0, 0) };
                let out = self.operand(at, load.out);
                let lanes = Lanes { rows, lanes, out, indices: &indices, live: &live, ahead };
                let table = &self.tile.tables[load.table];
                let in_place = match self.program.values[load.out].place {
                    ValuePlace::Strip(_) if at == Variance::Full => unsafe { load.in_place(table, &lanes) },
                    ValuePlace::Strip(_)
                    | ValuePlace::Uniform(_)
                    | ValuePlace::RowVector(_)
                    | ValuePlace::ColumnVector(_)
                    | ValuePlace::DiagonalVector(_)
                    | ValuePlace::Panel(_)
                    | ValuePlace::Unplaced => None,
                };
                match in_place {
                    Some((data, row)) => {
                        self.moved.push((load.out, self.locations[load.out]));
                        self.locations[load.out] = Location { data, row, whole: false };
                    }
                    None => {
                        unsafe { load.run(table, &lanes) }.map_err(|fault| (load.table, fault))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes one long row of many short ones where they lie one after the other.
    fn flatten(&self, span: &mut Span, out: usize, operands: &[usize]) {
        let follows = |operand: &Operand, value: usize| {
            let size = convert::size(self.program.values[value].kind);
            if operand.vector { operand.row == (span.lanes * size) as isize } else { operand.row == 0 }
        };
        let all = follows(&span.out, out)
            && span.operands.iter().zip(operands).all(|(operand, &value)| follows(operand, value));
        if all {
            (span.rows, span.lanes) = (1, span.rows * span.lanes);
        }
    }

    /// Whether any element of the tile that a lane at some variance stands for counts.
    fn live(&self, at: Variance, row: usize, lane: usize) -> bool {
        let Some(Live { data, row_stride }) = self.tile.live else { return true };
        // SAFETY: as the caller of `run` vouches.
        let counts = |row: usize, column: usize| unsafe {
            *data.wrapping_offset(row as isize * row_stride).add(column) != 0
        };
        let (rows, columns) = (self.tile.rows, self.tile.columns);
        match at {
            Variance::Full => counts(self.start + row, lane),
            Variance::Row => (0..columns).any(|column| counts(lane, column)),
            Variance::Column => (0..rows).any(|row| counts(row, lane)),
            Variance::Diagonal => (0..rows)
                .filter_map(|row| Some((row, (lane + row).checked_sub(rows - 1)?)))
                .any(|(row, column)| column < columns && counts(row, column)),
            Variance::Uniform => (0..rows).any(|row| (0..columns).any(|column| counts(row, column))),
        }
    }

    /// # Safety
    /// As [`TileProgram::run`].
    unsafe fn input(&self, at: Variance, argument: usize, out: usize, convert: &Option<Convert>) {
        let (rows, lanes) = self.extent(at);
        let kind = self.program.values[out].kind;
        let to = self.operand(at, out);
        match (self.tile.arguments[argument], convert) {
            (Argument::Array { data, row_stride, column_stride }, Some(convert)) => {
                let last_row = (self.tile.rows as isize - 1) * row_stride * convert.size;
                let data = if at == Variance::Diagonal { data.wrapping_offset(last_row) } else { data };
                let (row, lane) = match at {
                    Variance::Uniform => (0, 0),
                    Variance::Row => (0, row_stride),
                    Variance::Column | Variance::Diagonal => (0, column_stride),
                    Variance::Full => (row_stride, column_stride),
                };
                let from = data.wrapping_offset(self.start as isize * row * convert.size);
                if std::ptr::eq(from, to.data) {
                    return;
                }
                let from_row = row * convert.size;
                let arguments = Move {
                    rows,
                    lanes,
                    from,
                    from_row,
                    from_lane: lane,
                    to: to.data,
                    to_row: to.row,
                    to_lane: 1,
                };
                // SAFETY: as the caller vouches.
                unsafe { (convert.kernel)(&arguments) }
            }
            (Argument::Scalar(scalar), _) => {
                for lane in 0..lanes {
                    let value = match scalar {
                        Scalar::Integer(base) if at != Variance::Uniform => {
                            Scalar::Integer(base.wrapping_add(lane as i64))
                        }
                        scalar => scalar,
                    };
                    let bits = convert::bits(kind, value);
                    // SAFETY: the location has room for so many lanes.
                    unsafe {
                        match convert::size(kind) {
                            8 => *to.data.cast::<u64>().add(lane) = bits,
                            4 => *to.data.cast::<u32>().add(lane) = bits as u32,
                            _ => *to.data.add(lane) = bits as u8,
                        }
                    }
                }
            }
            (Argument::Array { .. }, None) | (Argument::Absent, _) => {
                unreachable!("checked before the tile ran")
            }
        }
    }

    /// # Safety
    /// As [`TileProgram::run`].
    unsafe fn store(&self, result: usize, value: usize) {
        let Target::Array { data, dtype, row_stride, column_stride } = self.tile.targets[result] else {
            return;
        };
        let from = self.operand(Variance::Full, value);
        let to = data.wrapping_offset(self.start as isize * row_stride * dtype.size() as isize);
        if std::ptr::eq(to, from.data) {
            return;
        }
        let arguments = Move {
            rows: self.rows,
            lanes: self.tile.columns,
            from: from.data,
            from_row: from.row,
            from_lane: from.vector as isize,
            to,
            to_row: row_stride * dtype.size() as isize,
            to_lane: column_stride,
        };
        // SAFETY: as the caller vouches.
        unsafe { (store_kernel(dtype, self.isa).kernel)(&arguments) }
    }
}

fn store_kernel(dtype: DType, isa: Isa) -> Convert {
    Convert::back(dtype, isa)
}

const NOTHING: Operand = Operand { data: std::ptr::null_mut(), row: 0, vector: false };
