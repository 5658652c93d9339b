//! Device memory: allocated and freed in the order of the stream, from the driver's pool, which keeps what is
//! freed for the next allocation.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{CUdeviceptr, CUresult};
use tilewright_ir::{Error, ErrorKind, Result};

use super::Device;
use super::device::failed;

/// Some bytes on a device, of any value.
#[derive(Debug)]
pub struct DeviceMemory {
    address: CUdeviceptr,
    bytes: usize,
    device: Arc<Device>,
}

impl DeviceMemory {
    /// So many bytes, at a multiple of 256.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<DeviceMemory> {
        device.enter()?;
        // SAFETY: at least one byte, of the device's own stream; freed when this is dropped.
        let address = unsafe { result::malloc_async(device.stream(), bytes.max(1)) };
        let address = address.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Error::new(ErrorKind::OutOfMemory { bytes, device: device.name.clone() })
            }
            _ => failed(error),
        })?;
        Ok(DeviceMemory { address, bytes, device: device.clone() })
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

    /// Overwrites the first bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where there are not so many.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.fits(bytes.len())?;
        self.device.enter()?;
        // SAFETY: as many bytes as were allocated; pageable memory is copied before the call returns.
        unsafe { result::memcpy_htod_async(self.address, bytes, self.device.stream()) }.map_err(failed)
    }

    /// Copies the first bytes out; waits for everything before.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where there are not so many.
    pub fn read(&self, bytes: &mut [u8]) -> Result<()> {
        self.fits(bytes.len())?;
        self.device.enter()?;
        // SAFETY: as many bytes as were allocated; `bytes` outlives the copy, which is waited for.
        unsafe { result::memcpy_dtoh_async(bytes, self.address, self.device.stream()) }.map_err(failed)?;
        self.device.synchronize()
    }

    /// Sets some bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where there are not so many.
    pub fn fill(&self, start: usize, bytes: usize, with: u8) -> Result<()> {
        self.fits(start + bytes)?;
        self.device.enter()?;
        // SAFETY: within the allocation.
        let filled = unsafe {
            result::memset_d8_async(self.address + start as u64, with, bytes, self.device.stream())
        };
        filled.map_err(failed)
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
        if self.device.enter().is_ok() {
            // A failure to free leaves nothing to be done.
            // SAFETY: allocated from this stream, and freed in its order: after what was asked for before.
            let _ = unsafe { result::free_async(self.address, self.device.stream()) };
        }
    }
}
