//! Where arrays live and programs run.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use tilewright_cuda::driver;

use crate::tree::{MapLeaves, map_leaves};
use crate::{Array, Error, Result};

/// Where arrays live and programs run: the CPU, or one of the machine's NVIDIA GPUs.
///
/// CUDA is looked for when a GPU is first asked for; on a machine without one, that is an error that says what is
/// missing, and all else works.
///
/// ```
/// use tilewright::prelude::*;
///
/// let device: Device = "cuda:0".parse()?;
/// let device = if device.is_available() { device } else { Device::Cpu };
/// let x = Array::new([2], &[1.0f32, 2.0])?.to_device(device)?;
/// let double = compile(|x: Tensor| x * 2.0); // runs where its arrays are
/// assert_eq!(double.call(&x)?.to_vec::<f32>()?, [2.0, 4.0]);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor, and its memory.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl Device {
    /// Whether programs can run there.
    pub fn is_available(self) -> bool {
        self.check().is_ok()
    }

    /// Whether programs can run there, and if not, why.
    ///
    /// # Errors
    /// `DeviceUnavailable`, which says what is missing.
    pub fn check(self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(number) => {
                driver::Device::get(number)?;
                driver::compiler::version().map(|_| ())
            }
        }
    }

    /// Waits until all that was asked of the device is done. Reading an array does so too; there is no other need.
    ///
    /// # Errors
    /// `Index`, with the user's line, where a program that ran there read out of range; `DeviceUnavailable`.
    pub fn synchronize(self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(number) => driver::Device::get(number)?.synchronize(),
        }
    }

    /// The GPU, opened; nothing for the CPU.
    pub(crate) fn gpu(self) -> Result<Option<Arc<driver::Device>>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Cuda(number) => driver::Device::get(number).map(Some),
        }
    }
}

/// `cpu`, `cuda:0`, …
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// `cpu`, `cuda`, `cuda:1`, …
impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Device> {
        let number = |digits: &str| digits.parse().ok().map(Device::Cuda);
        let device = match name {
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(0)),
            _ => name.strip_prefix("cuda:").and_then(number),
        };
        device.ok_or_else(|| Error::argument("device", format!("`cpu` or `cuda:0` expected, `{name}` found")))
    }
}

/// A tree with all of its arrays on a device; those that are there already are shared, not copied.
///
/// ```
/// use tilewright::prelude::*;
///
/// let pair = (Array::scalar(1.0f32), vec![Array::scalar(2i32)]);
/// let (x, _) = to_device(&pair, Device::Cpu)?;
/// assert_eq!(x.device(), Device::Cpu);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// `OutOfMemory`, `DeviceUnavailable`.
pub fn to_device<T: MapLeaves<Array, Array>>(tree: &T, device: Device) -> Result<T::Output> {
    map_leaves(tree, |_, array| array.to_device(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(12)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for name in ["", "gpu", "cuda:", "cuda:-1", "CPU"] {
            assert_eq!(name.parse::<Device>().unwrap_err().code(), "argument", "{name}");
        }
    }
}
