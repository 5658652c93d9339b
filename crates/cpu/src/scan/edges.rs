//! The edges of a scan: how the state's elements come from memory, and how results go there.
//!
//! What lies in memory as the engine wants it is read and written where it is. Everything else (element-wise
//! producers and consumers fused into the scan, other strides, other element types, positions outside an
//! array) runs on the tile machine, a run of positions at a time. Runs along the scan axis are cut where a
//! program takes another [form](super::form) and where an array ends, so that nearly all of them are plain.

use tilewright_ir::{DType, Result};
use tilewright_plan::loops::Sink;
use tilewright_plan::{Kind, Operation, Program, Scan};

use super::engine::VECTOR;
use super::form;
use super::source::{Bound, at, bind, feed};
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
pub(super) struct Edges {
    elements: Edge,
    results: Edge,
    /// Where each of the results goes.
    sinks: Vec<Array>,
    tables: Vec<Array>,
    /// The state's kinds.
    kinds: Vec<Kind>,
    /// Whether results are too large to be kept in a cache.
    pub stream: bool,
    /// Positions of the scan axis, ascending, before which runs along it end.
    cuts: Vec<usize>,
}

/// A program with what feeds it beside the state.
struct Edge {
    sources: Vec<Bound>,
    /// The forms of the program; the last is good anywhere.
    forms: Vec<Form>,
}

/// A form of a program.
struct Form {
    /// The positions of the scan axis that it is good for.
    range: (usize, usize),
    /// For each result the input that it is as it stands in memory, if its runs are contiguous.
    plain: Vec<Option<usize>>,
    /// Absent where nothing ever needs it.
    compiled: Option<TileProgram>,
}

/// What one thread needs for the edges.
pub(super) struct Scratch {
    machine: tile::Scratch,
    arguments: Vec<Argument>,
    targets: Vec<Target>,
    /// A tile for each of the state's elements.
    staged: Vec<Aligned<u64>>,
    /// A tile for each of the results.
    made: Vec<Aligned<u64>>,
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

impl Edges {
    /// Binds a scan to memory, for runs along `axis`.
    pub fn new(scan: &Scan, memory: &Memory, axis: usize, isa: Isa) -> Result<Edges> {
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
        let sources = bind(memory, &scan.sources, &extents)?;
        let result_sources = bind(memory, &scan.result_sources, &extents)?;

        let feeds: Vec<Feed> = sources.iter().map(|source| source.feed(axis)).collect();
        let is_position = |source: &Bound| source.counts(scan.parallel.len());
        let mut elements = Edge { forms: Vec::new(), sources };
        for (program, range) in forms(&scan.elements, |i| is_position(&elements.sources[i]), scan.length) {
            let plain: Vec<Option<usize>> = inputs(&program)
                .zip(&kinds)
                .map(|(input, &kind)| input.filter(|&i| elements.sources[i].is_plain(axis, dtype_of(kind))))
                .collect();
            let direct = plain.iter().all(|input| input.is_some_and(|i| elements.sources[i].is_complete()));
            let compiled =
                if direct { None } else { Some(TileProgram::compile(&program, &feeds, &scan.tables, isa)?) };
            elements.forms.push(Form { range, plain, compiled });
        }

        let state = kinds.iter().map(|&kind| Feed::Array(Variance::Full, dtype_of(kind)));
        let feeds: Vec<Feed> = state.chain(result_sources.iter().map(|s| s.feed(axis))).collect();
        let beside = |input: usize| {
            input.checked_sub(scan.state).is_some_and(|source| is_position(&result_sources[source]))
        };
        let mut result_forms = Vec::new();
        for (program, range) in forms(&scan.results, beside, scan.length) {
            let stands = |element: usize, sink: &Array| {
                let same = |kind: &Kind| sink.dtype == dtype_of(*kind);
                kinds.get(element).is_some_and(same) && sink.strides[axis] == 1
            };
            let plain: Vec<Option<usize>> = inputs(&program)
                .zip(&sinks)
                .map(|(input, sink)| input.filter(|&element| stands(element, sink)))
                .collect();
            let compiled = if plain.iter().all(Option::is_some) {
                None
            } else {
                Some(TileProgram::compile(&program, &feeds, &scan.tables, isa)?)
            };
            result_forms.push(Form { range, plain, compiled });
        }
        let results = Edge { forms: result_forms, sources: result_sources };

        let count: usize = extents.iter().product();
        let bytes: usize = sinks.iter().map(|sink| count * sink.dtype.size()).sum();
        let mut cuts = [elements.cuts(scan.parallel.len()), results.cuts(scan.parallel.len())].concat();
        cuts.sort_unstable();
        cuts.dedup();
        let tables = memory.tables(&scan.tables)?;
        Ok(Edges { elements, results, sinks, tables, kinds, stream: bytes >= STREAMED, cuts })
    }

    /// Scratch for runs of up to `tile` positions.
    pub fn scratch(&self, tile: usize) -> Result<Scratch> {
        let tiles = |count: usize| (0..count).map(|_| Aligned::new(tile)).collect::<Result<Vec<_>>>();
        Ok(Scratch {
            machine: tile::Scratch::new(),
            arguments: Vec::new(),
            targets: Vec::new(),
            staged: tiles(self.kinds.len())?,
            made: tiles(self.sinks.len())?,
            padded: tiles(self.elements.sources.len().max(self.results.sources.len()))?,
        })
    }

    /// The piece of the `count` positions from `first` on that comes after `done` of them, in the order of the
    /// scan, and that no cut divides: first position in memory order, and count.
    pub fn piece(&self, first: usize, count: usize, done: usize, reverse: bool) -> (usize, usize) {
        if reverse {
            let end = first + count - done;
            let start = self.cuts.iter().rev().find(|&&cut| cut < end).map_or(first, |&cut| cut.max(first));
            (start, end - start)
        } else {
            let (start, end) = (first + done, first + count);
            let end = self.cuts.iter().find(|&&cut| cut > start).map_or(end, |&cut| cut.min(end));
            (start, end - start)
        }
    }

    /// Adds to `pointers` where the state's elements at a run are, if all of them are in memory as they are wanted.
    pub fn in_place(&self, run: &Run, pointers: &mut Vec<*const u8>) -> bool {
        self.elements.form(run).plain.iter().all(|plain| {
            let pointer = plain.and_then(|source| self.elements.sources[source].whole(run));
            pointers.extend(pointer);
            pointer.is_some()
        })
    }

    /// Where the state's elements at a run are: in memory, or made in the scratch.
    pub fn elements(&self, scratch: &mut Scratch, run: &Run, pointers: &mut Vec<*const u8>) -> Result<()> {
        pointers.clear();
        let form = self.elements.form(run);
        let mut direct = true;
        for (element, plain) in form.plain.iter().enumerate() {
            let pointer = plain.and_then(|source| self.elements.sources[source].whole(run));
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
        form.run(run.count, &self.tables, scratch)
    }

    /// Adds to `pointers` where each element of the state at a run goes as it stands, null where it does not,
    /// if that is all that there is to store. What is streamed is as far from a multiple of a vector as all that is
    /// there already.
    pub fn direct(&self, run: &Run, pointers: &mut Vec<*mut u8>) -> bool {
        let residue = |pointer: *mut u8| pointer.addr() % VECTOR;
        let mut streamed = pointers.iter().copied().find(|pointer| !pointer.is_null()).map(residue);
        let first = pointers.len();
        pointers.resize(first + self.kinds.len(), std::ptr::null_mut());
        for (sink, plain) in self.sinks.iter().zip(&self.results.form(run).plain) {
            let Some(element) = *plain else { return false };
            let (data, place) = (at(sink, run.start), &mut pointers[first + element]);
            let alike = *streamed.get_or_insert(residue(data)) == residue(data);
            if !place.is_null() || (self.stream && !alike) {
                return false;
            }
            *place = data;
        }
        true
    }

    /// Makes the results of the states at a run, and stores them.
    pub fn results(&self, scratch: &mut Scratch, run: &Run, states: &[*mut u8]) -> Result<()> {
        let form = self.results.form(run);
        let mut plain = true;
        for (sink, element) in self.sinks.iter().zip(&form.plain) {
            match *element {
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
            scratch.targets.push(match form.plain[result] {
                Some(_) => Target::Skip,
                None if self.staged(sink, run) => {
                    contiguous(scratch.made[result].as_mut_ptr().cast(), sink.dtype)
                }
                None => Target::Array {
                    data: at(sink, run.start),
                    dtype: sink.dtype,
                    row_stride: 0,
                    column_stride: sink.strides[run.axis],
                },
            });
        }
        form.run(run.count, &self.tables, scratch)?;
        for (result, sink) in self.sinks.iter().enumerate() {
            if form.plain[result].is_none() && self.staged(sink, run) {
                let (made, bytes) = (scratch.made[result].as_ptr().cast(), run.count * sink.dtype.size());
                // SAFETY: the run lies inside the sink, and the tile was just made.
                unsafe { store::copy(at(sink, run.start), made, bytes, true) };
            }
        }
        Ok(())
    }

    /// Whether a result that is made is streamed, by way of the cache.
    fn staged(&self, sink: &Array, run: &Run) -> bool {
        self.stream && sink.strides[run.axis] == 1
    }
}

/// A program's forms, the last good anywhere, with the positions of the scan axis that they are good for.
fn forms(
    program: &Program,
    is_position: impl Fn(usize) -> bool,
    length: usize,
) -> impl Iterator<Item = (Program, (usize, usize))> {
    form::inner(program, is_position, length).into_iter().chain([(program.clone(), (0, length))])
}

/// For each result of a program the input that it is.
fn inputs(program: &Program) -> impl Iterator<Item = Option<usize>> {
    program.results.iter().map(|result| match program.instructions[result.index()].operation {
        Operation::Input(input) => Some(input),
        _ => None,
    })
}

fn contiguous(data: *mut u8, dtype: DType) -> Target {
    Target::Array { data, dtype, row_stride: 0, column_stride: 1 }
}

impl Edge {
    /// The form that is good for a run.
    fn form(&self, run: &Run) -> &Form {
        let scan = run.start.len() - 1;
        let (low, count) = (run.start[scan], if run.axis == scan { run.count } else { 1 });
        let good = |form: &&Form| form.range.0 <= low && low + count <= form.range.1;
        self.forms.iter().find(good).expect("the last form is good anywhere")
    }

    /// Where runs along the scan axis had better end.
    fn cuts(&self, scan: usize) -> Vec<usize> {
        let ranges = self.forms.iter().map(|form| [form.range.0, form.range.1]);
        let ends = self.sources.iter().filter_map(|source| source.ends(scan));
        ranges.chain(ends).flatten().collect()
    }
}

impl Form {
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
