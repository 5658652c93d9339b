//! A training step of a model of gated linear recurrences: 12 layers, products in bf16, states and weights in f32, AdamW.
//! `bench/peers/device_peer.py jax-model` is the same in JAX.

use tilewright::optimizers::{AdamState, adamw};
use tilewright::prelude::*;

use crate::{DEVICE, time};

const WIDTH: usize = 768;
const WORDS: usize = 256;
const LAYERS: usize = 12;
const BATCH: usize = 8;
const LENGTH: usize = 2048;

#[derive(Clone, Tree)]
struct Model<T> {
    embedding: T,
    layers: Vec<Layer<T>>,
}

#[derive(Clone, Tree)]
struct Layer<T> {
    gain: T,
    /// What is kept, what comes in, and what is let out.
    gates: T,
    output: T,
}

impl Model<Tensor> {
    fn new(key: &Key) -> Model<Tensor> {
        let normal = |key: &Key, shape: [usize; 2]| key.normal(shape, DType::F32) * 0.02;
        let layer = |i: usize| {
            let [a, b] = key.fold_in(i as i64).split();
            Layer {
                gain: ones([WIDTH], DType::F32),
                gates: normal(&a, [WIDTH, 3 * WIDTH]),
                output: normal(&b, [WIDTH, WIDTH]),
            }
        };
        Model {
            embedding: normal(&key.fold_in(-1), [WORDS, WIDTH]),
            layers: (0..LAYERS).map(layer).collect(),
        }
    }

    fn loss(&self, words: &Tensor) -> Tensor {
        let half = |x: &Tensor| x.cast(DType::BF16);
        let mut x = self.embedding.at([words.narrow(1, 0, LENGTH)]);
        for layer in &self.layers {
            let gates = half(&x.rms_norm(layer.gain, 1e-5)).matmul(half(&layer.gates)).cast(DType::F32);
            let part = |i: usize| gates.narrow(2, i * WIDTH, WIDTH);
            let kept = part(0).sigmoid();
            let combine = |l: (Tensor, Tensor), r: (Tensor, Tensor)| (l.0 * r.0, r.0 * l.1 + r.1);
            let states = associative_scan((kept, (1.0 - kept) * part(1)), 1, combine).call().1;
            x = x + half(&(states * part(2).silu())).matmul(half(&layer.output)).cast(DType::F32);
        }
        let logits = half(&x).matmul(half(&self.embedding).transpose());
        cross_entropy(logits.cast(DType::F32), words.narrow(1, 1, LENGTH)).mean(..)
    }
}

pub fn run(arguments: &[String]) -> Result<()> {
    let words = Array::from_fn([BATCH, LENGTH + 1], |i| ((i[0] * 79 + i[1] * i[1] * 31) % WORDS) as i32)?
        .to_device(DEVICE)?;
    let initialise = compile(|seed: Tensor| Model::new(&Key::new(seed))).on(DEVICE);
    let mut model = initialise.call(&Array::scalar(1i64))?;
    let mut adam = to_device(&AdamState::new(&model)?, DEVICE)?;
    let step = compile(|(model, adam, words): (Model<Tensor>, AdamState<Tensor>, Tensor)| {
        let (loss, gradient) = value_and_grad(|model: &Model<Tensor>| model.loss(&words))(&model);
        let (model, adam) = adamw(3e-4).update(model, adam, gradient);
        (loss, model, adam)
    })
    .on(DEVICE);
    let mut losses = Vec::new();
    let taken = time(6, || {
        let (loss, moved, state) = step.call((&model, &adam, &words))?;
        (model, adam) = (moved, state);
        losses.push(loss);
        Ok(())
    })?;
    let (first, last) = (losses[0].item::<f32>()?, losses[losses.len() - 1].item::<f32>()?);
    println!(
        r#"{{"case": "recurrence model", "layers": {LAYERS}, "B": {BATCH}, "S": {LENGTH}, "ms": {:.3}, "first_loss": {first:.4}, "last_loss": {last:.4}}}"#,
        taken.as_secs_f64() * 1e3
    );
    if arguments.iter().any(|argument| argument == "--profile") {
        println!("{}", step.profile((&model, &adam, &words))?);
    }
    Ok(())
}
