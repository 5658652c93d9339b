//! Differentiation, inside traced functions: transformations of functions on trees of tensors.
//!
//! Each gives the function fresh names for its arguments ([`Tensor::alias`]), so that a tensor that is both an
//! argument and captured from outside counts as an argument only where the function uses the argument.

use std::panic::Location;

use tilewright_autodiff as autodiff;
use tilewright_ir::{Graph, Value};
use tilewright_trace::tree::{MapLeaves, leaves, map_leaves};
use tilewright_trace::{Tensor, TensorTree, append};

use crate::{Error, Result};

/// The gradient of a function of one number: a tree like its argument.
///
/// ```
/// use tilewright::prelude::*;
///
/// let second = compile(|x: Tensor| grad(|x: &Tensor| grad(|x: &Tensor| x.sin())(x))(&x));
/// let y = second.call(&Array::scalar(2.0f64))?;
/// assert!((y.item::<f64>()? + 2f64.sin()).abs() < 1e-12);
/// # Ok::<(), Error>(())
/// ```
#[track_caller]
pub fn grad<T: TensorTree>(f: impl Fn(&T) -> Tensor) -> impl Fn(&T) -> T {
    let value_and_grad = value_and_grad(f);
    move |x| value_and_grad(x).1
}

/// A function's value, one number of a float type, and its gradient. Leaves that are no floats, and those that
/// the value does not depend on, have gradient zero.
#[track_caller]
pub fn value_and_grad<T: TensorTree>(f: impl Fn(&T) -> Tensor) -> impl Fn(&T) -> (Tensor, T) {
    let value_and_grad = value_and_grad_with(move |x: &T| (f(x), ()));
    move |x| {
        let ((value, ()), gradient) = value_and_grad(x);
        (value, gradient)
    }
}

/// [`value_and_grad`] of a function that gives something beside its value: `((value, aside), gradient)`.
#[track_caller]
pub fn value_and_grad_with<T: TensorTree, A>(
    f: impl Fn(&T) -> (Tensor, A),
) -> impl Fn(&T) -> ((Tensor, A), T) {
    let location = Location::caller();
    move |x| {
        let x = fresh(x);
        let (value, aside) = f(&x);
        let gradient = pull_back(location, &x, &[value], None);
        ((value, aside), gradient)
    }
}

/// A function's value at `x`, and the function that takes a cotangent of the value (a tree like it) to the
/// cotangent of `x`: the product of the cotangent and the Jacobian.
#[track_caller]
pub fn vjp<T: TensorTree, O: TensorTree>(f: impl FnOnce(&T) -> O, x: &T) -> (O, impl Fn(&O) -> T) {
    let location = Location::caller();
    let x = fresh(x);
    let value = f(&x);
    let outputs = tensors(&value);
    let pull = move |cotangent: &O| pull_back(location, &x, &outputs, Some(&tensors(cotangent)));
    (value, pull)
}

/// A function's value at `x`, and how it changes when `x` moves along `tangent` (a tree like `x`): the product
/// of the Jacobian and the tangent.
#[track_caller]
pub fn jvp<T: TensorTree, O: TensorTree>(f: impl FnOnce(&T) -> O, x: &T, tangent: &T) -> (O, O) {
    let location = Location::caller();
    let x = fresh(x);
    let value = f(&x);
    let (inputs, outputs) = (tensors(&x), tensors(&value));
    let all = [&inputs[..], &tensors(tangent), &outputs].concat();
    let mut tangents = append(location, &all, |graph, values| {
        let (inputs, rest) = values.split_at(inputs.len());
        let (tangents, outputs) = rest.split_at(rest.len() - outputs.len());
        same_leaves("tangent", inputs.len(), tangents.len())?;
        let float = |&(&input, _): &(&Value, &Value)| graph.ty(input).dtype.is_float();
        let pairs: Vec<(Value, Value)> =
            inputs.iter().zip(tangents).filter(float).map(|(&input, &tangent)| (input, tangent)).collect();
        autodiff::forward(graph, &pairs, outputs)
    })
    .into_iter();
    let moved = like(&value, |leaf| tangents.next().flatten().unwrap_or_else(|| leaf.zeros_like()));
    (value, moved)
}

/// The cotangent of `x` for cotangents of `outputs`; without them `outputs` is one number, and has cotangent 1.
fn pull_back<T: TensorTree>(
    location: &'static Location<'static>,
    x: &T,
    outputs: &[Tensor],
    cotangents: Option<&[Tensor]>,
) -> T {
    let inputs: Vec<Tensor> = tensors(x).into_iter().filter(|tensor| tensor.dtype().is_float()).collect();
    let all = [&inputs[..], outputs, cotangents.unwrap_or_default()].concat();
    let mut cotangents = append(location, &all, |graph, values| {
        let (inputs, values) = values.split_at(inputs.len());
        let (outputs, given) = values.split_at(outputs.len());
        let seeds = match cotangents {
            Some(_) => given.to_vec(),
            None => vec![one(graph, outputs[0])?],
        };
        same_leaves("cotangent", outputs.len(), seeds.len())?;
        let float = |(output, _): &(Value, Value)| graph.ty(*output).dtype.is_float();
        let pairs: Vec<(Value, Value)> = outputs.iter().copied().zip(seeds).filter(float).collect();
        autodiff::reverse(graph, &pairs, inputs)
    })
    .into_iter();
    like(x, |leaf| {
        let cotangent = if leaf.dtype().is_float() { cotangents.next().flatten() } else { None };
        cotangent.unwrap_or_else(|| leaf.zeros_like())
    })
}

/// The cotangent of the value of a function to differentiate.
fn one(graph: &mut Graph, value: Value) -> Result<Value> {
    let ty = graph.ty(value);
    if ty.rank() != 0 || !ty.dtype.is_float() {
        let expected = "one number of a float type";
        return Err(Error::shape("value of the function to differentiate", expected, ty)
            .help("reduce it to one number, for instance with `.mean(..)`, or use `vjp`"));
    }
    let dtype = ty.dtype;
    Ok(graph.scalar(dtype, 1.0))
}

fn same_leaves(argument: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::shape(argument, format!("{expected} leaves"), found)) }
}

fn tensors<T: TensorTree>(tree: &T) -> Vec<Tensor> {
    leaves(tree).into_iter().map(|(_, tensor)| tensor).collect()
}

fn like<T: TensorTree>(tree: &T, mut f: impl FnMut(&Tensor) -> Tensor) -> T {
    map_leaves(tree, |_, leaf| Ok(f(leaf))).expect("the mapper does not fail")
}

fn fresh<T: MapLeaves<Tensor, Tensor, Output = T>>(x: &T) -> T {
    like(x, |leaf| leaf.alias())
}
