//! What neural networks are made of. Of half types, each is computed in `f32` and rounded once.

use std::borrow::Borrow;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use tilewright_ir::{DType, Error};

use crate::Tensor;
use crate::recording::poison;

impl Tensor {
    /// max(x, 0), of numbers.
    #[track_caller]
    pub fn relu(&self) -> Tensor {
        self.maximum(0i64)
    }

    /// x·Φ(x) with Φ the normal distribution function, exact; of floats.
    #[track_caller]
    pub fn gelu(&self) -> Tensor {
        self.by_single(|x| 0.5 * x * (1.0 + (x * FRAC_1_SQRT_2).erf()))
    }

    /// [`Tensor::gelu`] approximated with tanh, as many published models have it.
    #[track_caller]
    pub fn gelu_tanh(&self) -> Tensor {
        let scale = FRAC_2_PI.sqrt();
        self.by_single(|x| 0.5 * x * (1.0 + (x * (scale + scale * 0.044715 * x.square())).tanh()))
    }

    /// x·sigmoid(x), of floats.
    #[track_caller]
    pub fn silu(&self) -> Tensor {
        self.by_single(|x| x * x.sigmoid())
    }

    /// log(1 + eˣ) without overflow, of floats.
    #[track_caller]
    pub fn softplus(&self) -> Tensor {
        self.by_single(|x| x.maximum(0.0) + (-x.abs()).exp().log1p())
    }

    /// Each row of the last axis shifted and scaled to mean 0 and variance 1 (`epsilon` is added to the
    /// variance), times `gain`, plus `bias`, both of the last axis's extent.
    #[track_caller]
    pub fn layer_norm(&self, gain: impl Borrow<Tensor>, bias: impl Borrow<Tensor>, epsilon: f64) -> Tensor {
        let (gain, bias) = (gain.borrow().single(), bias.borrow().single());
        self.by_single(|x| {
            let centred = x - x.mean_keep(-1);
            let scale = (centred.square().mean_keep(-1) + epsilon).rsqrt();
            centred * scale * gain + bias
        })
    }

    /// Each row of the last axis divided by its root mean square (`epsilon` is added to the mean square),
    /// times `gain`, of the last axis's extent.
    #[track_caller]
    pub fn rms_norm(&self, gain: impl Borrow<Tensor>, epsilon: f64) -> Tensor {
        let gain = gain.borrow().single();
        self.by_single(|x| x * (x.square().mean_keep(-1) + epsilon).rsqrt() * gain)
    }

    /// The same in `f32` where the type is a half type.
    #[track_caller]
    fn single(&self) -> Tensor {
        if matches!(self.dtype(), DType::BF16 | DType::F16) { self.cast(DType::F32) } else { *self }
    }

    /// A function's result in this tensor's type, computed in `f32` for a half type.
    #[track_caller]
    pub(crate) fn by_single(&self, function: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
        let result = function(&self.single());
        if matches!(self.dtype(), DType::BF16 | DType::F16) { result.cast(self.dtype()) } else { result }
    }
}

/// −log softmax(`logits`)[`targets`] for each row: `logits [..., classes]`, `targets [...]` integers; the
/// result has the shape of `targets`. Mean or sum it as the loss wants.
#[track_caller]
pub fn cross_entropy(logits: impl Borrow<Tensor>, targets: impl Borrow<Tensor>) -> Tensor {
    let (logits, targets) = (*logits.borrow(), *targets.borrow());
    let (rows, expected) = (targets.shape(), logits.shape());
    if expected.split_last().is_none_or(|(_, leading)| *leading != rows[..]) {
        let wanted = format!("{:?}, the rows of logits", &expected[..expected.len().saturating_sub(1)]);
        let error = Error::shape("targets", wanted, format!("{rows:?}")).in_operation("cross_entropy");
        return poison(error, logits.ty());
    }
    logits.by_single(|logits| {
        logits.log_sum_exp(-1) - logits.take_along_axis(targets.unsqueeze(-1), -1).squeeze(-1)
    })
}
