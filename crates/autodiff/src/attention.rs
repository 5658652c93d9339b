//! Derivatives of attention.
//!
//! The gradient of [`FlexAttention`] is one operation, [`FlexAttentionBackward`], whose region `joint` is
//! made here by differentiating the score function within its region. Captured arrays get no dense
//! gradient there. Each *read* of a learned capture (a gather with rank-0 indices of it, or of another
//! read) is taken as an independent variable; reverse mode then yields one cotangent for each read, which
//! with the read's indices is a contribution. What uses a capture in any other way uses the read of it
//! with no indices, so nothing is left out.
//!
//! Further derivatives go through the dense definition ([`crate::dense`]), with memory in the product of
//! both lengths: forward mode, and the gradient of the gradient.

use tilewright_ir::{
    Contribution, DType, FlexAttention, FlexAttentionBackward, Graph, Node, Op, Result, Type, Value,
};

use crate::batch::prune;
use crate::dense;
use crate::emit::Emit;
use crate::forward::push_forward;
use crate::reverse::{pull_back, reverse};

/// The gradient of attention. The row maximum is a constant.
pub(crate) fn vjp(
    e: &mut Emit,
    attention: &FlexAttention,
    node: &Node,
    cotangents: &[Option<Value>],
    wanted: &[bool],
) -> Result<Vec<Option<Value>>> {
    let (mut output, log_sum_exp) = (cotangents[0], cotangents[1]);
    if let Some(unrounded) = cotangents.get(3).copied().flatten() {
        let rounded = e.cast(unrounded, e.dtype(node.results[0]))?;
        output = Some(output.map_or(Ok(rounded), |output| e.add(output, rounded))?);
    }
    if output.is_none() && log_sum_exp.is_none() {
        return Ok(vec![None; wanted.len()]);
    }
    let captures = &node.operands[3..];
    let wanted_captures: Vec<usize> = (0..captures.len()).filter(|&i| wanted[3 + i]).collect();
    let (joint, contributions) = joint(&attention.score, &wanted_captures)?;
    let mut learned: Vec<usize> = contributions.iter().map(|contribution| contribution.capture).collect();
    learned.sort_unstable();
    learned.dedup();

    let mut operands = node.operands[..3].to_vec();
    operands.extend([*node.results.get(3).unwrap_or(&node.results[0]), node.results[1]]);
    operands.push(output.map_or_else(|| e.like(node.results[0], 0.0), Ok)?);
    operands.extend(log_sum_exp);
    operands.extend(captures);
    let backward = FlexAttentionBackward {
        scale: attention.scale,
        joint,
        mask: attention.mask.clone(),
        contributions,
        learned: learned.clone(),
        log_sum_exp_cotangent: log_sum_exp.is_some(),
    };
    let results = e.ops(Op::FlexAttentionBackward(Box::new(backward)), &operands)?;
    let mut gradients = vec![None; wanted.len()];
    for (operand, &result) in (0..3).chain(learned.iter().map(|i| 3 + i)).zip(&results) {
        gradients[operand] = Some(result).filter(|_| wanted[operand]);
    }
    Ok(gradients)
}

/// The gradient of the gradient of attention.
pub(crate) fn backward_vjp(
    e: &mut Emit,
    backward: &FlexAttentionBackward,
    node: &Node,
    cotangents: &[Option<Value>],
    wanted: &[bool],
) -> Result<Vec<Option<Value>>> {
    let dense = dense::backward(backward, &operand_types(e, node), e.origin.clone())?;
    pull_back(e.graph, &dense, &node.operands, cotangents, wanted)
}

/// The derivative of attention in a direction.
pub(crate) fn jvp(
    e: &mut Emit,
    attention: &FlexAttention,
    node: &Node,
    tangents: &[Option<Value>],
) -> Result<Vec<Option<Value>>> {
    let dense = dense::forward(attention, &operand_types(e, node), e.origin.clone())?;
    push_forward(e.graph, &dense, &node.operands, tangents)
}

/// The derivative of the gradient of attention in a direction.
pub(crate) fn backward_jvp(
    e: &mut Emit,
    backward: &FlexAttentionBackward,
    node: &Node,
    tangents: &[Option<Value>],
) -> Result<Vec<Option<Value>>> {
    let dense = dense::backward(backward, &operand_types(e, node), e.origin.clone())?;
    push_forward(e.graph, &dense, &node.operands, tangents)
}

fn operand_types(e: &Emit, node: &Node) -> Vec<Type> {
    node.operands.iter().map(|&operand| e.ty(operand)).collect()
}

/// How many parameters of a score region come before the captures.
const SCORE_PARAMETERS: usize = 5;

/// The region of the backward pass, and its contributions to the captures that are `wanted`.
fn joint(score: &Graph, wanted: &[usize]) -> Result<(Graph, Vec<Contribution>)> {
    let mut joint = Graph::new();
    let types = score.parameter_types();
    let mut parameters: Vec<Value> = Vec::new();
    for ty in &types[..SCORE_PARAMETERS] {
        parameters.push(joint.parameter((*ty).clone()));
    }
    let cotangent = joint.parameter(types[0].clone());
    for ty in &types[SCORE_PARAMETERS..] {
        parameters.push(joint.parameter((*ty).clone()));
    }
    let result = joint.inline(score, &parameters)?[0];

    let reads = reads(&joint, &parameters[SCORE_PARAMETERS..], wanted);
    let mut inputs = vec![parameters[0]];
    inputs.extend(reads.iter().map(|read| read.value));
    let gradients = reverse(&mut joint, &[(result, cotangent)], &inputs)?;

    let d_score = match gradients[0] {
        Some(gradient) => gradient,
        None => joint.scalar(joint.ty(cotangent).dtype, 0.0),
    };
    let mut results = vec![result, d_score];
    let mut contributions = Vec::new();
    for (read, gradient) in reads.into_iter().zip(&gradients[1..]) {
        let Some(gradient) = *gradient else { continue };
        contributions.push(Contribution { capture: read.capture, indices: read.indices.len() });
        results.extend(one_type(&mut joint, read.indices)?);
        results.push(before_rounding(&joint, gradient));
    }
    joint.set_results(results);
    Ok((prune(&joint)?, contributions))
}

/// A value that holds what stands in a capture at some leading indices.
struct Read {
    value: Value,
    capture: usize,
    indices: Vec<Value>,
}

/// Every read of the `wanted` captures in the region.
fn reads(region: &Graph, captures: &[Value], wanted: &[usize]) -> Vec<Read> {
    let mut reads: Vec<Read> =
        wanted.iter().map(|&i| Read { value: captures[i], capture: i, indices: vec![] }).collect();
    let mut read_of: Vec<Option<usize>> = vec![None; region.value_count()];
    for (i, read) in reads.iter().enumerate() {
        read_of[read.value.index()] = Some(i);
    }
    for node in region.nodes().iter().filter(|node| matches!(node.op, Op::Gather)) {
        let (array, indices) = (node.operands[0], &node.operands[1..]);
        let Some(source) = read_of[array.index()] else { continue };
        let source = &reads[source];
        // A gather by arrays of indices uses its array as a whole.
        if indices.iter().all(|&index| region.ty(index).rank() == 0) {
            let indices = [&source.indices[..], indices].concat();
            read_of[node.results[0].index()] = Some(reads.len());
            reads.push(Read { value: node.results[0], capture: source.capture, indices });
        }
    }
    reads
}

/// The indices in one integer type, which a gather of a gather need not have.
fn one_type(region: &mut Graph, indices: Vec<Value>) -> Result<Vec<Value>> {
    if indices.iter().all(|&index| region.ty(index) == region.ty(indices[0])) {
        return Ok(indices);
    }
    let mut e = Emit::new(region, None);
    indices.into_iter().map(|index| e.cast(index, DType::I64)).collect()
}

/// The value before a final conversion to a narrower type: contributions are summed in a wider one.
fn before_rounding(region: &Graph, value: Value) -> Value {
    match region.producer(value) {
        Some(node) if matches!(node.op, Op::Cast(_)) => {
            let wide = node.operands[0];
            let (from, to): (DType, DType) = (region.ty(wide).dtype, region.ty(value).dtype);
            if from.is_float() && from.size() > to.size() { wide } else { value }
        }
        Some(_) | None => value,
    }
}
