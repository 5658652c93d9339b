//! What neural networks are made of.

use std::borrow::Borrow;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use tilewright_ir::Error;

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
        0.5 * self * (1.0 + (self * FRAC_1_SQRT_2).erf())
    }

    /// [`Tensor::gelu`] approximated with tanh, as many published models have it.
    #[track_caller]
    pub fn gelu_tanh(&self) -> Tensor {
        let inner = FRAC_2_PI.sqrt() * (self + 0.044715 * self * self * self);
        0.5 * self * (1.0 + inner.tanh())
    }

    /// x·sigmoid(x), of floats.
    #[track_caller]
    pub fn silu(&self) -> Tensor {
        self * self.sigmoid()
    }

    /// log(1 + eˣ) without overflow, of floats.
    #[track_caller]
    pub fn softplus(&self) -> Tensor {
        self.maximum(0.0) + (-self.abs()).exp().log1p()
    }

    /// Each row of the last axis shifted and scaled to mean 0 and variance 1 (`epsilon` is added to the
    /// variance), times `gain`, plus `bias`, both of the last axis's extent.
    #[track_caller]
    pub fn layer_norm(&self, gain: impl Borrow<Tensor>, bias: impl Borrow<Tensor>, epsilon: f64) -> Tensor {
        let centred = self - self.mean_keep(-1);
        let scale = (centred.square().mean_keep(-1) + epsilon).rsqrt();
        centred * scale * gain.borrow() + bias.borrow()
    }

    /// Each row of the last axis divided by its root mean square (`epsilon` is added to the mean square),
    /// times `gain`, of the last axis's extent.
    #[track_caller]
    pub fn rms_norm(&self, gain: impl Borrow<Tensor>, epsilon: f64) -> Tensor {
        self * (self.square().mean_keep(-1) + epsilon).rsqrt() * gain.borrow()
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
    let picked = logits.take_along_axis(targets.unsqueeze(-1), -1).squeeze(-1);
    logits.log_sum_exp(-1) - picked
}
