//! Lowering of scans.
