//! A GPU: its context, the stream that everything runs on, and what is kept for as long as it is open.

use std::collections::HashMap;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use tilewright_ir::{Error, ErrorKind, Result};

use super::faults::{Faults, Words};
use super::library::Library;
use super::memory::Pool;
use crate::codegen::{Source, Target};

/// A GPU, with its primary context and a stream of its own.
#[derive(Debug)]
pub struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// A stream that graphs are captured from.
    pub(super) capturing: Mutex<Stream>,
    /// The kernels that were loaded, with the bytes of shared memory that they are allowed: what one plan compiled, others
    /// use.
    pub(super) functions: Mutex<HashMap<Arc<Source>, (Function, usize)>>,
    /// Memory that was freed, for the next who asks.
    pub(super) pool: Pool,
    /// Matrix products, where the machine has a library of them.
    pub(super) library: Option<Library>,
    /// Where fault words come from, and those of the programs that were compiled for it.
    pub(super) words: Words,
    faults: Mutex<Vec<Weak<Faults>>>,
    /// Which of the machine's GPUs it is.
    pub number: usize,
    /// As the driver calls it.
    pub name: String,
    /// How many blocks of the largest size run at once.
    pub(super) multiprocessors: usize,
    /// What kernels depend on.
    pub target: Target,
}

/// A loaded kernel of a device's context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub sys::CUfunction);

// SAFETY: a handle of the driver, as below.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

// SAFETY: handles of the driver, which is itself thread-safe; each call makes the context current first.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// A stream of the CUDA driver or run-time library, by the address that both call it by: somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub(super) sys::CUstream);

// SAFETY: a handle of the driver.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// The stream that a handle stands for; 0 is the default stream.
    pub fn from_handle(handle: usize) -> Stream {
        Stream(std::ptr::with_exposed_provenance_mut(handle))
    }
}

/// While it lives, the device's context is the calling thread's.
#[derive(Debug)]
pub(super) struct Entered {
    /// What was the thread's before, where it was another.
    before: Option<sys::CUcontext>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // Somebody else's choice of a device is put back; a failure leaves nothing to be done.
            // SAFETY: it was current a moment ago, or is null.
            let _ = unsafe { result::ctx::set_current(before) };
        }
    }
}

/// The error that stands for a failed call of the driver.
pub(super) fn failed(error: DriverError) -> Error {
    let found = error.error_string().map(|text| text.to_string_lossy().into_owned());
    unavailable(found.unwrap_or_else(|_| format!("{error:?}")), "a working GPU")
}

pub(super) fn unavailable(found: impl Into<String>, required: &str) -> Error {
    Error::new(ErrorKind::DeviceUnavailable {
        device: "CUDA".into(),
        found: found.into(),
        required: required.into(),
    })
}

/// That the process is the one that opened the driver: what a fork of it inherits of the driver is void, for good.
///
/// # Errors
/// [`ErrorKind::Fork`].
fn check_process() -> Result<()> {
    static OPENED_BY: OnceLock<u32> = OnceLock::new();
    let (opened_by, found) = (*OPENED_BY.get_or_init(process::id), process::id());
    if opened_by == found {
        return Ok(());
    }
    let error = Error::new(ErrorKind::Fork { device: "CUDA".into(), opened_by, found });
    Err(error.help("start processes that use the device by `spawn`, or compute on the CPU in this one"))
}

/// A lock that a panic elsewhere does not spoil: what it guards is whole between any two calls.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// The GPU of this number, opened at its first use and then kept.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`], which says what is missing: the driver, the GPU, or an ability.
    pub fn get(number: usize) -> Result<Arc<Device>> {
        static OPEN: Mutex<Vec<Arc<Device>>> = Mutex::new(Vec::new());
        let mut open = lock(&OPEN);
        if let Some(device) = open.iter().find(|device| device.number == number) {
            return Ok(device.clone());
        }
        let device = Device::open(number)?;
        open.push(device.clone());
        Ok(device)
    }

    /// The GPU of this number, with a stream and memory that nobody else shares.
    ///
    /// # Errors
    /// As [`Device::get`].
    pub fn open(number: usize) -> Result<Arc<Device>> {
        // SAFETY: opens the library if it is there.
        if !unsafe { sys::is_culib_present() } {
            return Err(unavailable("no libcuda on the library path", "NVIDIA's driver"));
        }
        check_process()?;
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
        let multiprocessors = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let target = Target { capability: 10 * major + minor, shared_bytes: shared };
        if target.capability < 80 {
            return Err(unavailable(
                format!("{name}, of compute capability {major}.{minor}"),
                "8.0 or later",
            ));
        }
        // SAFETY: a device of the driver's; released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        let mut opened = Device {
            device,
            context,
            stream: std::ptr::null_mut(),
            capturing: Mutex::new(Stream(std::ptr::null_mut())),
            functions: Mutex::default(),
            pool: Pool::default(),
            library: None,
            words: Words::default(),
            faults: Mutex::default(),
            number,
            name,
            multiprocessors,
            target,
        };
        let entered = opened.enter()?;
        let stream = || result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed);
        opened.stream = stream()?;
        *lock(&opened.capturing) = Stream(stream()?);
        opened.library = Library::open();
        drop(entered);
        Ok(Arc::new(opened))
    }

    /// Makes the context the calling thread's for as long as the result lives.
    ///
    /// # Errors
    /// [`ErrorKind::Fork`] in a fork of the process that opened the device.
    pub(super) fn enter(&self) -> Result<Entered> {
        self.check_process()?;
        let before = result::ctx::get_current().map_err(failed)?;
        if before == Some(self.context) {
            return Ok(Entered { before: None });
        }
        // SAFETY: retained for as long as this lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed)?;
        Ok(Entered { before: Some(before.unwrap_or(std::ptr::null_mut())) })
    }

    /// That this process may use it.
    ///
    /// # Errors
    /// [`ErrorKind::Fork`] in a fork of the process that opened the device.
    pub fn check_process(&self) -> Result<()> {
        check_process()
    }

    /// The device's own stream.
    pub fn stream(&self) -> Stream {
        Stream(self.stream)
    }

    /// Whether matrix products are done by cuBLASLt; without it, kernels of this crate do them.
    pub fn has_library(&self) -> bool {
        self.library.is_some()
    }

    /// Has the fault word of a program looked at whenever the device is waited for.
    pub(super) fn watch(&self, faults: &Arc<Faults>) {
        let mut watched = lock(&self.faults);
        watched.retain(|faults| faults.strong_count() > 0);
        watched.push(Arc::downgrade(faults));
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] where a program that ran since the last call read out of range;
    /// [`ErrorKind::DeviceUnavailable`] where a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        self.wait()?;
        let watched: Vec<Arc<Faults>> = lock(&self.faults).iter().filter_map(Weak::upgrade).collect();
        let found = watched.iter().filter_map(|faults| faults.take());
        // All are taken, so that none is reported a second time.
        found.collect::<Vec<Error>>().into_iter().next().map_or(Ok(()), Err)
    }

    /// Waits until everything that anybody asked of the device is done, on whatever stream. Memory that other libraries
    /// used on theirs is free after it.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`] where a kernel failed.
    pub fn wait_for_all_streams(&self) -> Result<()> {
        let _entered = self.enter()?;
        result::ctx::synchronize().map_err(failed)
    }

    /// The handle of the device's own stream, by which other libraries know it.
    pub fn stream_handle(&self) -> usize {
        self.stream.expose_provenance()
    }

    /// Waits, and leaves faults to whoever asks for them.
    pub(super) fn wait(&self) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the device's own stream.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Failures to free leave nothing to be done.
        if let Ok(_entered) = self.enter() {
            for stream in [self.stream, lock(&self.capturing).0] {
                if !stream.is_null() {
                    // SAFETY: made by `open`, and nothing that lives refers to it.
                    unsafe {
                        let _ = result::stream::synchronize(stream);
                        let _ = result::stream::destroy(stream);
                    }
                }
            }
            self.pool.release();
        }
        // SAFETY: retained by `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
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
        let _entered = device.enter()?;
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
        let _entered = self.device.enter()?;
        // SAFETY: recorded events of this context.
        unsafe {
            result::event::synchronize(self.event).map_err(failed)?;
            result::event::elapsed(start.event, self.event).map_err(failed)
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: made by `record`, not used again.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
