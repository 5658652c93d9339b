//! Functions of one lane, without branches, so that a loop over them becomes vector code.

#[cfg(test)]
mod accuracy;
pub(crate) mod double;
pub(crate) mod integer;
mod random;
pub(crate) mod single;
pub(crate) mod widened;

pub(crate) use random::philox;
