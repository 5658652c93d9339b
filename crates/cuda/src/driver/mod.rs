//! The device half: what a GPU machine has, loaded at run time.
//!
//! Nothing here is needed to build or test on a machine without a GPU: the driver, the run-time compiler and the
//! library of matrix products are looked for when they are first asked for, and an error says which of them is
//! missing. This is where the crate's unsafe code stands.

pub mod cache;
pub mod compiler;
mod device;
mod execute;
mod faults;
mod graphs;
mod library;
mod memory;
mod owner;

pub use device::{Device, Event, Stream};
pub use execute::{Executable, Times};
pub use memory::DeviceMemory;
