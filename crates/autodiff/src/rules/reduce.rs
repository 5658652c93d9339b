//! Derivatives of reductions.

use tilewright_ir::{Compare, DType, Graph, Origin, Reduction, Result, Type, Value};

use crate::emit::Emit;
use crate::forward::push_forward;
use crate::reverse::pull_back;

/// The cotangent of `x` from the cotangent of its reduction `y`.
pub(crate) fn vjp(
    e: &mut Emit,
    kind: Reduction,
    axes: &[usize],
    [x, y]: [Value; 2],
    cotangent: Value,
) -> Result<Value> {
    let shape = e.shape(x);
    match kind {
        Reduction::Sum => e.repeat(cotangent, &shape, axes),
        Reduction::Max | Reduction::Min => {
            let (attains, count) = attained(e, axes, x, y)?;
            let share = e.div(cotangent, count)?;
            let share = e.repeat(share, &shape, axes)?;
            e.select_or(attains, share, 0.0)
        }
        Reduction::Prod => {
            let tree = product_tree(&e.ty(x), axes, e.origin.clone())?;
            let cotangents = pull_back(e.graph, &tree, &[x], &[Some(cotangent)], &[true])?;
            cotangents[0].map_or_else(|| e.like(x, 0.0), Ok)
        }
    }
}

/// The tangent of the reduction `y` from the tangent of `x`.
pub(crate) fn jvp(
    e: &mut Emit,
    kind: Reduction,
    axes: &[usize],
    [x, y]: [Value; 2],
    tangent: Value,
) -> Result<Value> {
    match kind {
        Reduction::Sum => e.sum(tangent, axes),
        Reduction::Max | Reduction::Min => {
            let (attains, count) = attained(e, axes, x, y)?;
            let routed = e.select_or(attains, tangent, 0.0)?;
            let total = e.sum(routed, axes)?;
            e.div(total, count)
        }
        Reduction::Prod => {
            let tree = product_tree(&e.ty(x), axes, e.origin.clone())?;
            let tangents = push_forward(e.graph, &tree, &[x], &[Some(tangent)])?;
            tangents[0].map_or_else(|| e.like(y, 0.0), Ok)
        }
    }
}

/// Where `x` attains its extremum `y`, and how often: ties share equally.
fn attained(e: &mut Emit, axes: &[usize], x: Value, y: Value) -> Result<(Value, Value)> {
    let shape = e.shape(x);
    let extremum = e.repeat(y, &shape, axes)?;
    let attains = e.compare(Compare::Eq, x, extremum)?;
    let ones = e.cast(attains, DType::I32)?;
    let count = e.sum(ones, axes)?;
    let count = e.cast(count, e.dtype(y))?;
    Ok((attains, count))
}

/// `reduce_prod` as a tree of products, halving the row log₂ n times: differentiated as such it is exact to
/// every order where elements are 0, which a quotient by the element is not.
fn product_tree(ty: &Type, axes: &[usize], origin: Option<Origin>) -> Result<Graph> {
    let mut graph = Graph::new();
    let x = graph.parameter(ty.clone());
    let mut e = Emit::new(&mut graph, origin);
    let kept: Vec<usize> = (0..ty.rank()).filter(|axis| !axes.contains(axis)).collect();
    let shape: Vec<usize> = kept.iter().map(|&axis| ty.shape[axis]).collect();
    let last = kept.len();
    let mut length: usize = axes.iter().map(|&axis| ty.shape[axis]).product();

    let row = e.transpose(x, &[&kept[..], axes].concat())?;
    let mut row = e.reshape(row, &[&shape[..], &[length]].concat())?;
    while length > 1 {
        let half = length / 2;
        let low = e.slice_axis(row, last, 0, half)?;
        let high = e.slice_axis(row, last, half, 2 * half)?;
        let product = e.mul(low, high)?;
        row = if length.is_multiple_of(2) {
            product
        } else {
            let odd = e.slice_axis(row, last, 2 * half, length)?;
            e.op(tilewright_ir::Op::Concatenate { axis: last }, &[product, odd])?
        };
        length -= half;
    }
    let result =
        if length == 0 { e.splat(&Type::new(ty.dtype, shape), 1.0)? } else { e.reshape(row, &shape)? };
    graph.set_results(vec![result]);
    Ok(graph)
}
