//! A gated linear recurrence with a complex diagonal state, several layers deep.
//!
//! Each channel of the state turns by its own angle and fades by its own rate in each step (Orvieto et al. 2023); how
//! fast it fades is gated by the input (De et al. 2024). The recurrence h ← a·h + b over complex numbers is an
//! associative scan over pairs of reals.

use std::f64::consts::TAU;

use tilewright::prelude::*;

/// Sizes of the model.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub layers: usize,
    pub width: usize,
    pub state: usize,
}

#[derive(Clone, Debug, Tree)]
pub struct Model<T> {
    pub embed: T,
    pub layers: Vec<Layer<T>>,
    pub norm: T,
    pub classify: T,
    pub offset: T,
}

#[derive(Clone, Debug, Tree)]
pub struct Layer<T> {
    pub norm: T,
    /// Logarithm of each channel's rate of fading.
    pub fade: T,
    /// Angle that each channel turns by.
    pub angle: T,
    pub gate: T,
    /// Input to the state: real and imaginary parts.
    pub into: T,
    /// State to the output: real and imaginary parts.
    pub out: T,
    pub up: T,
    pub down: T,
}

impl Model<Tensor> {
    /// Random weights; channels fade within 2 to 60 steps and turn by up to half a circle.
    pub fn new(config: &Config, key: &Key) -> Model<Tensor> {
        let Config { layers, width, state } = *config;
        let normal =
            |key: &Key, shape: [usize; 2]| key.normal(shape, DType::F32) * (shape[0] as f64).powf(-0.5);
        let layer = |i: usize| {
            let [a, b, c, d, e] = key.fold_in(i as i64).split();
            let [f, g] = e.split();
            let spread = f.uniform([state], DType::F32);
            Layer {
                norm: ones([width], DType::F32),
                fade: spread * ((1f64 / 60.0).ln() - 0.5f64.ln()) + 0.5f64.ln(),
                angle: g.uniform([state], DType::F32) * (TAU / 2.0),
                gate: normal(&a, [width, state]),
                into: normal(&b, [width, 2 * state]),
                out: normal(&c, [2 * state, width]),
                up: normal(&d, [width, 2 * width]),
                down: normal(&d.fold_in(1), [2 * width, width]) * 0.5,
            }
        };
        Model {
            embed: normal(&key.fold_in(-1), [2, width]),
            layers: (0..layers).map(layer).collect(),
            norm: ones([width], DType::F32),
            classify: normal(&key.fold_in(-2), [width, 10]),
            offset: zeros([10], DType::F32),
        }
    }

    /// Logits `[batch, 10]` for brightnesses `[batch, length]`.
    pub fn logits(&self, pixels: &Tensor) -> Tensor {
        // A constant second feature stands in for a bias.
        let features = stack(&[*pixels, pixels.ones_like()], -1);
        let mut x = features.matmul(self.embed);
        for layer in &self.layers {
            x = x + layer.recur(&x.rms_norm(layer.norm, 1e-5));
            x = x + x.rms_norm(layer.norm, 1e-5).matmul(layer.up).gelu_tanh().matmul(layer.down);
        }
        x.rms_norm(self.norm, 1e-5).mean(1).matmul(self.classify) + self.offset
    }

    /// Mean cross entropy of digits `[batch]`.
    pub fn loss(&self, pixels: &Tensor, digits: &Tensor) -> Tensor {
        cross_entropy(self.logits(pixels), digits).mean(..)
    }
}

/// The product and sum of complex affine maps h ↦ a·h + b, as (Re a, Im a, Re b, Im b).
type Affine = (Tensor, Tensor, Tensor, Tensor);

fn compose(first: Affine, then: Affine) -> Affine {
    let (a, b, c, d) = first;
    let (e, f, g, h) = then;
    (e * a - f * b, e * b + f * a, e * c - f * d + g, e * d + f * c + h)
}

impl Layer<Tensor> {
    /// The layer's recurrence over `x [batch, length, width]`.
    fn recur(&self, x: &Tensor) -> Tensor {
        let gate = x.matmul(self.gate).sigmoid();
        let rate = -(self.fade.exp() * 2.0 * gate);
        let size = rate.exp();
        // The input is scaled so that the state keeps its size whatever it fades by.
        let share = (1.0 - (rate * 2.0).exp() + 1e-6).sqrt();
        let parts = x.matmul(self.into).split(2, -1);
        let element = (size * self.angle.cos(), size * self.angle.sin(), parts[0] * share, parts[1] * share);
        let (_, _, real, imaginary) = associative_scan(element, 1, compose).call();
        concatenate(&[real, imaginary], -1).matmul(self.out)
    }
}

/// Logistic regression on the pixels.
#[derive(Clone, Debug, Tree)]
pub struct Logistic<T> {
    pub weight: T,
    pub offset: T,
}

impl Logistic<Tensor> {
    pub fn logits(&self, pixels: &Tensor) -> Tensor {
        pixels.matmul(self.weight) + self.offset
    }

    pub fn loss(&self, pixels: &Tensor, digits: &Tensor) -> Tensor {
        cross_entropy(self.logits(pixels), digits).mean(..)
    }
}
