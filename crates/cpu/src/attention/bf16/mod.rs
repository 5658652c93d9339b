//! Attention in `bf16` where the machine multiplies it: the operands stay as they are, sums and all that is done to
//! scores are in `f32`.

mod convert;
mod factors;
mod held;
mod keys;
mod product;

pub(super) use factors::Factors;
pub(super) use keys::Keys;
