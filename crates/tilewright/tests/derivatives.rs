//! Differentiation of traced functions over trees, and the optimisers.

mod common;

use common::{agrees, random, to_f64s};
use tilewright::optimizers::{AdamState, SgdState, adamw, clip_by_global_norm, cosine, sgd};
use tilewright::prelude::*;
use tilewright::tree::leaves;

#[derive(Clone, Debug, Tree)]
struct Model<L> {
    layers: Vec<Layer<L>>,
    shared: L,
    /// No float: its gradient is zero.
    vocabulary: L,
}

#[derive(Clone, Debug, Tree)]
struct Layer<L> {
    weight: L,
    bias: L,
}

const HEADS: usize = 2;
const LENGTH: usize = 6;
const WIDTH: usize = 8;

fn model(layers: usize) -> Model<Array> {
    let layer = |i: usize| Layer {
        weight: random(&[WIDTH, WIDTH], 10 + i as u64),
        bias: random(&[HEADS, 2 * LENGTH - 1], 40 + i as u64),
    };
    Model {
        layers: (0..layers).map(layer).collect(),
        shared: random(&[HEADS, 2 * LENGTH - 1], 80),
        vocabulary: Array::new([2], &[3i64, 4]).unwrap(),
    }
}

/// Layers with biases of one shape, one shared by layers 3 and 7, one computed in the function.
fn loss(model: &Model<Tensor>, x: Tensor) -> Tensor {
    let mut x = x;
    for (i, layer) in model.layers.iter().enumerate() {
        let bias = match i {
            3 | 7 => model.shared,
            5 => (layer.bias * 0.5).tanh() + model.shared.index(0, 1),
            _ => layer.bias,
        };
        let heads = (x.matmul(layer.weight) * 0.2).reshape([1, LENGTH, HEADS, WIDTH / HEADS]).swap_axes(1, 2);
        let attended = flex_attention(&heads, &heads, &heads)
            .score(|s, at| s + bias.at([at.head, at.query - at.key + (LENGTH as i64 - 1)]))
            .mask(mods::causal)
            .call();
        x = x + attended.swap_axes(1, 2).reshape([1, LENGTH, WIDTH]);
    }
    x.square().mean(..)
}

/// Twelve layers traced by one function in a loop: biases of equal names and shapes cannot collide.
#[test]
fn twelve_layers_with_biases_of_one_shape() {
    let f = compile(|(model, x): (Model<Tensor>, Tensor)| {
        value_and_grad(|model: &Model<Tensor>| loss(model, x))(&model)
    });
    let expected = agrees(&f, &(model(12), random(&[1, LENGTH, WIDTH], 90)), 1e-11);
    // Each layer's bias has a gradient of its own, but for those that use the shared one.
    let bias = |i: usize| &expected[1 + 2 * i + 1];
    for i in 0..12 {
        assert_eq!(bias(i).iter().all(|&x| x == 0.0), i == 3 || i == 7, "layer {i}");
        assert!((0..i).all(|j| bias(i) != bias(j) || (i, j) == (7, 3)), "layer {i}");
    }
}

/// The gradient of a small model against central differences of its loss, in f64.
#[test]
fn gradients_are_slopes() {
    let both = compile(|(model, x): (Model<Tensor>, Tensor)| {
        value_and_grad(|model: &Model<Tensor>| loss(model, x))(&model)
    });
    let x = random(&[1, LENGTH, WIDTH], 91);
    let (_, gradient) = both.call((&model(2), &x)).unwrap();
    let step = 1e-5;
    for (leaf, place) in [(0, 5), (0, 60), (1, 5), (1, 16), (3, 7)] {
        let at = |shift: f64| {
            let mut number = 0;
            let moved = tilewright::tree::map_leaves(&model(2), |_, array: &Array| {
                number += 1;
                if number - 1 != leaf {
                    return Ok(array.clone());
                }
                let mut elements = array.to_vec::<f64>()?;
                elements[place] += shift;
                Array::new(array.shape(), &elements)
            });
            both.call((&moved.unwrap(), &x)).unwrap().0.item::<f64>().unwrap()
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        let found = to_f64s(&leaves(&gradient)[leaf].1)[place];
        assert!(
            (slope - found).abs() < 1e-8 * (1.0 + slope.abs()),
            "leaf {leaf} at {place}: {found}, slope {slope}"
        );
    }
}

/// d/dx of sin, four times over.
#[test]
fn derivatives_compose() {
    let f = compile(|x: Tensor| {
        let d = grad(|x: &Tensor| x.sin());
        let dd = grad(&d);
        let ddd = grad(&dd);
        (d(&x), dd(&x), grad(&ddd)(&x))
    });
    let (d, dd, dddd) = f.call(&Array::scalar(0.7f64)).unwrap();
    let close = |x: Array, expected: f64| assert!((x.item::<f64>().unwrap() - expected).abs() < 1e-14);
    close(d, 0.7f64.cos());
    close(dd, -0.7f64.sin());
    close(dddd, 0.7f64.sin());
}

/// The same tensor as argument and from outside: only the argument counts.
#[test]
fn an_argument_is_not_its_captured_copy() {
    let f = compile(|x: Tensor| grad(|y: &Tensor| (y * x * x).sum(..))(&x));
    let x = Array::new([2], &[3.0f64, -2.0]).unwrap();
    assert_eq!(f.call(&x).unwrap().to_vec::<f64>().unwrap(), [9.0, 4.0]);
}

/// vᵀ(J t) is the same by both modes.
#[test]
fn forward_and_reverse_agree() {
    let f = compile(|(x, t, v): ([Tensor; 2], [Tensor; 2], (Tensor, Tensor))| {
        let g =
            |x: &[Tensor; 2]| (x[0].matmul(x[1]).tanh(), (x[0].exp().sum(0) * x[1].index(1, 0)).cumsum(0));
        let (value, pull) = vjp(g, &x);
        let (again, moved) = jvp(g, &x, &t);
        let pulled = pull(&v);
        let product = |a: &Tensor, b: &Tensor| (a * b).sum(..);
        let forward = product(&moved.0, &v.0) + product(&moved.1, &v.1);
        let reverse = product(&pulled[0], &t[0]) + product(&pulled[1], &t[1]);
        (forward, reverse, (value.0 - again.0).abs().max(..))
    });
    let inputs = |seed: u64| [random(&[3, 4], seed), random(&[4, 2], seed + 1)];
    let arguments = (inputs(1), inputs(3), (random(&[3, 2], 5), random(&[4], 6)));
    agrees(&f, &arguments, 1e-12);
    let (forward, reverse, difference) = f.call(&arguments).unwrap();
    let (forward, reverse) = (forward.item::<f64>().unwrap(), reverse.item::<f64>().unwrap());
    assert!((forward - reverse).abs() < 1e-12 * forward.abs().max(1.0), "{forward} {reverse}");
    assert_eq!(difference.item::<f64>().unwrap(), 0.0);
}

#[test]
fn a_value_beside_the_loss_comes_along() {
    let f =
        compile(|x: Tensor| value_and_grad_with(|x: &Tensor| ((x * x).sum(..), (x + 1.0, x.argmax(0))))(&x));
    let x = Array::new([3], &[1.0f64, 5.0, 2.0]).unwrap();
    let ((value, (moved, place)), gradient) = f.call(&x).unwrap();
    assert_eq!(value.item::<f64>().unwrap(), 30.0);
    assert_eq!(moved.to_vec::<f64>().unwrap(), [2.0, 6.0, 3.0]);
    assert_eq!(place.item::<i64>().unwrap(), 1);
    assert_eq!(gradient.to_vec::<f64>().unwrap(), [2.0, 10.0, 4.0]);
}

#[test]
fn only_one_float_can_be_differentiated() {
    for wrong in [|x: &Tensor| x + 1.0, |x: &Tensor| x.argmax(0)] {
        let f = compile(move |x: Tensor| grad(wrong)(&x));
        let error = f.call(&random(&[3], 1)).unwrap_err();
        assert_eq!(error.code(), "shape");
        assert!(error.origin().unwrap().file.ends_with("derivatives.rs"), "{error}");
        assert!(error.to_string().contains("one number of a float type"), "{error}");
    }
    let f = compile(|x: Tensor| {
        let (_, pull) = vjp(|x: &Tensor| (x.sin(), x.cos()), &x);
        pull(&(x, x.sum(..)))
    });
    assert_eq!(f.call(&random(&[3], 1)).unwrap_err().code(), "shape");
}

/// AdamW against its formulas, written out (Loshchilov and Hutter 2019, algorithm 2).
#[test]
fn adamw_follows_its_formulas() {
    let (rate, beta1, beta2, epsilon, decay) = (0.1, 0.8, 0.9, 1e-6, 0.02);
    let f = compile(move |(x, state, g): (Tensor, AdamState<Tensor>, Tensor)| {
        adamw(rate).betas(beta1, beta2).epsilon(epsilon).weight_decay(decay).update(x, state, g)
    });
    let mut x = random(&[3], 1);
    let mut state = AdamState::new(&x).unwrap();
    let mut expected = x.to_vec::<f64>().unwrap();
    let (mut first, mut second) = ([0.0; 3], [0.0; 3]);
    for t in 1..=4 {
        let g = random(&[3], 100 + t as u64);
        (x, state) = f.call((&x, &state, &g)).unwrap();
        for (i, g) in g.to_vec::<f64>().unwrap().into_iter().enumerate() {
            first[i] = beta1 * first[i] + (1.0 - beta1) * g;
            second[i] = beta2 * second[i] + (1.0 - beta2) * g * g;
            let mean = first[i] / (1.0 - beta1.powi(t));
            let square: f64 = second[i] / (1.0 - beta2.powi(t));
            expected[i] -= rate * (mean / (square.sqrt() + epsilon) + decay * expected[i]);
        }
        for (found, expected) in x.to_vec::<f64>().unwrap().iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }
    assert_eq!(state.step.item::<i64>().unwrap(), 4);
}

#[test]
fn sgd_clipping_and_schedules_follow_their_formulas() {
    let f = compile(|(x, state, g): (Tensor, SgdState<Tensor>, Tensor)| {
        sgd(0.5).momentum(0.9).update(x, state, g)
    });
    let mut x = Array::new([1], &[1.0f64]).unwrap();
    let mut state = SgdState::new(&x).unwrap();
    for (g, expected) in [(1.0, 0.5), (2.0, -0.95), (0.0, -2.255)] {
        (x, state) = f.call((&x, &state, &Array::new([1], &[g]).unwrap())).unwrap();
        assert!((x.to_vec::<f64>().unwrap()[0] - expected).abs() < 1e-12);
    }

    let clip = compile(|g: (Tensor, Tensor)| clip_by_global_norm(g, 2.5));
    let ((a, b), norm) = clip.call((&Array::scalar(3.0f32), &Array::new([1], &[4.0f32]).unwrap())).unwrap();
    assert_eq!(
        (a.item::<f32>().unwrap(), b.item::<f32>().unwrap(), norm.item::<f32>().unwrap()),
        (1.5, 2.0, 5.0)
    );
    let ((a, _), _) = clip.call((&Array::scalar(0.0f32), &Array::new([1], &[2.0f32]).unwrap())).unwrap();
    assert_eq!(a.item::<f32>().unwrap(), 0.0);

    let rate = compile(|step: Tensor| cosine(step, 2.0, 4, 12));
    let at = |step: i64| rate.call(&Array::scalar(step)).unwrap().item::<f32>().unwrap();
    for (step, expected) in [(0, 0.5), (3, 2.0), (4, 2.0), (8, 1.0), (12, 0.0), (20, 0.0)] {
        assert!((at(step) - expected).abs() < 1e-6, "step {step}: {}", at(step));
    }
}
