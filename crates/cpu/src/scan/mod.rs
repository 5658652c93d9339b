//! Scans.

use tilewright_ir::Result;
use tilewright_plan::Scan;

use crate::Context;
use crate::memory::Memory;

/// Runs a scan.
pub(crate) fn run(_kernel: &Scan, _memory: &Memory, _context: &Context) -> Result<()> {
    todo!()
}
