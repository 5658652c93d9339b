//! Whether a combine function is associative, by trying it.

use std::fmt;

use tilewright_ir::{DType, Literal, Scalar};
use tilewright_trace::tree::{MapLeaves, Path, leaves, map_leaves};
use tilewright_trace::{Tensor, TensorTree};

use crate::{Array, Result, bf16, compile, f16};

/// How many triples are tried.
const TRIALS: u64 = 16;

/// Three trees that a combine function is not associative on.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// The leaves of a, b and c, with their paths.
    pub inputs: [Vec<(Path, Array)>; 3],
    /// The leaf at which the two ways differ, and where in it.
    pub differs: (Path, usize),
    /// What `(a · b) · c` and `a · (b · c)` hold there.
    pub values: [f64; 2],
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, place) = &self.differs;
        let leaf = if path.as_str().is_empty() { String::new() } else { format!(" of leaf `{path}`") };
        let [left, right] = self.values;
        writeln!(
            f,
            "not associative: (a·b)·c is {left} and a·(b·c) is {right} at element {place}{leaf}, for"
        )?;
        for (name, leaves) in ["a", "b", "c"].iter().zip(&self.inputs) {
            for (path, array) in leaves {
                let dot = if path.as_str().is_empty() { "" } else { "." };
                writeln!(f, "{name}{dot}{path} = {:?}", to_f64s(array).map_err(|_| fmt::Error)?)?;
            }
        }
        Ok(())
    }
}

/// Looks for three trees on which `combine` is not associative, as a scan needs it to be. `example` is a tree
/// of slices, as `combine` gets them: of its arrays only the types matter. None where all random triples agree
/// within rounding, which proves nothing but finds most mistakes.
///
/// ```
/// use tilewright::{check_associative, prelude::*};
///
/// let number = Array::scalar(0.0f64);
/// let affine = |l: (Tensor, Tensor), r: (Tensor, Tensor)| (l.0 * r.0, r.0 * l.1 + r.1);
/// assert!(check_associative(affine, &(&number, &number))?.is_none());
///
/// let wrong = check_associative(|x: Tensor, y| x + y * y, &number)?.expect("it is not associative");
/// assert!(wrong.to_string().starts_with("not associative"));
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// Those of [`crate::Compiled::call`].
pub fn check_associative<T, A>(combine: impl Fn(T, T) -> T, example: &A) -> Result<Option<Counterexample>>
where
    T: TensorTree + MapLeaves<Tensor, Array>,
    A: MapLeaves<Array, Array>,
    A::Output: MapLeaves<Array, Tensor, Output = T>,
{
    let both = compile(|(a, b, c): (T, T, T)| {
        let again =
            |tree: &T| map_leaves(tree, |_, leaf: &Tensor| Ok(*leaf)).expect("the mapper does not fail");
        let left = combine(combine(again(&a), again(&b)), again(&c));
        (left, combine(a, combine(b, c)))
    });
    for trial in 0..TRIALS {
        let mut seed = trial << 32;
        let mut random = || {
            map_leaves(example, |_, leaf: &Array| {
                seed += 1;
                random_like(leaf, seed)
            })
        };
        let inputs = (random()?, random()?, random()?);
        let (left, right) = both.call((&inputs.0, &inputs.1, &inputs.2))?;
        for ((path, left), (_, right)) in
            leaves::<Array, _>(&left).into_iter().zip(leaves::<Array, _>(&right))
        {
            if let Some((place, values)) = difference(&left, &right)? {
                let inputs = [leaves(&inputs.0), leaves(&inputs.1), leaves(&inputs.2)];
                return Ok(Some(Counterexample { inputs, differs: (path, place), values }));
            }
        }
    }
    Ok(None)
}

/// The first element at which two arrays differ by more than three operations round.
fn difference(left: &Array, right: &Array) -> Result<Option<(usize, [f64; 2])>> {
    let unit = match left.dtype() {
        DType::F64 => f64::EPSILON,
        DType::F32 => f32::EPSILON.into(),
        DType::F16 => f16::EPSILON.into(),
        DType::BF16 => bf16::EPSILON.into(),
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => 0.0,
    };
    let pairs: Vec<[f64; 2]> = to_f64s(left)?.into_iter().zip(to_f64s(right)?).map(|(l, r)| [l, r]).collect();
    let scale = pairs.iter().flatten().filter(|x| x.is_finite()).fold(1.0f64, |scale, x| scale.max(x.abs()));
    let same =
        |[l, r]: &[f64; 2]| l == r || (l.is_nan() && r.is_nan()) || (l - r).abs() <= 64.0 * unit * scale;
    Ok(pairs.iter().position(|pair| !same(pair)).map(|place| (place, pairs[place])))
}

/// Numbers in −2..2, integers in −8..8 (0..8 without a sign), truth values.
fn random_like(array: &Array, seed: u64) -> Result<Array> {
    let mut state = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let shape = array.shape();
    match array.dtype() {
        DType::F64 => Array::from_fn(shape, |_| next() * 4.0 - 2.0),
        DType::F32 => Array::from_fn(shape, |_| (next() * 4.0 - 2.0) as f32),
        DType::F16 => Array::from_fn(shape, |_| f16::from_f64(next() * 4.0 - 2.0)),
        DType::BF16 => Array::from_fn(shape, |_| bf16::from_f64(next() * 4.0 - 2.0)),
        DType::I64 => Array::from_fn(shape, |_| (next() * 16.0) as i64 - 8),
        DType::I32 => Array::from_fn(shape, |_| (next() * 16.0) as i32 - 8),
        DType::U8 => Array::from_fn(shape, |_| (next() * 8.0) as u8),
        DType::Bool => Array::from_fn(shape, |_| next() < 0.5),
    }
}

fn to_f64s(array: &Array) -> Result<Vec<f64>> {
    let elements = Literal::array(array.ty().clone(), array.to_bytes()?);
    Ok(elements.elements().map(Scalar::to_f64).collect())
}
