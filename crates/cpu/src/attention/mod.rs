//! Attention, forward and backward.

use tilewright_ir::Result;
use tilewright_plan::{AttentionBackward, AttentionForward};

use crate::Context;
use crate::memory::Memory;

/// Runs attention.
pub(crate) fn forward(_kernel: &AttentionForward, _memory: &Memory, _context: &Context) -> Result<()> {
    todo!()
}

/// Runs the gradient of attention.
pub(crate) fn backward(_kernel: &AttentionBackward, _memory: &Memory, _context: &Context) -> Result<()> {
    todo!()
}
