//! Attention, forward and backward.

use tilewright_ir::{DType, Result};
use tilewright_plan::{AttentionBackward, AttentionForward};

use factors::Packs;
use few::InMemory;
use keys::Keys;
use operands::{Operands, matrix};
use tilewright_plan::attention::AttentionShape;

use crate::Context;
use crate::memory::Memory;

mod backward;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod factors;
mod few;
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
    let operands = Operands::new(&kernel.attention, memory)?;
    if few::few(&operands.shape) {
        let any_order = kernel.log_sum_exp.is_none();
        return match score_dtype(kernel.attention.dtype) {
            DType::F64 => {
                let source = InMemory::new::<f64>(&operands, context, any_order);
                forward::forward::<f64>(kernel, &source, memory, context)
            }
            _ => {
                let source = InMemory::new::<f32>(&operands, context, any_order);
                forward::forward::<f32>(kernel, &source, memory, context)
            }
        };
    }
    #[cfg(target_arch = "x86_64")]
    if kernel.attention.dtype == DType::BF16
        && let Some(keys) = bf16::Keys::new(&operands, kernel.unrounded.is_some(), context)?
    {
        return forward::forward(kernel, &keys, memory, context);
    }
    match score_dtype(kernel.attention.dtype) {
        DType::F64 => forward::forward(kernel, &Keys::<f64>::new(&operands, context)?, memory, context),
        _ => forward::forward(kernel, &Keys::<f32>::new(&operands, context)?, memory, context),
    }
}

/// Runs the gradient of attention.
pub(crate) fn backward(kernel: &AttentionBackward, memory: &Memory, context: &Context) -> Result<()> {
    let operands = Operands::new(&kernel.attention, memory)?;
    let AttentionShape { batch, heads, queries, value_size, .. } = operands.shape;
    let extents = [batch, heads, queries, value_size];
    let cotangent = matrix(&memory.read(&kernel.output_cotangent, kernel.attention.dtype, &extents)?);
    #[cfg(target_arch = "x86_64")]
    if kernel.attention.dtype == DType::BF16
        && let Some(factors) = bf16::Factors::new(&operands, cotangent, context)?
    {
        return backward::backward(kernel, &operands, &factors, memory, context);
    }
    match score_dtype(kernel.attention.dtype) {
        DType::F64 => {
            let factors = Packs::<f64>::new(&operands, cotangent, context)?;
            backward::backward(kernel, &operands, &factors, memory, context)
        }
        _ => {
            let factors = Packs::<f32>::new(&operands, cotangent, context)?;
            backward::backward(kernel, &operands, &factors, memory, context)
        }
    }
}

/// The type that scores are computed in.
fn score_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
