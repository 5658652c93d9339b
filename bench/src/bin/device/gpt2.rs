//! A training step of a model of GPT-2's smaller size: 12 layers, bf16 with f32 weights, AdamW; with a learned bias for
//! each head and distance, or without.

use std::time::Instant;

use tilewright::optimizers::{AdamState, adamw};
use tilewright::prelude::*;

use crate::{DEVICE, time};

const WIDTH: usize = 768;
const HEADS: usize = 12;
/// A multiple of 128, as the peers have it.
const WORDS: usize = 50304;

#[derive(Clone, Tree)]
struct Model<T> {
    embedding: T,
    positions: T,
    layers: Vec<Layer<T>>,
    norm: Norm<T>,
}

#[derive(Clone, Tree)]
struct Norm<T> {
    gain: T,
    offset: T,
}

#[derive(Clone, Tree)]
struct Layer<T> {
    attention_norm: Norm<T>,
    query_key_value: T,
    output: T,
    bias: Option<T>,
    perceptron_norm: Norm<T>,
    up: T,
    down: T,
}

impl Norm<Tensor> {
    fn new() -> Norm<Tensor> {
        Norm { gain: ones([WIDTH], DType::F32), offset: zeros([WIDTH], DType::F32) }
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        x.cast(DType::F32).layer_norm(self.gain, self.offset, 1e-5).cast(DType::BF16)
    }
}

impl Model<Tensor> {
    fn new(key: &Key, layers: usize, length: usize, biased: bool) -> Model<Tensor> {
        let normal = |key: &Key, shape: [usize; 2], deviation: f64| key.normal(shape, DType::F32) * deviation;
        let layer = |i: usize| {
            let [a, b, c, d] = key.fold_in(i as i64).split();
            Layer {
                attention_norm: Norm::new(),
                query_key_value: normal(&a, [WIDTH, 3 * WIDTH], 0.02),
                output: normal(&b, [WIDTH, WIDTH], 0.02),
                bias: biased.then(|| zeros([HEADS, 2 * length - 1], DType::F32)),
                perceptron_norm: Norm::new(),
                up: normal(&c, [WIDTH, 4 * WIDTH], 0.02),
                down: normal(&d, [4 * WIDTH, WIDTH], 0.02),
            }
        };
        Model {
            embedding: normal(&key.fold_in(-1), [WORDS, WIDTH], 0.02),
            positions: normal(&key.fold_in(-2), [length, WIDTH], 0.02),
            layers: (0..layers).map(layer).collect(),
            norm: Norm::new(),
        }
    }

    fn loss(&self, words: &Tensor) -> Tensor {
        let (batch, length) = (words.dim(0), words.dim(1) - 1);
        let half = |weight: &Tensor| weight.cast(DType::BF16);
        let embedding = half(&self.embedding);
        let mut x = embedding.at([words.narrow(1, 0, length)]) + half(&self.positions);
        for layer in &self.layers {
            let packed = layer.attention_norm.apply(&x).matmul(half(&layer.query_key_value));
            let split = packed.reshape([batch, length, 3, HEADS, WIDTH / HEADS]);
            let part = |i| split.index(2, i).swap_axes(1, 2);
            let (query, key, value) = (part(0), part(1), part(2));
            let mut attention = flex_attention(&query, &key, &value).mask(mods::causal);
            if let Some(bias) = layer.bias {
                let last = length as i64 - 1;
                attention = attention.score(|s, at| s + bias.at([at.head, at.query - at.key + last]));
            }
            let mixed = attention.call().swap_axes(1, 2).reshape([batch, length, WIDTH]);
            x = x + mixed.matmul(half(&layer.output));
            let hidden = layer.perceptron_norm.apply(&x).matmul(half(&layer.up)).gelu_tanh();
            x = x + hidden.matmul(half(&layer.down));
        }
        let logits = self.norm.apply(&x).matmul(embedding.transpose());
        cross_entropy(logits.cast(DType::F32), words.narrow(1, 1, length)).mean(..)
    }
}

pub fn run(arguments: &[String]) -> Result<()> {
    let number = |name: &str, default: usize| {
        let place = arguments.iter().position(|argument| argument == name);
        place.and_then(|place| arguments.get(place + 1)?.parse().ok()).unwrap_or(default)
    };
    let (layers, batch, length) = (number("--layers", 12), number("--batch", 8), number("--length", 1024));
    let words = Array::from_fn([batch, length + 1], |i| ((i[0] * 7919 + i[1] * 104_729) % 50257) as i32)?
        .to_device(DEVICE)?;
    for biased in [true, false] {
        let initialise =
            compile(|seed: Tensor| Model::new(&Key::new(seed), layers, length, biased)).on(DEVICE);
        let mut model = initialise.call(&Array::scalar(1i64))?;
        let mut adam = to_device(&AdamState::new(&model)?, DEVICE)?;
        let step = compile(|(model, adam, words): (Model<Tensor>, AdamState<Tensor>, Tensor)| {
            let (loss, gradient) = value_and_grad(|model: &Model<Tensor>| model.loss(&words))(&model);
            let (model, adam) = adamw(3e-4).update(model, adam, gradient);
            (loss, model, adam)
        })
        .on(DEVICE);
        let start = Instant::now();
        step.program((&model, &adam, &words))?;
        eprintln!("planned after {:?}", start.elapsed());
        let loss = step.call((&model, &adam, &words))?.0.item::<f32>()?;
        eprintln!("first step after {:?}, loss {loss}", start.elapsed());
        let mut losses = Vec::new();
        let taken = time(6, || {
            let (loss, moved, state) = step.call((&model, &adam, &words))?;
            (model, adam) = (moved, state);
            losses.push(loss);
            Ok(())
        })?;
        let (first, last) = (losses[0].item::<f32>()?, losses[losses.len() - 1].item::<f32>()?);
        println!(
            r#"{{"case": "gpt2", "layers": {layers}, "B": {batch}, "S": {length}, "bias": {biased}, "ms": {:.3}, "first_loss": {first:.4}, "last_loss": {last:.4}}}"#,
            taken.as_secs_f64() * 1e3
        );
        if arguments.iter().any(|argument| argument == "--profile") {
            let explained = step.explain();
            println!("{}", explained.lines().take(6).collect::<Vec<_>>().join("\n"));
            println!("{}", step.profile((&model, &adam, &words))?);
        }
    }
    Ok(())
}
