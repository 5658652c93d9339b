//! The text form, written. [`parse`](crate::parse) reads it back and has its grammar.
//!
//! `{}` prints everything but origins, one operation a line; `{:#}` prints origins too. Values are
//! numbered by their place in the arena, anew in each region.

use std::fmt::{self, Display, Formatter};

use crate::{DType, Graph, Literal, Node, Op, Origin, Scalar, Type, Value};

impl Display for Graph {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_graph(f, "graph", self, 0)
    }
}

fn write_graph(f: &mut Formatter<'_>, label: &str, graph: &Graph, depth: usize) -> fmt::Result {
    let (header, late): (Vec<(usize, Value)>, Vec<_>) =
        graph.parameters().iter().copied().enumerate().partition(|(i, value)| value.index() == *i);
    write!(f, "{label}(")?;
    separated(f, header.iter(), |f, (_, value)| write!(f, "{value}: {}", graph.ty(*value)))?;
    f.write_str(") -> (")?;
    separated(f, graph.results().iter(), |f, value| write!(f, "{value}"))?;
    f.write_str(") {\n")?;

    let mut late = late.into_iter().map(|(_, value)| value).peekable();
    for node in graph.nodes() {
        while let Some(value) = late.next_if(|&value| value < node.results[0]) {
            write_parameter(f, graph, value, depth + 1)?;
        }
        write_node(f, graph, node, depth + 1)?;
    }
    for value in late {
        write_parameter(f, graph, value, depth + 1)?;
    }
    indent(f, depth)?;
    f.write_str("}")
}

fn write_parameter(f: &mut Formatter<'_>, graph: &Graph, value: Value, depth: usize) -> fmt::Result {
    indent(f, depth)?;
    writeln!(f, "{value}: {} = parameter", graph.ty(value))
}

fn write_node(f: &mut Formatter<'_>, graph: &Graph, node: &Node, depth: usize) -> fmt::Result {
    indent(f, depth)?;
    separated(f, node.results.iter(), |f, &value| write!(f, "{value}: {}", graph.ty(value)))?;
    write!(f, " = {}", node.op.name())?;
    if !node.operands.is_empty() {
        f.write_str(" ")?;
        separated(f, node.operands.iter(), |f, value| write!(f, "{value}"))?;
    }
    write_attributes(f, &node.op)?;
    for (label, region) in node.op.regions() {
        write_graph(f, &format!(" {label}"), region, depth)?;
    }
    if let Some(origin) = node.origin.as_ref().filter(|_| f.alternate()) {
        write_origin(f, origin)?;
    }
    f.write_str("\n")
}

/// What the operation holds beside its regions and beside what the types of its results say.
fn write_attributes(f: &mut Formatter<'_>, op: &Op) -> fmt::Result {
    match op {
        Op::Constant(literal) => write!(f, " {literal}"),
        Op::Iota { dtype: _, shape: _, axis } => write!(f, " axis={axis}"),
        Op::Broadcast { shape: _, axes } => write!(f, " axes={axes:?}"),
        Op::Transpose { permutation } => write!(f, " permutation={permutation:?}"),
        Op::Slice { start, limit, step } => write!(f, " start={start:?} limit={limit:?} step={step:?}"),
        Op::Pad { low, high, interior } => write!(f, " low={low:?} high={high:?} interior={interior:?}"),
        Op::Reverse { axes } | Op::Reduce { kind: _, axes } => write!(f, " axes={axes:?}"),
        Op::Concatenate { axis } | Op::ArgMax { axis } => write!(f, " axis={axis}"),
        Op::Dot(axes) => {
            write!(f, " left_batch={:?} right_batch={:?}", axes.left_batch, axes.right_batch)?;
            write!(f, " left_contract={:?} right_contract={:?}", axes.left_contract, axes.right_contract)
        }
        Op::FlexAttention(attention) => write!(f, " scale={:?}", attention.scale),
        Op::FlexAttentionBackward(attention) => {
            write!(f, " scale={:?} contributions=[", attention.scale)?;
            separated(f, attention.contributions.iter(), |f, contribution| {
                write!(f, "{}:{}", contribution.capture, contribution.indices)
            })?;
            write!(f, "] learned={:?}", attention.learned)?;
            write!(f, " log_sum_exp_cotangent={}", attention.log_sum_exp_cotangent)
        }
        Op::AssociativeScan(scan) => {
            write!(f, " leaves={} axis={} reverse={}", scan.leaves, scan.axis, scan.reverse)
        }
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::StopGradient
        | Op::Reshape { .. }
        | Op::Gather
        | Op::ScatterAdd { .. }
        | Op::RandomBits { .. } => Ok(()),
    }
}

fn write_origin(f: &mut Formatter<'_>, origin: &Origin) -> fmt::Result {
    let escapes = [('\\', "\\\\"), ('"', "\\\""), ('\n', "\\n"), ('\r', "\\r")];
    let file = escapes
        .iter()
        .fold(origin.file.to_string(), |file, (character, escape)| file.replace(*character, escape));
    write!(f, " @ \"{file}\":{}:{}", origin.line, origin.column)
}

/// The elements without the type: one element where all are equal, else the list of them.
impl Display for Literal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Type { dtype, .. } = *self.ty();
        if self.splat().is_some() {
            return write_element(f, dtype, &self.bytes()[..dtype.size()]);
        }
        f.write_str("[")?;
        separated(f, self.bytes().chunks_exact(dtype.size()), |f, bytes| write_element(f, dtype, bytes))?;
        f.write_str("]")
    }
}

/// The shortest decimal that reads back as the same bits; the bits themselves for an unusual NaN.
fn write_element(f: &mut Formatter<'_>, dtype: DType, bytes: &[u8]) -> fmt::Result {
    let scalar = Scalar::from_bytes(dtype, bytes);
    match scalar {
        Scalar::Float(x) if x.is_nan() && Scalar::Float(f64::NAN).to_bytes(dtype) != bytes => {
            f.write_str("0x")?;
            bytes.iter().rev().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
        Scalar::Float(x) if dtype != DType::F64 && !x.is_nan() => write!(f, "{:?}", x as f32),
        Scalar::Float(_) | Scalar::Integer(_) | Scalar::Bool(_) => write!(f, "{scalar}"),
    }
}

fn separated<T>(
    f: &mut Formatter<'_>,
    items: impl Iterator<Item = T>,
    write: impl Fn(&mut Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    for (i, item) in items.enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        write(f, item)?;
    }
    Ok(())
}

fn indent(f: &mut Formatter<'_>, depth: usize) -> fmt::Result {
    (0..depth).try_for_each(|_| f.write_str("  "))
}
