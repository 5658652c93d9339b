//! Element-wise work before and after a scan, as part of it.
//!
//! A loop nest that only computes element by element, over the positions that a scan walks over, becomes part of
//! the scan's own programs: of `results` where it reads what the scan gives, of `elements` or `results` where it
//! makes what they read. What is in between is then neither stored nor loaded.
//!
//! Legality. A nest may move to a scan before it if all else that it reads is there by then; or the scan to it,
//! if nobody in between reads the scan. A nest before a scan may always move to it, since what it reads is
//! not written again.
//!
//! Cost. What others read as well is computed twice, so that must be cheap, of one array. Where there are few
//! rows, a scan may evaluate its elements twice: they have to be cheap then.

use tilewright_ir::{DType, Op};
use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{
    Buffer, BufferId, Kernel, Kind, Loops, Operation, Place, Program, Register, Scan, View,
};

use crate::builder::{Builder, Push};
use crate::elementwise::{is_expensive, round};

/// Instructions of one of a scan's programs, at most: all registers have to stay in cache.
const INSTRUCTIONS: usize = 48;
/// Instructions of what is computed twice, at most.
const CHEAP: usize = 8;
/// Rows that are enough to keep threads busy without cutting one.
const ENOUGH_ROWS: usize = 64;

/// Merges element-wise loop nests into the scans beside them.
pub(crate) fn fuse(kernels: &mut Vec<Kernel>, buffers: &[Buffer]) {
    while absorb_reader(kernels, buffers) || absorb_maker(kernels, buffers) {}
}

/// Merges a nest that reads a scan's results into the scan; whether there was one.
fn absorb_reader(kernels: &mut Vec<Kernel>, buffers: &[Buffer]) -> bool {
    for scan_at in 0..kernels.len() {
        let Kernel::Scan(scan) = &kernels[scan_at] else { continue };
        for at in scan_at + 1..kernels.len() {
            let Some(merged) = elementwise(&kernels[at]).and_then(|nest| after(scan, nest)) else { continue };
            let between = &kernels[scan_at + 1..at];
            // What is written in parts may not be written in another order: a part may lie over another.
            let early = !meet(between, Kernel::writes, kernels[at].reads())
                && !meet(between, Kernel::writes, kernels[at].writes());
            let late = !meet(between, Kernel::reads, kernels[scan_at].writes())
                && !meet(between, Kernel::writes, kernels[scan_at].writes());
            if !(early || late) {
                continue;
            }
            kernels[if early { scan_at } else { at }] = Kernel::Scan(merged);
            kernels.remove(if early { at } else { scan_at });
            drop_unread(kernels, buffers);
            return true;
        }
    }
    false
}

/// Merges a nest that makes what a scan reads into the scan; whether there was one.
fn absorb_maker(kernels: &mut Vec<Kernel>, buffers: &[Buffer]) -> bool {
    for scan_at in 0..kernels.len() {
        let Kernel::Scan(scan) = &kernels[scan_at] else { continue };
        for at in 0..scan_at {
            let Some(nest) = elementwise(&kernels[at]) else { continue };
            let Some(merged) = before(scan, nest) else { continue };
            let merged = Kernel::Scan(merged);
            let needed = |view: &&View| {
                let others = kernels.iter().enumerate().filter(|(number, _)| *number != scan_at);
                let mut readers = others.map(|(_, kernel)| kernel).chain([&merged]);
                !is_temporary(buffers, view.buffer) || readers.any(|kernel| reads(kernel, view.buffer))
            };
            let vanishes = !kernels[at].writes().iter().any(needed);
            let many_rows = scan.parallel.iter().product::<usize>() >= ENOUGH_ROWS;
            let pays = if vanishes { many_rows || !is_slow(nest) } else { is_cheap(nest) };
            if pays {
                kernels[scan_at] = merged;
                if vanishes {
                    kernels.remove(at);
                }
                return true;
            }
        }
    }
    false
}

/// The nest, if it only computes element by element.
fn elementwise(kernel: &Kernel) -> Option<&Loops> {
    let Kernel::Loops(nest) = kernel else { return None };
    let [phase] = &nest.phases[..] else { return None };
    let loads = |source: &Source| matches!(source, Source::Load { .. } | Source::Index(_));
    let stores = |sink: &Sink| matches!(sink, Sink::Store { .. });
    let plain = !phase.once && phase.sources.iter().all(loads) && phase.sinks.iter().all(stores);
    plain.then_some(nest)
}

/// Whether a nest computes something that takes long.
fn is_slow(nest: &Loops) -> bool {
    nest.phases[0].program.instructions.iter().any(|instruction| match &instruction.operation {
        Operation::Unary(function, _) => is_expensive(&Op::Unary(*function)),
        Operation::Binary(function, ..) => is_expensive(&Op::Binary(*function)),
        Operation::Load(..) | Operation::RandomBits(..) => true,
        Operation::Input(_)
        | Operation::Constant(_)
        | Operation::Compare(..)
        | Operation::Select(..)
        | Operation::Cast(_)
        | Operation::Round(..) => false,
    })
}

/// Whether computing a nest again costs no more than loading what it made.
fn is_cheap(nest: &Loops) -> bool {
    let (phase, extents) = (&nest.phases[0], extents(nest));
    let moves = |view: &View| extents.iter().zip(&view.strides).all(|(&extent, &s)| extent == 1 || s != 0);
    let arrays = phase.sources.iter().filter(|s| matches!(s, Source::Load { view, .. } if moves(view)));
    arrays.count() <= 1 && phase.program.instructions.len() <= CHEAP && !is_slow(nest)
}

fn extents(nest: &Loops) -> Vec<usize> {
    [&nest.parallel[..], &nest.row].concat()
}

/// Whether some of the kernels touch, in the way that `touched` says, a buffer of the views.
fn meet(kernels: &[Kernel], touched: impl Fn(&Kernel) -> Vec<&View>, views: Vec<&View>) -> bool {
    let touch = |kernel: &Kernel| {
        touched(kernel).iter().any(|one| views.iter().any(|other| one.buffer == other.buffer))
    };
    kernels.iter().any(touch)
}

fn reads(kernel: &Kernel, buffer: BufferId) -> bool {
    kernel.reads().iter().any(|view| view.buffer == buffer)
}

fn is_temporary(buffers: &[Buffer], buffer: BufferId) -> bool {
    matches!(buffers[buffer.0].place, Place::Arena(_))
}

/// Takes from the scans what they store and nobody reads.
fn drop_unread(kernels: &mut [Kernel], buffers: &[Buffer]) {
    for at in 0..kernels.len() {
        let unread = |sink: &Sink| match sink {
            Sink::Store { view, .. } => {
                is_temporary(buffers, view.buffer) && !kernels.iter().any(|kernel| reads(kernel, view.buffer))
            }
            Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => false,
        };
        let Kernel::Scan(scan) = &kernels[at] else { continue };
        if scan.sinks.iter().any(unread) {
            let (code, results) = Code::results(scan);
            let kept = results.into_iter().zip(&scan.sinks).filter(|(_, sink)| !unread(sink));
            let (results, sinks): (Vec<Register>, Vec<Sink>) =
                kept.map(|(register, sink)| (register, sink.clone())).unzip();
            kernels[at] = Kernel::Scan(with_results(Scan { sinks, ..scan.clone() }, code, &results));
        }
    }
}

/// The scan with a nest that reads its results; nothing where they do not go together.
fn after(scan: &Scan, nest: &Loops) -> Option<Scan> {
    let phase = &nest.phases[0];
    let given = |buffer: BufferId| {
        let is_it = |sink: &Sink| matches!(sink, Sink::Store { view, .. } if view.buffer == buffer);
        scan.sinks.iter().position(is_it)
    };
    let mut seen = Vec::new();
    for source in &phase.sources {
        if let Source::Load { view, valid, .. } = source
            && let Some(sink) = given(view.buffer)
        {
            seen.push(
                Positions::of(nest, view, scan, view_of(&scan.sinks[sink])).filter(|_| valid.is_none())?,
            );
        }
    }
    let positions = seen.first().filter(|first| seen.iter().all(|other| other == *first))?;
    if nest.tables.iter().any(|table| given(table.view.buffer).is_some()) {
        return None;
    }
    let (mut code, stored) = Code::results(scan);
    let made = code.append(&phase.program, scan.tables.len(), |code, input, _| {
        let source = &phase.sources[input];
        let sink = match source {
            Source::Load { view, .. } => given(view.buffer),
            Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
        };
        match sink {
            Some(sink) => round(&mut code.builder, stored[sink], dtype_of(&scan.sinks[sink])),
            None => positions.input(code, source),
        }
    });
    let mut merged = scan.clone();
    merged.sinks.extend(phase.sinks.iter().map(|sink| positions.sink(sink)));
    merged.tables.extend_from_slice(&nest.tables);
    let merged = with_results(merged, code, &[stored, made].concat());
    (merged.results.instructions.len() <= INSTRUCTIONS).then_some(merged)
}

/// The scan with a nest that makes what its programs read; nothing where they do not go together.
fn before(scan: &Scan, nest: &Loops) -> Option<Scan> {
    let phase = &nest.phases[0];
    // The sink of the nest that makes what a source loads, and where the scan's axes are in the nest.
    let maker = |source: &Source| {
        let Source::Load { view, valid: None, .. } = source else { return None };
        let number = phase.sinks.iter().position(|sink| view_of(sink).buffer == view.buffer)?;
        Some((number, Positions::of(nest, view_of(&phase.sinks[number]), scan, view)?))
    };
    let sources = || scan.sources.iter().chain(&scan.result_sources);
    sources().find_map(maker)?;
    let rewritten = |program: &Program, fixed: usize, sources: &[Source]| {
        let mut code = Code { builder: Builder::new(), fixed, sources: Vec::new() };
        let results = code.append(program, 0, |code, input, kind| {
            let Some(source) = input.checked_sub(fixed).map(|number| &sources[number]) else {
                return code.builder.input(input, kind);
            };
            match maker(source) {
                Some((number, positions)) => {
                    let inner =
                        |code: &mut Code, input: usize, _| positions.input(code, &phase.sources[input]);
                    code.append(&phase.program, scan.tables.len(), inner)[number]
                }
                None => code.source(source.clone()),
            }
        });
        code.finish(&results)
    };
    let mut merged = scan.clone();
    (merged.elements, merged.sources) = rewritten(&scan.elements, 0, &scan.sources);
    (merged.results, merged.result_sources) = rewritten(&scan.results, scan.state, &scan.result_sources);
    merged.tables.extend_from_slice(&nest.tables);
    let longest = merged.elements.instructions.len().max(merged.results.instructions.len());
    (longest <= INSTRUCTIONS).then_some(merged)
}

fn view_of(sink: &Sink) -> &View {
    match sink {
        Sink::Store { view, .. } => view,
        Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => unreachable!("it only stores"),
    }
}

fn dtype_of(sink: &Sink) -> DType {
    match sink {
        Sink::Store { dtype, .. } => *dtype,
        Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => unreachable!("it only stores"),
    }
}

/// A scan's positions as those of a nest: for each of the nest's axes the scan's axis that it is, if it is longer
/// than 1.
#[derive(Clone, PartialEq)]
struct Positions {
    axes: Vec<Option<usize>>,
    /// Extents of the scan's axes.
    extents: Vec<usize>,
}

impl Positions {
    /// The positions under which a nest and a scan see the same elements, if all of both are.
    fn of(nest: &Loops, in_nest: &View, scan: &Scan, in_scan: &View) -> Option<Positions> {
        let (from, to) = (extents(nest), [&scan.parallel[..], &[scan.length]].concat());
        if in_nest.offset != in_scan.offset || from.contains(&0) {
            return None;
        }
        let mut axes = vec![None; from.len()];
        for axis in (0..from.len()).filter(|&axis| from[axis] > 1) {
            let alike = |&other: &usize| {
                let stride = in_scan.strides[other];
                to[other] == from[axis] && stride == in_nest.strides[axis] && stride != 0
            };
            axes[axis] = Some((0..to.len()).find(alike).filter(|other| !axes.contains(&Some(*other)))?);
        }
        let covered = |axis: usize| to[axis] == 1 || axes.contains(&Some(axis));
        (0..to.len()).all(covered).then_some(Positions { axes, extents: to })
    }

    /// For each axis of the scan what `given` says of the nest's axis that it is, else `other`.
    fn moved<T: Copy>(&self, given: &[T], other: impl Fn(usize) -> T) -> Vec<T> {
        let of = |axis: usize| self.axes.iter().position(|&found| found == Some(axis)).map(|i| given[i]);
        (0..self.extents.len()).map(|axis| of(axis).unwrap_or_else(|| other(axis))).collect()
    }

    fn view(&self, view: &View) -> View {
        View { strides: self.moved(&view.strides, |_| 0), ..view.clone() }
    }

    fn sink(&self, sink: &Sink) -> Sink {
        Sink::Store { view: self.view(view_of(sink)), dtype: dtype_of(sink) }
    }

    /// What a source of the nest is in a program of the scan.
    fn input(&self, code: &mut Code, source: &Source) -> Register {
        match source {
            Source::Load { view, dtype, valid } => {
                let valid = valid.as_ref().map(|(ranges, fill)| {
                    // Of an axis of one position, that one is there or none is.
                    let empty = |(i, range): (usize, &(usize, usize))| {
                        self.axes[i].is_none() && !(range.0..range.1).contains(&0)
                    };
                    let nowhere = ranges.iter().enumerate().any(empty);
                    let moved = self.moved(ranges, |axis| (0, self.extents[axis]));
                    (if nowhere { vec![(0, 0); moved.len()] } else { moved }, *fill)
                });
                code.source(Source::Load { view: self.view(view), dtype: *dtype, valid })
            }
            Source::Index(axis) => match self.axes[*axis] {
                Some(axis) => code.source(Source::Index(axis)),
                None => code.builder.constant(Kind::I64, 0),
            },
            Source::RowScalar(_) | Source::RowValue(_) => unreachable!("an element-wise nest has no rows"),
        }
    }
}

/// One of a scan's programs in the making.
struct Code {
    builder: Builder,
    /// The inputs before the sources: the state.
    fixed: usize,
    sources: Vec<Source>,
}

impl Code {
    /// The program of a scan's results, and the register of each.
    fn results(scan: &Scan) -> (Code, Vec<Register>) {
        let mut code =
            Code { builder: Builder::new(), fixed: scan.state, sources: scan.result_sources.clone() };
        let results = code.append(&scan.results, 0, |code, input, kind| code.builder.input(input, kind));
        (code, results)
    }

    fn source(&mut self, source: Source) -> Register {
        let kind = match &source {
            Source::Load { dtype, .. } => Kind::of(*dtype),
            Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => Kind::I64,
        };
        let number = self.sources.iter().position(|earlier| *earlier == source).unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        });
        self.builder.input(self.fixed + number, kind)
    }

    /// Appends a program whose table 0 is the scan's table `tables`; `input` gives what its inputs are. Its
    /// results' registers.
    fn append(
        &mut self,
        program: &Program,
        tables: usize,
        mut input: impl FnMut(&mut Code, usize, Kind) -> Register,
    ) -> Vec<Register> {
        let mut map: Vec<Register> = Vec::with_capacity(program.instructions.len());
        for instruction in &program.instructions {
            let register = match instruction.operation.renamed(|register| map[register.index()]) {
                Operation::Input(number) => input(self, number, instruction.kind),
                Operation::Load(table, indices) => {
                    self.builder.push(Operation::Load(tables + table, indices), instruction.kind)
                }
                operation => self.builder.push(operation, instruction.kind),
            };
            map.push(register);
        }
        program.results.iter().map(|result| map[result.index()]).collect()
    }

    /// The program with these results, and its sources, without those that it does not need.
    fn finish(self, results: &[Register]) -> (Program, Vec<Source>) {
        let mut program = self.builder.program(results);
        let mut sources = Vec::new();
        for instruction in &mut program.instructions {
            if let Operation::Input(number) = &mut instruction.operation
                && let Some(source) = number.checked_sub(self.fixed)
            {
                sources.push(self.sources[source].clone());
                *number = self.fixed + sources.len() - 1;
            }
        }
        (program, sources)
    }
}

/// The scan with these results, which its sinks take.
fn with_results(mut scan: Scan, code: Code, results: &[Register]) -> Scan {
    (scan.results, scan.result_sources) = code.finish(results);
    let read = |element: usize| {
        scan.results.instructions.iter().any(|instruction| instruction.operation == Operation::Input(element))
    };
    scan.live = (0..scan.state).map(read).collect();
    scan
}
