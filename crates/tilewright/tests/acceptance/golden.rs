//! The golden rule: how far a result may be from the reference.

use tilewright::pipeline::Program;
use tilewright::tree::{Tree, leaves};
use tilewright::{Array, DType, Scalar};
use tilewright_generate::Random;
use tilewright_interp::Precision;

/// Elements between −2 and 2; integers from 0 to `limit` − 1.
pub fn random(random: &mut Random, dtype: DType, shape: &[usize], limit: usize) -> Array {
    let count: usize = shape.iter().product();
    let element = |random: &mut Random| match dtype.is_float() {
        true => Scalar::Float(random.float(-2.0, 2.0)),
        false => Scalar::Integer(random.integer(0, limit as i64)),
    };
    let bytes: Vec<u8> = (0..count).flat_map(|_| element(random).cast(dtype).to_bytes(dtype)).collect();
    Array::from_bytes(dtype, shape, &bytes).expect("as many bytes as the type takes")
}

/// The elements of an array, widened.
pub fn elements(array: &Array) -> Vec<f64> {
    let bytes = array.to_bytes().expect("enough memory");
    let scalars = bytes.chunks(array.dtype().size()).map(|bytes| Scalar::from_bytes(array.dtype(), bytes));
    scalars.map(Scalar::to_f64).collect()
}

pub fn interpreted(array: &Array) -> tilewright_interp::Array {
    tilewright_interp::Array::from_bytes(array.ty().clone(), &array.to_bytes().expect("enough memory"))
}

/// The results of a traced program for arrays, by the reference interpreter.
pub fn reference(program: &Program, inputs: &impl Tree<Array>, precision: Precision) -> Vec<Vec<f64>> {
    let inputs: Vec<_> = leaves(inputs).iter().map(|(_, array)| interpreted(array)).collect();
    let results = tilewright_interp::run(&program.traced, &inputs, precision);
    results.unwrap_or_else(|error| panic!("{error}")).iter().map(tilewright_interp::Array::to_f64s).collect()
}

fn root_mean_square(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = x.clone().count().max(1);
    (x.map(|x| x * x).sum::<f64>() / count as f64).sqrt()
}

/// Root mean square of the difference; elements that are not finite must be the same.
fn error(golden: &[f64], found: &[f64]) -> f64 {
    let differences = golden.iter().zip(found).map(|(&x, &y)| match x == y || (x.is_nan() && y.is_nan()) {
        true => 0.0,
        false if x.is_finite() && y.is_finite() => x - y,
        false => f64::INFINITY,
    });
    root_mean_square(differences)
}

/// Half the distance between neighbouring numbers, relative to them: a correctly rounded result is so far away.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON / 2.0,
        DType::F32 => f64::from(f32::EPSILON) / 2.0,
        DType::F16 => 0.5f64.powi(11),
        DType::BF16 => 0.5f64.powi(8),
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => 0.0,
    }
}

/// What the golden rule multiplies the error of a plain evaluation by.
fn factor(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 | DType::F16 => 1.35,
        DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::U8 | DType::Bool => 4.0,
    }
}

/// Evaluations whose errors tell how large that of a plain one is wont to be.
const SAMPLES: u64 = 32;

/// Checks one result against the golden rule, where `allowed` says what a plain evaluation's error allows.
///
/// Of a large result that error is a mean over many roundings, but a result of few elements may be close by luck: a
/// single number that is a sum of much larger ones has one error there is. So where one evaluation allows too little,
/// `sampled` gives further ones, with each rounding up or down at random, and the rule takes their root mean square
/// instead. It depends on the condition of the sums and on the magnitudes in between, and not on the result that is
/// checked. Such a rounding has √2 times the error of one to the nearest, by which it is divided.
#[track_caller]
fn check_by(
    label: &str,
    found: &Array,
    golden: &[f64],
    plain: &[f64],
    allowed: impl Fn(f64) -> f64,
    sampled: impl Fn(u64) -> Vec<f64>,
) {
    let plain = error(golden, plain);
    if error(golden, &elements(found)) <= allowed(plain) {
        return;
    }
    let errors: Vec<f64> = (0..SAMPLES).map(|seed| error(golden, &sampled(seed))).collect();
    let wont = root_mean_square(errors.iter().copied().filter(|error| error.is_finite()));
    within(label, found, golden, allowed(plain.max(wont / 2f64.sqrt())));
}

/// Checks one result. Its error may be 1.35 times (narrow types) or 4 times (others) that of a plain evaluation in
/// the types of the program. Where that is nothing, as where a weight is 1, an error of the size of the type's own
/// rounding is allowed; of a few in `f64`.
#[track_caller]
fn check(label: &str, found: &Array, golden: &[f64], plain: &[f64], sampled: impl Fn(u64) -> Vec<f64>) {
    let (dtype, size) = (found.dtype(), size(golden));
    let roundings = match dtype {
        DType::BF16 | DType::F16 | DType::F32 => rounding(dtype) * size,
        DType::F64 | DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
            1e4 * rounding(dtype) * (1.0 + size)
        }
    };
    check_by(label, found, golden, plain, |plain| roundings.max(factor(dtype) * plain), sampled);
}

/// Checks one small result of a program whose coarsest float type is `coarsest`: some roundings are allowed beside
/// the golden rule.
#[track_caller]
pub fn check_small(
    label: &str,
    found: &Array,
    golden: &[f64],
    plain: &[f64],
    coarsest: DType,
    sampled: impl Fn(u64) -> Vec<f64>,
) {
    let size = size(golden).max(1.0);
    let allowed = |plain: f64| match coarsest {
        _ if !found.dtype().is_float() => 0.0,
        DType::F64 => 1e-12 * size,
        _ => factor(coarsest) * plain + 16.0 * rounding(coarsest) * size,
    };
    check_by(label, found, golden, plain, allowed, sampled);
}

fn size(golden: &[f64]) -> f64 {
    root_mean_square(golden.iter().copied().filter(|x| x.is_finite()))
}

#[track_caller]
fn within(label: &str, found: &Array, golden: &[f64], allowed: f64) {
    let values = elements(found);
    assert_eq!(values.len(), golden.len(), "{label}");
    let error = error(golden, &values);
    assert!(error <= allowed, "{label}: error {error:e}, {allowed:e} allowed, size {:e}", size(golden));
}

/// Checks every result of a program, in the order of its leaves.
#[track_caller]
pub fn check_all(label: &str, program: &Program, inputs: &impl Tree<Array>, found: &impl Tree<Array>) {
    let golden = reference(program, inputs, Precision::Exact);
    let plain = reference(program, inputs, Precision::Typed);
    for (i, (path, found)) in leaves(found).iter().enumerate() {
        let sampled = |seed| reference(program, inputs, Precision::Sampled(seed)).swap_remove(i);
        check(&format!("{label}, result {path}"), found, &golden[i], &plain[i], sampled);
    }
}
