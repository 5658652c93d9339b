//! Scans through the whole pipeline: every row of the table of combine functions, options against plain loops,
//! scans within models, and faults.

#[path = "../common/mod.rs"]
mod common;
mod derivatives;
mod families;
mod faults;
mod fusion;
mod named;
mod options;
