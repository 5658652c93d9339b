//! The gradient of attention, pair by pair, from the definition of `FlexAttentionBackward`.

use tilewright_ir::{FlexAttentionBackward, Result};

use crate::Precision;
use crate::array::{Array, Data};
use crate::attention::{Mask, PairRegion, Rounding, Sizes, vector};
use crate::evaluator::Operands;
use crate::indexing::locate;
use crate::rounding::rounding;

pub(crate) fn evaluate(
    attention: &FlexAttentionBackward,
    operands: Operands<'_>,
    results: &mut [Array],
    precision: Precision,
) -> Result<()> {
    let sizes = Sizes::of(operands);
    let Sizes { head_size, value_size, keys, .. } = sizes;
    let rounding = Rounding::of(operands.get(0).ty.dtype, precision);
    let (round_operand, round) = (rounding.operand(), rounding.score());
    let [query, key, value, output, log_sum_exp, output_cotangent] =
        [0, 1, 2, 3, 4, 5].map(|i| operands.get(i).floats());
    let log_sum_exp_cotangent = attention.log_sum_exp_cotangent.then(|| operands.get(6).floats());
    let first_capture = 6 + attention.log_sum_exp_cotangent as usize;
    let captures = || operands.from(first_capture);
    let mut mask = Mask::new(attention.mask.as_ref(), captures(), precision)?;
    let mut joint = PairRegion::new(&attention.joint, 1, 1, captures(), precision)?;

    let mut query_sums = vec![0.0; query.len()];
    let mut key_sums = vec![0.0; key.len()];
    let mut value_sums = vec![0.0; value.len()];
    let mut capture_sums = CaptureSums::new(attention, operands, first_capture, precision);
    for b in 0..sizes.batch {
        for h in 0..sizes.heads {
            let first_key = sizes.first_key(b, h);
            let mut head_key_sums = vec![0.0; keys * head_size];
            let mut head_value_sums = vec![0.0; keys * value_size];
            for q in 0..sizes.queries {
                let row = sizes.row(b, h, q);
                if log_sum_exp[row] == f64::NEG_INFINITY {
                    continue;
                }
                let query = vector(query, row, head_size);
                let output_cotangent = vector(output_cotangent, row, value_size);
                let shared = rounding.dot(output_cotangent, vector(output, row, value_size));
                let log_sum_exp_cotangent = log_sum_exp_cotangent.map_or(0.0, |cotangents| cotangents[row]);
                for k in 0..keys {
                    let pair = [b, h, q, k];
                    if !mask.admits(pair)? {
                        continue;
                    }
                    let key = vector(key, first_key + k, head_size);
                    let product = round_operand(rounding.dot(query, key));
                    joint.run_pair(&[round(product * attention.scale)], pair)?;
                    let score = joint.result(0).floats()[0];
                    let probability = round(libm::exp(round(score - log_sum_exp[row])));
                    let value = vector(value, first_key + k, value_size);
                    let change = round_operand(rounding.dot(output_cotangent, value));
                    let centred = round(round(change - shared) + log_sum_exp_cotangent);
                    joint.run_trailing(round(probability * centred))?;

                    let raw = round(joint.result(1).floats()[0] * attention.scale);
                    let raw = round_operand(raw);
                    rounding.add(&mut query_sums[row * head_size..][..head_size], raw, key);
                    rounding.add(&mut head_key_sums[k * head_size..][..head_size], raw, query);
                    let probability = round_operand(probability);
                    let head_value_sums = &mut head_value_sums[k * value_size..][..value_size];
                    rounding.add(head_value_sums, probability, output_cotangent);
                    capture_sums.add(&joint)?;
                }
            }
            // An unfused evaluation has the gradient of each query head's own copy of the keys, in the type
            // of the keys, and then sums the copies.
            for (sums, head_sums, size) in
                [(&mut key_sums, head_key_sums, head_size), (&mut value_sums, head_value_sums, value_size)]
            {
                let sums = &mut sums[first_key * size..][..keys * size];
                sums.iter_mut().zip(head_sums).for_each(|(sum, x)| *sum = round(*sum + round_operand(x)));
            }
        }
    }
    let (cotangents, learned) = results.split_at_mut(3);
    for (cotangent, sums) in cotangents.iter_mut().zip([query_sums, key_sums, value_sums]) {
        cotangent.fill(sums.into_iter().map(round_operand));
    }
    capture_sums.finish(learned);
    Ok(())
}

/// The cotangents of the learned captures, while they are summed.
struct CaptureSums<'a> {
    attention: &'a FlexAttentionBackward,
    arrays: Vec<Array>,
    precision: Precision,
}

impl<'a> CaptureSums<'a> {
    fn new(
        attention: &'a FlexAttentionBackward,
        operands: Operands<'_>,
        first: usize,
        precision: Precision,
    ) -> CaptureSums<'a> {
        let zeros = |&capture: &usize| Array::zeros(operands.get(first + capture).ty.clone());
        CaptureSums { attention, arrays: attention.learned.iter().map(zeros).collect(), precision }
    }

    /// Adds the contributions of the pair that `joint` has just run for.
    fn add(&mut self, joint: &PairRegion<'_>) -> Result<()> {
        let mut next = 2;
        for contribution in &self.attention.contributions {
            let learned = self.attention.learned.binary_search(&contribution.capture);
            let array = &mut self.arrays[learned.expect("the typing rules ask for learned captures")];
            let indices = next..next + contribution.indices;
            let values = joint.result(indices.end).floats();
            next = indices.end + 1;
            let start = locate(&array.ty, indices.map(|i| joint.result(i).integers()[0]))?;
            let accumulate = rounding(array.ty.dtype.accumulator(), self.precision);
            let Data::Float(sums) = &mut array.data else {
                unreachable!("the typing rules ask for float contributions")
            };
            for (sum, value) in sums[start..].iter_mut().zip(values) {
                *sum = accumulate(*sum + value);
            }
        }
        Ok(())
    }

    fn finish(self, results: &mut [Array]) {
        for (result, array) in results.iter_mut().zip(self.arrays) {
            let round = rounding(array.ty.dtype, self.precision);
            result.fill(array.floats().iter().map(|&x| round(x)));
        }
    }
}
