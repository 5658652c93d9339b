//! DLPack, the protocol by which array libraries lend each other memory: its C structures, and reading them.
//!
//! An array says where it lies through `__dlpack__`, or quicker through the table of C functions that its class shows as
//! `__dlpack_c_exchange_api__` (DLPack 1.2). The structures are those of `dlpack.h`, field by field.

use std::ffi::{CStr, c_int, c_void};

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyDict};
use tilewright::pipeline::Gpu;

use crate::raise;

/// `DLDevice`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// `DLDeviceType`.
    pub kind: i32,
    /// Which one of that kind.
    pub number: i32,
}

/// Memory of the host.
pub const CPU: Device = Device { kind: 1, number: 0 };

/// Kinds of memory: an NVIDIA GPU's; the host's, that a GPU can reach; either's.
const CUDA: i32 = 2;
const PINNED: i32 = 3;
const MANAGED: i32 = 13;

/// Who sees to it that what wrote an array on a GPU's stream comes before what reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The caller: the program is asked of the stream that the array's library works on, or never reads it.
    Callers,
    /// The array's library, which is told the stream of ours that will read it.
    Librarys,
}

/// `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementType {
    /// `DLDataTypeCode`: 0 signed, 1 unsigned, 2 float, 4 bfloat, 6 bool.
    pub code: u8,
    /// Bits of an element.
    pub bits: u8,
    /// Elements of a vector: 1.
    pub lanes: u16,
}

/// `DLTensor`.
#[repr(C)]
pub struct DlTensor {
    /// Start of the memory.
    pub data: *mut c_void,
    /// Where it is.
    pub device: Device,
    /// How many axes there are.
    pub rank: i32,
    /// What the elements are.
    pub element: ElementType,
    /// `rank` extents.
    pub shape: *mut i64,
    /// `rank` strides in elements; null where packed (before version 1.2).
    pub strides: *mut i64,
    /// Bytes from `data` to the first element.
    pub byte_offset: u64,
}

/// `DLPackVersion`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Version {
    /// Structures of another major version are laid out otherwise.
    pub major: u32,
    /// Only adds enumerators.
    pub minor: u32,
}

/// `DLManagedTensor`: of producers before version 1.
#[repr(C)]
pub struct Managed {
    /// The array.
    pub tensor: DlTensor,
    /// The producer's own.
    pub context: *mut c_void,
    /// Gives the memory back.
    pub deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
pub struct ManagedVersioned {
    /// What the producer speaks.
    pub version: Version,
    /// The producer's own.
    pub context: *mut c_void,
    /// Gives the memory back.
    pub deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    /// Bit 0: read-only.
    pub flags: u64,
    /// The array.
    pub tensor: DlTensor,
}

/// `DLPackExchangeAPI`, as far as it is used.
#[repr(C)]
struct Exchange {
    version: Version,
    previous: *mut c_void,
    allocate: *mut c_void,
    managed_from_object: *mut c_void,
    managed_to_object: *mut c_void,
    tensor_from_object: Option<unsafe extern "C" fn(*mut c_void, *mut DlTensor) -> c_int>,
}

const EXCHANGE: &CStr = c"dlpack_exchange_api";
/// The names of capsules that `__dlpack__` gives.
pub const UNVERSIONED: &CStr = c"dltensor";
/// The same, since version 1.
pub const VERSIONED: &CStr = c"dltensor_versioned";

impl Device {
    /// The memory of an NVIDIA GPU.
    pub fn cuda(number: usize) -> Device {
        Device { kind: CUDA, number: number as i32 }
    }

    /// Where programs that read it run; none where nobody of ours can.
    pub fn place(self) -> Option<tilewright::Device> {
        match self.kind {
            kind if kind == CPU.kind || kind == PINNED => Some(tilewright::Device::Cpu),
            CUDA | MANAGED => usize::try_from(self.number).ok().map(tilewright::Device::Cuda),
            _ => None,
        }
    }
}

impl DlTensor {
    /// The address of the first element.
    pub fn address(&self) -> usize {
        self.data as usize + self.byte_offset as usize
    }

    /// The extents.
    ///
    /// # Safety
    /// The structure is as its producer filled it, and its arrays are alive.
    pub unsafe fn shape(&self) -> &[i64] {
        match self.rank {
            0 => &[],
            // SAFETY: `shape` has `rank` numbers, by the protocol.
            rank => unsafe { std::slice::from_raw_parts(self.shape, rank as usize) },
        }
    }

    /// The strides, where they are written.
    ///
    /// # Safety
    /// As [`DlTensor::shape`].
    pub unsafe fn strides(&self) -> Option<&[i64]> {
        if self.rank == 0 {
            return Some(&[]);
        }
        // SAFETY: `strides` is null or has `rank` numbers, by the protocol.
        (!self.strides.is_null())
            .then(|| unsafe { std::slice::from_raw_parts(self.strides, self.rank as usize) })
    }
}

/// Shows `read` the DLPack structure of an array, and gives what it gives with what keeps the memory alive beside the
/// array itself.
///
/// # Errors
/// `TypeError` where it is no array, and what the array's library raises.
pub fn with_tensor<'py, R>(
    array: &Bound<'py, PyAny>,
    order: Order,
    read: impl FnOnce(&DlTensor) -> PyResult<R>,
) -> PyResult<(R, Option<Bound<'py, PyAny>>)> {
    let py = array.py();
    if let Ok(table) = array.get_type().getattr(intern!(py, "__dlpack_c_exchange_api__")) {
        let pointer = table.cast::<PyCapsule>()?.pointer_checked(Some(EXCHANGE))?;
        // SAFETY: a capsule of this name points to the table, alive as long as the process; the head is the same in
        // every version, the rest in version 1.
        let table: &Exchange = unsafe { pointer.cast::<Exchange>().as_ref() };
        if let (1, Some(from_object)) = (table.version.major, table.tensor_from_object) {
            let mut tensor = DlTensor {
                data: std::ptr::null_mut(),
                device: CPU,
                rank: 0,
                element: ElementType { code: 0, bits: 0, lanes: 0 },
                shape: std::ptr::null_mut(),
                strides: std::ptr::null_mut(),
                byte_offset: 0,
            };
            // SAFETY: the function is that of the object's own class, and the interpreter lock is held.
            if unsafe { from_object(array.as_ptr().cast(), &raw mut tensor) } != 0 {
                return Err(PyErr::fetch(py));
            }
            // The table's function waits for nothing and orders nothing.
            if order == Order::Callers || tensor.device.place() == Some(tilewright::Device::Cpu) {
                return Ok((read(&tensor)?, None));
            }
        }
    }
    let capsule = exported(array, order)?;
    let lent = capsule.cast::<PyCapsule>()?;
    let result = if let Ok(pointer) = lent.pointer_checked(Some(VERSIONED)) {
        // SAFETY: a capsule of this name points to this structure; it is alive as long as the capsule, which is not
        // marked as used, so that it gives the memory back itself.
        let managed: &ManagedVersioned = unsafe { pointer.cast::<ManagedVersioned>().as_ref() };
        if managed.version.major != 1 {
            return Err(PyTypeError::new_err(format!("DLPack {} is not known", managed.version.major)));
        }
        read(&managed.tensor)?
    } else {
        let pointer = lent.pointer_checked(Some(UNVERSIONED))?;
        // SAFETY: as above, for the older structure.
        let managed: &Managed = unsafe { pointer.cast::<Managed>().as_ref() };
        read(&managed.tensor)?
    };
    Ok((result, Some(capsule)))
}

/// The capsule that an array exports. Version 1 is asked for, which also lends what is read-only.
fn exported<'py>(array: &Bound<'py, PyAny>, order: Order) -> PyResult<Bound<'py, PyAny>> {
    let py = array.py();
    let name = intern!(py, "__dlpack__");
    let Ok(method) = array.getattr(name) else {
        let class = array.get_type().name()?;
        return Err(PyTypeError::new_err(format!("an array (with __dlpack__) expected, {class} found")));
    };
    let options = PyDict::new(py);
    if order == Order::Librarys
        && let Some(tilewright::Device::Cuda(number)) = device_of(array)?.place()
    {
        let gpu = py.detach(|| Gpu::get(number)).map_err(|error| raise(py, error))?;
        options.set_item(intern!(py, "stream"), gpu.stream_handle())?;
    }
    let latest = options.copy()?;
    latest.set_item(intern!(py, "max_version"), (1, 0))?;
    match method.call((), Some(&latest)) {
        Err(error) if error.is_instance_of::<PyTypeError>(py) => method.call((), Some(&options)),
        result => result,
    }
}

/// Where an array says that it is.
fn device_of(array: &Bound<'_, PyAny>) -> PyResult<Device> {
    let device = array.call_method0(intern!(array.py(), "__dlpack_device__"))?;
    // Libraries have enumerations of their own for the kind.
    let (kind, number): (Bound<'_, PyAny>, i32) = device.extract()?;
    Ok(Device { kind: kind.call_method0(intern!(array.py(), "__int__"))?.extract()?, number })
}
