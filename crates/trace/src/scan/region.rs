//! A combine function as a region.

use std::panic::Location;

use tilewright_ir::{Error, Graph, Result, Type};

use super::{rebuild, tensors};
use crate::recording::{self, Frame, FrameKind, Open, describe, lifted};
use crate::tree::{Path, leaves};
use crate::{Tensor, TensorTree, arguments};

/// A traced combine function.
pub(super) struct Combine {
    /// Its parameters are the left leaves, the right leaves, and the captures.
    pub region: Graph,
    pub captures: Vec<Tensor>,
}

impl Combine {
    /// Traces `combine` on slices of `elements`; nothing where a value is poisoned. With `flags`, a leaf that
    /// says where segments start stands before the others.
    #[track_caller]
    pub fn trace<T: TensorTree>(
        elements: &T,
        slices: &[Type],
        axis: usize,
        flags: Option<Tensor>,
        combine: impl FnOnce(T, T) -> T,
    ) -> Result<Option<Combine>> {
        let flag = flags.map(|flags| slice(&flags.ty(), axis));
        let types: Vec<&Type> = flag.iter().chain(slices).collect();
        let mut frame = Frame::new(FrameKind::Combine);
        let mut side = |side: &str| -> Vec<Tensor> {
            types.iter().map(|&ty| frame.parameter(side, ty.clone())).collect()
        };
        let (mut left, mut right) = (side("left"), side("right"));
        let open = Open::new(frame);
        let flags = flag.as_ref().map(|_| [left.remove(0), right.remove(0)]);
        let result = combine(rebuild(elements, left), rebuild(elements, right.clone()));
        check_results(elements, slices, &result)?;
        let mut results = tensors(&result);
        if let Some([left_flag, right_flag]) = flags {
            for (result, right) in results.iter_mut().zip(right) {
                *result = for_leaf(right_flag, right.rank()).select(right, *result);
            }
            results.insert(0, left_flag | right_flag);
        }
        let values = lifted(&results)?;
        let (Some(frame), Some(values)) = (open.close(), values) else { return Ok(None) };
        let captures: Vec<Tensor> = frame.captures.iter().map(|(tensor, _)| *tensor).collect();
        let region = frame.region(2 * types.len(), &captures, &values)?;
        Ok(Some(Combine { region, captures }))
    }

    /// Combines two slices where the scan stands; nothing where a value is poisoned.
    #[track_caller]
    pub fn apply(&self, left: &[Tensor], right: &[Tensor]) -> Option<Vec<Tensor>> {
        let operands = [left, right, &self.captures].concat();
        let results = recording::append(Location::caller(), &operands, |graph, values| {
            Ok(graph.inline(&self.region, values)?.into_iter().map(Some).collect())
        });
        let results: Vec<Tensor> = results.into_iter().flatten().collect();
        (results.len() == left.len()).then_some(results)
    }
}

/// A flag for a value with so many axes: its leading axes are the value's, the others have extent 1.
#[track_caller]
pub(super) fn for_leaf(flag: Tensor, rank: usize) -> Tensor {
    let mut shape = flag.shape();
    shape.resize(rank, 1);
    if shape.len() == flag.rank() { flag } else { flag.reshape(shape) }
}

/// An array's type without the scan axis.
fn slice(ty: &Type, axis: usize) -> Type {
    let mut shape = ty.shape.clone();
    shape.remove(axis);
    Type::new(ty.dtype, shape)
}

/// The axis, and the type of each leaf's slices.
pub(super) fn slices(leaves: &[Tensor], axis: isize) -> Result<(usize, Vec<Type>)> {
    let first = leaves.first().ok_or_else(|| Error::shape("elements", "at least 1 leaf", 0))?;
    let axis = arguments::axis(axis, first.rank())?;
    let one = |(i, leaf): (usize, &Tensor)| {
        let (ty, argument) = (leaf.ty(), format!("leaf {i}"));
        if axis >= ty.rank() {
            let expected = format!("more than {axis} axes");
            return Err(Error::shape(argument, expected, format!("{:?}", ty.shape)).note(describe(*leaf)));
        }
        if ty.shape[axis] != first.shape()[axis] {
            let error = Error::axis(argument, axis, first.shape()[axis], ty.shape[axis]);
            return Err(error.note(describe(*first)).note(describe(*leaf)));
        }
        Ok(slice(&ty, axis))
    };
    Ok((axis, leaves.iter().enumerate().map(one).collect::<Result<_>>()?))
}

fn check_results<T: TensorTree>(elements: &T, slices: &[Type], result: &T) -> Result<()> {
    let results = leaves(result);
    if results.len() != slices.len() {
        let expected = format!("{} leaves, as the elements have", slices.len());
        return Err(Error::shape("result of combine", expected, results.len()));
    }
    let paths: Vec<(Path, Tensor)> = leaves(elements);
    for (i, (slice, ((path, result), (expected, _)))) in
        slices.iter().zip(results.iter().zip(&paths)).enumerate()
    {
        let (ty, argument) = (result.ty(), format!("leaf {i} of combine's result"));
        if path != expected {
            let [expected, found] = [expected, path].map(|path| format!("`{path}`"));
            return Err(Error::shape(argument, expected, found));
        }
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
