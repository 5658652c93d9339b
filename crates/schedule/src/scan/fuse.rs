//! Element-wise work before and after a scan, as part of it.
//!
//! A loop nest that only computes element by element, over the positions that a scan walks over, becomes part of
//! the scan's own programs: of `results` where it reads what the scan gives, of `elements` or `results` where it
//! makes what they read. What is in between is then neither stored nor loaded.
//!
//! Beside it runs a nest that reads an array which the scan reads, so that it is read once.
//!
//! Legality. A nest may move to a scan before it if all else that it reads is there by then; or the scan to it,
//! if nobody in between reads the scan. A nest before a scan may always move to it, since what it reads is
//! not written again.
//!
//! Cost. What others read as well is computed twice, so that must be cheap, of one array; or the scan reads less for
//! it, as where half types are widened: then every reader does better by computing than by loading, and in the end
//! nobody may be left who does not. Where there are few rows, a scan may evaluate its elements twice: they have to be
//! cheap then. A scan that only stores its state does so from registers, and nothing runs beside it.

mod code;
mod positions;

use tilewright_ir::{DType, Op};
use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{Buffer, BufferId, Kernel, Loops, Operation, Place, Program, Register, Scan, View};

use crate::builder::Builder;
use crate::elementwise::{is_expensive, round};
use code::{Code, with_results};
use positions::{Positions, Valid};

/// Instructions of one of a scan's programs, at most: all registers have to stay in cache.
const INSTRUCTIONS: usize = 48;
/// Instructions of what is computed twice, at most.
const CHEAP: usize = 8;
/// The same where the scan reads less for it.
const NARROW: usize = 16;
/// So many kernels are looked through for one beside a scan; bounds the time.
const NEAR: usize = 8;
/// Rows that are enough to keep threads busy without cutting one.
const ENOUGH_ROWS: usize = 64;

/// Merges element-wise loop nests into the scans beside them.
pub(crate) fn fuse(kernels: &mut Vec<Kernel>, buffers: &[Buffer]) {
    while absorb_reader(kernels, buffers) || absorb_maker(kernels, buffers) || absorb_neighbour(kernels) {}
}

/// Merges a nest that reads a scan's results into the scan; whether there was one.
fn absorb_reader(kernels: &mut Vec<Kernel>, buffers: &[Buffer]) -> bool {
    for scan_at in 0..kernels.len() {
        let Kernel::Scan(scan) = &kernels[scan_at] else { continue };
        for at in scan_at + 1..kernels.len() {
            let Some(merged) = elementwise(&kernels[at]).and_then(|nest| after(scan, nest)) else { continue };
            let Some((place, other)) = meeting_place(kernels, scan_at, at) else { continue };
            kernels[place] = Kernel::Scan(merged);
            kernels.remove(other);
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
            let short = nest.phases[0].program.instructions.len() <= NARROW;
            let reads_less = short && bytes_read(&merged) < bytes_read(scan);
            let merged = Kernel::Scan(merged);
            let needed = |view: &&View| {
                let others = kernels.iter().enumerate().filter(|(number, _)| *number != scan_at);
                let mut readers = others.map(|(_, kernel)| kernel).chain([&merged]);
                !is_temporary(buffers, view.buffer) || readers.any(|kernel| reads(kernel, view.buffer))
            };
            let vanishes = !kernels[at].writes().iter().any(needed);
            let many_rows = scan.parallel.iter().product::<usize>() >= ENOUGH_ROWS;
            let affordable = many_rows || !is_slow(nest);
            let pays = if vanishes { affordable } else { is_cheap(nest) || affordable && reads_less };
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

/// Merges a nest that reads what a scan reads into the scan; whether there was one.
fn absorb_neighbour(kernels: &mut Vec<Kernel>) -> bool {
    for scan_at in 0..kernels.len() {
        let Kernel::Scan(scan) = &kernels[scan_at] else { continue };
        for at in scan_at.saturating_sub(NEAR)..kernels.len().min(scan_at + NEAR + 1) {
            let Some(merged) = elementwise(&kernels[at]).and_then(|nest| beside(scan, nest)) else {
                continue;
            };
            let Some((place, other)) = meeting_place(kernels, scan_at, at) else { continue };
            kernels[place] = Kernel::Scan(merged);
            kernels.remove(other);
            return true;
        }
    }
    false
}

/// At which of two kernels' places both can run, if at one, and which is the other's: where nobody in between writes
/// what the one that moves touches, nor reads what it writes. What is written in parts may not be written in another
/// order: a part may lie over another.
fn meeting_place(kernels: &[Kernel], one: usize, other: usize) -> Option<(usize, usize)> {
    let (first, second) = (one.min(other), one.max(other));
    let between = &kernels[first + 1..second];
    let passes = |kernel: &Kernel| {
        !meet(between, Kernel::writes, kernel.reads())
            && !meet(between, Kernel::writes, kernel.writes())
            && !meet(between, Kernel::reads, kernel.writes())
    };
    if passes(&kernels[second]) {
        return Some((first, second));
    }
    passes(&kernels[first]).then_some((second, first))
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

/// Bytes of the arrays that a scan reads. One that is read a step further as well counts once.
fn bytes_read(scan: &Scan) -> usize {
    let mut seen: Vec<&View> = Vec::new();
    let (along, mut bytes) = (scan.parallel.len(), 0);
    for source in scan.sources.iter().chain(&scan.result_sources) {
        let Source::Load { view, dtype, .. } = source else { continue };
        let near = |other: &&View| {
            let apart = (view.offset - other.offset).abs();
            view.buffer == other.buffer
                && view.strides == other.strides
                && (apart == 0 || apart == view.strides[along].abs())
        };
        if !seen.iter().any(near) {
            let moves = |(&extent, &stride): (&usize, &isize)| if stride == 0 { 1 } else { extent };
            let extents = scan.parallel.iter().chain([&scan.length]);
            bytes += dtype.size() * extents.zip(&view.strides).map(moves).product::<usize>();
            seen.push(view);
        }
    }
    bytes
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
            let stored = view_of(&scan.sinks[sink]);
            seen.push(Positions::of(nest, view, scan, stored, None).filter(|_| valid.is_none())?);
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
            None => positions.input(code, source, None),
        }
    });
    let mut merged = scan.clone();
    merged.sinks.extend(phase.sinks.iter().map(|sink| positions.sink(sink)));
    merged.tables.extend_from_slice(&nest.tables);
    let merged = with_results(merged, code, &[stored, made].concat());
    (merged.results.instructions.len() <= INSTRUCTIONS).then_some(merged)
}

/// The scan with a nest that reads an array which it reads too; nothing where they do not go together.
fn beside(scan: &Scan, nest: &Loops) -> Option<Scan> {
    let phase = &nest.phases[0];
    let only_passes = scan.result_sources.is_empty();
    let written = |buffer: BufferId| scan.sinks.iter().any(|sink| view_of(sink).buffer == buffer);
    let read_by_nest =
        phase.sources.iter().filter_map(loaded).chain(nest.tables.iter().map(|table| &table.view));
    let makes = |view: &View| phase.sinks.iter().any(|sink| view_of(sink).buffer == view.buffer);
    let read_by_scan = || scan.sources.iter().chain(&scan.result_sources).filter_map(loaded);
    let tables = scan.tables.iter().map(|table| &table.view);
    let captured = scan.captured.iter().filter_map(loaded);
    if only_passes
        || read_by_nest.into_iter().any(|view| written(view.buffer))
        || read_by_scan().chain(tables).chain(captured).any(makes)
    {
        return None;
    }
    let whole = |source: &&Source| matches!(source, Source::Load { valid: None, .. });
    let positions = phase.sources.iter().filter(whole).filter_map(loaded).find_map(|in_nest| {
        let shared = |in_scan: &View| {
            let positions = Positions::of(nest, in_nest, scan, in_scan, None)?;
            (in_nest.buffer == in_scan.buffer).then_some(positions)
        };
        let sources = scan.sources.iter().chain(&scan.result_sources).filter(whole);
        sources.filter_map(loaded).find_map(shared)
    })?;
    let (mut code, stored) = Code::results(scan);
    let made = code.append(&phase.program, scan.tables.len(), |code, input, _| {
        positions.input(code, &phase.sources[input], None)
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
    // The sink of the nest that makes what a source loads, where the scan's positions are in the nest, and which of
    // them are there. What is not there has no faults either, so nothing is looked up for it.
    let maker = |source: &Source| -> Option<(usize, Positions, Option<Valid>)> {
        let Source::Load { view, valid, .. } = source else { return None };
        let number = phase.sinks.iter().position(|sink| view_of(sink).buffer == view.buffer)?;
        let stored = view_of(&phase.sinks[number]);
        let positions = Positions::of(nest, stored, scan, view, valid.as_ref())?;
        (valid.is_none() || nest.tables.is_empty()).then(|| (number, positions, valid.clone()))
    };
    let sources = || scan.sources.iter().chain(&scan.result_sources);
    sources().find_map(maker)?;
    let rewritten = |program: &Program, fixed: usize, sources: &[Source]| {
        let mut code = Code { builder: Builder::new(), fixed, sources: Vec::new() };
        let results = code.append(program, 0, |code, input, kind| {
            let Some(source) = input.checked_sub(fixed).map(|number| &sources[number]) else {
                return code.builder.input(input, kind);
            };
            let Some((number, positions, valid)) = maker(source) else { return code.source(source.clone()) };
            let made = code.append(&phase.program, scan.tables.len(), |code, input, _| {
                positions.input(code, &phase.sources[input], valid.as_ref())
            });
            valid.map_or(made[number], |valid| positions.bounded(code, made[number], &valid))
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

fn loaded(source: &Source) -> Option<&View> {
    match source {
        Source::Load { view, .. } => Some(view),
        Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
    }
}
