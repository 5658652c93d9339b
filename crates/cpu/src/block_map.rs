//! Block maps: which blocks of pairs a mask leaves.

use tilewright_ir::Result;
use tilewright_plan::BlockMap;

use crate::Context;
use crate::memory::Memory;

/// The blocks that a mask leaves.
pub(crate) struct Blocks;

/// Finds the blocks that the kernel's mask leaves; the runtime keeps them in [`Context::block_maps`].
pub(crate) fn build(_kernel: &BlockMap, _memory: &Memory, _context: &Context) -> Result<Blocks> {
    todo!()
}
