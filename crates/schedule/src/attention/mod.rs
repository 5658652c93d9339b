//! Lowering of attention and its gradient.
