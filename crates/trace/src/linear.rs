//! Matrix products and `einsum`.

use tilewright_ir::{DotAxes, Error, Op, Result};

use crate::Tensor;
use crate::elementwise::broadcast_shapes;
use crate::recording::{describe, poison, record};

impl Tensor {
    /// The matrix product over the last two axes, leading axes broadcasting: `[…, m, k] · […, k, n]` gives
    /// `[…, m, n]`. A rank-1 operand is a row on the left, a column on the right, and its axis is dropped
    /// from the result.
    #[track_caller]
    pub fn matmul(&self, right: impl std::borrow::Borrow<Tensor>) -> Tensor {
        let right = *right.borrow();
        let (x, y) = (self.ty(), right.ty());
        let facts = |error: Error| {
            error
                .in_operation("matmul")
                .note(format!("left: {}", describe(*self)))
                .note(format!("right: {}", describe(right)))
        };
        if x.rank() == 0 || y.rank() == 0 {
            let (argument, ty) = if x.rank() == 0 { ("left", x) } else { ("right", y) };
            return poison(facts(Error::shape(argument, "at least 1 axis", "rank 0")), ty);
        }
        let (inner, contracted) = (x.shape[x.rank() - 1], y.rank().saturating_sub(2));
        if y.shape[contracted] != inner {
            let help = format!("axis {} of left is {inner}, and both are summed over", x.rank() - 1);
            let error = Error::axis("right", contracted, inner, y.shape[contracted]).help(help);
            return poison(facts(error), x);
        }
        if x.rank() == 1 || y.rank() <= 2 {
            let axes = DotAxes {
                left_batch: vec![],
                right_batch: vec![],
                left_contract: vec![x.rank() - 1],
                right_contract: vec![contracted],
            };
            return record(Op::Dot(axes), &[*self, right]);
        }
        let (xb, yb) = (&x.shape[..x.rank() - 2], &y.shape[..y.rank() - 2]);
        let batch = match broadcast_shapes(xb, yb) {
            Ok(batch) => batch,
            Err(error) => return poison(facts(error), x),
        };
        let left = self.broadcast_to([&batch[..], &x.shape[x.rank() - 2..]].concat());
        let right = right.broadcast_to([&batch[..], &y.shape[y.rank() - 2..]].concat());
        let leading: Vec<usize> = (0..batch.len()).collect();
        let axes = DotAxes {
            left_batch: leading.clone(),
            right_batch: leading,
            left_contract: vec![batch.len() + 1],
            right_contract: vec![batch.len()],
        };
        record(Op::Dot(axes), &[left, right])
    }

    /// The sum of products over the last axis, leading axes broadcasting.
    #[track_caller]
    pub fn dot(&self, right: impl std::borrow::Borrow<Tensor>) -> Tensor {
        (self * right.borrow()).sum(-1)
    }
}

/// Einstein's summation: `einsum("bqhd,bkhd->bhqk", &[q, k])`. One letter an axis; letters that the result
/// does not name are summed over. Operands are contracted from left to right.
#[track_caller]
pub fn einsum(equation: &str, operands: &[Tensor]) -> Tensor {
    let guess = operands.first().map_or_else(|| Tensor::husk().ty(), |tensor| tensor.ty());
    let (inputs, output) = check!("einsum", guess, parse(equation, operands));
    let mut current = (operands[0], inputs[0].clone());
    for (i, (&tensor, letters)) in operands.iter().zip(&inputs).enumerate().skip(1) {
        let later = |letter: &char| {
            output.contains(letter) || inputs[i + 1..].iter().any(|letters| letters.contains(letter))
        };
        current = contract(current, (tensor, letters.clone()), later);
    }
    let (tensor, letters) = current;
    let summed: Vec<usize> = (0..letters.len()).filter(|&axis| !output.contains(&letters[axis])).collect();
    let kept: Vec<char> = letters.into_iter().filter(|letter| output.contains(letter)).collect();
    let tensor = if summed.is_empty() { tensor } else { tensor.sum(summed) };
    let order = output.iter().map(|letter| kept.iter().position(|other| other == letter).unwrap_or(0));
    tensor.permute(order.collect::<Vec<_>>())
}

/// The letters of each operand and of the result, checked against the operands' shapes.
fn parse(equation: &str, operands: &[Tensor]) -> Result<(Vec<Vec<char>>, Vec<char>)> {
    let malformed = |message: String| Error::argument(format!("equation `{equation}`"), message);
    let (inputs, output) = equation
        .split_once("->")
        .ok_or_else(|| malformed("`->` and the result's letters expected".into()))?;
    let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>();
    let inputs: Vec<Vec<char>> = inputs.split(',').map(letters).collect();
    let output = letters(output);
    if inputs.len() != operands.len() {
        return Err(malformed(format!("names {} operands, {} given", inputs.len(), operands.len())));
    }
    for letters in inputs.iter().chain([&output]) {
        if let Some(letter) = letters.iter().find(|letter| !letter.is_ascii_alphabetic()) {
            return Err(malformed(format!("`{letter}` is not a letter")));
        }
        if let Some(i) = (1..letters.len()).find(|&i| letters[..i].contains(&letters[i])) {
            return Err(malformed(format!("`{}` stands twice in one operand", letters[i])));
        }
    }
    let mut extents: Vec<(char, usize)> = Vec::new();
    for (i, (letters, operand)) in inputs.iter().zip(operands).enumerate() {
        let shape = operand.shape();
        if shape.len() != letters.len() {
            return Err(Error::shape(
                format!("operand {i}"),
                format!("{} axes", letters.len()),
                format!("{shape:?}"),
            )
            .note(describe(*operand)));
        }
        for (axis, (&letter, &extent)) in letters.iter().zip(&shape).enumerate() {
            match extents.iter().find(|(other, _)| *other == letter) {
                Some(&(_, expected)) if expected != extent => {
                    return Err(Error::axis(
                        format!("operand {i}"),
                        axis,
                        format!("{expected} for `{letter}`"),
                        extent,
                    )
                    .note(describe(*operand)));
                }
                Some(_) => {}
                None => extents.push((letter, extent)),
            }
        }
    }
    match output.iter().find(|letter| !extents.iter().any(|(other, _)| other == *letter)) {
        Some(letter) => Err(malformed(format!("no operand has the letter `{letter}` of the result"))),
        None => Ok((inputs, output)),
    }
}

/// The product of two lettered tensors; letters of both that nothing later needs are summed over.
#[track_caller]
fn contract(
    (left, left_letters): (Tensor, Vec<char>),
    (right, right_letters): (Tensor, Vec<char>),
    later: impl Fn(&char) -> bool,
) -> (Tensor, Vec<char>) {
    let mut axes =
        DotAxes { left_batch: vec![], right_batch: vec![], left_contract: vec![], right_contract: vec![] };
    for (l, letter) in left_letters.iter().enumerate() {
        let Some(r) = right_letters.iter().position(|other| other == letter) else { continue };
        if later(letter) {
            axes.left_batch.push(l);
            axes.right_batch.push(r);
        } else {
            axes.left_contract.push(l);
            axes.right_contract.push(r);
        }
    }
    let batch = axes.left_batch.iter().map(|&axis| left_letters[axis]);
    let left_free = axes.left_free(left_letters.len()).into_iter().map(|axis| left_letters[axis]);
    let right_free = axes.right_free(right_letters.len()).into_iter().map(|axis| right_letters[axis]);
    let letters = batch.chain(left_free).chain(right_free).collect();
    (record(Op::Dot(axes), &[left, right]), letters)
}
