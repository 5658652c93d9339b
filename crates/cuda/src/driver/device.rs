//! A GPU: its context and the stream that everything runs on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use tilewright_ir::{Error, ErrorKind, Result};

use crate::codegen::{Source, Target};

/// A GPU, with its primary context and a stream of its own.
#[derive(Debug)]
pub struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// The kernels that were loaded: what one plan compiled, others use.
    pub(super) functions: Mutex<HashMap<Arc<Source>, Function>>,
    /// As the driver calls it.
    pub name: String,
    /// What kernels depend on.
    pub target: Target,
}

/// A loaded kernel of a device's context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub sys::CUfunction);

// SAFETY: handles of the driver, which is itself thread-safe; each call makes the context current first.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// The error that stands for a failed call of the driver.
pub(super) fn failed(error: DriverError) -> Error {
    let found = error.error_string().map(|text| text.to_string_lossy().into_owned());
    unavailable(found.unwrap_or_else(|_| format!("{error:?}")), "a working GPU")
}

fn unavailable(found: impl Into<String>, required: &str) -> Error {
    Error::new(ErrorKind::DeviceUnavailable {
        device: "CUDA".into(),
        found: found.into(),
        required: required.into(),
    })
}

impl Device {
    /// The GPU of this number.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`], which says what is missing: the driver, the GPU, or an ability.
    pub fn open(number: usize) -> Result<Arc<Device>> {
        // SAFETY: opens the library if it is there.
        if !unsafe { sys::is_culib_present() } {
            return Err(unavailable("no libcuda on the library path", "NVIDIA's driver"));
        }
        result::init().map_err(failed)?;
        let count = result::device::get_count().map_err(failed)?;
        if number >= count as usize {
            return Err(unavailable(format!("{count} GPUs"), &format!("GPU {number}")));
        }
        let device = result::device::get(number as i32).map_err(failed)?;
        let name = result::device::get_name(device).map_err(failed)?;
        // SAFETY: a device of the driver's.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map_err(failed);
        use sys::CUdevice_attribute::*;
        let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32;
        let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32;
        let shared = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        let target = Target { capability: 10 * major + minor, shared_bytes: shared };
        if target.capability < 80 {
            return Err(unavailable(
                format!("{name}, of compute capability {major}.{minor}"),
                "8.0 or later",
            ));
        }
        // SAFETY: a device of the driver's; released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        let functions = Mutex::default();
        let stream = std::ptr::null_mut();
        let mut opened = Device { device, context, stream, functions, name, target };
        opened.enter()?;
        opened.stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?;
        Ok(Arc::new(opened))
    }

    /// Makes the context the calling thread's.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: retained for as long as this lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed)
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`] where a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the device's own stream.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Failures to free leave nothing to be done.
        // SAFETY: both were made by `open`, and nothing that lives refers to them.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            if !self.stream.is_null() {
                let _ = result::stream::destroy(self.stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// A moment in the device's stream.
#[derive(Debug)]
pub struct Event {
    event: sys::CUevent,
    device: Arc<Device>,
}

// SAFETY: a handle of the driver.
unsafe impl Send for Event {}

impl Event {
    /// The moment when all that was asked for before is done.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`].
    pub fn record(device: &Arc<Device>) -> Result<Event> {
        device.enter()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed)?;
        let event = Event { event, device: device.clone() };
        // SAFETY: both are of this context.
        unsafe { result::event::record(event.event, device.stream) }.map_err(failed)?;
        Ok(event)
    }

    /// Milliseconds from another moment to this one; waits for this one.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`].
    pub fn milliseconds_since(&self, start: &Event) -> Result<f32> {
        self.device.enter()?;
        // SAFETY: recorded events of this context.
        unsafe {
            result::event::synchronize(self.event).map_err(failed)?;
            result::event::elapsed(start.event, self.event).map_err(failed)
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: made by `record`, not used again.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
