//! A decoder over bytes. Its only knowledge of position is what its mixers learn: a bias for each head and distance, or
//! how fast each channel of a recurrence forgets.

use tilewright::prelude::*;

/// How a layer mixes positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Attention with a learned bias for each head and distance.
    Attention,
    /// A gated linear recurrence with a learned decay for each channel.
    Scan,
}

/// Sizes of the model.
#[derive(Clone, Debug)]
pub struct Config {
    pub layers: Vec<Kind>,
    pub heads: usize,
    pub width: usize,
    pub context: usize,
    pub biases: bool,
}

/// The model: one struct for traced values and for real arrays.
#[derive(Clone, Debug, Tree)]
pub struct Gpt<T> {
    pub embedding: T,
    pub layers: Vec<Layer<T>>,
    pub norm: T,
}

/// A mixer and a multilayer perceptron, each with a residual.
#[derive(Clone, Debug, Tree)]
pub struct Layer<T> {
    pub mixer_norm: T,
    pub mixer: Mixer<T>,
    pub perceptron_norm: T,
    pub up: T,
    pub down: T,
}

/// What lets positions see each other.
#[derive(Clone, Debug, Tree)]
pub enum Mixer<T> {
    Attention {
        query_key_value: T,
        output: T,
        /// `[heads, context]`: added to the score of a key that lies so many positions back.
        bias: Option<T>,
    },
    Scan {
        value_and_gate: T,
        output: T,
        /// `[width]`: what each channel keeps in a step, beside its gate; captured by the combine function.
        decay: T,
    },
}

impl Gpt<Tensor> {
    /// Random weights.
    pub fn new(config: &Config, key: &Key) -> Gpt<Tensor> {
        let width = config.width;
        let normal = |key: &Key, shape: [usize; 2], deviation: f64| key.normal(shape, DType::F32) * deviation;
        let into = (width as f64).powf(-0.5);
        let residual = into / (2.0 * config.layers.len() as f64).sqrt();
        let layer = |(i, kind): (usize, &Kind)| {
            let [a, b, c, d] = key.fold_in(i as i64).split();
            let output = normal(&b, [width, width], residual);
            let mixer = match kind {
                Kind::Attention => Mixer::Attention {
                    query_key_value: normal(&a, [width, 3 * width], into),
                    output,
                    bias: config.biases.then(|| slopes(config.heads, config.context)),
                },
                Kind::Scan => Mixer::Scan {
                    value_and_gate: normal(&a, [width, 2 * width], into),
                    output,
                    decay: full([width], 3.0, DType::F32),
                },
            };
            Layer {
                mixer_norm: ones([width], DType::F32),
                mixer,
                perceptron_norm: ones([width], DType::F32),
                up: normal(&c, [width, 4 * width], into),
                down: normal(&d, [4 * width, width], residual / 2.0),
            }
        };
        Gpt {
            embedding: normal(&key.fold_in(-1), [256, width], 0.05),
            layers: config.layers.iter().enumerate().map(layer).collect(),
            norm: ones([width], DType::F32),
        }
    }

    /// Logits `[batch, length, 256]` of the byte after each of `bytes [batch, length]`.
    pub fn logits(&self, bytes: &Tensor, heads: usize) -> Tensor {
        let mut x = self.embedding.at([*bytes]);
        for layer in &self.layers {
            x = x + layer.mixer.mix(&x.rms_norm(layer.mixer_norm, 1e-5), heads);
            let hidden = x.rms_norm(layer.perceptron_norm, 1e-5).matmul(layer.up).gelu_tanh();
            x = x + hidden.matmul(layer.down);
        }
        x.rms_norm(self.norm, 1e-5).matmul(self.embedding.transpose())
    }

    /// Cross entropy, in bits, of each byte of `windows [batch, length + 1]` after its predecessors.
    pub fn bits(&self, windows: &Tensor, heads: usize) -> Tensor {
        let length = windows.dim(1) - 1;
        let logits = self.logits(&windows.narrow(1, 0, length), heads);
        cross_entropy(logits, windows.narrow(1, 1, length)) / std::f64::consts::LN_2
    }
}

/// Biases `[heads, context]` to begin with: each head has a slope of its own, the first looks near, the last far
/// (Press, Smith and Lewis 2022). Learning bends them.
fn slopes(heads: usize, context: usize) -> Tensor {
    let head = iota([heads, 1], 0, DType::F32);
    let distance = iota([1, context], 1, DType::F32);
    -(head * (-2.0 * std::f64::consts::LN_2)).exp() * distance
}

impl Mixer<Tensor> {
    fn mix(&self, x: &Tensor, heads: usize) -> Tensor {
        match self {
            Mixer::Attention { query_key_value, output, bias } => {
                attend(&x.matmul(query_key_value), *bias, heads).matmul(output)
            }
            Mixer::Scan { value_and_gate, output, decay } => {
                recur(&x.matmul(value_and_gate), decay.sigmoid()).matmul(output)
            }
        }
    }
}

/// Causal attention; `packed [batch, length, 3 · width]` holds queries, keys and values of all heads.
fn attend(packed: &Tensor, bias: Option<Tensor>, heads: usize) -> Tensor {
    let (batch, length, width) = (packed.dim(0), packed.dim(1), packed.dim(2) / 3);
    let split = packed.reshape([batch, length, 3, heads, width / heads]);
    let part = |i| split.index(2, i).swap_axes(1, 2);
    let (query, key, value) = (part(0), part(1), part(2));
    let mut attention = flex_attention(&query, &key, &value).mask(mods::causal);
    if let Some(bias) = bias {
        attention = attention.score(|score, at| score + bias.at([at.head, at.query - at.key]));
    }
    attention.call().swap_axes(1, 2).reshape([batch, length, width])
}

/// h ← keep · gate · h + (1 − gate) · value along the length, where `keep` is captured by the combine function.
fn recur(packed: &Tensor, keep: Tensor) -> Tensor {
    let parts = packed.split(2, -1);
    let gate = parts[1].sigmoid();
    let input = (1.0 - gate) * parts[0];
    let combine = |l: (Tensor, Tensor), r: (Tensor, Tensor)| (keep * l.0 * r.0, keep * r.0 * l.1 + r.1);
    associative_scan((gate, input), 1, combine).call().1
}
