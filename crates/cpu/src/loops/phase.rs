//! One phase of a loop nest, bound to memory and compiled for tiles.

use tilewright_ir::{DType, Result, Scalar};
use tilewright_plan::loops::{Lanes, Loops, Phase, Sink, Source};
use tilewright_plan::{Kind, View};

use super::geometry::Geometry;
use super::reduce::Reducer;
use crate::isa::Isa;
use crate::memory::{Array, Memory, broken};
use crate::tile::{Feed, TileProgram, Variance};

/// A phase ready to run.
pub(super) struct Compiled {
    pub once: bool,
    pub program: TileProgram,
    pub sources: Vec<BoundSource>,
    pub sinks: Vec<BoundSink>,
}

/// What feeds an input.
pub(super) enum BoundSource {
    Load(Window),
    /// The position along this axis of the kernel.
    Index(usize),
    RowScalar(usize),
    RowValue(usize),
}

/// A strided array of which a part may stand for all, the rest being one value.
pub(super) struct Window {
    /// The element at the origin, which may be outside of what can be read.
    pub data: *mut u8,
    pub dtype: DType,
    pub strides: Vec<isize>,
    /// The range of each axis that can be read, and what stands elsewhere.
    pub valid: Option<(Vec<(usize, usize)>, Scalar)>,
}

// SAFETY: a window is only read and written by the kernel that it was bound for, within what was checked.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

/// What becomes of a result.
pub(super) enum BoundSink {
    Store(Window),
    Reduce { reducer: Reducer, scalar: usize },
    RowScalar(usize),
    RowValue(usize),
}

impl Window {
    /// The element at a position along the kernel's axes.
    pub fn at(&self, position: &[usize]) -> *mut u8 {
        let offset: isize = position.iter().zip(&self.strides).map(|(&i, &stride)| i as isize * stride).sum();
        self.data.wrapping_offset(offset * self.dtype.size() as isize)
    }

    fn stride(&self, axis: usize) -> isize {
        self.strides.get(axis).copied().unwrap_or(0)
    }

    /// Whether what stands at a position depends on the position along an axis.
    fn varies(&self, axis: usize, extent: usize) -> bool {
        let restricted = |(ranges, _): &(Vec<(usize, usize)>, Scalar)| {
            ranges.get(axis).is_some_and(|&(low, high)| low > 0 || high < extent)
        };
        self.stride(axis) != 0 || self.valid.as_ref().is_some_and(restricted)
    }
}

/// Kinds of the row's numbers and values, as the phases so far made them.
#[derive(Default)]
pub(super) struct Carried {
    pub scalars: Vec<Option<Kind>>,
    pub values: Vec<Option<Kind>>,
}

impl Carried {
    fn kind(of: &[Option<Kind>], number: usize) -> Result<Kind> {
        of.get(number).copied().flatten().ok_or_else(|| broken("a phase reads what no earlier one made"))
    }
}

/// The type that stores a kind as it is.
pub(super) fn dtype_of(kind: Kind) -> DType {
    match kind {
        Kind::F64 => DType::F64,
        Kind::F32 => DType::F32,
        Kind::I64 => DType::I64,
        Kind::I32 => DType::I32,
        Kind::Bool => DType::Bool,
    }
}

/// Binds and compiles a phase. Lanes of a phase that runs once are the lines of a group.
pub(super) fn compile(
    kernel: &Loops,
    phase: &Phase,
    geometry: &Geometry,
    carried: &mut Carried,
    memory: &Memory,
    isa: Isa,
) -> Result<Compiled> {
    if phase.sources.len() < inputs(phase) || phase.sinks.len() != phase.program.results.len() {
        return Err(broken("a phase has not a source for each input and a sink for each result"));
    }
    let extents: Vec<usize> = match phase.once {
        true => kernel.parallel.iter().copied().chain(kernel.row.iter().map(|_| 1)).collect(),
        false => kernel.parallel.iter().chain(&kernel.row).copied().collect(),
    };
    let tile = TileAxes::new(geometry, phase.once);
    let mut sources = Vec::new();
    let mut feeds = Vec::new();
    for source in &phase.sources {
        let (bound, feed) = match source {
            Source::Load { view, dtype, valid } => {
                let window = load(memory, view, *dtype, valid, &extents)?;
                let feed = Feed::Array(tile.variance(|axis, extent| window.varies(axis, extent)), *dtype);
                (BoundSource::Load(window), feed)
            }
            Source::Index(axis) => (BoundSource::Index(*axis), tile.index(*axis)),
            Source::RowScalar(scalar) => {
                let dtype = dtype_of(Carried::kind(&carried.scalars, *scalar)?);
                (BoundSource::RowScalar(*scalar), Feed::Array(tile.lines(), dtype))
            }
            Source::RowValue(value) if !phase.once => {
                let dtype = dtype_of(Carried::kind(&carried.values, *value)?);
                (BoundSource::RowValue(*value), Feed::Array(Variance::Full, dtype))
            }
            Source::RowValue(_) => return Err(broken("a phase that runs once reads an element of the row")),
        };
        sources.push(bound);
        feeds.push(feed);
    }
    let program = TileProgram::compile(&phase.program, &feeds, &kernel.tables, isa)?;
    let mut sinks = Vec::new();
    for (result, sink) in phase.sinks.iter().enumerate() {
        let (_, kind) = program.result(result);
        let missing = || broken("a sink names a number or value of the row that is not there");
        sinks.push(match sink {
            Sink::Store { view, dtype } => {
                if Kind::of(*dtype) != kind {
                    return Err(broken("a result is stored as another kind"));
                }
                let Array { data, strides, dtype, .. } = memory.write(view, *dtype, &extents)?;
                BoundSink::Store(Window { data, dtype, strides, valid: None })
            }
            Sink::Reduce { kind: reduction, scalar } if !phase.once => {
                let reducer = Reducer::new(*reduction, kind, geometry.lanes, isa);
                *carried.scalars.get_mut(*scalar).ok_or_else(missing)? = Some(reducer.result());
                BoundSink::Reduce { reducer, scalar: *scalar }
            }
            Sink::RowScalar(scalar) if phase.once => {
                *carried.scalars.get_mut(*scalar).ok_or_else(missing)? = Some(kind);
                BoundSink::RowScalar(*scalar)
            }
            Sink::RowValue(value) if !phase.once => {
                *carried.values.get_mut(*value).ok_or_else(missing)? = Some(kind);
                BoundSink::RowValue(*value)
            }
            Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => {
                return Err(broken("a sink does not fit how often its phase runs"));
            }
        });
    }
    Ok(Compiled { once: phase.once, program, sources, sinks })
}

fn inputs(phase: &Phase) -> usize {
    let numbers = phase.program.instructions.iter().filter_map(|instruction| match instruction.operation {
        tilewright_plan::Operation::Input(number) => Some(number + 1),
        _ => None,
    });
    numbers.max().unwrap_or(0)
}

/// A window of which the valid part is known to be inside its buffer.
fn load(
    memory: &Memory,
    view: &View,
    dtype: DType,
    valid: &Option<(Vec<(usize, usize)>, Scalar)>,
    extents: &[usize],
) -> Result<Window> {
    let Some((ranges, fill)) = valid else {
        let Array { data, strides, .. } = memory.read(view, dtype, extents)?;
        return Ok(Window { data, dtype, strides, valid: None });
    };
    // A phase that runs once stands at 0 along the row's axes, whose ranges say more.
    let ranges: Vec<(usize, usize)> =
        ranges.iter().zip(extents).map(|(&(low, high), &extent)| (low, high.min(extent))).collect();
    if ranges.len() != view.strides.len() || ranges.iter().any(|(low, high)| low > high) {
        return Err(broken("the valid ranges of a load do not fit its axes"));
    }
    let start: isize = ranges
        .iter()
        .zip(&view.strides)
        .fold(0, |sum, (&(low, _), &stride)| sum.wrapping_add((low as isize).wrapping_mul(stride)));
    let inner = View { offset: view.offset.wrapping_add(start), ..view.clone() };
    let inner_extents: Vec<usize> = ranges.iter().map(|&(low, high)| high - low).collect();
    let Array { data, strides, .. } = memory.read(&inner, dtype, &inner_extents)?;
    let data = data.wrapping_offset(start.wrapping_neg().wrapping_mul(dtype.size() as isize));
    // An axis that is not cut may be merged with another: it has no end of its own.
    let uncut = |(range, extent)| if range == (0, extent) { (0, usize::MAX) } else { range };
    let ranges = ranges.into_iter().zip(extents.iter().copied()).map(uncut).collect();
    Ok(Window { data, dtype, strides, valid: Some((ranges, *fill)) })
}

/// Which axes of the kernel a tile's rows and columns run along, with their extents.
pub(super) struct TileAxes {
    pub rows: Option<(usize, usize)>,
    pub columns: (usize, usize),
    /// Whether rows of the kernel's rows stand in the tile's rows.
    lines_are_rows: bool,
}

impl TileAxes {
    pub fn new(geometry: &Geometry, once: bool) -> TileAxes {
        let line = (geometry.line.of, geometry.line.extent);
        let row = (geometry.row.of, geometry.row.extent);
        match (once, geometry.lanes) {
            (true, _) => TileAxes { rows: None, columns: line, lines_are_rows: false },
            (false, Lanes::Row) => TileAxes { rows: Some(line), columns: row, lines_are_rows: true },
            (false, Lanes::Parallel) => TileAxes { rows: Some(row), columns: line, lines_are_rows: false },
        }
    }

    fn variance(&self, varies: impl Fn(usize, usize) -> bool) -> Variance {
        let rows = self.rows.is_some_and(|(axis, extent)| varies(axis, extent));
        Variance::of(rows, varies(self.columns.0, self.columns.1))
    }

    fn lines(&self) -> Variance {
        if self.lines_are_rows { Variance::Row } else { Variance::Column }
    }

    fn index(&self, axis: usize) -> Feed {
        match self.rows {
            _ if axis == self.columns.0 => Feed::ColumnPosition,
            Some((rows, _)) if axis == rows => Feed::RowPosition,
            _ => Feed::Uniform,
        }
    }

    /// A window's strides along the tile's rows and columns.
    pub fn strides(&self, window: &Window) -> (isize, isize) {
        (self.rows.map_or(0, |(axis, _)| window.stride(axis)), window.stride(self.columns.0))
    }
}
