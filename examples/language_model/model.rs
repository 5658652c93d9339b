//! A decoder over bytes. Its only knowledge of position is a bias that each layer and head learns for each distance.

use tilewright::prelude::*;

/// Sizes of the model.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub layers: usize,
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

/// Attention and a multilayer perceptron, each with a residual.
#[derive(Clone, Debug, Tree)]
pub struct Layer<T> {
    pub attention_norm: T,
    pub query_key_value: T,
    pub output: T,
    /// `[heads, context]`: added to the score of a key that lies so many positions back.
    pub bias: Option<T>,
    pub perceptron_norm: T,
    pub up: T,
    pub down: T,
}

impl Gpt<Tensor> {
    /// Random weights.
    pub fn new(config: &Config, key: &Key) -> Gpt<Tensor> {
        let width = config.width;
        let normal = |key: &Key, shape: [usize; 2], deviation: f64| key.normal(shape, DType::F32) * deviation;
        let into = (width as f64).powf(-0.5);
        let residual = into / (2.0 * config.layers as f64).sqrt();
        let layers = (0..config.layers)
            .map(|i| {
                let [a, b, c, d] = key.fold_in(i as i64).split();
                Layer {
                    attention_norm: ones([width], DType::F32),
                    query_key_value: normal(&a, [width, 3 * width], into),
                    output: normal(&b, [width, width], residual),
                    bias: config.biases.then(|| zeros([config.heads, config.context], DType::F32)),
                    perceptron_norm: ones([width], DType::F32),
                    up: normal(&c, [width, 4 * width], into),
                    down: normal(&d, [4 * width, width], residual / 2.0),
                }
            })
            .collect();
        let embedding = normal(&key.fold_in(-1), [256, width], 0.05);
        Gpt { embedding, layers, norm: ones([width], DType::F32) }
    }

    /// Logits `[batch, length, 256]` of the byte after each of `bytes [batch, length]`.
    pub fn logits(&self, bytes: &Tensor, heads: usize) -> Tensor {
        let mut x = self.embedding.at([*bytes]);
        for layer in &self.layers {
            x = x + layer.attend(&x.rms_norm(layer.attention_norm, 1e-5), heads);
            let hidden = x.rms_norm(layer.perceptron_norm, 1e-5).matmul(layer.up).gelu_tanh();
            x = x + hidden.matmul(layer.down);
        }
        x.rms_norm(self.norm, 1e-5).matmul(self.embedding.transpose())
    }

    /// Mean cross entropy, in bits a byte, of each byte of `windows [batch, length + 1]` after its predecessors.
    pub fn bits_per_byte(&self, windows: &Tensor, heads: usize) -> Tensor {
        let length = windows.dim(1) - 1;
        let logits = self.logits(&windows.narrow(1, 0, length), heads);
        cross_entropy(logits, windows.narrow(1, 1, length)) / std::f64::consts::LN_2
    }
}

impl Layer<Tensor> {
    fn attend(&self, x: &Tensor, heads: usize) -> Tensor {
        let (batch, length, width) = (x.dim(0), x.dim(1), x.dim(2));
        let split = x.matmul(self.query_key_value).reshape([batch, length, 3, heads, width / heads]);
        let part = |i| split.index(2, i).swap_axes(1, 2);
        let (query, key, value) = (part(0), part(1), part(2));
        let mut attention = flex_attention(&query, &key, &value).mask(mods::causal);
        if let Some(bias) = self.bias {
            attention = attention.score(|score, at| score + bias.at([at.head, at.query - at.key]));
        }
        attention.call().swap_axes(1, 2).reshape([batch, length, width]).matmul(self.output)
    }
}
