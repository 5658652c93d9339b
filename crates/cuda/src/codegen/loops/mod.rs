//! Fused loop nests.
//!
//! Memory is walked in runs of neighbouring elements, 16 bytes of the widest array, each read and written in one access
//! where it lies so. Either *along* a row: a team of threads (one, a few lanes, a warp or a block) takes the runs of a
//! row in turn and reduces among its threads; or *across* rows: a thread has a run of neighbouring rows, and where
//! there is something to reduce the warps of a block share the rows' elements. Few long rows are cut into parts, whose
//! reductions a second launch adds up. Whole rows that later phases read again are held in registers where they fit, else
//! in shared memory, else in scratch memory. What is known of strides and alignment is in the text: see `neighbours`.
//!
//! All of this, and so the order of each sum, depends on sizes only.

mod merge;
mod neighbours;
mod writer;

use tilewright_plan::loops::{Lanes, Phase, RowReduction, Sink, Source};
use tilewright_plan::{Kind, Loops, View};

use super::launch::{Launch, Lowering, Source as Text};
use super::parameters::Parameters;
use super::region::Site;
use super::types::register;
use writer::Writer;

const ENGINE: &str = include_str!("../../engines/loops.cuh");

/// Threads of a block.
const THREADS: usize = 256;

/// Blocks at most of kernels that keep rows in scratch memory: more rows are taken in turn.
const BLOCKS: usize = 1056;

/// Bytes of shared memory that a block's rows may take.
const SHARED_ROWS: usize = 48 << 10;

/// Bytes of scratch memory that the rows of all blocks may take.
const SCRATCH_ROWS: usize = 256 << 20;

/// So many blocks keep a GPU busy. A number of the engine's, not of a GPU's, so that results do not depend on which it is.
const ENOUGH_BLOCKS: usize = 528;

/// Runs of a row that a thread may hold.
const HELD_RUNS: usize = 8;

/// Bytes of rows that a thread may hold: half of its registers.
const HELD: usize = 512;

/// So many rows keep a GPU busy with a warp for each.
const ENOUGH_ROWS: usize = 1056;

/// Instructions that a kernel's phases may have once they are unrolled over what a thread holds.
const UNROLLED: usize = 4096;

/// Elements of a long row that a thread reads before it works on the first.
const READ_AT_ONCE: usize = 4;

/// Elements that a part of a long row has at least.
const PART: usize = 4096;

/// What a run lies along.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    /// The row's innermost axis; so many threads do a row.
    Along { team: usize },
    /// The innermost parallel axis; so many warps share the rows' elements.
    Across { warps: usize },
}

/// Which part of a nest a kernel does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Whole,
    /// The first phase, of a part of each row.
    Parts,
    /// The first phase's reductions from those of the parts, and all other phases.
    Rest,
}

/// A nest as it is cut.
struct Cut {
    style: Style,
    /// Elements of a run.
    run: usize,
    /// Parts of a row.
    parts: usize,
    /// Runs of all rows, or rows; and elements, or runs, of a row.
    units: usize,
    length: usize,
    /// Whether every run has as many elements.
    whole: bool,
    /// Whether positions need 64 bits.
    long: bool,
    /// Runs of a row that each thread of a team holds in registers, where that is all of the row.
    held: Option<usize>,
}

impl Cut {
    fn of(loops: &Loops) -> Cut {
        let (rows, elements): (usize, usize) = (loops.parallel.iter().product(), loops.row.iter().product());
        let across = loops.row.is_empty() || loops.lanes == Lanes::Parallel;
        let run = run_of(loops, across);
        let along = if across { &loops.parallel } else { &loops.row };
        let whole = along.last().is_none_or(|extent| extent % run == 0);
        let runs = |axes: &[usize]| match axes.split_last() {
            Some((inner, outer)) => outer.iter().product::<usize>() * inner.div_ceil(run),
            None => 1,
        };
        let (style, units, length) = match across {
            true => {
                let warps = if elements >= 16 { THREADS / 32 } else { 1 };
                (Style::Across { warps }, runs(&loops.parallel), elements)
            }
            false => {
                let runs = runs(&loops.row);
                let team = match runs {
                    0..=4 => 1,
                    5..=16 => 4,
                    17..=64 => 32,
                    _ => THREADS,
                };
                (Style::Along { team }, rows, runs)
            }
        };
        let long = rows.saturating_mul(elements.max(1)) >= 1 << 31;
        let cut = Cut { style, run, parts: 1, units, length, whole, long, held: None };
        // A warp reduces without waiting for others, where it can hold the row.
        let by_warps = Cut { style: Style::Along { team: 32 }, ..cut };
        if style == (Style::Along { team: THREADS })
            && rows >= ENOUGH_ROWS
            && let held @ Some(_) = by_warps.held_of(loops)
        {
            return Cut { held, ..by_warps };
        }
        let parts = cut.parts_of(loops);
        let held = if parts == 1 { cut.held_of(loops) } else { None };
        Cut { parts, held, ..cut }
    }

    /// Threads, or warps, that each row of a block has; rows, or runs of rows, of a block.
    fn units_of_block(&self) -> usize {
        match self.style {
            Style::Along { team } => THREADS / team,
            Style::Across { warps: 1 } => THREADS,
            Style::Across { .. } => 32,
        }
    }

    /// How many runs each thread holds: all of its share of the row, where that is few enough.
    fn held_of(&self, loops: &Loops) -> Option<usize> {
        let Style::Along { team: team @ 2.. } = self.style else { return None };
        let runs = self.length.div_ceil(team);
        let mut element = 0;
        for (number, phase) in loops.phases.iter().enumerate().filter(|(_, phase)| !phase.once) {
            for (i, source) in phase.sources.iter().enumerate() {
                if let Source::Load { dtype, .. } = source
                    && read_before(loops, number, i).is_none()
                {
                    element += dtype.size();
                }
            }
        }
        element += (0..loops.row_values).map(|slot| bytes_of(value_kind(loops, slot))).sum::<usize>();
        let instructions: usize = loops.phases.iter().map(|phase| phase.program.instructions.len()).sum();
        let short = instructions * runs * self.run <= UNROLLED;
        (runs <= HELD_RUNS && runs * self.run * element <= HELD && short).then_some(runs)
    }

    /// Into how many parts rows are cut: so many that there are enough blocks, if the nest allows it.
    fn parts_of(&self, loops: &Loops) -> usize {
        let Some((first, rest)) = loops.phases.split_first() else { return 1 };
        let reduces = |sink: &Sink| matches!(sink, Sink::Reduce { .. });
        let cuttable = !first.once
            && first.sinks.iter().any(reduces)
            && first.sinks.iter().all(|sink| reduces(sink) || matches!(sink, Sink::Store { .. }))
            && rest.iter().all(|phase| phase.once);
        let team = match self.style {
            Style::Along { team } => team,
            Style::Across { warps } => warps * 32,
        };
        if !cuttable || team < THREADS {
            return 1;
        }
        let blocks = self.units.div_ceil(self.units_of_block());
        // Across rows each thread's elements are its own, so parts may be small.
        let most = match self.style {
            Style::Along { .. } => self.length * self.run / PART,
            Style::Across { .. } => self.length / 64,
        };
        (ENOUGH_BLOCKS / blocks.max(1)).min(most).max(1)
    }
}

/// Where a thread that holds its row has what a phase reads already: the earlier phase and the number there of the same
/// load, if nothing was stored to that buffer since.
fn read_before(loops: &Loops, number: usize, i: usize) -> Option<(usize, usize)> {
    let source = &loops.phases[number].sources[i];
    let Source::Load { view, valid: None, .. } = source else { return None };
    let stores = |phase: &Phase| {
        phase
            .sinks
            .iter()
            .any(|sink| matches!(sink, Sink::Store { view: to, .. } if to.buffer == view.buffer))
    };
    for (earlier, phase) in loops.phases[..number].iter().enumerate().rev() {
        if stores(phase) {
            return None;
        }
        let same = phase.sources.iter().position(|other| other == source);
        if let Some(same) = same.filter(|_| !phase.once) {
            return read_before(loops, earlier, same).or(Some((earlier, same)));
        }
    }
    None
}

/// The elements of a run: 16 bytes of the widest array that has neighbours side by side; fewer for long programs.
fn run_of(loops: &Loops, across: bool) -> usize {
    let axis = if across { loops.parallel.len() } else { loops.parallel.len() + loops.row.len() };
    let Some(axis) = axis.checked_sub(1) else { return 1 };
    let dense = |view: &View, bytes: usize| (view.strides[axis] == 1).then_some(bytes);
    let phases = loops.phases.iter().filter(|phase| across || !phase.once);
    let widest = phases.clone().flat_map(|phase| {
        let loads = phase.sources.iter().filter_map(|source| match source {
            Source::Load { view, dtype, .. } => dense(view, dtype.size()),
            Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
        });
        let stores = phase.sinks.iter().filter_map(|sink| match sink {
            Sink::Store { view, dtype } => dense(view, dtype.size()),
            Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => None,
        });
        loads.chain(stores).collect::<Vec<_>>()
    });
    let Some(widest) = widest.max() else { return 1 };
    let instructions: usize = phases.map(|phase| phase.program.instructions.len()).sum();
    let most = match instructions {
        0..=96 => 8,
        97..=192 => 4,
        193..=384 => 2,
        _ => 1,
    };
    (16 / widest).clamp(1, most)
}

/// Lowers a loop nest.
pub(super) fn lower(loops: &Loops, lowering: &mut Lowering) {
    let flat = loops.phases.len() == 1 && loops.phases[0].sinks.iter().all(is_store) && !loops.phases[0].once;
    let loops = merge::merged(loops, flat);
    let cut = Cut::of(&loops);
    // What the parts of a row come to.
    let places: Vec<usize> = match (cut.parts, loops.phases.first()) {
        (2.., Some(first)) => {
            let each = match cut.style {
                Style::Along { .. } => 1,
                Style::Across { .. } => cut.run,
            };
            first.sinks.iter().map(|_| lowering.scratch(16 * cut.units * cut.parts * each)).collect()
        }
        _ => Vec::new(),
    };
    let stages = if cut.parts > 1 { &[Stage::Parts, Stage::Rest][..] } else { &[Stage::Whole] };
    for &stage in stages {
        launch(&loops, &cut, stage, &places, lowering);
    }
}

fn launch(loops: &Loops, cut: &Cut, stage: Stage, places: &[usize], lowering: &mut Lowering) {
    let &Cut { style, run, parts, units, length, .. } = cut;
    let mut parameters = Parameters::default();
    parameters.integers("extents", loops.parallel.iter().chain(&loops.row).map(|&extent| extent as i64));
    for (name, value) in [("units", units), ("length", length), ("parts", parts)] {
        parameters.integer(name, value as i64);
    }
    let mut blocks = units.div_ceil(cut.units_of_block());
    if stage == Stage::Parts {
        blocks *= parts;
    } else if loops.row_values > 0 && cut.held.is_none() {
        blocks = blocks.min(BLOCKS);
    } else {
        blocks = blocks.min(1 << 20);
    }
    // A team's sums go by way of shared memory; each row that is in the making at once has a place of its own.
    let mut shared = 16 * THREADS;
    let rows_of_block = cut.units_of_block();
    // Along: elements of a row, padded so that each row is aligned. Across: those of a run of rows.
    let pitch = match style {
        Style::Along { .. } => (length * run).next_multiple_of(16),
        Style::Across { .. } => length * run,
    };
    let kept = if cut.held.is_some() { 0 } else { loops.row_values };
    let bytes = 8 * rows_of_block * pitch * kept;
    parameters.integer("pitch", pitch as i64);
    let in_shared = bytes > 0 && bytes <= SHARED_ROWS && matches!(style, Style::Along { .. });
    parameters.integer("rows_in_shared", in_shared.into());
    if !in_shared && bytes > 0 {
        blocks = blocks.min((SCRATCH_ROWS / bytes).max(1));
    }
    for slot in 0..kept {
        let ty = register(value_kind(loops, slot));
        let place = if in_shared { 0 } else { lowering.scratch(8 * blocks * rows_of_block * pitch) };
        parameters.scratch(ty, &format!("row_{slot}"), place);
    }
    if in_shared {
        shared += bytes;
    }
    parameters.tables(&loops.tables);
    parameters.faults(lowering.program.sites.len());
    if let Some(first) = loops.phases.first() {
        for (number, (sink, &place)) in first.sinks.iter().zip(places).enumerate() {
            if matches!(sink, Sink::Reduce { .. }) {
                parameters.scratch("unsigned char", &format!("part_{number}"), place);
            }
        }
    }
    let mut writer = Writer {
        loops,
        cut,
        buffers: lowering.buffers,
        stage,
        parameters: &mut parameters,
        sites: Vec::<Site>::new(),
        text: String::new(),
    };
    writer.kernel();
    let (text, sites) = (writer.text, writer.sites);
    let what = match style {
        Style::Along { team: 1 } => "a thread does a row".into(),
        Style::Along { team } => format!("{team} threads do a row"),
        Style::Across { warps: 1 } => "a thread does a run of rows".into(),
        Style::Across { warps } => format!("a lane of {warps} warps does a run of rows"),
    };
    let which = match stage {
        Stage::Whole => "",
        Stage::Parts => "; the reductions of parts of rows",
        Stage::Rest => "; from the reductions of parts",
    };
    let comment = format!("a loop nest of {} phases, in which {what}{which}.", loops.phases.len());
    let source = Text::new("loops", &comment, &parameters, "", &[ENGINE, &text]);
    lowering.program.sites.extend(sites);
    lowering.launch(Launch {
        source,
        blocks,
        threads: THREADS,
        shared_bytes: shared,
        arguments: parameters.arguments,
    });
}

fn is_store(sink: &Sink) -> bool {
    matches!(sink, Sink::Store { .. })
}

fn bytes_of(kind: Kind) -> usize {
    match kind {
        Kind::F64 | Kind::I64 => 8,
        Kind::F32 | Kind::I32 => 4,
        Kind::Bool => 1,
    }
}

/// The kind of a row that phases carry.
fn value_kind(loops: &Loops, slot: usize) -> Kind {
    made(loops, |sink| matches!(sink, Sink::RowValue(value) if *value == slot))
}

/// The kind of a number of the row that phases carry.
fn scalar_kind(loops: &Loops, slot: usize) -> Kind {
    let argmax =
        |sink: &Sink| matches!(sink, Sink::Reduce { kind: RowReduction::ArgMax, scalar } if *scalar == slot);
    if loops.phases.iter().any(|phase| phase.sinks.iter().any(argmax)) {
        return Kind::I64;
    }
    made(loops, |sink| match sink {
        Sink::Reduce { scalar, .. } | Sink::RowScalar(scalar) => *scalar == slot,
        Sink::Store { .. } | Sink::RowValue(_) => false,
    })
}

/// The kind of the result that a sink takes; a verified plan has the sink.
fn made(loops: &Loops, is: impl Fn(&Sink) -> bool) -> Kind {
    let results = loops.phases.iter().flat_map(|phase| {
        phase.sinks.iter().zip(phase.program.results.iter().map(|&result| phase.program.kind(result)))
    });
    results.filter(|(sink, _)| is(sink)).map(|(_, kind)| kind).next().unwrap_or(Kind::F64)
}
