//! From the contributions of a joint region to reductions.
//!
//! A contribution's value may be a whole row of the capture, or all of it. It is cut into scalar terms, one
//! for each place that is not known to be zero: what the gradients of gathers, slices and paddings hold is
//! found without touching the rest. Terms of one capture with equal indices are added before they are
//! reduced, so that several reads at one place share a reduction.

use tilewright_ir::{Binary, Error, ErrorKind, FlexAttentionBackward, Op, Origin, Result, Unary, Value};
use tilewright_plan::attention::{CaptureReduction, ReductionKey, ZeroTerm};
use tilewright_plan::{Operation, Program, Register};

use super::index_map::{self, Facts};
use super::zero;
use crate::elementwise;
use crate::region::{Lowering, positions};

/// Scalar terms that one region may have: each is computed and reduced at every pair.
const TERM_LIMIT: usize = 256;

/// The joint program and what becomes of its results.
pub(super) struct Terms {
    pub joint: Program,
    pub reductions: Vec<CaptureReduction>,
    pub zero_terms: Vec<ZeroTerm>,
}

/// A value to be added at an element of a capture's cotangent, for each pair.
#[derive(Clone)]
pub(super) struct Term {
    /// Which of the wanted captures.
    capture: usize,
    /// The element, one index an axis.
    indices: Vec<Register>,
    value: Register,
    origin: Option<Origin>,
}

/// Lowers a joint region. `place_of` gives the number of each capture among those wanted.
///
/// # Errors
/// [`ErrorKind::Limit`] where there are too many terms, and those of [`crate::region::lower_region`].
pub(super) fn lower(
    backward: &FlexAttentionBackward,
    lowering: &mut Lowering,
    place_of: &[Option<usize>],
    lengths: (usize, usize),
) -> Result<Terms> {
    let region = &backward.joint;
    let score = lowering.element(region.results()[0], &[])?;
    let d_score = lowering.element(region.results()[1], &[])?;
    let parameters = &region.parameters()[6..];
    let mut terms = Vec::new();
    let mut shapes = vec![&[][..]; place_of.iter().flatten().count()];
    let mut rest = &region.results()[2..];
    for contribution in &backward.contributions {
        let (mine, after) = rest.split_at(contribution.indices + 1);
        rest = after;
        let Some(capture) = place_of[contribution.capture] else { continue };
        let (&value, indices) = mine.split_last().expect("a contribution has a value");
        let array = parameters[contribution.capture];
        shapes[capture] = &region.ty(array).shape;
        let origin = read_origin(backward, array, indices).or_else(|| region.producer(value)?.origin.clone());
        let indices =
            indices.iter().map(|&index| lowering.element(index, &[])).collect::<Result<Vec<_>>>()?;
        for (place, value) in places(lowering, value)? {
            let indices = [&indices[..], &place].concat();
            if !is_zero(lowering, value) {
                let value = unrounded(lowering, value);
                terms.push(Term { capture, indices, value, origin: origin.clone() });
            }
        }
        if terms.len() > TERM_LIMIT {
            return Err(Error::new(ErrorKind::Limit {
                what: "the number of elements of a learned array that a pair reads".into(),
                limit: TERM_LIMIT,
            })
            .at(origin)
            .help("read fewer elements of it for each pair of query and key"));
        }
    }
    let terms = merge(lowering, terms);
    Ok(reduce(backward, lowering, terms, [score, d_score], &shapes, lengths))
}

/// The user's line of the gather that reads an array at these indices.
fn read_origin(backward: &FlexAttentionBackward, array: Value, indices: &[Value]) -> Option<Origin> {
    let gathers = backward.joint.nodes().iter().filter(|node| matches!(node.op, Op::Gather));
    let mut reads = gathers.filter(|node| node.operands[0] == array);
    let exact = reads.clone().find(|node| &node.operands[1..] == indices);
    exact.or_else(|| reads.next())?.origin.clone()
}

fn is_zero(lowering: &Lowering, value: Register) -> bool {
    lowering.builder.constant_value(value).is_some_and(|value| value.to_f64() == 0.0)
}

/// The value before a final rounding: sums are kept in a wider type.
fn unrounded(lowering: &Lowering, value: Register) -> Register {
    match *lowering.builder.operation(value) {
        Operation::Round(_, wide) => wide,
        _ => value,
    }
}

/// Terms at one place added together, in the order of their first.
fn merge(lowering: &mut Lowering, terms: Vec<Term>) -> Vec<Term> {
    let mut merged: Vec<Term> = Vec::new();
    for term in terms {
        let same = |other: &&mut Term| other.capture == term.capture && other.indices == term.indices;
        match merged.iter_mut().find(same) {
            Some(other) => other.value = lowering.builder.binary(Binary::Add, other.value, term.value),
            None => merged.push(term),
        }
    }
    merged
}

fn reduce(
    backward: &FlexAttentionBackward,
    lowering: &mut Lowering,
    terms: Vec<Term>,
    mut results: [Register; 2],
    shapes: &[&[usize]],
    lengths: (usize, usize),
) -> Terms {
    // A row's cotangents are seen in the score type, as are all results.
    let score_kind = lowering.builder.kind(results[0]);
    let mut values = Vec::new();
    let (mut reductions, mut zero_terms) = (Vec::new(), Vec::new());
    let facts = index_map::analyse(&lowering.builder, lengths);
    let multiples = zero::row_multiples(&lowering.builder, &facts, results[0]);
    results[1] = lowering.builder.cast(results[1], score_kind);
    for Term { capture, indices, value, origin } in terms {
        let along_rows = |index: &Register| facts[index.index()].is_constant_along_rows();
        if !backward.log_sum_exp_cotangent && multiples[value.index()] && indices.iter().all(along_rows) {
            let reason = "zero: constant along each row".to_string();
            zero_terms.push(ZeroTerm { capture, reason, origin });
            continue;
        }
        let (key, reason, indices) = find_key(lowering, &facts, &indices, shapes[capture], lengths);
        values.push(lowering.builder.cast(value, score_kind));
        let indices = lowering.builder.program(&indices);
        let result = values.len() + 1;
        reductions.push(CaptureReduction { key, result, capture, indices, reason, origin });
    }
    let joint = lowering.builder.program(&[&results[..], &values].concat());
    Terms { joint, reductions, zero_terms }
}

/// The key of a read, why, and the results of its indices program.
fn find_key(
    lowering: &mut Lowering,
    facts: &[Facts],
    indices: &[Register],
    shape: &[usize],
    lengths: (usize, usize),
) -> (ReductionKey, String, Vec<Register>) {
    let zero = lowering.constant(0);
    let axes: Vec<(Register, usize)> = indices.iter().copied().zip(shape.iter().copied()).collect();
    let long: Vec<(Register, usize)> = axes.iter().copied().filter(|&(_, extent)| extent != 1).collect();
    let (key, reason) = index_map::key(facts, &long, shape.iter().product(), lengths);
    let indices: Vec<Register> = match key {
        ReductionKey::Bucket { .. } => {
            let counted: Vec<Register> =
                axes.iter().map(|&(index, extent)| lowering.counted(index, extent)).collect();
            vec![lowering.row_major(&counted, shape)]
        }
        ReductionKey::Head
        | ReductionKey::Query
        | ReductionKey::Key
        | ReductionKey::Difference
        | ReductionKey::Sum
        | ReductionKey::Pair
        | ReductionKey::Any => {
            axes.into_iter().map(|(index, extent)| if extent == 1 { zero } else { index }).collect()
        }
    };
    (key, reason, indices)
}

/// An element that may differ from zero: where it is, and its value.
type Place = (Vec<Register>, Register);

/// The elements of a value that may differ from zero, each with its index; the value is their sum.
fn places(lowering: &mut Lowering, value: Value) -> Result<Vec<Place>> {
    if let Some(places) = sparse(lowering, value)? {
        return Ok(places);
    }
    let shape = &lowering.region().ty(value).shape;
    let elements = lowering.elements(value)?;
    let indices = positions(shape).map(|position| position.iter().map(|&i| lowering.constant(i)).collect());
    Ok(indices.collect::<Vec<_>>().into_iter().zip(elements).collect())
}

/// [`places`] of a value that is made by scattering or padding; none for any other.
fn sparse(lowering: &mut Lowering, value: Value) -> Result<Option<Vec<Place>>> {
    let region = lowering.region();
    let Some(node) = region.producer(value) else { return Ok(None) };
    let (dtype, shape) = (region.ty(value).dtype, &region.ty(value).shape);
    if shape.is_empty() {
        return Ok(None);
    }
    match &node.op {
        Op::ScatterAdd { shape } => {
            let (&updates, indices) = node.operands.split_first().expect("the updates of a scatter");
            let space = region.ty(updates).rank() - (shape.len() - indices.len());
            let mut found = Vec::new();
            for (at, update) in places(lowering, updates)? {
                let (at, rest) = at.split_at(space);
                let mut place =
                    indices.iter().map(|&index| lowering.element(index, at)).collect::<Result<Vec<_>>>()?;
                place.extend(rest);
                found.push((place, update));
            }
            Ok(Some(found))
        }
        Op::Pad { low, high: _, interior } if is_zero_value(lowering, node.operands[1])? => {
            let inner = places(lowering, node.operands[0])?;
            let moved = |place: Vec<Register>, lowering: &mut Lowering| -> Vec<Register> {
                place
                    .iter()
                    .enumerate()
                    .map(|(axis, &i)| lowering.affine(i, interior[axis] + 1, low[axis]))
                    .collect()
            };
            Ok(Some(inner.into_iter().map(|(place, value)| (moved(place, lowering), value)).collect()))
        }
        Op::Reshape { shape } => {
            let from = &region.ty(node.operands[0]).shape;
            let Some(inner) = sparse(lowering, node.operands[0])? else { return Ok(None) };
            // A place in a flattened array has to be counted from the start.
            let counted = |place: Vec<Register>, lowering: &mut Lowering| -> Vec<Register> {
                let counted: Vec<Register> =
                    place.iter().zip(from).map(|(&i, &extent)| lowering.counted(i, extent)).collect();
                lowering.reshaped(&counted, from, shape)
            };
            Ok(Some(inner.into_iter().map(|(place, value)| (counted(place, lowering), value)).collect()))
        }
        Op::Transpose { permutation } => {
            let Some(inner) = sparse(lowering, node.operands[0])? else { return Ok(None) };
            let moved = |place: Vec<Register>| permutation.iter().map(|&axis| place[axis]).collect();
            Ok(Some(inner.into_iter().map(|(place, value)| (moved(place), value)).collect()))
        }
        Op::Binary(function @ (Binary::Add | Binary::Sub)) => {
            let left = sparse(lowering, node.operands[0])?;
            let right = sparse(lowering, node.operands[1])?;
            if left.is_none() && right.is_none() {
                return Ok(None);
            }
            let mut found = places(lowering, node.operands[0])?;
            for (place, value) in places(lowering, node.operands[1])? {
                let negated = *function == Binary::Sub;
                found.push((place, if negated { lowering.builder.unary(Unary::Neg, value) } else { value }));
            }
            Ok(Some(found))
        }
        Op::Binary(function @ (Binary::Mul | Binary::Div)) => {
            let (left, right) = (node.operands[0], node.operands[1]);
            let (inner, other) = match (sparse(lowering, left)?, *function) {
                (Some(inner), _) => (inner, right),
                (None, Binary::Mul) => match sparse(lowering, right)? {
                    Some(inner) => (inner, left),
                    None => return Ok(None),
                },
                (None, _) => return Ok(None),
            };
            let mut found = Vec::new();
            for (place, value) in inner {
                let factor = lowering.gathered(other, &place)?;
                let product = lowering.builder.binary(*function, value, factor);
                found.push((place, elementwise::round(&mut lowering.builder, product, dtype)));
            }
            Ok(Some(found))
        }
        Op::Unary(Unary::Neg) | Op::Cast(_) | Op::StopGradient => {
            let Some(inner) = sparse(lowering, node.operands[0])? else { return Ok(None) };
            let from = region.ty(node.operands[0]).dtype;
            let mut apply = |value| elementwise::push(&mut lowering.builder, &node.op, &[value], from, dtype);
            let changed = inner.into_iter().map(|(place, value)| Some((place, apply(value)?))).collect();
            Ok(changed)
        }
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Broadcast { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Reverse { .. }
        | Op::Concatenate { .. }
        | Op::Reduce { .. }
        | Op::ArgMax { .. }
        | Op::Dot(_)
        | Op::Gather
        | Op::RandomBits { .. }
        | Op::FlexAttention(_)
        | Op::FlexAttentionBackward(_)
        | Op::AssociativeScan(_) => Ok(None),
    }
}

fn is_zero_value(lowering: &mut Lowering, value: Value) -> Result<bool> {
    let register = lowering.element(value, &[])?;
    Ok(is_zero(lowering, register))
}
