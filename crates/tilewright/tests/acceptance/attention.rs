//! One attention call with everything about it checked: output, log-sum-exp, maximum, and the gradients of
//! query, key, value and each captured array, for random cotangents of output and log-sum-exp.

use tilewright::FlexAttention;
use tilewright::prelude::*;
use tilewright_generate::Random;

use crate::golden::{check_all, random};

/// What the score function or mask reads from outside.
#[derive(Clone)]
pub enum Captured {
    /// An array of the type of the query, with a gradient.
    Learned(Vec<usize>),
    /// Integers from 0 to one less than the limit.
    Table(Vec<usize>, usize),
    /// These integers.
    Integers(Array),
}

pub fn learned<const N: usize>(shape: [usize; N]) -> Captured {
    Captured::Learned(shape.to_vec())
}

pub fn table<const N: usize>(shape: [usize; N], limit: usize) -> Captured {
    Captured::Table(shape.to_vec(), limit)
}

pub fn integers<const N: usize>(elements: [i32; N]) -> Captured {
    Captured::Integers(Array::new([N], &elements).unwrap())
}

/// The sizes of a call.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub key_batch: usize,
    pub key_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub head_size: usize,
    pub value_size: usize,
}

impl Sizes {
    pub fn query(&self) -> [usize; 4] {
        [self.batch, self.heads, self.queries, self.head_size]
    }

    pub fn key(&self) -> [usize; 4] {
        [self.key_batch, self.key_heads, self.keys, self.head_size]
    }

    pub fn value(&self) -> [usize; 4] {
        [self.key_batch, self.key_heads, self.keys, self.value_size]
    }

    pub fn output(&self) -> [usize; 4] {
        [self.batch, self.heads, self.queries, self.value_size]
    }

    pub fn rows(&self) -> [usize; 3] {
        [self.batch, self.heads, self.queries]
    }
}

/// Query, key, value and captured arrays; then the cotangents of output and log-sum-exp.
pub type Inputs<L> = ((L, L, L, Vec<L>), (L, L));
/// Output, log-sum-exp and maximum; then the gradients.
pub type Outputs<L> = ((L, L, L), (L, L, L, Vec<L>));

pub fn inputs(dtype: DType, sizes: &Sizes, captured: &[Captured], seed: u64) -> Inputs<Array> {
    let mut numbers = Random::new(seed);
    let mut float = |shape: &[usize]| random(&mut numbers, dtype, shape, 0);
    let [q, k, v] = [&sizes.query(), &sizes.key(), &sizes.value()].map(|shape| float(shape));
    let output = float(&sizes.output());
    let score_type = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let log_sum_exp = random(&mut numbers, score_type, &sizes.rows(), 0);
    let array = |captured: &Captured| match captured {
        Captured::Learned(shape) => random(&mut numbers, dtype, shape, 0),
        Captured::Table(shape, limit) => random(&mut numbers, DType::I32, shape, *limit),
        Captured::Integers(array) => array.clone(),
    };
    ((q, k, v, captured.iter().map(array).collect()), (output, log_sum_exp))
}

/// Attention and its gradients, as a function to compile.
pub fn with_gradients(
    attend: impl Fn(&Tensor, &Tensor, &Tensor, &[Tensor]) -> FlexAttention,
) -> impl Fn(Inputs<Tensor>) -> Outputs<Tensor> {
    move |(operands, (output, log_sum_exp))| {
        let (results, pull) = vjp(|(q, k, v, captured)| attend(q, k, v, captured).call_with_max(), &operands);
        let gradients = pull(&(output, log_sum_exp, results.2.zeros_like()));
        (results, gradients)
    }
}

/// Compiles the call for one type and size, and checks every result by the golden rule.
#[track_caller]
pub fn check_call(
    dtype: DType,
    sizes: &Sizes,
    captured: &[Captured],
    attend: impl Fn(&Tensor, &Tensor, &Tensor, &[Tensor]) -> FlexAttention,
) -> Outputs<Array> {
    let f = compile(with_gradients(attend));
    let inputs = inputs(dtype, sizes, captured, 1);
    let label = format!("{dtype} {sizes:?}");
    let found = f.call(&inputs).unwrap_or_else(|error| panic!("{label}: {error}"));
    check_all(&label, &f.program(&inputs).unwrap(), &inputs, &found);
    found
}
