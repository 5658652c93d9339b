//! Attention, as the dense definition: all scores of a row, then its softmax, then its output.

use tilewright_ir::{DType, FlexAttention, Graph, Result};

use crate::Precision;
use crate::array::Array;
use crate::evaluator::{Evaluator, Operands};
use crate::rounding::rounding;

/// The sizes of a call.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head_size: usize,
    pub(crate) value_size: usize,
    key_batch: usize,
    key_heads: usize,
}

impl Sizes {
    pub(crate) fn of(operands: Operands<'_>) -> Sizes {
        let [query, key, value] = [0, 1, 2].map(|i| &operands.get(i).ty.shape);
        Sizes {
            batch: query[0],
            heads: query[1],
            queries: query[2],
            keys: key[2],
            head_size: query[3],
            value_size: value[3],
            key_batch: key[0],
            key_heads: key[1],
        }
    }

    /// The number of a row among `[batch, heads, queries]`.
    pub(crate) fn row(&self, b: usize, h: usize, q: usize) -> usize {
        (b * self.heads + h) * self.queries + q
    }

    /// The number of the first key that batch b and query head h see, among `[key_batch, key_heads, keys]`.
    pub(crate) fn first_key(&self, b: usize, h: usize) -> usize {
        let b = if self.key_batch == 1 { 0 } else { b };
        (b * self.key_heads + h / (self.heads / self.key_heads)) * self.keys
    }
}

/// Rounding to the type of the query, and to the score type.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    operand: DType,
    score: DType,
    precision: Precision,
}

impl Rounding {
    pub(crate) fn of(query: DType, precision: Precision) -> Rounding {
        let score = if query == DType::F64 { DType::F64 } else { DType::F32 };
        Rounding { operand: query, score, precision }
    }

    pub(crate) fn operand(self) -> impl Fn(f64) -> f64 + Copy {
        rounding(self.operand, self.precision)
    }

    pub(crate) fn score(self) -> impl Fn(f64) -> f64 + Copy {
        rounding(self.score, self.precision)
    }

    /// A sum of products, accumulated in the score type.
    pub(crate) fn dot(self, x: &[f64], y: &[f64]) -> f64 {
        let round = self.score();
        x.iter().zip(y).fold(0.0, |sum, (x, y)| round(sum + round(x * y)))
    }

    /// Adds `factor · x` to `sums`, in the score type.
    pub(crate) fn add(self, sums: &mut [f64], factor: f64, x: &[f64]) {
        let round = self.score();
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = round(*sum + round(factor * x));
        }
    }
}

/// Vector `number` of an array whose last axis has `size` elements.
pub(crate) fn vector(elements: &[f64], number: usize, size: usize) -> &[f64] {
    &elements[number * size..(number + 1) * size]
}

/// A region that runs once for each pair: its parameters are `leading` scalars (a score, or none), the pair
/// `b h q k`, `trailing` scalars (a cotangent, or none), then the captures.
pub(crate) struct PairRegion<'g> {
    evaluator: Evaluator<'g>,
    leading: usize,
}

impl<'g> PairRegion<'g> {
    /// The stages of the leading scalars and the pair are 1, of the trailing scalars 2.
    pub(crate) fn new<'a>(
        region: &'g Graph,
        leading: usize,
        trailing: usize,
        captures: impl Iterator<Item = &'a Array>,
        precision: Precision,
    ) -> Result<PairRegion<'g>> {
        let captures: Vec<&Array> = captures.collect();
        let stages = [vec![1; leading + 4], vec![2; trailing], vec![0; captures.len()]].concat();
        let mut evaluator = Evaluator::new(region, precision, &stages)?;
        for (i, capture) in captures.into_iter().enumerate() {
            evaluator.set(leading + 4 + trailing + i, capture);
        }
        evaluator.run(0)?;
        Ok(PairRegion { evaluator, leading })
    }

    /// Runs what depends on the leading scalars and on the pair.
    pub(crate) fn run_pair(&mut self, leading: &[f64], pair: [usize; 4]) -> Result<()> {
        for (i, &x) in leading.iter().enumerate() {
            self.evaluator.parameter(i).fill([x]);
        }
        for (i, &position) in pair.iter().enumerate() {
            self.evaluator.parameter(self.leading + i).fill_integers([position as i64]);
        }
        self.evaluator.run(1)
    }

    /// Runs the rest, which depends on the trailing scalar.
    pub(crate) fn run_trailing(&mut self, x: f64) -> Result<()> {
        self.evaluator.parameter(self.leading + 4).fill([x]);
        self.evaluator.run(2)
    }

    pub(crate) fn result(&self, number: usize) -> &Array {
        self.evaluator.result(number)
    }
}

/// The mask of an attention, or none.
pub(crate) struct Mask<'g>(Option<PairRegion<'g>>);

impl<'g> Mask<'g> {
    pub(crate) fn new<'a>(
        mask: Option<&'g Graph>,
        captures: impl Iterator<Item = &'a Array>,
        precision: Precision,
    ) -> Result<Mask<'g>> {
        Ok(Mask(mask.map(|mask| PairRegion::new(mask, 0, 0, captures, precision)).transpose()?))
    }

    /// Whether the pair is admitted.
    pub(crate) fn admits(&mut self, pair: [usize; 4]) -> Result<bool> {
        let Some(region) = &mut self.0 else { return Ok(true) };
        region.run_pair(&[], pair)?;
        Ok(region.result(0).integers()[0] != 0)
    }
}

pub(crate) fn evaluate(
    attention: &FlexAttention,
    operands: Operands<'_>,
    results: &mut [Array],
    precision: Precision,
) -> Result<()> {
    let sizes = Sizes::of(operands);
    let rounding = Rounding::of(operands.get(0).ty.dtype, precision);
    let (round_operand, round) = (rounding.operand(), rounding.score());
    let [query, key, value] = [0, 1, 2].map(|i| operands.get(i).floats());
    let mut mask = Mask::new(attention.mask.as_ref(), operands.from(3), precision)?;
    let mut score = PairRegion::new(&attention.score, 1, 0, operands.from(3), precision)?;

    let (mut output, mut log_sum_exp, mut maximum) = (Vec::new(), Vec::new(), Vec::new());
    let mut unrounded = Vec::new();
    let mut scores: Vec<(usize, f64)> = Vec::new();
    for b in 0..sizes.batch {
        for h in 0..sizes.heads {
            let first_key = sizes.first_key(b, h);
            for q in 0..sizes.queries {
                let query = vector(query, sizes.row(b, h, q), sizes.head_size);
                scores.clear();
                for k in 0..sizes.keys {
                    let pair = [b, h, q, k];
                    if mask.admits(pair)? {
                        let key = vector(key, first_key + k, sizes.head_size);
                        let product = round_operand(rounding.dot(query, key));
                        score.run_pair(&[round(product * attention.scale)], pair)?;
                        scores.push((k, score.result(0).floats()[0]));
                    }
                }
                let top = scores.iter().fold(
                    f64::NEG_INFINITY,
                    |top, &(_, s)| {
                        if s.is_nan() || s > top { s } else { top }
                    },
                );
                let exponential = |s: f64| round(libm::exp(round(s - top)));
                let sum = scores.iter().fold(0.0, |sum, &(_, s)| round(sum + exponential(s)));
                let logarithm = if top.is_infinite() { top } else { round(top + round(libm::log(sum))) };
                let mut row = vec![0.0; sizes.value_size];
                let mut unrounded_row = vec![0.0; if results.len() > 3 { sizes.value_size } else { 0 }];
                if logarithm != f64::NEG_INFINITY {
                    for &(k, s) in &scores {
                        let probability = round(exponential(s) / sum);
                        let value = vector(value, first_key + k, sizes.value_size);
                        rounding.add(&mut row, round_operand(probability), value);
                        rounding.add(&mut unrounded_row, probability, value);
                    }
                }
                output.extend(row.into_iter().map(round_operand));
                unrounded.extend(unrounded_row);
                log_sum_exp.push(logarithm);
                maximum.push(top);
            }
        }
    }
    results[0].fill(output);
    results[1].fill(log_sum_exp);
    results[2].fill(maximum);
    if let Some(result) = results.get_mut(3) {
        result.fill(unrounded);
    }
    Ok(())
}
