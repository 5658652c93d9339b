//! The typing rules: what each operation asks of its operands, and the types of its results.
//!
//! This is the one place that decides whether an operation is well-formed. Building a graph applies the
//! rules, and so does the verifier.

use crate::op::{AssociativeScan, DotAxes, FlexAttention, FlexAttentionBackward};
use crate::{Binary, DType, Error, ErrorKind, Graph, Op, Reduction, Result, Type, Unary, element_count};

/// The types of the results of `op` for operands of the given types.
///
/// # Errors
/// [`ErrorKind::Shape`] or [`ErrorKind::DType`] naming the operand, the axis and both sizes.
pub fn infer(op: &Op, operands: &[&Type]) -> Result<Vec<Type>> {
    match op {
        Op::Constant(literal) => {
            arity(operands, 0)?;
            Ok(vec![literal.ty().clone()])
        }
        Op::Iota { dtype, shape, axis } => {
            arity(operands, 0)?;
            if *dtype == DType::Bool {
                return Err(Error::dtype("dtype", "a number type", *dtype));
            }
            axis_in_range("axis", *axis, shape.len())?;
            sized(*dtype, shape.clone())
        }
        Op::Unary(unary) => {
            arity(operands, 1)?;
            unary_type(*unary, operands[0])?;
            Ok(vec![operands[0].clone()])
        }
        Op::Binary(binary) => {
            arity(operands, 2)?;
            same("right", operands[0], operands[1])?;
            binary_type(*binary, operands[0])?;
            Ok(vec![operands[0].clone()])
        }
        Op::Compare(_) => {
            arity(operands, 2)?;
            same("right", operands[0], operands[1])?;
            Ok(vec![operands[0].with_dtype(DType::Bool)])
        }
        Op::Select => {
            arity(operands, 3)?;
            dtype_is("condition", operands[0], DType::Bool)?;
            shape_is("condition", operands[0], &operands[1].shape)?;
            same("otherwise", operands[1], operands[2])?;
            Ok(vec![operands[1].clone()])
        }
        Op::Cast(dtype) => {
            arity(operands, 1)?;
            Ok(vec![operands[0].with_dtype(*dtype)])
        }
        Op::StopGradient => {
            arity(operands, 1)?;
            Ok(vec![operands[0].clone()])
        }
        Op::Broadcast { shape, axes } => broadcast(shape, axes, operands),
        Op::Reshape { shape } => {
            arity(operands, 1)?;
            if element_count(shape)? != operands[0].elements() {
                return Err(Error::shape(
                    "shape",
                    format!("{} elements", operands[0].elements()),
                    format!("{shape:?}"),
                ));
            }
            sized(operands[0].dtype, shape.clone())
        }
        Op::Transpose { permutation } => {
            arity(operands, 1)?;
            let x = operands[0];
            let mut sorted = permutation.clone();
            sorted.sort_unstable();
            if sorted != (0..x.rank()).collect::<Vec<_>>() {
                return Err(Error::shape(
                    "permutation",
                    format!("each of {} axes once", x.rank()),
                    format!("{permutation:?}"),
                ));
            }
            Ok(vec![Type::new(x.dtype, permutation.iter().map(|&a| x.shape[a]).collect::<Vec<_>>())])
        }
        Op::Slice { start, limit, step } => slice(start, limit, step, operands),
        Op::Pad { low, high, interior } => pad(low, high, interior, operands),
        Op::Reverse { axes } => {
            arity(operands, 1)?;
            axes_ascending("axes", axes, operands[0].rank())?;
            Ok(vec![operands[0].clone()])
        }
        Op::Concatenate { axis } => concatenate(*axis, operands),
        Op::Reduce { kind, axes } => {
            arity(operands, 1)?;
            let x = operands[0];
            axes_ascending("axes", axes, x.rank())?;
            if matches!(kind, Reduction::Sum | Reduction::Prod) && x.dtype == DType::Bool {
                return Err(Error::dtype("operand", "a number type", x.dtype));
            }
            Ok(vec![Type::new(x.dtype, without(&x.shape, axes))])
        }
        Op::ArgMax { axis } => {
            arity(operands, 1)?;
            let x = operands[0];
            axis_in_range("axis", *axis, x.rank())?;
            if x.shape[*axis] == 0 {
                return Err(Error::axis("operand", *axis, "at least 1", 0));
            }
            Ok(vec![Type::new(DType::I64, without(&x.shape, &[*axis]))])
        }
        Op::Dot(axes) => dot(axes, operands),
        Op::Gather => {
            let (array, indices) =
                operands.split_first().ok_or_else(|| Error::shape("operands", "at least 1", 0))?;
            let shape = index_shape(indices, array.rank())?;
            sized(array.dtype, [shape, &array.shape[indices.len()..]].concat())
        }
        Op::ScatterAdd { shape } => {
            let (updates, indices) =
                operands.split_first().ok_or_else(|| Error::shape("operands", "at least 1", 0))?;
            if updates.dtype == DType::Bool {
                return Err(Error::dtype("updates", "a number type", updates.dtype));
            }
            let leading = index_shape(indices, shape.len())?;
            shape_is("updates", updates, &[leading, &shape[indices.len()..]].concat())?;
            sized(updates.dtype, shape.clone())
        }
        Op::RandomBits { shape } => {
            arity(operands, 1)?;
            dtype_is("key", operands[0], DType::I64)?;
            shape_is("key", operands[0], &[])?;
            sized(DType::I32, shape.clone())
        }
        Op::FlexAttention(attention) => flex_attention(attention, operands),
        Op::FlexAttentionBackward(attention) => flex_attention_backward(attention, operands),
        Op::AssociativeScan(scan) => associative_scan(scan, operands),
    }
}

fn sized(dtype: DType, shape: Vec<usize>) -> Result<Vec<Type>> {
    element_count(&shape)?;
    Ok(vec![Type::new(dtype, shape)])
}

fn arity(operands: &[&Type], expected: usize) -> Result<()> {
    if operands.len() == expected { Ok(()) } else { Err(Error::shape("operands", expected, operands.len())) }
}

fn at_least(operands: &[&Type], expected: usize) -> Result<()> {
    if operands.len() >= expected {
        Ok(())
    } else {
        Err(Error::shape("operands", format!("at least {expected}"), operands.len()))
    }
}

fn same(argument: &str, expected: &Type, found: &Type) -> Result<()> {
    if expected.dtype != found.dtype {
        return Err(Error::dtype(argument, expected.dtype, found.dtype));
    }
    shape_is(argument, found, &expected.shape)
}

fn dtype_is(argument: &str, found: &Type, expected: DType) -> Result<()> {
    if found.dtype == expected { Ok(()) } else { Err(Error::dtype(argument, expected, found.dtype)) }
}

fn shape_is(argument: &str, found: &Type, expected: &[usize]) -> Result<()> {
    if found.rank() != expected.len() {
        return Err(Error::shape(argument, format!("{expected:?}"), format!("{:?}", found.shape)));
    }
    match (0..expected.len()).find(|&axis| found.shape[axis] != expected[axis]) {
        Some(axis) => Err(Error::axis(argument, axis, expected[axis], found.shape[axis])),
        None => Ok(()),
    }
}

fn axis_in_range(argument: &str, axis: usize, rank: usize) -> Result<()> {
    if axis < rank { Ok(()) } else { Err(Error::shape(argument, format!("below {rank}"), axis)) }
}

fn axes_ascending(argument: &str, axes: &[usize], rank: usize) -> Result<()> {
    let ascending = axes.windows(2).all(|pair| pair[0] < pair[1]);
    if ascending && axes.last().is_none_or(|&axis| axis < rank) {
        return Ok(());
    }
    Err(Error::shape(argument, format!("ascending axes below {rank}"), format!("{axes:?}")))
}

fn without(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect()
}

fn unary_type(unary: Unary, x: &Type) -> Result<()> {
    let (fits, expected) = match unary {
        Unary::Neg | Unary::Abs | Unary::Sign => (x.dtype != DType::Bool, "a number type"),
        Unary::Not => (!x.dtype.is_float(), "bool or an integer type"),
        Unary::Exp
        | Unary::Expm1
        | Unary::Log
        | Unary::Log1p
        | Unary::Sqrt
        | Unary::Rsqrt
        | Unary::Sin
        | Unary::Cos
        | Unary::Tan
        | Unary::Tanh
        | Unary::Sigmoid
        | Unary::Erf
        | Unary::Floor
        | Unary::Ceil
        | Unary::Round => (x.dtype.is_float(), "a float type"),
    };
    if fits { Ok(()) } else { Err(Error::dtype("operand", expected, x.dtype)) }
}

fn binary_type(binary: Binary, x: &Type) -> Result<()> {
    let (fits, expected) = match binary {
        Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Rem => {
            (x.dtype != DType::Bool, "a number type")
        }
        Binary::Max | Binary::Min => (true, "any type"),
        Binary::Pow | Binary::Atan2 => (x.dtype.is_float(), "a float type"),
        Binary::And | Binary::Or | Binary::Xor => (!x.dtype.is_float(), "bool or an integer type"),
    };
    if fits { Ok(()) } else { Err(Error::dtype("left", expected, x.dtype)) }
}

fn broadcast(shape: &[usize], axes: &[usize], operands: &[&Type]) -> Result<Vec<Type>> {
    arity(operands, 1)?;
    let x = operands[0];
    axes_ascending("axes", axes, shape.len())?;
    if axes.len() != x.rank() {
        return Err(Error::shape("axes", format!("{} axes", x.rank()), format!("{axes:?}")));
    }
    for (i, &axis) in axes.iter().enumerate() {
        if x.shape[i] != 1 && x.shape[i] != shape[axis] {
            return Err(Error::axis("operand", i, format!("1 or {}", shape[axis]), x.shape[i]));
        }
    }
    sized(x.dtype, shape.to_vec())
}

fn per_axis(argument: &str, list: &[usize], rank: usize) -> Result<()> {
    if list.len() == rank {
        Ok(())
    } else {
        Err(Error::shape(argument, format!("one number for each of {rank} axes"), format!("{list:?}")))
    }
}

fn slice(start: &[usize], limit: &[usize], step: &[usize], operands: &[&Type]) -> Result<Vec<Type>> {
    arity(operands, 1)?;
    let x = operands[0];
    per_axis("start", start, x.rank())?;
    per_axis("limit", limit, x.rank())?;
    per_axis("step", step, x.rank())?;
    let mut shape = Vec::with_capacity(x.rank());
    for axis in 0..x.rank() {
        if limit[axis] > x.shape[axis] {
            return Err(Error::axis("limit", axis, format!("at most {}", x.shape[axis]), limit[axis]));
        }
        if start[axis] > limit[axis] {
            return Err(Error::axis("start", axis, format!("at most {}", limit[axis]), start[axis]));
        }
        if step[axis] == 0 {
            return Err(Error::axis("step", axis, "at least 1", 0));
        }
        shape.push((limit[axis] - start[axis]).div_ceil(step[axis]));
    }
    sized(x.dtype, shape)
}

fn pad(low: &[usize], high: &[usize], interior: &[usize], operands: &[&Type]) -> Result<Vec<Type>> {
    arity(operands, 2)?;
    let (x, value) = (operands[0], operands[1]);
    same("value", &Type::scalar(x.dtype), value)?;
    per_axis("low", low, x.rank())?;
    per_axis("high", high, x.rank())?;
    per_axis("interior", interior, x.rank())?;
    let shape: Option<Vec<usize>> = (0..x.rank())
        .map(|axis| {
            let gaps = x.shape[axis].saturating_sub(1).checked_mul(interior[axis])?;
            x.shape[axis].checked_add(gaps)?.checked_add(low[axis])?.checked_add(high[axis])
        })
        .collect();
    let shape = shape.ok_or_else(|| {
        Error::new(ErrorKind::TooLarge { what: "the padded shape".into(), limit: "2^64".into() })
    })?;
    sized(x.dtype, shape)
}

fn concatenate(axis: usize, operands: &[&Type]) -> Result<Vec<Type>> {
    at_least(operands, 1)?;
    let first = operands[0];
    axis_in_range("axis", axis, first.rank())?;
    let mut total = 0usize;
    for (i, operand) in operands.iter().enumerate() {
        let argument = format!("operand {i}");
        if operand.rank() != first.rank() {
            return Err(Error::shape(argument, format!("{} axes", first.rank()), operand.rank()));
        }
        let mut expected = (*first).clone();
        expected.shape[axis] = operand.shape[axis];
        same(&argument, &expected, operand)?;
        total = total.saturating_add(operand.shape[axis]);
    }
    let mut shape = first.shape.clone();
    shape[axis] = total;
    sized(first.dtype, shape)
}

fn dot(axes: &DotAxes, operands: &[&Type]) -> Result<Vec<Type>> {
    arity(operands, 2)?;
    let (x, y) = (operands[0], operands[1]);
    if x.dtype == DType::Bool {
        return Err(Error::dtype("left", "a number type", x.dtype));
    }
    dtype_is("right", y, x.dtype)?;
    let distinct = |argument: &str, batch: &[usize], contract: &[usize], rank: usize| {
        let mut all = [batch, contract].concat();
        all.sort_unstable();
        axes_ascending(argument, &all, rank)
    };
    distinct("left axes", &axes.left_batch, &axes.left_contract, x.rank())?;
    distinct("right axes", &axes.right_batch, &axes.right_contract, y.rank())?;
    for (name, left, right) in [
        ("batch", &axes.left_batch, &axes.right_batch),
        ("contracted", &axes.left_contract, &axes.right_contract),
    ] {
        if left.len() != right.len() {
            return Err(Error::shape(format!("{name} axes of right"), left.len(), right.len()));
        }
        for (&l, &r) in left.iter().zip(right) {
            if x.shape[l] != y.shape[r] {
                return Err(Error::axis("right", r, x.shape[l], y.shape[r]));
            }
        }
    }
    let batch = axes.left_batch.iter().map(|&a| x.shape[a]);
    let left = axes.left_free(x.rank()).into_iter().map(|a| x.shape[a]);
    let right = axes.right_free(y.rank()).into_iter().map(|a| y.shape[a]);
    sized(x.dtype, batch.chain(left).chain(right).collect())
}

fn index_shape<'a>(indices: &[&'a Type], rank: usize) -> Result<&'a [usize]> {
    if indices.len() > rank {
        return Err(Error::shape("indices", format!("at most {rank}"), indices.len())
            .help("index at most every axis, or reshape the array before the call"));
    }
    for (i, index) in indices.iter().enumerate() {
        let argument = format!("index {i}");
        if !index.dtype.is_integer() {
            return Err(Error::dtype(argument, "an integer type", index.dtype));
        }
        same(&argument, indices[0], index)?;
    }
    Ok(indices.first().map_or(&[], |index| &index.shape))
}

/// Sizes of an attention call, checked.
struct AttentionTypes {
    score: DType,
    rows: Vec<usize>,
}

fn attention_types(operands: &[&Type]) -> Result<AttentionTypes> {
    let (query, key, value) = (operands[0], operands[1], operands[2]);
    for (argument, ty) in [("query", query), ("key", key), ("value", value)] {
        if ty.rank() != 4 {
            return Err(Error::shape(
                argument,
                "4 axes [batch, heads, length, size]",
                format!("{:?}", ty.shape),
            ));
        }
        if !ty.dtype.is_float() {
            return Err(Error::dtype(argument, "a float type", ty.dtype));
        }
        if ty.dtype != query.dtype {
            return Err(Error::dtype(argument, format!("{} as query", query.dtype), ty.dtype));
        }
    }
    if key.shape[0] != query.shape[0] && key.shape[0] != 1 {
        return Err(Error::axis("key", 0, format!("batch {} as query, or 1", query.shape[0]), key.shape[0]));
    }
    if key.shape[1] == 0 || query.shape[1] % key.shape[1] != 0 {
        return Err(Error::axis(
            "key",
            1,
            format!("a divisor of query's {} heads", query.shape[1]),
            key.shape[1],
        ));
    }
    if key.shape[3] != query.shape[3] {
        return Err(Error::axis("key", 3, format!("head size {} as query", query.shape[3]), key.shape[3]));
    }
    for axis in 0..3 {
        if value.shape[axis] != key.shape[axis] {
            return Err(Error::axis("value", axis, format!("{} as key", key.shape[axis]), value.shape[axis]));
        }
    }
    for (argument, axis, extent) in [("query", 2, query.shape[2]), ("key", 2, key.shape[2])] {
        if extent > i32::MAX as usize {
            return Err(Error::axis(argument, axis, "below 2^31", extent));
        }
    }
    let score = if query.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Ok(AttentionTypes { score, rows: query.shape[..3].to_vec() })
}

/// Checks a region's parameters: the given scalars, then the captures.
fn region_parameters(name: &str, region: &Graph, leading: &[Type], captures: &[&Type]) -> Result<()> {
    let expected: Vec<&Type> = leading.iter().chain(captures.iter().copied()).collect();
    let found = region.parameter_types();
    if found.len() != expected.len() {
        return Err(Error::shape(format!("parameters of {name}"), expected.len(), found.len()));
    }
    for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
        same(&format!("parameter {i} of {name}"), expected, found)?;
    }
    Ok(())
}

fn region_results(name: &str, region: &Graph, expected: &[Type]) -> Result<()> {
    let found = region.result_types();
    if found.len() != expected.len() {
        return Err(Error::shape(format!("results of {name}"), expected.len(), found.len()));
    }
    for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
        same(&format!("result {i} of {name}"), expected, found)?;
    }
    Ok(())
}

fn mask_region(mask: Option<&Graph>, captures: &[&Type]) -> Result<()> {
    let Some(mask) = mask else { return Ok(()) };
    region_parameters("mask", mask, &vec![Type::scalar(DType::I32); 4], captures)?;
    region_results("mask", mask, &[Type::scalar(DType::Bool)])
}

fn flex_attention(attention: &FlexAttention, operands: &[&Type]) -> Result<Vec<Type>> {
    at_least(operands, 3)?;
    let AttentionTypes { score, rows } = attention_types(operands)?;
    let captures = &operands[3..];
    let mut leading = vec![Type::scalar(score)];
    leading.extend(vec![Type::scalar(DType::I32); 4]);
    region_parameters("score", &attention.score, &leading, captures)?;
    region_results("score", &attention.score, &[Type::scalar(score)])?;
    mask_region(attention.mask.as_ref(), captures)?;
    let output = [&rows[..], &[operands[2].shape[3]]].concat();
    element_count(&output)?;
    let mut results = vec![
        Type::new(operands[0].dtype, output.clone()),
        Type::new(score, rows.clone()),
        Type::new(score, rows),
    ];
    if operands[0].dtype != score {
        results.push(Type::new(score, output));
    }
    Ok(results)
}

fn flex_attention_backward(attention: &FlexAttentionBackward, operands: &[&Type]) -> Result<Vec<Type>> {
    let FlexAttentionBackward { scale: _, joint, mask, contributions, learned, log_sum_exp_cotangent } =
        attention;
    let leading = 6 + *log_sum_exp_cotangent as usize;
    at_least(operands, leading)?;
    let AttentionTypes { score, rows } = attention_types(operands)?;
    let output = [&rows[..], &[operands[2].shape[3]]].concat();
    same("output", &Type::new(score, output.clone()), operands[3])?;
    same("log_sum_exp", &Type::new(score, rows.clone()), operands[4])?;
    same("output cotangent", &Type::new(operands[0].dtype, output), operands[5])?;
    if *log_sum_exp_cotangent {
        same("log_sum_exp cotangent", &Type::new(score, rows), operands[6])?;
    }
    let captures = &operands[leading..];
    let mut parameters = vec![Type::scalar(score)];
    parameters.extend(vec![Type::scalar(DType::I32); 4]);
    parameters.push(Type::scalar(score));
    region_parameters("joint", joint, &parameters, captures)?;
    mask_region(mask.as_ref(), captures)?;
    axes_ascending("learned", learned, captures.len())?;

    let found = joint.result_types();
    let expected =
        contributions.iter().fold(2usize, |count, c| count.saturating_add(c.indices).saturating_add(1));
    if found.len() != expected {
        return Err(Error::shape("results of joint", expected, found.len()));
    }
    same("result 0 of joint", &Type::scalar(score), found[0])?;
    same("result 1 of joint", &Type::scalar(score), found[1])?;
    let mut rest = &found[2..];
    for (i, contribution) in contributions.iter().enumerate() {
        let argument = format!("contribution {i} of joint");
        if !learned.contains(&contribution.capture) {
            return Err(Error::argument(
                argument,
                format!("capture {} is not learned", contribution.capture),
            ));
        }
        let capture = captures[contribution.capture];
        let (indices, tail) = rest.split_at(contribution.indices);
        index_shape(indices, capture.rank())?;
        if indices.iter().any(|index| index.rank() != 0) {
            return Err(Error::shape(argument, "indices of rank 0", "an array"));
        }
        shape_is(&argument, tail[0], &capture.shape[contribution.indices..])?;
        if !tail[0].dtype.is_float() {
            return Err(Error::dtype(argument, "a float type", tail[0].dtype));
        }
        rest = &tail[1..];
    }
    let primals = operands[..3].iter().copied();
    Ok(primals.chain(learned.iter().map(|&i| captures[i])).cloned().collect())
}

fn associative_scan(scan: &AssociativeScan, operands: &[&Type]) -> Result<Vec<Type>> {
    let AssociativeScan { combine, leaves, axis, reverse: _ } = scan;
    if *leaves == 0 {
        return Err(Error::shape("leaves", "at least 1", 0));
    }
    at_least(operands, *leaves)?;
    let (leaves, captures) = operands.split_at(*leaves);
    for (i, leaf) in leaves.iter().enumerate() {
        let argument = format!("leaf {i}");
        if *axis >= leaf.rank() {
            return Err(Error::shape(
                argument,
                format!("more than {axis} axes"),
                format!("{:?}", leaf.shape),
            ));
        }
        if leaf.shape[*axis] != leaves[0].shape[*axis] {
            return Err(Error::axis(argument, *axis, leaves[0].shape[*axis], leaf.shape[*axis]));
        }
    }
    let slices: Vec<Type> =
        leaves.iter().map(|leaf| Type::new(leaf.dtype, without(&leaf.shape, &[*axis]))).collect();
    region_parameters("combine", combine, &[&slices[..], &slices[..]].concat(), captures)?;
    region_results("combine", combine, &slices)?;
    Ok(leaves.iter().map(|leaf| (*leaf).clone()).collect())
}
