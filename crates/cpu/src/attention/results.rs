//! What the forward gives: rows of output and statistics, and the merging of rows whose keys were split.

use tilewright_ir::Result;

use super::operands::Shared;
use super::pack::Strided;
use super::vector::Scalar;

/// The arrays that the forward writes.
pub(super) struct Results {
    pub output: Strided,
    pub unrounded: Option<Strided>,
    pub log_sum_exp: Option<Strided>,
    pub maximum: Option<Strided>,
}

impl Results {
    /// Stores the results of a row, whose output is relative to its greatest score and not yet divided by the sum of
    /// the weights.
    ///
    /// # Safety
    /// The row is within the arrays, and nobody else touches it.
    #[inline(always)]
    pub(super) unsafe fn store<S: Scalar>(&self, place: [usize; 3], maximum: S, sum: f64, output: &mut [S]) {
        let not_a_number = sum.is_nan() && maximum != S::INFINITY;
        let maximum = if not_a_number { S::from_f64(f64::NAN) } else { maximum };
        let greatest = maximum.to_f64();
        let (factor, log_sum_exp) = match sum {
            0.0 => (0.0, f64::NEG_INFINITY),
            _ if greatest == f64::INFINITY => (f64::NAN, greatest),
            _ => (1.0 / sum, greatest + sum.ln()),
        };
        for x in &mut *output {
            *x = S::from_f64(x.to_f64() * factor);
        }
        // SAFETY: as the caller vouches.
        unsafe {
            self.output.write_row(place, output);
            if let Some(array) = &self.unrounded {
                array.write_row(place, output);
            }
            if let Some(array) = &self.log_sum_exp {
                array.write_row(place, &[S::from_f64(log_sum_exp)]);
            }
            if let Some(array) = &self.maximum {
                array.write_row(place, &[maximum]);
            }
        }
    }
}

/// What the splits of the keys found: of each row the greatest score, the sum of the weights relative to it, and the
/// output not yet divided by that.
pub(super) struct Found<S: Scalar> {
    numbers: Shared<S>,
    splits: usize,
    units: usize,
    rows: usize,
    value_size: usize,
}

impl<S: Scalar> Found<S> {
    /// For so many splits of so many units of at most `rows` rows.
    pub(super) fn new(splits: usize, units: usize, rows: usize, value_size: usize) -> Result<Found<S>> {
        let numbers = Shared::new(splits * units * rows * (2 + value_size))?;
        Ok(Found { numbers, splits, units, rows, value_size })
    }

    /// The rows of a split of a unit, each `[maximum, sum, output…]`.
    pub(super) fn at(&self, split: usize, unit: usize) -> *mut S {
        self.numbers.at((split * self.units + unit) * self.rows * (2 + self.value_size))
    }

    /// A row of a unit over all splits.
    ///
    /// # Safety
    /// Nobody writes it meanwhile.
    pub(super) unsafe fn merged(&self, unit: usize, row: usize) -> (S, f64, Vec<S>) {
        let of = |split: usize| {
            let size = 2 + self.value_size;
            // SAFETY: the row is within the numbers, and nobody writes it.
            unsafe { std::slice::from_raw_parts(self.at(split, unit).add(row * size), size) }
        };
        let rows = || (0..self.splits).map(of);
        let is_nan = |row: &[S]| {
            let (maximum, sum) = (row[0].to_f64(), row[1].to_f64());
            maximum.is_nan() || sum.is_nan() && maximum != f64::INFINITY
        };
        if rows().any(is_nan) {
            let nan = S::from_f64(f64::NAN);
            return (nan, f64::NAN, vec![nan; self.value_size]);
        }
        let greatest =
            rows().fold(S::NEG_INFINITY, |greatest, row| if row[0] > greatest { row[0] } else { greatest });
        let (mut sum, mut output) = (0.0, vec![0.0; self.value_size]);
        for row in rows().filter(|row| row[0] != S::NEG_INFINITY) {
            // Equal infinities too, the sum of whose weights is NaN, as it would be in one split.
            let factor = libm::exp(row[0].to_f64() - greatest.to_f64());
            sum += factor * row[1].to_f64();
            output.iter_mut().zip(&row[2..]).for_each(|(total, x)| *total += factor * x.to_f64());
        }
        (greatest, sum, output.into_iter().map(S::from_f64).collect())
    }
}
