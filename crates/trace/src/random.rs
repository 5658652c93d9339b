//! Random numbers as functions of an explicit key: the same key gives the same numbers, always.
//!
//! The generator is Philox4x32-10, counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2,
//! 3", 2011), so that each element is computed by itself, in any order, on any device. Keys are split
//! as in JAX: never draw twice from one key.

use std::f64::consts::TAU;

use tilewright_ir::{DType, Error, Literal, Op, Scalar, Type};

use crate::arguments::Dims;
use crate::elementwise::number;
use crate::recording::{poison, record};
use crate::{Operand, Tensor};

/// The key of a stream of random numbers.
#[derive(Clone, Copy, Debug)]
pub struct Key(Tensor);

/// Separates the stream that new keys come from, from the stream that numbers are drawn from.
const DERIVE: i64 = 0x243F_6A88_85A3_08D3;

impl Key {
    /// The key for a seed: a number, or a rank-0 `i64` tensor, for instance an input of the program.
    #[track_caller]
    pub fn new(seed: impl Into<Operand>) -> Key {
        match seed.into() {
            Operand::Tensor(tensor) => Key(tensor.cast(DType::I64).reshape(())),
            Operand::Number(scalar) => {
                Key(record(Op::Constant(Literal::scalar(DType::I64, Scalar::Integer(scalar.to_i64()))), &[]))
            }
        }
    }

    /// The key as a rank-0 `i64` tensor.
    pub fn tensor(&self) -> Tensor {
        self.0
    }

    /// A key of its own for each number folded in: a layer's number, a step (an integer tensor of rank 0).
    #[track_caller]
    pub fn fold_in(&self, number: impl Into<Operand>) -> Key {
        let number = Key::new(number).0;
        Key(hash(hash(self.0 ^ DERIVE) ^ number))
    }

    /// As many new keys as asked for.
    #[track_caller]
    pub fn split<const N: usize>(&self) -> [Key; N] {
        let mut keys = [*self; N];
        for (i, key) in keys.iter_mut().enumerate() {
            *key = self.fold_in(i);
        }
        keys
    }

    #[track_caller]
    fn bits(self, shape: &[usize]) -> Tensor {
        record(Op::RandomBits { shape: shape.to_vec() }, &[self.0])
    }

    /// Numbers uniform in [0, 1), of a float type.
    #[track_caller]
    pub fn uniform(&self, shape: impl Dims, dtype: DType) -> Tensor {
        let shape = check!("uniform", Type::scalar(dtype), shape.shape_for(0));
        let ty = Type::new(dtype, shape.clone());
        // As many bits as the significand holds, so that no number rounds up to 1.
        let bits: i64 = match dtype {
            DType::F64 => {
                let halves = self.bits(&[&shape[..], &[2]].concat()).cast(DType::I64) & 0xFFFF_FFFFi64;
                let (low, high) = (halves.index(-1, 0), halves.index(-1, 1));
                let joined = (high & 0x1F_FFFFi64) * (1i64 << 32) + low;
                return joined.cast(DType::F64) * (-53f64).exp2();
            }
            DType::F32 => 24,
            DType::F16 => 11,
            DType::BF16 => 8,
            DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
                return poison(Error::dtype("dtype", "a float type", dtype).in_operation("uniform"), ty);
            }
        };
        let drawn = self.bits(&shape) & ((1i64 << bits) - 1);
        (drawn.cast(DType::F32) * (-bits as f64).exp2()).cast(dtype)
    }

    /// Numbers of the standard normal distribution, of a float type, by Box and Muller's method.
    #[track_caller]
    pub fn normal(&self, shape: impl Dims, dtype: DType) -> Tensor {
        let shape = check!("normal", Type::scalar(dtype), shape.shape_for(0));
        if !dtype.is_float() {
            let error = Error::dtype("dtype", "a float type", dtype).in_operation("normal");
            return poison(error, Type::new(dtype, shape));
        }
        let uniform = self.uniform([&shape[..], &[2]].concat(), dtype.accumulator());
        let radius = (-2.0 * (1.0 - uniform.index(-1, 0)).log()).sqrt();
        (radius * (uniform.index(-1, 1) * TAU).cos()).cast(dtype)
    }

    /// `true` with probability `probability`, independently for each element.
    #[track_caller]
    pub fn bernoulli(&self, probability: f64, shape: impl Dims) -> Tensor {
        self.uniform(shape, DType::F32).lt(probability)
    }
}

/// 64 new bits, a function of a rank-0 `i64` key.
#[track_caller]
fn hash(key: Tensor) -> Tensor {
    let words = record(Op::RandomBits { shape: vec![2] }, &[key]).cast(DType::I64);
    (words.index(0, 0) & 0xFFFF_FFFFi64) + words.index(0, 1) * (1i64 << 32)
}

impl Tensor {
    /// Each element zeroed with probability `rate` (below 1), and the others scaled so that the mean stays.
    #[track_caller]
    pub fn dropout(&self, rate: f64, key: &Key) -> Tensor {
        let ty = self.ty();
        if !(0.0..1.0).contains(&rate) {
            let error = Error::argument("rate", format!("a probability below 1 expected, {rate} found"));
            return poison(error.in_operation("dropout"), ty);
        }
        let zero = check!("dropout", ty, number(ty.dtype, Scalar::Float(0.0)));
        key.bernoulli(1.0 - rate, &ty.shape).select(self / (1.0 - rate), zero)
    }
}
