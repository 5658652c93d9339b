//! Results for callers without PyTorch: memory of our own, that any array library takes over through DLPack.

use std::alloc::{Layout as Block, alloc, dealloc};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tilewright::Device;
use tilewright::pipeline::{DeviceMemory, Gpu};
use tilewright_ir::{Error, ErrorKind, Result, Type};

use crate::dlpack::{self, DlTensor, Managed, ManagedVersioned, Version};
use crate::memory::{Form, element_type, long_name};

/// What DLPack asks of the address, and a cache line.
const ALIGNMENT: usize = 64;

/// Memory, freed when its last user goes.
enum Memory {
    /// A block of the host's.
    Host { start: NonNull<u8>, block: Block },
    /// A GPU's.
    Gpu(DeviceMemory),
}

// SAFETY: the memory is owned; who writes to it is the users' agreement, as with any array of Python.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(bytes: usize, device: Device) -> Result<Memory> {
        if let Device::Cuda(number) = device {
            return Ok(Memory::Gpu(DeviceMemory::new(&Gpu::get(number)?, bytes)?));
        }
        let failed = || Error::new(ErrorKind::OutOfMemory { bytes, device: device.to_string() });
        let block = Block::from_size_align(bytes.max(1), ALIGNMENT).map_err(|_| failed())?;
        // SAFETY: the block is not empty.
        let start = NonNull::new(unsafe { alloc(block) }).ok_or_else(failed)?;
        Ok(Memory::Host { start, block })
    }

    fn address(&self) -> usize {
        match self {
            Memory::Host { start, .. } => start.as_ptr().expose_provenance(),
            Memory::Gpu(memory) => memory.address() as usize,
        }
    }

    fn device(&self) -> dlpack::Device {
        match self {
            Memory::Host { .. } => dlpack::CPU,
            Memory::Gpu(memory) => dlpack::Device::cuda(memory.device().number),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Host { start, block } = self {
            // SAFETY: it was allocated so, and nobody refers to it any more.
            unsafe { dealloc(start.as_ptr(), *block) }
        }
    }
}

/// A packed array. Array libraries read it through `__dlpack__`: `numpy.from_dlpack(array)`.
#[pyclass(frozen, module = "tilewright._native")]
pub struct Array {
    memory: Arc<Memory>,
    form: Form,
}

impl Array {
    /// An array on a device whose elements are yet to be written.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceUnavailable`.
    pub fn new(ty: &Type, device: Device) -> Result<Array> {
        Ok(Array { memory: Arc::new(Memory::new(ty.bytes(), device)?), form: Form::packed(ty) })
    }

    /// Where the first element is.
    pub fn address(&self) -> usize {
        self.memory.address()
    }
}

#[pymethods]
impl Array {
    /// The extent of each axis.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.form.shape)
    }

    /// How many axes it has.
    #[getter]
    fn ndim(&self) -> usize {
        self.form.shape.len()
    }

    /// The element type: `"float32"`, …
    #[getter]
    fn dtype(&self) -> &'static str {
        long_name(self.form.dtype)
    }

    fn __repr__(&self) -> String {
        format!("Array({}, {:?})", long_name(self.form.dtype), self.form.shape)
    }

    /// Where the memory is.
    fn __dlpack_device__(&self) -> (i32, i32) {
        let device = self.memory.device();
        (device.kind, device.number)
    }

    /// The memory, lent to another library.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        // What wrote the memory has been waited for, on whatever stream it will be read.
        let _ = stream;
        if dl_device.is_some_and(|device| device != self.__dlpack_device__()) || copy == Some(true) {
            return Err(PyBufferError::new_err("the memory is lent where it is, and not copied"));
        }
        if max_version.is_some_and(|(major, _)| major >= 1) {
            let lent = Lent::new(self, |tensor, context| ManagedVersioned {
                version: Version { major: 1, minor: 0 },
                context,
                deleter: Some(return_versioned),
                flags: 0,
                tensor,
            });
            // SAFETY: the capsule takes over `lent`, which `destroy_versioned` gives back unless it was taken.
            unsafe { capsule(py, lent.cast(), dlpack::VERSIONED, destroy_versioned) }
        } else {
            let lent =
                Lent::new(self, |tensor, context| Managed { tensor, context, deleter: Some(return_managed) });
            // SAFETY: as above.
            unsafe { capsule(py, lent.cast(), dlpack::UNVERSIONED, destroy_managed) }
        }
    }
}

/// A DLPack structure, and what it points to.
#[repr(C)]
struct Lent<T> {
    managed: T,
    shape: Vec<i64>,
    strides: Vec<i64>,
    memory: Arc<Memory>,
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        if let Memory::Gpu(memory) = &*self.memory {
            // Work on streams of the borrower's may still use it. A failure leaves nothing to be done.
            let _ = memory.device().wait_for_all_streams();
        }
    }
}

impl<T> Lent<T> {
    /// The structure that `make` makes of the array and of the address to give back.
    fn new(array: &Array, make: impl FnOnce(DlTensor, *mut c_void) -> T) -> *mut Lent<T> {
        let mut shape: Vec<i64> = array.form.shape.iter().map(|&extent| extent as i64).collect();
        let mut strides: Vec<i64> = array.form.strides.iter().map(|&stride| stride as i64).collect();
        let tensor = DlTensor {
            data: std::ptr::with_exposed_provenance_mut(array.address()),
            device: array.memory.device(),
            rank: shape.len() as i32,
            element: element_type(array.form.dtype),
            shape: shape.as_mut_ptr(),
            strides: strides.as_mut_ptr(),
            byte_offset: 0,
        };
        let managed = make(tensor, std::ptr::null_mut());
        Box::into_raw(Box::new(Lent { managed, shape, strides, memory: array.memory.clone() }))
    }
}

unsafe extern "C" fn return_versioned(managed: *mut ManagedVersioned) {
    // SAFETY: the structure is the first field of a `Lent` that was boxed, and is given back once.
    drop(unsafe { Box::from_raw(managed.cast::<Lent<ManagedVersioned>>()) });
}

unsafe extern "C" fn return_managed(managed: *mut Managed) {
    // SAFETY: as above.
    drop(unsafe { Box::from_raw(managed.cast::<Lent<Managed>>()) });
}

/// Gives the structure back where nobody took it, which renames the capsule.
unsafe extern "C" fn destroy_versioned(capsule: *mut ffi::PyObject) {
    let name = dlpack::VERSIONED.as_ptr();
    // SAFETY: a capsule's destructor is given the capsule; with this name it holds what was put in.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, name) == 1 {
            return_versioned(ffi::PyCapsule_GetPointer(capsule, name).cast());
        }
    }
}

unsafe extern "C" fn destroy_managed(capsule: *mut ffi::PyObject) {
    let name = dlpack::UNVERSIONED.as_ptr();
    // SAFETY: as above.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, name) == 1 {
            return_managed(ffi::PyCapsule_GetPointer(capsule, name).cast());
        }
    }
}

/// A capsule around a DLPack structure.
///
/// # Safety
/// The destructor fits the structure, which nobody else gives back.
unsafe fn capsule<'py>(
    py: Python<'py>,
    structure: *mut c_void,
    name: &'static std::ffi::CStr,
    destroy: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the pointer is not null, the name lives as long as the process, and the result is a new reference or null.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyCapsule_New(structure, name.as_ptr(), Some(destroy))) }
}
