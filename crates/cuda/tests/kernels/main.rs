//! The GPU engine's kernels: their text, what it compiles to, and what it computes.
//!
//! What they compute is tested on an emulation of the machine (`../host`), or on a GPU where the environment
//! variable `TILEWRIGHT_TEST_DEVICE` is `cuda`.

mod attention;
mod case;
mod compile;
mod golden;
#[path = "../host/mod.rs"]
mod host;
mod models;
mod nests;
mod scans;
mod table;
mod whole_plans;
