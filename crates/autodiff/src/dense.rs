//! Attention written out in ordinary operations over all pairs: memory in batch · heads · queries · keys.
//! It is the definition that higher derivatives are taken of.
//!
//! Nothing of a pair that is masked out shows: its raw score is replaced by 0 before the score function and
//! the result by −∞ after it, its gathers read at index 0, and keys, values and queries that take part in
//! no admitted pair are replaced by zeros. Each replacement is a `select`, so the derivative is cut as well.

use tilewright_ir::{DType, DotAxes, FlexAttention, FlexAttentionBackward, Graph, Op, Origin};
use tilewright_ir::{Reduction, Result, Type, Unary, Value};

use crate::batch::batch;
use crate::emit::Emit;

/// A graph with the operands and results of `attention`.
pub(crate) fn forward(attention: &FlexAttention, operands: &[Type], origin: Option<Origin>) -> Result<Graph> {
    let mut graph = Graph::new();
    let parameters: Vec<Value> = operands.iter().map(|ty| graph.parameter(ty.clone())).collect();
    let mut e = Emit::new(&mut graph, origin);
    let captures = &parameters[3..];
    let pairs = Pairs::new(&mut e, &parameters, captures, attention.scale, attention.mask.as_ref())?;

    let score = pairs.region(&mut e, &attention.score, 1, None, captures)?[0];
    let score = pairs.full(&mut e, score)?;
    let score = pairs.admitted_or(&mut e, score, f64::NEG_INFINITY)?;
    let maximum = e.reduce(Reduction::Max, score, &[3])?;
    let maximum = e.op(Op::StopGradient, &[maximum])?;
    let empty = e.equals(maximum, f64::NEG_INFINITY)?;
    let shift = e.replace(empty, 0.0, maximum)?;
    let shift_rows = pairs.rows(&mut e, shift)?;
    let exponent = e.sub(score, shift_rows)?;
    let weight = e.unary(Unary::Exp, exponent)?;
    let total = e.sum(weight, &[3])?;
    let total = e.replace(empty, 1.0, total)?;
    let log = e.unary(Unary::Log, total)?;
    let log_sum_exp = e.add(shift, log)?;
    let log_sum_exp = e.replace(empty, f64::NEG_INFINITY, log_sum_exp)?;
    let total_rows = pairs.rows(&mut e, total)?;
    let probability = e.div(weight, total_rows)?;
    let output = pairs.times_keys(&mut e, probability, pairs.value)?;
    let rounded = e.cast(output, operands[0].dtype)?;
    let mut results = vec![rounded, log_sum_exp, maximum];
    if rounded != output {
        results.push(output);
    }
    graph.set_results(results);
    Ok(graph)
}

/// A graph with the operands and results of `backward`.
pub(crate) fn backward(
    backward: &FlexAttentionBackward,
    operands: &[Type],
    origin: Option<Origin>,
) -> Result<Graph> {
    let mut graph = Graph::new();
    let parameters: Vec<Value> = operands.iter().map(|ty| graph.parameter(ty.clone())).collect();
    let mut e = Emit::new(&mut graph, origin);
    let captures = &parameters[6 + backward.log_sum_exp_cotangent as usize..];
    let pairs = Pairs::new(&mut e, &parameters, captures, backward.scale, backward.mask.as_ref())?;
    let accumulator = e.dtype(pairs.raw);
    let output = parameters[3];
    let log_sum_exp = parameters[4];
    let output_cotangent = e.cast(parameters[5], accumulator)?;

    let zero = e.splat(&Type::scalar(accumulator), 0.0)?;
    let score = pairs.region(&mut e, &backward.joint, 1, Some((zero, false)), captures)?[0];
    let score = pairs.full(&mut e, score)?;
    let score = pairs.admitted_or(&mut e, score, f64::NEG_INFINITY)?;
    let empty = e.equals(log_sum_exp, f64::NEG_INFINITY)?;
    let shift = e.replace(empty, 0.0, log_sum_exp)?;
    let shift_rows = pairs.rows(&mut e, shift)?;
    let exponent = e.sub(score, shift_rows)?;
    let weight = e.unary(Unary::Exp, exponent)?;
    let empty_rows = pairs.rows(&mut e, empty)?;
    let probability = e.replace(empty_rows, 0.0, weight)?;

    let along_value = pairs.against_keys(&mut e, output_cotangent, pairs.value)?;
    let product = e.mul(output_cotangent, output)?;
    let mut row = e.sum(product, &[3])?;
    row = e.neg(row)?;
    if backward.log_sum_exp_cotangent {
        row = e.add(row, parameters[6])?;
    }
    let row = pairs.rows(&mut e, row)?;
    let slope = e.add(along_value, row)?;
    let cotangent = e.mul(probability, slope)?;
    let cotangent = e.replace(empty_rows, 0.0, cotangent)?;
    let cotangent = pairs.admitted_or(&mut e, cotangent, 0.0)?;

    let joint_results = backward.joint.results().len();
    let values = pairs.region(&mut e, &backward.joint, joint_results, Some((cotangent, true)), captures)?;
    let d_raw = pairs.full(&mut e, values[1])?;
    let d_raw = pairs.admitted_or(&mut e, d_raw, 0.0)?;
    let d_raw = e.scale(d_raw, backward.scale)?;
    let query_cotangent = pairs.times_keys(&mut e, d_raw, pairs.key)?;
    let key_cotangent = pairs.times_queries(&mut e, d_raw, pairs.query, operands[1].shape[0])?;
    let value_cotangent = pairs.times_queries(&mut e, probability, output_cotangent, operands[2].shape[0])?;
    let mut results = Vec::new();
    for (cotangent, primal) in [query_cotangent, key_cotangent, value_cotangent].into_iter().zip(operands) {
        results.push(e.cast(cotangent, primal.dtype)?);
    }

    for &learned in &backward.learned {
        let ty = e.ty(captures[learned]);
        let mut total = e.zeros(&ty.with_dtype(ty.dtype.accumulator()))?;
        let mut rest = &values[2..];
        for contribution in &backward.contributions {
            let (mine, after) = rest.split_at(contribution.indices + 1);
            rest = after;
            if contribution.capture == learned {
                let term = pairs.contribution(&mut e, mine, &ty)?;
                total = e.add(total, term)?;
            }
        }
        results.push(e.cast(total, ty.dtype)?);
    }
    graph.set_results(results);
    Ok(graph)
}

/// All pairs of an attention call, as arrays `[batch, heads, queries, keys]` of the score type.
struct Pairs {
    shape: Vec<usize>,
    key_heads: usize,
    /// `[batch, heads, queries, size]`.
    query: Value,
    /// `[batch, key heads, keys, size]`.
    key: Value,
    /// `[batch, key heads, keys, size]`.
    value: Value,
    /// Where the mask admits the pair; absent where it admits all.
    admitted: Option<Value>,
    /// The scaled dot product, 0 where masked out.
    raw: Value,
    /// The four coordinates.
    coordinates: [Value; 4],
}

impl Pairs {
    fn new(
        e: &mut Emit,
        operands: &[Value],
        captures: &[Value],
        scale: f64,
        mask: Option<&Graph>,
    ) -> Result<Pairs> {
        let (query, key) = (e.ty(operands[0]), e.ty(operands[1]));
        let accumulator = query.dtype.accumulator();
        let shape = vec![query.shape[0], query.shape[1], query.shape[2], key.shape[2]];
        let mut coordinates = [operands[0]; 4];
        for (axis, coordinate) in coordinates.iter_mut().enumerate() {
            *coordinate = e.op(Op::Iota { dtype: DType::I32, shape: shape.clone(), axis }, &[])?;
        }
        let mut values = [operands[0], operands[1], operands[2]];
        for (i, value) in values.iter_mut().enumerate() {
            *value = e.cast(*value, accumulator)?;
            if i > 0 && key.shape[0] != shape[0] {
                let flat = e.shape(*value)[1..].to_vec();
                let one = e.reshape(*value, &flat)?;
                *value = e.repeat(one, &[&shape[..1], &flat].concat(), &[0])?;
            }
        }
        let [query, key, value] = values;
        let key_heads = e.shape(key)[1];
        let mut pairs =
            Pairs { shape, key_heads, query, key, value, admitted: None, raw: query, coordinates };
        if let Some(mask) = mask {
            let mut arguments = coordinates.map(|x| (x, true)).to_vec();
            arguments.extend(captures.iter().map(|&capture| (capture, false)));
            let admitted = batch(e.graph, mask, &pairs.shape, &arguments)?[0];
            let admitted = pairs.full(e, admitted)?;
            pairs.admitted = Some(admitted);
            pairs.blank_unused(e, admitted)?;
        }
        let raw = pairs.against_keys(e, pairs.query, pairs.key)?;
        let raw = e.scale(raw, scale)?;
        pairs.raw = pairs.admitted_or(e, raw, 0.0)?;
        Ok(pairs)
    }

    /// Replaces queries, keys and values that take part in no admitted pair by zeros.
    fn blank_unused(&mut self, e: &mut Emit, admitted: Value) -> Result<()> {
        let query = e.reduce(Reduction::Max, admitted, &[3])?;
        let grouped = self.grouped_shape(&self.shape[2..]);
        let admitted = e.reshape(admitted, &grouped)?;
        let key = e.reduce(Reduction::Max, admitted, &[2, 3])?;
        for (array, used) in [(&mut self.query, query), (&mut self.key, key), (&mut self.value, key)] {
            let shape = e.shape(*array);
            let used = e.repeat(used, &shape, &[3])?;
            *array = e.select_or(used, *array, 0.0)?;
        }
        Ok(())
    }

    /// `[batch, key heads, heads per key head, tail…]`.
    fn grouped_shape(&self, tail: &[usize]) -> Vec<usize> {
        [&[self.shape[0], self.key_heads, self.shape[1] / self.key_heads], tail].concat()
    }

    /// `x` at every pair.
    fn full(&self, e: &mut Emit, (x, batched): (Value, bool)) -> Result<Value> {
        if batched { Ok(x) } else { e.broadcast(x, &self.shape, &[]) }
    }

    /// A number of each row at every pair of the row.
    fn rows(&self, e: &mut Emit, x: Value) -> Result<Value> {
        e.broadcast(x, &self.shape, &[0, 1, 2])
    }

    /// `x` where the pair is admitted, else `element`.
    fn admitted_or(&self, e: &mut Emit, x: Value, element: f64) -> Result<Value> {
        match self.admitted {
            None => Ok(x),
            Some(admitted) => e.select_or(admitted, x, element),
        }
    }

    /// The first `results` results of a score or joint region at every pair, with gathers at index 0 where
    /// the pair is masked out.
    fn region(
        &self,
        e: &mut Emit,
        region: &Graph,
        results: usize,
        cotangent: Option<(Value, bool)>,
        captures: &[Value],
    ) -> Result<Vec<(Value, bool)>> {
        let mut arguments = vec![(self.raw, true)];
        arguments.extend(self.coordinates.map(|x| (x, true)));
        arguments.extend(cotangent);
        arguments.extend(captures.iter().map(|&capture| (capture, false)));
        let mut region = match self.admitted {
            None => region.clone(),
            Some(admitted) => {
                arguments.push((admitted, true));
                guard_gathers(region)?
            }
        };
        region.set_results(region.results()[..results].to_vec());
        batch(e.graph, &region, &self.shape, &arguments)
    }

    /// `Σ_d rows[b, h, q, d] · keys[b, h / group, k, d]`.
    fn against_keys(&self, e: &mut Emit, rows: Value, keys: Value) -> Result<Value> {
        let size = e.shape(rows)[3];
        let rows = e.reshape(rows, &self.grouped_shape(&[self.shape[2], size]))?;
        let axes = DotAxes {
            left_batch: vec![0, 1],
            right_batch: vec![0, 1],
            left_contract: vec![4],
            right_contract: vec![3],
        };
        let product = e.dot(rows, keys, axes)?;
        e.reshape(product, &self.shape)
    }

    /// `Σ_k pairs[b, h, q, k] · keys[b, h / group, k, d]`.
    fn times_keys(&self, e: &mut Emit, pairs: Value, keys: Value) -> Result<Value> {
        let size = e.shape(keys)[3];
        let pairs = e.reshape(pairs, &self.grouped_shape(&self.shape[2..]))?;
        let axes = DotAxes {
            left_batch: vec![0, 1],
            right_batch: vec![0, 1],
            left_contract: vec![4],
            right_contract: vec![2],
        };
        let product = e.dot(pairs, keys, axes)?;
        e.reshape(product, &[&self.shape[..3], &[size]].concat())
    }

    /// `Σ_{q, heads of a key head} pairs[b, h, q, k] · rows[b, h, q, d]`, summed over the batch too where
    /// keys have only one.
    fn times_queries(&self, e: &mut Emit, pairs: Value, rows: Value, key_batch: usize) -> Result<Value> {
        let size = e.shape(rows)[3];
        let pairs = e.reshape(pairs, &self.grouped_shape(&self.shape[2..]))?;
        let rows = e.reshape(rows, &self.grouped_shape(&[self.shape[2], size]))?;
        let axes = DotAxes {
            left_batch: vec![0, 1],
            right_batch: vec![0, 1],
            left_contract: vec![2, 3],
            right_contract: vec![2, 3],
        };
        let product = e.dot(pairs, rows, axes)?;
        if key_batch == self.shape[0] {
            return Ok(product);
        }
        let sum = e.sum(product, &[0])?;
        let shape = [&[1], &e.shape(sum)[..]].concat();
        e.reshape(sum, &shape)
    }

    /// One contribution (its indices, then its value) to the cotangent of a capture, over all pairs.
    fn contribution(&self, e: &mut Emit, parts: &[(Value, bool)], capture: &Type) -> Result<Value> {
        let (&(value, batched), indices) = parts.split_last().expect("a contribution has a value");
        let value = e.cast(value, capture.dtype.accumulator())?;
        let own = if batched { e.shape(value)[4..].to_vec() } else { e.shape(value) };
        let shape = [&self.shape[..], &own].concat();
        let mut value = if batched { value } else { e.repeat(value, &shape, &[0, 1, 2, 3])? };
        if let Some(admitted) = self.admitted {
            let admitted = e.broadcast(admitted, &shape, &[0, 1, 2, 3])?;
            value = e.select_or(admitted, value, 0.0)?;
        }
        if indices.is_empty() {
            return e.sum(value, &[0, 1, 2, 3]);
        }
        let mut operands = vec![value];
        for &(index, batched) in indices {
            let index = if batched { index } else { e.broadcast(index, &self.shape, &[])? };
            operands.push(self.first_where_masked(e, index)?);
        }
        e.op(Op::ScatterAdd { shape: capture.shape.clone() }, &operands)
    }

    fn first_where_masked(&self, e: &mut Emit, index: Value) -> Result<Value> {
        let Some(admitted) = self.admitted else { return Ok(index) };
        let first = e.splat(&e.ty(index), 0i64)?;
        e.select(admitted, index, first)
    }
}

/// The region with one more parameter, a rank-0 `bool`; where it is false, gathers read at index 0.
fn guard_gathers(region: &Graph) -> Result<Graph> {
    let mut guarded = Graph::new();
    let mut map = vec![None; region.value_count()];
    for &parameter in region.parameters() {
        map[parameter.index()] = Some(guarded.parameter(region.ty(parameter).clone()));
    }
    let admitted = guarded.parameter(Type::scalar(DType::Bool));
    let mapped = |map: &[Option<Value>], value: &Value| map[value.index()].expect("operands come first");
    for node in region.nodes() {
        let mut operands: Vec<Value> = node.operands.iter().map(|value| mapped(&map, value)).collect();
        let mut e = Emit::new(&mut guarded, node.origin.clone());
        if matches!(node.op, Op::Gather | Op::ScatterAdd { .. }) {
            for index in &mut operands[1..] {
                let ty = e.ty(*index);
                let admitted = e.broadcast(admitted, &ty.shape, &[])?;
                let first = e.splat(&ty, 0i64)?;
                *index = e.select(admitted, *index, first)?;
            }
        }
        for (old, new) in node.results.iter().zip(e.ops(node.op.clone(), &operands)?) {
            map[old.index()] = Some(new);
        }
    }
    guarded.set_results(region.results().iter().map(|value| mapped(&map, value)).collect());
    Ok(guarded)
}
