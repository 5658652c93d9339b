//! Associative scans over trees.

use tilewright_ir::{AssociativeScan, DType, Error, Graph, Op, Result, Type};

use crate::recording::{self, Frame, FrameKind, Open, describe, lifted, record_all};
use crate::tree::{leaves, map_leaves};
use crate::{Tensor, TensorTree, arguments};

/// A scan about to be recorded: [`Scan::call`] records it.
#[must_use = "call() records the scan"]
pub struct Scan<T, F> {
    elements: T,
    axis: isize,
    reverse: bool,
    combine: F,
}

/// A scan of `elements` along `axis` with an associative `combine`: the result at position t combines
/// positions 0 to t. The leaves have one extent along `axis`; `combine` works on slices without it, may use
/// any tensor from outside, and returns a tree like `elements`.
///
/// `associative_scan((a, b), 1, |l, r| (l.0 * r.0, r.0 * l.1 + r.1)).call()` is the recurrence
/// bₜ ← aₜ bₜ₋₁ + bₜ.
pub fn associative_scan<T: TensorTree, F: FnOnce(T, T) -> T>(
    elements: T,
    axis: isize,
    combine: F,
) -> Scan<T, F> {
    Scan { elements, axis, reverse: false, combine }
}

impl<T: TensorTree, F: FnOnce(T, T) -> T> Scan<T, F> {
    /// From the last position to the first.
    pub fn reverse(mut self) -> Scan<T, F> {
        self.reverse = true;
        self
    }

    /// Records the scan, and gives a tree like the elements.
    ///
    /// # Errors (of the trace)
    /// `Shape` where there is no leaf, the leaves' extents along the axis differ, or `combine` returns
    /// another tree, shape or element type.
    #[track_caller]
    pub fn call(self) -> T {
        let Scan { elements, axis, reverse, combine } = self;
        let elements_in: Vec<Tensor> = leaves(&elements).into_iter().map(|(_, leaf)| leaf).collect();
        let results = match region(&elements, &elements_in, axis, combine) {
            Ok(Some((axis, combine, captures))) => {
                let leaves = elements_in.len();
                let scan = AssociativeScan { combine, leaves, axis, reverse };
                let operands = [&elements_in[..], &captures].concat();
                record_all(Op::AssociativeScan(Box::new(scan)), &operands, leaves)
            }
            Ok(None) => elements_in.iter().map(|leaf| recording::poisoned(leaf.ty())).collect(),
            Err(error) => {
                let first = elements_in.first().map_or(Type::scalar(DType::F32), |leaf| leaf.ty());
                recording::poison(error.in_operation("associative_scan"), first);
                elements_in.iter().map(|leaf| recording::poisoned(leaf.ty())).collect()
            }
        };
        rebuild(&elements, results)
    }
}

/// The axis, the region that `combine` is, and what it captures; nothing where a value is poisoned.
#[track_caller]
fn region<T: TensorTree>(
    elements: &T,
    leaves_in: &[Tensor],
    axis: isize,
    combine: impl FnOnce(T, T) -> T,
) -> Result<Option<(usize, Graph, Vec<Tensor>)>> {
    let (axis, slices) = slices(leaves_in, axis)?;
    let mut frame = Frame::new(FrameKind::Combine);
    let mut side = |side: &str| slices.iter().map(|ty| frame.parameter(side, ty.clone())).collect();
    let (left, right) = (rebuild(elements, side("left")), rebuild(elements, side("right")));
    let open = Open::new(frame);
    let result = combine(left, right);
    let results: Vec<Tensor> = leaves(&result).into_iter().map(|(_, leaf)| leaf).collect();
    check_results(&slices, &results)?;
    let values = lifted(&results)?;
    let (Some(frame), Some(values)) = (open.close(), values) else { return Ok(None) };
    let captures: Vec<Tensor> = frame.captures.iter().map(|(tensor, _)| *tensor).collect();
    let region = frame.region(2 * slices.len(), &captures, &values)?;
    Ok(Some((axis, region, captures)))
}

/// The axis, and the type of each leaf's slices.
fn slices(leaves: &[Tensor], axis: isize) -> Result<(usize, Vec<Type>)> {
    let first = leaves.first().ok_or_else(|| Error::shape("elements", "at least 1 leaf", 0))?;
    let axis = arguments::axis(axis, first.rank())?;
    let slice = |(i, leaf): (usize, &Tensor)| {
        let ty = leaf.ty();
        let argument = format!("leaf {i}");
        if axis >= ty.rank() {
            let expected = format!("more than {axis} axes");
            return Err(Error::shape(argument, expected, format!("{:?}", ty.shape)).note(describe(*leaf)));
        }
        if ty.shape[axis] != first.shape()[axis] {
            let error = Error::axis(argument, axis, first.shape()[axis], ty.shape[axis]);
            return Err(error.note(describe(*first)).note(describe(*leaf)));
        }
        let mut shape = ty.shape;
        shape.remove(axis);
        Ok(Type::new(ty.dtype, shape))
    };
    Ok((axis, leaves.iter().enumerate().map(slice).collect::<Result<_>>()?))
}

fn check_results(slices: &[Type], results: &[Tensor]) -> Result<()> {
    if results.len() != slices.len() {
        let expected = format!("{} leaves, as the elements have", slices.len());
        return Err(Error::shape("result of combine", expected, results.len()));
    }
    for (i, (slice, result)) in slices.iter().zip(results).enumerate() {
        let (ty, argument) = (result.ty(), format!("leaf {i} of combine's result"));
        if result.is_poisoned() {
            continue;
        }
        if ty.dtype != slice.dtype {
            return Err(Error::dtype(argument, slice.dtype, ty.dtype));
        }
        if ty.shape != slice.shape {
            return Err(Error::shape(argument, format!("{:?}", slice.shape), format!("{:?}", ty.shape)));
        }
    }
    Ok(())
}

/// A tree like `tree` with the given leaves.
fn rebuild<T: TensorTree>(tree: &T, leaves: Vec<Tensor>) -> T {
    let mut leaves = leaves.into_iter();
    map_leaves(tree, |_, leaf| Ok(leaves.next().unwrap_or(*leaf))).expect("the mapper does not fail")
}
