//! The engine for NVIDIA GPUs.
//!
//! Two halves. [`codegen`] writes the kernels of a plan as CUDA C++ text, and says how they are launched: pure,
//! needing no GPU. [`driver`] loads the CUDA driver and the run-time compiler where a machine has them, and runs
//! what codegen wrote.

#![deny(unsafe_code)]

pub mod codegen;
#[allow(unsafe_code, reason = "the driver's functions are foreign, and hand out memory of the device")]
pub mod driver;
