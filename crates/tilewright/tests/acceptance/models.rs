//! Whole models: biases that cannot be confused, and training steps.

use tilewright::optimizers::{AdamState, SgdState, adamw, clip_by_global_norm, cosine, sgd};
use tilewright::prelude::*;
use tilewright_generate::Random;
use tilewright_interp::Precision;

use crate::golden::{check_all, elements, interpreted, random, reference};

const LAYERS: usize = 12;
const LENGTH: usize = 7;
const HEADS: usize = 2;
const WIDTH: usize = 8;

#[derive(Clone, Debug, Tree)]
struct Layer<L> {
    projection: L,
    output: L,
    bias: L,
}

#[derive(Clone, Debug, Tree)]
struct Model<L> {
    layers: Vec<Layer<L>>,
    /// What layer 5 computes its bias from.
    positions: L,
}

fn model(dtype: DType) -> Model<Array> {
    let mut numbers = Random::new(1);
    let mut array = |shape: &[usize]| random(&mut numbers, dtype, shape, 0);
    let layers = (0..LAYERS)
        .map(|_| Layer {
            projection: array(&[WIDTH, 3 * WIDTH]),
            output: array(&[WIDTH, WIDTH]),
            bias: array(&[HEADS, 2 * LENGTH - 1]),
        })
        .collect();
    Model { layers, positions: array(&[2 * LENGTH - 1]) }
}

/// One layer: whatever its bias is, it is called `bias` here.
fn layer(x: Tensor, weights: &Layer<Tensor>, bias: Tensor) -> Tensor {
    let parts = (x.matmul(weights.projection) * 0.2).reshape([
        -1,
        LENGTH as i64,
        3,
        HEADS as i64,
        WIDTH as i64 / HEADS as i64,
    ]);
    let part = |i: usize| parts.slice(2, i as isize..i as isize + 1).squeeze(2).permute([0, 2, 1, 3]);
    let y = flex_attention(&part(0), &part(1), &part(2))
        .score(|s, at| s + bias.at([at.head, at.query - at.key + (LENGTH as i64 - 1)]))
        .mask(|at| at.query.ge(at.key))
        .call();
    x + y.permute([0, 2, 1, 3]).reshape([-1, LENGTH as i64, WIDTH as i64]).matmul(weights.output) * 0.2
}

/// The bias of a layer: its own; that of layer 3 in layer 7; in layer 5 one computed here.
fn bias_of(model: &Model<Tensor>, i: usize) -> Tensor {
    match i {
        7 => model.layers[3].bias,
        5 => (model.positions.unsqueeze(0) * model.layers[5].bias).tanh(),
        _ => model.layers[i].bias,
    }
}

type Step<L> = (Model<L>, L, L);

fn in_a_loop((model, x, direction): Step<Tensor>) -> (Tensor, Model<Tensor>) {
    let loss = |model: &Model<Tensor>| {
        let y = (0..LAYERS).fold(x, |x, i| layer(x, &model.layers[i], bias_of(model, i)));
        (y * direction).sum(..)
    };
    value_and_grad(loss)(&model)
}

/// The same with each layer written out, where each closure captures a variable `bias` of its own.
fn written_out((model, x, direction): Step<Tensor>) -> (Tensor, Model<Tensor>) {
    let loss = |model: &Model<Tensor>| {
        let last = LENGTH as i64 - 1;
        macro_rules! layers {
            ($x:ident: $($i:literal)*) => {{
                $(
                    let weights = &model.layers[$i];
                    let bias = bias_of(model, $i);
                    let parts = ($x.matmul(weights.projection) * 0.2).reshape([-1, LENGTH as i64, 3, HEADS as i64, 4]);
                    let part = |i: isize| parts.slice(2, i..i + 1).squeeze(2).permute([0, 2, 1, 3]);
                    let y = flex_attention(&part(0), &part(1), &part(2))
                        .score(|s, at| s + bias.at([at.head, at.query - at.key + last]))
                        .mask(|at| at.query.ge(at.key))
                        .call();
                    let $x = $x + y.permute([0, 2, 1, 3]).reshape([-1, LENGTH as i64, 8]).matmul(weights.output) * 0.2;
                )*
                $x
            }};
        }
        (layers!(x: 0 1 2 3 4 5 6 7 8 9 10 11) * direction).sum(..)
    };
    value_and_grad(loss)(&model)
}

#[test]
fn twelve_layers_with_a_bias_of_one_name() {
    for dtype in [DType::F64, DType::F32] {
        let mut numbers = Random::new(2);
        let x = random(&mut numbers, dtype, &[2, LENGTH, WIDTH], 0);
        let direction = random(&mut numbers, dtype, &[2, LENGTH, WIDTH], 0);
        let inputs = (model(dtype), x, direction);
        let looped = compile(in_a_loop);
        let found = looped.call(&inputs).unwrap();
        check_all(&format!("{dtype} in a loop"), &looped.program(&inputs).unwrap(), &inputs, &found);
        let (_, gradient) = &found;
        let biases: Vec<Vec<f64>> = gradient.layers.iter().map(|layer| elements(&layer.bias)).collect();
        for (i, bias) in biases.iter().enumerate() {
            // Layer 7's own bias is not used; all other gradients are there, and differ.
            assert_eq!(bias.iter().all(|&x| x == 0.0), i == 7, "layer {i}");
            assert!(biases[..i].iter().all(|other| other != bias), "layer {i}");
        }
        let written = compile(written_out);
        let same = written.call(&inputs).unwrap();
        check_all(&format!("{dtype} written out"), &written.program(&inputs).unwrap(), &inputs, &same);
    }
}

#[derive(Clone, Debug, Tree)]
struct Perceptron<L> {
    first: (L, L),
    second: (L, L),
    /// No float: no optimiser touches it.
    classes: L,
}

fn perceptron(dtype: DType) -> Perceptron<Array> {
    let mut numbers = Random::new(3);
    let mut array = |shape: &[usize]| random(&mut numbers, dtype, shape, 0);
    Perceptron {
        first: (array(&[6, 10]), array(&[10])),
        second: (array(&[10, 4]), array(&[4])),
        classes: Array::new([4], &[3i32, 1, 0, 2]).unwrap(),
    }
}

impl Perceptron<Tensor> {
    fn loss(&self, x: Tensor, y: Tensor) -> Tensor {
        let hidden = (x.matmul(self.first.0) + self.first.1).gelu();
        let logits = hidden.matmul(self.second.0) + self.second.1;
        cross_entropy(logits, self.classes.at([y])).mean(..)
    }
}

type Training<L, S> = (Perceptron<L>, S, L, L);

fn adam_step(
    (model, state, x, y): Training<Tensor, AdamState<Tensor>>,
) -> (Tensor, Tensor, Perceptron<Tensor>, AdamState<Tensor>) {
    let (loss, gradient) = value_and_grad(|model: &Perceptron<Tensor>| model.loss(x, y))(&model);
    let (gradient, norm) = clip_by_global_norm(gradient, 0.3);
    let rate = cosine(state.step, 0.05, 2, 6);
    let (model, state) = adamw(rate).weight_decay(0.1).update(model, state, gradient);
    (loss, norm, model, state)
}

fn sgd_step(
    (model, state, x, y): Training<Tensor, SgdState<Tensor>>,
) -> (Tensor, Perceptron<Tensor>, SgdState<Tensor>) {
    let (loss, gradient) = value_and_grad(|model: &Perceptron<Tensor>| model.loss(x, y))(&model);
    let (model, state) = sgd(0.1).momentum(0.9).update(model, state, gradient);
    (loss, model, state)
}

fn batch(dtype: DType) -> (Array, Array) {
    let mut numbers = Random::new(4);
    let x = random(&mut numbers, dtype, &[16, 6], 0);
    (x, random(&mut numbers, DType::I64, &[16], 4))
}

#[test]
fn training_steps_with_adamw() {
    for dtype in [DType::F64, DType::F32] {
        let (x, y) = batch(dtype);
        let step = compile(adam_step);
        let mut model = perceptron(dtype);
        let mut state = AdamState::new(&model).unwrap();
        let mut losses = Vec::new();
        for i in 0..6 {
            let inputs = (model.clone(), state.clone(), x.clone(), y.clone());
            let found = step.call(&inputs).unwrap();
            check_all(&format!("{dtype} step {i}"), &step.program(&inputs).unwrap(), &inputs, &found);
            losses.push(elements(&found.0)[0]);
            (model, state) = (found.2, found.3);
        }
        assert!(losses[5] < losses[0], "{losses:?}");
        assert_eq!(state.step.item::<i64>().unwrap(), 6);
    }
}

#[test]
fn training_steps_with_momentum() {
    for dtype in [DType::F64, DType::F32] {
        let (x, y) = batch(dtype);
        let step = compile(sgd_step);
        let mut model = perceptron(dtype);
        let mut state = SgdState::new(&model).unwrap();
        for i in 0..3 {
            let inputs = (model.clone(), state.clone(), x.clone(), y.clone());
            let found = step.call(&inputs).unwrap();
            check_all(&format!("{dtype} step {i}"), &step.program(&inputs).unwrap(), &inputs, &found);
            (model, state) = (found.1, found.2);
        }
    }
}

/// Several steps by the interpreter alone, each from its own results, come to the same weights.
#[test]
fn a_run_of_training_equals_the_interpreter() {
    let (x, y) = batch(DType::F64);
    let step = compile(adam_step);
    let mut model = perceptron(DType::F64);
    let mut state = AdamState::new(&model).unwrap();
    let inputs = (model.clone(), state.clone(), x.clone(), y.clone());
    let program = step.program(&inputs).unwrap();
    let mut reference_inputs: Vec<_> =
        tilewright::tree::leaves::<Array, _>(&inputs).iter().map(|(_, array)| interpreted(array)).collect();
    for _ in 0..6 {
        (_, _, model, state) = step.call((&model, &state, &x, &y)).unwrap();
        let results = tilewright_interp::run(&program.traced, &reference_inputs, Precision::Typed).unwrap();
        let carried = results.len() - 2;
        reference_inputs[..carried].clone_from_slice(&results[2..]);
    }
    let found = tilewright::tree::leaves::<Array, _>(&(model, state));
    for ((path, found), expected) in found.iter().zip(&reference_inputs) {
        for (x, y) in elements(found).iter().zip(expected.to_f64s()) {
            assert!((x - y).abs() <= 1e-9 * (1.0 + y.abs()), "{path}: {x}, reference {y}");
        }
    }
}

/// A model with a scan, a gather, a softmax, norms and dropout, forward and backward.
#[test]
fn ordinary_operations_in_a_model() {
    let block = |(x, gain, table, at): (Tensor, Tensor, Tensor, Tensor)| {
        let loss = |(x, gain, table): &(Tensor, Tensor, Tensor)| {
            let embedded = *x + table.at([at]);
            let normed = embedded.rms_norm(gain, 1e-5).layer_norm(gain, gain, 1e-5);
            let decay = normed.sigmoid();
            let (_, state) =
                associative_scan((decay, normed.silu()), 1, |l, r| (l.0 * r.0, r.0 * l.1 + r.1)).call();
            let weights = (state.matmul(normed.transpose()) * 0.1).tril(0).softmax(-1);
            let mixed = einsum("bqk,bkd->bqd", &[weights, state]);
            let padded = concatenate(&[mixed, state.flip(1)], -1).max(-1);
            (padded.log_sum_exp(-1) + mixed.var([1, 2])).sum(..)
        };
        value_and_grad(loss)(&(x, gain, table))
    };
    for dtype in [DType::F64, DType::F32] {
        let mut numbers = Random::new(5);
        let mut array = |dtype, shape: &[usize]| random(&mut numbers, dtype, shape, 11);
        let inputs = (
            array(dtype, &[2, 9, 6]),
            array(dtype, &[6]),
            array(dtype, &[11, 6]),
            array(DType::I32, &[2, 9]),
        );
        let f = compile(block);
        let found = f.call(&inputs).unwrap();
        check_all(&format!("{dtype}"), &f.program(&inputs).unwrap(), &inputs, &found);
        let golden = reference(&f.program(&inputs).unwrap(), &inputs, Precision::Exact);
        assert!(golden.iter().all(|result| result.iter().any(|&x| x != 0.0)));
    }
}
