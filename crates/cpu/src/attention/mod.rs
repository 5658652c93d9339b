//! Attention, forward and backward.

use tilewright_ir::{DType, Result};
use tilewright_plan::{AttentionBackward, AttentionForward};

use crate::Context;
use crate::memory::Memory;

mod backward;
mod forward;
mod keys;
mod operands;
mod pack;
mod product;
mod reductions;
mod regions;
mod results;
mod segments;
mod vector;

/// Runs attention.
pub(crate) fn forward(kernel: &AttentionForward, memory: &Memory, context: &Context) -> Result<()> {
    match score_dtype(kernel.attention.dtype) {
        DType::F64 => forward::forward::<f64>(kernel, memory, context),
        _ => forward::forward::<f32>(kernel, memory, context),
    }
}

/// Runs the gradient of attention.
pub(crate) fn backward(kernel: &AttentionBackward, memory: &Memory, context: &Context) -> Result<()> {
    match score_dtype(kernel.attention.dtype) {
        DType::F64 => backward::backward::<f64>(kernel, memory, context),
        _ => backward::backward::<f32>(kernel, memory, context),
    }
}

/// The type that scores are computed in.
fn score_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
