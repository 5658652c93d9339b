//! Plans as text, for people and for golden tests.

use std::fmt::{self, Display, Formatter};

use tilewright_ir::Scalar;

use crate::attention::{Attention, ReductionKey};
use crate::loops::{Lanes, Phase, RowReduction, Sink, Source};
use crate::{
    AttentionBackward, AttentionForward, BlockMap, Instruction, Kernel, Kind, Loops, MatMul, Operation,
    Place, Plan, Program, Scan, ScatterAdd, Table, View,
};

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan: {} kernels, arena of {} bytes", self.kernels.len(), self.arena_bytes)?;
        for (number, buffer) in self.buffers.iter().enumerate() {
            write!(f, "  b{number}: {} × {}, ", buffer.dtype, buffer.elements)?;
            match &buffer.place {
                Place::Input(input) => writeln!(f, "input {input}")?,
                Place::Output(output) => writeln!(f, "output {output}")?,
                Place::Constant(_) => writeln!(f, "constant")?,
                Place::Arena(offset) => writeln!(f, "arena at {offset}")?,
            }
        }
        for (number, kernel) in self.kernels.iter().enumerate() {
            write!(f, "{number}: {kernel}")?;
        }
        Ok(())
    }
}

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Kernel::Loops(loops) => loops.fmt(f),
            Kernel::MatMul(product) => product.fmt(f),
            Kernel::ScatterAdd(scatter) => scatter.fmt(f),
            Kernel::BlockMap(map) => map.fmt(f),
            Kernel::AttentionForward(forward) => forward.fmt(f),
            Kernel::AttentionBackward(backward) => backward.fmt(f),
            Kernel::Scan(scan) => scan.fmt(f),
        }
    }
}

impl Display for View {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "b{}{:?}", self.buffer.0, self.strides)?;
        if self.offset == 0 { Ok(()) } else { write!(f, "{:+}", self.offset) }
    }
}

impl Display for Loops {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let lanes = match self.lanes {
            Lanes::Row => "along the row",
            Lanes::Parallel => "across rows",
        };
        writeln!(f, "loops over {:?}, rows of {:?}, lanes {lanes}", self.parallel, self.row)?;
        tables(f, &self.tables)?;
        self.phases.iter().try_for_each(|phase| phase.fmt(f))
    }
}

impl Display for Phase {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {}", if self.once { "once a row" } else { "each element" })?;
        code(f, &self.program, &self.sources)?;
        sinks(f, &self.program, &self.sinks)
    }
}

impl Display for Source {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Source::Load { view, dtype: _, valid: None } => write!(f, "load {view}"),
            Source::Load { view, dtype: _, valid: Some((ranges, fill)) } => {
                write!(f, "load {view} within {ranges:?} else {fill}")
            }
            Source::Index(axis) => write!(f, "index {axis}"),
            Source::RowScalar(slot) => write!(f, "scalar {slot}"),
            Source::RowValue(slot) => write!(f, "value {slot}"),
        }
    }
}

impl Display for Sink {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Sink::Store { view, dtype: _ } => write!(f, "store {view}"),
            Sink::Reduce { kind, scalar } => {
                let kind = match kind {
                    RowReduction::Sum => "sum",
                    RowReduction::Prod => "prod",
                    RowReduction::Max => "max",
                    RowReduction::Min => "min",
                    RowReduction::ArgMax => "argmax",
                };
                write!(f, "scalar {scalar} = {kind}")
            }
            Sink::RowScalar(slot) => write!(f, "scalar {slot} ="),
            Sink::RowValue(slot) => write!(f, "value {slot} ="),
        }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::F64 => "f64",
            Kind::F32 => "f32",
            Kind::I64 => "i64",
            Kind::I32 => "i32",
            Kind::Bool => "bool",
        })
    }
}

impl Display for Instruction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = self.kind;
        match &self.operation {
            Operation::Input(number) => write!(f, "input {number}: {kind}"),
            Operation::Constant(value) => write!(f, "{}: {kind}", Shown(*value)),
            Operation::Unary(function, x) => write!(f, "{} {x}", function.name()),
            Operation::Binary(function, x, y) => write!(f, "{} {x} {y}", function.name()),
            Operation::Compare(comparison, x, y) => write!(f, "{} {x} {y}", comparison.name()),
            Operation::Select(condition, x, y) => write!(f, "select {condition} {x} {y}"),
            Operation::Cast(x) => write!(f, "cast {x}: {kind}"),
            Operation::Round(dtype, x) => write!(f, "round {x}: {dtype}"),
            Operation::Load(table, indices) => {
                let indices: Vec<String> = indices.iter().map(|index| index.to_string()).collect();
                write!(f, "table {table}[{}]", indices.join(", "))
            }
            Operation::RandomBits(key, counter) => write!(f, "random_bits {key} {counter}"),
        }
    }
}

/// A constant with few enough digits to read.
struct Shown(Scalar);

impl Display for Shown {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Scalar::Float(x) if x == x as f32 as f64 => write!(f, "{:?}", x as f32),
            other => write!(f, "{other}"),
        }
    }
}

impl Display for Program {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        code(f, self, &[])?;
        let results: Vec<String> = self.results.iter().map(|result| result.to_string()).collect();
        writeln!(f, "    give {}", results.join(", "))
    }
}

/// The instructions, with inputs as what feeds them where that is known.
fn code(f: &mut Formatter<'_>, program: &Program, sources: &[Source]) -> fmt::Result {
    for (number, instruction) in program.instructions.iter().enumerate() {
        match &instruction.operation {
            Operation::Input(input) if *input < sources.len() => {
                writeln!(f, "    r{number} = {}", sources[*input])?;
            }
            _ => writeln!(f, "    r{number} = {instruction}")?,
        }
    }
    Ok(())
}

fn sinks(f: &mut Formatter<'_>, program: &Program, sinks: &[Sink]) -> fmt::Result {
    for (sink, result) in sinks.iter().zip(&program.results) {
        writeln!(f, "    {sink} {result}")?;
    }
    Ok(())
}

fn tables(f: &mut Formatter<'_>, tables: &[Table]) -> fmt::Result {
    for (number, table) in tables.iter().enumerate() {
        writeln!(f, "  table {number}: {}{:?} {}, {}", table.dtype, table.shape, table.view, table.name)?;
    }
    Ok(())
}

impl Display for MatMul {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let MatMul { batch, rows, columns, depth, dtype, left, right, output } = self;
        writeln!(f, "matmul {dtype} {batch:?} × {rows}×{depth}×{columns}: {output} = {left} · {right}")
    }
}

impl Display for ScatterAdd {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ScatterAdd { space, indexed, tail, indices, dtype, updates, output, origin: _ } = self;
        let indices: Vec<String> = indices.iter().map(|(view, _)| view.to_string()).collect();
        let indices = indices.join(", ");
        writeln!(
            f,
            "scatter_add {dtype} {space:?} into {indexed:?}, tail {tail:?}: {output}[{indices}] += {updates}"
        )
    }
}

impl Display for BlockMap {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let BlockMap { slot, batch, heads, queries, keys, query_block, key_block, mask, tables: read } = self;
        writeln!(
            f,
            "block map {slot} of [{batch}, {heads}, {queries}, {keys}] in blocks of {query_block}×{key_block}"
        )?;
        tables(f, read)?;
        mask.fmt(f)
    }
}

fn attention(f: &mut Formatter<'_>, attention: &Attention) -> fmt::Result {
    let shape = attention.shape;
    writeln!(
        f,
        " {} batch {} (keys {}), heads {} (keys {}), {}×{}, sizes {} and {}, scale {:?}",
        attention.dtype,
        shape.batch,
        shape.key_batch,
        shape.heads,
        shape.key_heads,
        shape.queries,
        shape.keys,
        shape.head_size,
        shape.value_size,
        attention.scale
    )?;
    writeln!(f, "  query {}, key {}, value {}", attention.query, attention.key, attention.value)?;
    tables(f, &attention.tables)?;
    if let Some(slot) = attention.block_map {
        writeln!(f, "  block map {slot}")?;
    }
    labelled(f, "mask", attention.mask.as_ref())
}

fn labelled(f: &mut Formatter<'_>, label: &str, program: Option<&Program>) -> fmt::Result {
    let Some(program) = program else { return Ok(()) };
    writeln!(f, "  {label}")?;
    program.fmt(f)
}

fn result(f: &mut Formatter<'_>, label: &str, view: Option<&View>) -> fmt::Result {
    view.map_or(Ok(()), |view| writeln!(f, "  {label} {view}"))
}

impl Display for AttentionForward {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "attention")?;
        attention(f, &self.attention)?;
        labelled(f, "score", self.score.as_ref())?;
        result(f, "output", Some(&self.output))?;
        result(f, "unrounded output", self.unrounded.as_ref())?;
        result(f, "log_sum_exp", self.log_sum_exp.as_ref())?;
        result(f, "maximum", self.maximum.as_ref())
    }
}

impl Display for AttentionBackward {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "attention backward")?;
        attention(f, &self.attention)?;
        labelled(f, "joint", self.joint.as_ref())?;
        writeln!(f, "  output {}, log_sum_exp {}", self.output, self.log_sum_exp)?;
        writeln!(f, "  output cotangent {}", self.output_cotangent)?;
        result(f, "log_sum_exp cotangent", self.log_sum_exp_cotangent.as_ref())?;
        result(f, "query cotangent", self.query_cotangent.as_ref())?;
        result(f, "key cotangent", self.key_cotangent.as_ref())?;
        result(f, "value cotangent", self.value_cotangent.as_ref())?;
        for (number, capture) in self.captures.iter().enumerate() {
            writeln!(f, "  capture {number}: {}{:?} {}", capture.dtype, capture.shape, capture.view)?;
        }
        for reduction in &self.reductions {
            let key = reduction.key;
            writeln!(
                f,
                "  result {} by {key} to capture {}: {}",
                reduction.result, reduction.capture, reduction.reason
            )?;
            reduction.indices.fmt(f)?;
        }
        self.zero_terms
            .iter()
            .try_for_each(|term| writeln!(f, "  nothing to capture {}: {}", term.capture, term.reason))
    }
}

impl Display for ReductionKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            ReductionKey::Head => f.write_str("head"),
            ReductionKey::Query => f.write_str("query"),
            ReductionKey::Key => f.write_str("key"),
            ReductionKey::Difference => f.write_str("difference"),
            ReductionKey::Sum => f.write_str("sum"),
            ReductionKey::Bucket { size } => write!(f, "bucket of {size}"),
            ReductionKey::Pair => f.write_str("pair"),
            ReductionKey::Any => f.write_str("any"),
        }
    }
}

impl Display for Scan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let direction = if self.reverse { " from the end" } else { "" };
        writeln!(
            f,
            "scan over {:?}, length {}{direction}, state of {}",
            self.parallel, self.length, self.state
        )?;
        tables(f, &self.tables)?;
        writeln!(f, "  elements")?;
        code(f, &self.elements, &self.sources)?;
        let results: Vec<String> = self.elements.results.iter().map(|result| result.to_string()).collect();
        writeln!(f, "    give {}", results.join(", "))?;
        self.captured
            .iter()
            .enumerate()
            .try_for_each(|(i, source)| writeln!(f, "  captured {}: {source}", 2 * self.state + i))?;
        writeln!(f, "  combine")?;
        self.combine.fmt(f)?;
        self.result_sources
            .iter()
            .enumerate()
            .try_for_each(|(i, source)| writeln!(f, "  read {}: {source}", self.state + i))?;
        writeln!(f, "  results")?;
        code(f, &self.results, &[])?;
        sinks(f, &self.results, &self.sinks)
    }
}
