//! Attention and its gradient in plain loops, each operation rounded as asked: not at all for the truth, or
//! to a type for the unfused evaluation that tolerances are relative to.

use tilewright_plan::attention::AttentionShape;

use crate::functions::{Function, Mask, Pair};

/// Query, key and value, the output's cotangent, the log-sum-exp's, and the captured array; packed.
pub struct Inputs {
    pub query: Vec<f64>,
    pub key: Vec<f64>,
    pub value: Vec<f64>,
    pub output_cotangent: Vec<f64>,
    pub log_sum_exp_cotangent: Vec<f64>,
    pub table: Vec<f64>,
}

/// All results; packed.
#[derive(Clone, Debug)]
pub struct Results {
    pub output: Vec<f64>,
    pub log_sum_exp: Vec<f64>,
    pub maximum: Vec<f64>,
    pub query: Vec<f64>,
    pub key: Vec<f64>,
    pub value: Vec<f64>,
    pub table: Vec<f64>,
}

impl Results {
    /// Each result with its name.
    pub fn named(&self) -> [(&'static str, &[f64]); 7] {
        [
            ("output", &self.output),
            ("log_sum_exp", &self.log_sum_exp),
            ("maximum", &self.maximum),
            ("query cotangent", &self.query),
            ("key cotangent", &self.key),
            ("value cotangent", &self.value),
            ("table cotangent", &self.table),
        ]
    }
}

/// Evaluates attention and its gradient. `factor` rounds weights and the scores' cotangents where the gradient multiplies by
/// them.
pub fn evaluate(
    shape: &AttentionShape,
    scale: f64,
    function: &Function,
    mask: &Mask,
    inputs: &Inputs,
    round: impl Fn(f64) -> f64,
    factor: impl Fn(f64) -> f64,
) -> Results {
    let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, head_size, value_size } = *shape;
    let mut results = Results {
        output: vec![0.0; batch * heads * queries * value_size],
        log_sum_exp: vec![f64::NEG_INFINITY; batch * heads * queries],
        maximum: vec![f64::NEG_INFINITY; batch * heads * queries],
        query: vec![0.0; inputs.query.len()],
        key: vec![0.0; inputs.key.len()],
        value: vec![0.0; inputs.value.len()],
        table: vec![0.0; inputs.table.len()],
    };
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).fold(0.0, |sum, (x, y)| round(sum + round(x * y)));
    for b in 0..batch {
        for h in 0..heads {
            let key_row = |k: usize| {
                let b = if key_batch == 1 { 0 } else { b };
                (b * key_heads + h / (heads / key_heads)) * keys + k
            };
            for q in 0..queries {
                let row = (b * heads + h) * queries + q;
                let query = &inputs.query[row * head_size..][..head_size];
                let live: Vec<usize> = (0..keys).filter(|&k| (mask.admits)(Pair { b, h, q, k })).collect();
                let raw: Vec<f64> = live
                    .iter()
                    .map(|&k| {
                        let key = &inputs.key[key_row(k) * head_size..][..head_size];
                        round(scale * dot(query, key))
                    })
                    .collect();
                let table = &inputs.table;
                let scores: Vec<f64> = live
                    .iter()
                    .zip(&raw)
                    .map(|(&k, &s)| round((function.score)(Pair { b, h, q, k }, s, table)))
                    .collect();
                let maximum =
                    scores.iter().fold(f64::NEG_INFINITY, |m, &s| if s.is_nan() || s > m { s } else { m });
                if maximum == f64::NEG_INFINITY {
                    continue;
                }
                let weights: Vec<f64> = scores.iter().map(|s| round(round(s - maximum).exp())).collect();
                let sum = weights.iter().fold(0.0, |sum, w| round(sum + w));
                let weights: Vec<f64> = weights.iter().map(|w| round(w / sum)).collect();
                results.maximum[row] = maximum;
                results.log_sum_exp[row] =
                    if maximum == f64::INFINITY { maximum } else { round(maximum + round(sum.ln())) };
                let output = &mut results.output[row * value_size..][..value_size];
                for (&k, w) in live.iter().zip(&weights) {
                    let value = &inputs.value[key_row(k) * value_size..][..value_size];
                    output.iter_mut().zip(value).for_each(|(o, v)| *o = round(*o + round(w * v)));
                }
                let cotangent = &inputs.output_cotangent[row * value_size..][..value_size];
                let delta = round(dot(cotangent, output) - inputs.log_sum_exp_cotangent[row]);
                for ((&k, &s), w) in live.iter().zip(&raw).zip(&weights) {
                    let pair = Pair { b, h, q, k };
                    let place = key_row(k);
                    let value = &inputs.value[place * value_size..][..value_size];
                    let g = round(w * round(dot(cotangent, value) - delta));
                    let value_cotangent = &mut results.value[place * value_size..][..value_size];
                    for (dv, c) in value_cotangent.iter_mut().zip(cotangent) {
                        *dv = round(*dv + round(factor(*w) * c));
                    }
                    let ds = round(scale * factor(round(g * (function.slope)(pair, s, table))));
                    let key = &inputs.key[place * head_size..][..head_size];
                    let query_cotangent = &mut results.query[row * head_size..][..head_size];
                    query_cotangent.iter_mut().zip(key).for_each(|(dq, x)| *dq = round(*dq + round(ds * x)));
                    let key_cotangent = &mut results.key[place * head_size..][..head_size];
                    key_cotangent.iter_mut().zip(query).for_each(|(dk, x)| *dk = round(*dk + round(ds * x)));
                    for place in (function.reads)(pair) {
                        let sum = &mut results.table[place];
                        *sum = round(*sum + round(g * (function.factor)(pair, s)));
                    }
                }
            }
        }
    }
    results
}
