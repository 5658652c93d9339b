//! Benchmarks: the project and its peers in one run.

use crate::{Outcome, cargo};

/// Runs one benchmark; the arguments after its name go to it.
pub fn run(arguments: &[&str]) -> Outcome {
    cargo(&[&["run", "--release", "--quiet", "--package", "tilewright-bench", "--"], arguments].concat())
}
