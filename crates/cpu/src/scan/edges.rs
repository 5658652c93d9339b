//! The edges of a scan: how the state's elements come from memory, and how results go there.
//!
//! What lies in memory as the engine wants it is read where it is. Everything else (element-wise producers
//! and consumers fused into the scan, other strides, other element types, positions outside an array) runs
//! on the tile machine, a run of positions at a time.

use tilewright_ir::{DType, Result, Scalar};
use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{Kind, Operation, Program, Scan, Table};

use super::store;
use crate::Isa;
use crate::memory::{Aligned, Array, Memory, broken};
use crate::tile::{self, Argument, Feed, Stage, Target, Tile, TileProgram, Variance};

/// Positions that are treated at once: `count` neighbours along `axis` from `start` on. The axes are the
/// parallel axes, then the scan axis.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub start: &'a [usize],
    pub axis: usize,
    pub count: usize,
}

/// Everything that a scan reads and writes but its state.
pub(super) struct Edges<'a> {
    /// The axis that runs go along.
    axis: usize,
    elements: Edge<'a>,
    results: Edge<'a>,
    /// Where each of the results goes.
    sinks: Vec<Array>,
    tables: Vec<Array>,
    /// The state's kinds.
    kinds: Vec<Kind>,
    /// Whether results are too large to be kept in a cache.
    stream: bool,
}

/// A program with what feeds it beside the state.
struct Edge<'a> {
    program: &'a Program,
    sources: Vec<Bound>,
    /// Absent where nothing ever needs it.
    compiled: Option<TileProgram>,
}

/// Which positions of a source are there, for each axis a half-open range, and the bytes of the element
/// that stands elsewhere.
pub(super) type Extent = (Vec<(usize, usize)>, Vec<u8>);

/// A source, and where in memory it is.
pub(super) enum Bound {
    /// An array; and where part of it is not there, which is.
    Array(Array, Option<Extent>),
    /// The position along an axis.
    Index(usize),
}

/// What one thread needs for the edges.
pub(super) struct Scratch {
    machine: tile::Scratch,
    arguments: Vec<Argument>,
    targets: Vec<Target>,
    /// A tile for each of the state's elements.
    staged: Vec<Aligned<u64>>,
    /// A tile for each source of either program, for positions that are not there.
    padded: Vec<Aligned<u64>>,
}

/// The element type that registers of a kind are held in.
pub(super) fn dtype_of(kind: Kind) -> DType {
    match kind {
        Kind::F64 => DType::F64,
        Kind::F32 => DType::F32,
        Kind::I64 => DType::I64,
        Kind::I32 => DType::I32,
        Kind::Bool => DType::Bool,
    }
}

/// From how many bytes of results on they bypass the caches.
const STREAMED: usize = 8 << 20;

impl<'a> Edges<'a> {
    /// Binds a scan to memory, for runs along `axis`.
    pub fn new(scan: &'a Scan, memory: &Memory, axis: usize, isa: Isa) -> Result<Edges<'a>> {
        let extents = [&scan.parallel[..], &[scan.length]].concat();
        let kinds: Vec<Kind> = scan.elements.results.iter().map(|&r| scan.elements.kind(r)).collect();
        let mut sinks = Vec::with_capacity(scan.sinks.len());
        for sink in &scan.sinks {
            match sink {
                Sink::Store { view, dtype } => sinks.push(memory.write(view, *dtype, &extents)?),
                Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => {
                    return Err(broken("a scan's results are stored"));
                }
            }
        }
        if sinks.len() != scan.results.results.len() || kinds.len() != scan.state {
            return Err(broken("a scan's programs do not fit its state and sinks"));
        }
        let elements: usize = extents.iter().product();
        let bytes: usize = sinks.iter().map(|sink| elements * sink.dtype.size()).sum();
        let sources = bind(memory, &scan.sources, &extents)?;
        let result_sources = bind(memory, &scan.result_sources, &extents)?;
        let state = kinds.iter().map(|&kind| Feed::Array(Variance::Full, dtype_of(kind)));
        let result_feeds: Vec<Feed> = state.chain(result_sources.iter().map(|s| s.feed(axis))).collect();
        let feeds: Vec<Feed> = sources.iter().map(|source| source.feed(axis)).collect();
        let mut edges = Edges {
            axis,
            elements: Edge { program: &scan.elements, sources, compiled: None },
            results: Edge { program: &scan.results, sources: result_sources, compiled: None },
            sinks,
            tables: memory.tables(&scan.tables)?,
            kinds,
            stream: bytes >= STREAMED,
        };
        if !(0..scan.state).all(|i| edges.always_direct(i)) {
            edges.elements.compiled = Some(compile(&scan.elements, &feeds, &scan.tables, isa)?);
        }
        if !(0..edges.sinks.len()).all(|i| edges.plain_store(i).is_some()) {
            edges.results.compiled = Some(compile(&scan.results, &result_feeds, &scan.tables, isa)?);
        }
        Ok(edges)
    }

    /// Scratch for runs of up to `tile` positions.
    pub fn scratch(&self, tile: usize) -> Result<Scratch> {
        let tiles = |count: usize| (0..count).map(|_| Aligned::new(tile)).collect::<Result<Vec<_>>>();
        Ok(Scratch {
            machine: tile::Scratch::new(),
            arguments: Vec::new(),
            targets: Vec::new(),
            staged: tiles(self.kinds.len())?,
            padded: tiles(self.elements.sources.len().max(self.results.sources.len()))?,
        })
    }

    /// The source that an element of the state is as it stands in memory, if its runs are contiguous.
    fn plain_load(&self, element: usize) -> Option<&Bound> {
        let Edge { program, sources, .. } = &self.elements;
        let Operation::Input(input) = program.instructions[program.results[element].index()].operation else {
            return None;
        };
        match &sources[input] {
            source @ Bound::Array(array, _)
                if array.dtype == dtype_of(self.kinds[element]) && array.strides[self.axis] == 1 =>
            {
                Some(source)
            }
            Bound::Array(..) | Bound::Index(_) => None,
        }
    }

    fn always_direct(&self, element: usize) -> bool {
        matches!(self.plain_load(element), Some(Bound::Array(_, None)))
    }

    /// The state's element that a result is as it stands, if its runs are contiguous.
    fn plain_store(&self, result: usize) -> Option<usize> {
        let program = self.results.program;
        let sink = &self.sinks[result];
        match program.instructions[program.results[result].index()].operation {
            Operation::Input(element)
                if element < self.kinds.len()
                    && sink.dtype == dtype_of(self.kinds[element])
                    && sink.strides[self.axis] == 1 =>
            {
                Some(element)
            }
            _ => None,
        }
    }

    /// Where the state's elements at a run are: in memory, or made in the scratch.
    pub fn elements(&self, scratch: &mut Scratch, run: &Run, pointers: &mut Vec<*const u8>) -> Result<()> {
        pointers.clear();
        let mut direct = true;
        for element in 0..self.kinds.len() {
            let pointer = self.plain_load(element).and_then(|source| source.whole(run));
            direct &= pointer.is_some();
            pointers.push(pointer.unwrap_or_else(|| scratch.staged[element].as_ptr().cast()));
        }
        if direct {
            return Ok(());
        }
        scratch.arguments.clear();
        feed(&self.elements.sources, run, &mut scratch.padded, &mut scratch.arguments);
        scratch.targets.clear();
        for (element, &kind) in self.kinds.iter().enumerate() {
            let staged = scratch.staged[element].as_mut_ptr().cast::<u8>();
            let made = std::ptr::eq(pointers[element], staged);
            scratch.targets.push(if made { contiguous(staged, dtype_of(kind)) } else { Target::Skip });
        }
        self.elements.run(run.count, &self.tables, scratch)
    }

    /// Makes the results of the states at a run, and stores them.
    pub fn results(&self, scratch: &mut Scratch, run: &Run, states: &[*const u8]) -> Result<()> {
        let mut plain = true;
        for (result, sink) in self.sinks.iter().enumerate() {
            match self.plain_store(result) {
                Some(element) => {
                    let bytes = run.count * sink.dtype.size();
                    // SAFETY: the run lies inside the sink, and states hold `count` elements.
                    unsafe { store::copy(at(sink, run.start), states[element], bytes, self.stream) };
                }
                None => plain = false,
            }
        }
        if plain {
            return Ok(());
        }
        scratch.arguments.clear();
        for &state in states {
            scratch.arguments.push(Argument::Array { data: state, row_stride: 0, column_stride: 1 });
        }
        feed(&self.results.sources, run, &mut scratch.padded, &mut scratch.arguments);
        scratch.targets.clear();
        for (result, sink) in self.sinks.iter().enumerate() {
            scratch.targets.push(match self.plain_store(result) {
                Some(_) => Target::Skip,
                None => Target::Array {
                    data: at(sink, run.start),
                    dtype: sink.dtype,
                    row_stride: 0,
                    column_stride: sink.strides[run.axis],
                },
            });
        }
        self.results.run(run.count, &self.tables, scratch)
    }
}

/// The element at a position, whatever its type.
fn at(array: &Array, position: &[usize]) -> *mut u8 {
    let offset: isize = position.iter().zip(&array.strides).map(|(&i, &stride)| i as isize * stride).sum();
    array.data.wrapping_offset(offset * array.dtype.size() as isize)
}

fn contiguous(data: *mut u8, dtype: DType) -> Target {
    Target::Array { data, dtype, row_stride: 0, column_stride: 1 }
}

fn compile(program: &Program, feeds: &[Feed], tables: &[Table], isa: Isa) -> Result<TileProgram> {
    TileProgram::compile(program, feeds, tables, isa)
}

impl Edge<'_> {
    fn run(&self, count: usize, tables: &[Array], scratch: &mut Scratch) -> Result<()> {
        let program = self.compiled.as_ref().ok_or_else(|| broken("a scan's edge was not compiled"))?;
        let tile = Tile {
            rows: 1,
            columns: count,
            arguments: &scratch.arguments,
            targets: &scratch.targets,
            tables,
            live: None,
        };
        // SAFETY: the edge was bound to checked arrays, and its targets are distinct rows of the scratch.
        unsafe { program.run(Stage::Early, &tile, &mut scratch.machine) }
    }
}

/// Binds sources to memory. `extents` are those of the axes that they have strides for.
pub(super) fn bind(memory: &Memory, sources: &[Source], extents: &[usize]) -> Result<Vec<Bound>> {
    let one = |source: &Source| match source {
        Source::Load { view, dtype, valid: None } => {
            Ok(Bound::Array(memory.read(view, *dtype, extents)?, None))
        }
        Source::Load { view, dtype, valid: Some((ranges, fill)) } => {
            if ranges.len() != extents.len() {
                return Err(broken("a range for each axis is expected"));
            }
            // Only the part that is there lies inside the buffer.
            let shift: isize = ranges.iter().zip(&view.strides).map(|(range, &s)| range.0 as isize * s).sum();
            let there: Vec<usize> = ranges.iter().map(|range| range.1.saturating_sub(range.0)).collect();
            let mut inner = view.clone();
            inner.offset += shift;
            let mut array = memory.read(&inner, *dtype, &there)?;
            array.data = array.data.wrapping_offset(-shift * dtype.size() as isize);
            array.extents = extents.to_vec();
            Ok(Bound::Array(array, Some((ranges.clone(), fill.to_bytes(*dtype)))))
        }
        Source::Index(axis) => Ok(Bound::Index(*axis)),
        Source::RowScalar(_) | Source::RowValue(_) => Err(broken("a scan has no rows to carry")),
    };
    sources.iter().map(one).collect()
}

impl Bound {
    /// What the tile machine is to expect, for runs along `axis`.
    pub fn feed(&self, axis: usize) -> Feed {
        match self {
            Bound::Array(array, valid) if valid.is_some() || array.strides[axis] != 0 => {
                Feed::Array(Variance::Full, array.dtype)
            }
            Bound::Array(array, _) => Feed::Array(Variance::Uniform, array.dtype),
            Bound::Index(counted) if *counted == axis => Feed::ColumnPosition,
            Bound::Index(_) => Feed::Uniform,
        }
    }

    /// The element at the run's start, where all of the run is there.
    fn whole(&self, run: &Run) -> Option<*const u8> {
        match self {
            Bound::Array(array, valid) => {
                let inside = valid.as_ref().is_none_or(|(ranges, _)| {
                    ranges.iter().enumerate().all(|(axis, &(low, high))| {
                        let end = run.start[axis] + if axis == run.axis { run.count } else { 1 };
                        low <= run.start[axis] && end <= high
                    })
                });
                inside.then(|| at(array, run.start).cast_const())
            }
            Bound::Index(_) => None,
        }
    }
}

/// The tile machine's arguments for sources at a run. `padded` has a tile for each.
pub(super) fn feed(sources: &[Bound], run: &Run, padded: &mut [Aligned<u64>], arguments: &mut Vec<Argument>) {
    for (source, padded) in sources.iter().zip(padded) {
        arguments.push(match source {
            Bound::Index(axis) => Argument::Scalar(Scalar::Integer(run.start[*axis] as i64)),
            Bound::Array(array, valid) => match (source.whole(run), valid) {
                (Some(data), _) => {
                    Argument::Array { data, row_stride: 0, column_stride: array.strides[run.axis] }
                }
                (None, Some((ranges, fill))) => {
                    let data: *mut u8 = padded.as_mut_ptr().cast();
                    // SAFETY: the tile has room for the run, and what is there is inside the buffer.
                    unsafe { pad(array, ranges, fill, run, data) };
                    Argument::Array { data, row_stride: 0, column_stride: 1 }
                }
                (None, None) => unreachable!("a source without ranges is always there"),
            },
        });
    }
}

/// Copies the elements of a run that are there, and the fill where none is.
///
/// # Safety
/// `to` has room for the run; elements within `ranges` can be read.
unsafe fn pad(array: &Array, ranges: &[(usize, usize)], fill: &[u8], run: &Run, to: *mut u8) {
    let size = array.dtype.size();
    let there = ranges
        .iter()
        .enumerate()
        .all(|(axis, &(low, high))| axis == run.axis || (low..high).contains(&run.start[axis]));
    let (low, high) = ranges[run.axis];
    let mut position = run.start.to_vec();
    for i in 0..run.count {
        position[run.axis] = run.start[run.axis] + i;
        let inside = there && (low..high).contains(&position[run.axis]);
        let from = if inside { at(array, &position).cast_const() } else { fill.as_ptr() };
        // SAFETY: the caller's promise; `fill` is one element.
        unsafe { std::ptr::copy_nonoverlapping(from, to.add(i * size), size) };
    }
}
