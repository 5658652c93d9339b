//! What must work, through the whole pipeline: a test for each row of the tables of attention and faults.
//!
//! Programs are written as a user writes them, compiled, and run on the CPU. The golden values are those of the
//! reference interpreter in `f64`, which runs the same traced program, its gradients included.

mod attention;
mod faults;
mod generated;
mod golden;
mod instruction_sets;
mod masks;
mod memory;
mod models;
mod scores;
mod shapes;
