//! Device memory. What is freed is kept for the next who asks: everything runs in the order of one stream, so memory
//! can be given away as soon as nobody on the host holds it, and a program that is called again and again finds its
//! memory at the same addresses, without a call of the driver.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::result;
use cudarc::driver::sys::{CUdeviceptr, CUresult};
use tilewright_ir::{Error, ErrorKind, Result};

use super::Device;
use super::device::{failed, lock};

/// Some bytes on a device, of any value.
#[derive(Debug)]
pub struct DeviceMemory {
    address: CUdeviceptr,
    bytes: usize,
    device: Arc<Device>,
}

/// Memory that was freed, by its size.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<HashMap<usize, Vec<CUdeviceptr>>>);

/// The size that is allocated where so many bytes are asked for: at most an eighth more, so that arrays of similar
/// sizes can use each other's memory.
fn rounded(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).max(512);
    bytes.max(1).next_multiple_of(step)
}

impl Pool {
    fn take(&self, size: usize) -> Option<CUdeviceptr> {
        lock(&self.0).get_mut(&size)?.pop()
    }

    fn give(&self, size: usize, address: CUdeviceptr) {
        lock(&self.0).entry(size).or_default().push(address);
    }

    /// Hands everything back to the driver. The device's context is current, and nothing runs that uses the memory.
    pub fn release(&self) {
        for address in lock(&self.0).drain().flat_map(|(_, addresses)| addresses) {
            // A failure to free leaves nothing to be done.
            // SAFETY: allocated by `DeviceMemory::new` and given back.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

impl DeviceMemory {
    /// So many bytes, at a multiple of 256.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<DeviceMemory> {
        let size = rounded(bytes);
        let made = |address| DeviceMemory { address, bytes, device: device.clone() };
        if let Some(address) = device.pool.take(size) {
            return Ok(made(address));
        }
        let _entered = device.enter()?;
        // SAFETY (both): at least one byte; given to the pool when this is dropped.
        let mut allocated = unsafe { result::malloc_sync(size) };
        if allocated.is_err() {
            device.wait()?;
            device.pool.release();
            allocated = unsafe { result::malloc_sync(size) };
        }
        allocated.map(made).map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Error::new(ErrorKind::OutOfMemory { bytes, device: device.name.clone() })
            }
            _ => failed(error),
        })
    }

    /// A copy of some bytes.
    ///
    /// # Errors
    /// As [`DeviceMemory::new`].
    pub fn of(device: &Arc<Device>, bytes: &[u8]) -> Result<DeviceMemory> {
        let memory = DeviceMemory::new(device, bytes.len())?;
        memory.write(bytes)?;
        Ok(memory)
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Overwrites the first bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where there are not so many.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.fits(bytes.len())?;
        let _entered = self.device.enter()?;
        // SAFETY: as many bytes as were allocated; pageable memory is copied before the call returns.
        unsafe { result::memcpy_htod_async(self.address, bytes, self.device.stream().0) }.map_err(failed)
    }

    /// Copies the first bytes out; waits for everything before.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where there are not so many; those of [`Device::synchronize`].
    pub fn read(&self, bytes: &mut [u8]) -> Result<()> {
        self.fits(bytes.len())?;
        let _entered = self.device.enter()?;
        // SAFETY: as many bytes as were allocated; `bytes` outlives the copy, which is waited for.
        unsafe { result::memcpy_dtoh_async(bytes, self.address, self.device.stream().0) }.map_err(failed)?;
        self.device.synchronize()
    }

    fn fits(&self, bytes: usize) -> Result<()> {
        if bytes > self.bytes {
            return Err(Error::shape(
                "device memory",
                format!("{bytes} bytes"),
                format!("{} bytes", self.bytes),
            ));
        }
        Ok(())
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.device.pool.give(rounded(self.bytes), self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn sizes_are_rounded_by_an_eighth_at_most_and_only_up() {
        for bytes in (0..5000).chain([1 << 20, (1 << 20) + 1, 3 << 29, 123_456_789]) {
            let size = rounded(bytes);
            assert!(size >= bytes.max(1) && size.is_multiple_of(512), "{bytes}: {size}");
            assert!(size <= bytes + bytes / 8 + 512, "{bytes}: {size}");
            assert_eq!(rounded(size), size, "what is given back must be found again");
        }
    }
}
