//! The device half: what a GPU machine has, loaded at run time.
//!
//! Nothing here is needed to build or test on a machine without a GPU: the driver and the run-time compiler are
//! looked for when they are first asked for, and an error says which of them is missing. This is where the
//! crate's unsafe code stands.

pub mod cache;
pub mod compiler;
mod device;
mod execute;
mod memory;

pub use device::{Device, Event};
pub use execute::{Executable, Times};
pub use memory::DeviceMemory;
