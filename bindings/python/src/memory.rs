//! Arrays of Python as the compiler sees them: an address, a shape, strides, an element type.

use std::ptr::NonNull;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use tilewright::Device;
use tilewright::pipeline::Layout;
use tilewright_ir::{DType, Error, ErrorKind, Result, Scalar, Type};

use crate::array::Array;
use crate::dlpack::{self, DlTensor, ElementType, Order};
use crate::raise;

/// An array in somebody else's memory.
pub struct Tensor {
    address: usize,
    /// Where it lies.
    pub device: Device,
    /// All else.
    pub form: Form,
}

/// What programs depend on: an element type, a shape and strides.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// Element type.
    pub dtype: DType,
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// Elements between neighbours along each axis.
    pub strides: Vec<isize>,
}

/// Arrays that were lent for a call, and what keeps their memory alive.
pub struct Borrowed<'py> {
    /// Their addresses and forms.
    pub tensors: Vec<Tensor>,
    _arrays: Vec<Bound<'py, PyAny>>,
    _lent: Vec<Bound<'py, PyAny>>,
}

impl Borrowed<'_> {
    /// The one device that all lie on; the CPU where there is none.
    ///
    /// # Errors
    /// `Argument` where they lie on several.
    pub fn device(&self) -> Result<Device> {
        let first = self.tensors.first().map_or(Device::Cpu, |tensor| tensor.device);
        match self.tensors.iter().position(|tensor| tensor.device != first) {
            Some(place) => {
                let found = self.tensors[place].device;
                let message = format!("on {first} as input 0 expected, on {found} found");
                Err(Error::argument(format!("input {place}"), message))
            }
            None => Ok(first),
        }
    }

    /// Raises unless all lie in the host's memory.
    ///
    /// # Errors
    /// `DeviceUnavailable`.
    pub fn check_on_host(&self) -> Result<()> {
        match self.device()? {
            Device::Cpu => Ok(()),
            device @ Device::Cuda(_) => Err(elsewhere(device.to_string())),
        }
    }
}

fn elsewhere(found: String) -> Error {
    Error::new(ErrorKind::DeviceUnavailable {
        device: "cpu".into(),
        found: format!("an array on {found}"),
        required: "an array in the host's memory".into(),
    })
}

/// Borrows arrays of any library.
///
/// # Errors
/// `DType` and `DeviceUnavailable`, and what the arrays' library raises.
pub fn borrow<'py>(arrays: Vec<Bound<'py, PyAny>>, order: Order) -> PyResult<Borrowed<'py>> {
    let mut tensors = Vec::with_capacity(arrays.len());
    let mut lent = Vec::new();
    for array in &arrays {
        let (tensor, capsule) = dlpack::with_tensor(array, order, |tensor| Tensor::of(array.py(), tensor))?;
        tensors.push(tensor);
        lent.extend(capsule);
    }
    Ok(Borrowed { tensors, _arrays: arrays, _lent: lent })
}

/// New packed arrays of these types on this device, and their memory: tensors of PyTorch where its `empty` is given,
/// else our own.
///
/// # Errors
/// `OutOfMemory`, and what PyTorch raises.
pub fn allocate<'py>(
    py: Python<'py>,
    empty: Option<&Bound<'py, PyAny>>,
    types: &[Type],
    device: Device,
) -> PyResult<(Vec<Bound<'py, PyAny>>, Vec<Tensor>)> {
    let one = |ty: &Type| match empty {
        Some(empty) => empty_torch(py, empty, ty, device),
        None => {
            let array = Array::new(ty, device).map_err(|error| raise(py, error))?;
            let tensor = Tensor { address: array.address(), device, form: Form::packed(ty) };
            Ok((Bound::new(py, array)?.into_any(), tensor))
        }
    };
    Ok(types.iter().map(one).collect::<PyResult<Vec<_>>>()?.into_iter().unzip())
}

/// PyTorch's element types, in the order of [`DType::ALL`], looked up once.
static TORCH_TYPES: PyOnceLock<Vec<Py<PyAny>>> = PyOnceLock::new();

fn empty_torch<'py>(
    py: Python<'py>,
    empty: &Bound<'py, PyAny>,
    ty: &Type,
    device: Device,
) -> PyResult<(Bound<'py, PyAny>, Tensor)> {
    let types = TORCH_TYPES.get_or_try_init(py, || {
        let torch = py.import("torch")?;
        DType::ALL.iter().map(|&dtype| Ok(torch.getattr(long_name(dtype))?.unbind())).collect::<PyResult<_>>()
    })?;
    let place = DType::ALL.iter().position(|&dtype| dtype == ty.dtype).expect("every element type is listed");
    let options = PyDict::new(py);
    options.set_item(intern!(py, "dtype"), &types[place])?;
    let shape = PyTuple::new(py, &ty.shape)?;
    let tensor = empty.call((shape,), Some(&options)).map_err(|error| {
        // PyTorch says so by a `RuntimeError`.
        let name = device.to_string();
        match error.is_instance_of::<PyRuntimeError>(py) {
            true => raise(py, Error::new(ErrorKind::OutOfMemory { bytes: ty.bytes(), device: name })),
            false => error,
        }
    })?;
    let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
    Ok((tensor, Tensor { address, device, form: Form::packed(ty) }))
}

/// The name that array libraries have for an element type.
pub fn long_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "float64",
        DType::F32 => "float32",
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::I64 => "int64",
        DType::I32 => "int32",
        DType::U8 => "uint8",
        DType::Bool => "bool",
    }
}

/// DLPack's name of an element type.
pub fn element_type(dtype: DType) -> ElementType {
    let (code, bits) = match dtype {
        DType::F64 => (2, 64),
        DType::F32 => (2, 32),
        DType::BF16 => (4, 16),
        DType::F16 => (2, 16),
        DType::I64 => (0, 64),
        DType::I32 => (0, 32),
        DType::U8 => (1, 8),
        DType::Bool => (6, 8),
    };
    ElementType { code, bits, lanes: 1 }
}

impl Form {
    /// The form of packed elements.
    pub fn packed(ty: &Type) -> Form {
        let Layout { strides, .. } = Layout::packed(&ty.shape);
        Form { dtype: ty.dtype, shape: ty.shape.clone(), strides }
    }

    /// The type of the elements and their shape.
    pub fn ty(&self) -> Type {
        Type::new(self.dtype, self.shape.clone())
    }

    /// How the elements lie within [`Tensor::bytes`].
    pub fn layout(&self) -> Layout {
        Layout { strides: self.strides.clone(), offset: -self.reach().0 }
    }

    /// Least and greatest distance of an element from the first, in elements.
    fn reach(&self) -> (isize, isize) {
        self.shape.iter().zip(&self.strides).fold((0, 0), |(low, high), (&extent, &stride)| {
            let distance = stride * (extent as isize - 1);
            (low + distance.min(0), high + distance.max(0))
        })
    }
}

impl Tensor {
    fn of(py: Python<'_>, tensor: &DlTensor) -> PyResult<Tensor> {
        let device = tensor.device.place();
        let device =
            device.ok_or_else(|| raise(py, elsewhere(format!("device {} of DLPack", tensor.device.kind))))?;
        let dtype = DType::ALL.into_iter().find(|&dtype| element_type(dtype) == tensor.element);
        let dtype = dtype.ok_or_else(|| {
            let ElementType { code, bits, .. } = tensor.element;
            let message = format!("DLPack element type {code} of {bits} bits is not supported");
            raise(py, Error::argument("input", message))
        })?;
        // SAFETY: the structure is as its producer filled it, a moment ago.
        let (shape, strides) = unsafe { (tensor.shape(), tensor.strides()) };
        let shape: Vec<usize> = shape.iter().map(|&extent| extent as usize).collect();
        let strides = match strides {
            Some(strides) => strides.iter().map(|&stride| stride as isize).collect(),
            None => Layout::packed(&shape).strides,
        };
        Ok(Tensor { address: tensor.address(), device, form: Form { dtype, shape, strides } })
    }

    /// The address of its least element.
    pub fn start(&self) -> usize {
        let low = self.form.reach().0 * self.form.dtype.size() as isize;
        if self.form.shape.contains(&0) { self.address } else { self.address.wrapping_add_signed(low) }
    }

    /// The memory between its least and greatest element.
    ///
    /// # Safety
    /// The tensor lies in the host's memory, which is alive, and nobody writes to it meanwhile.
    pub unsafe fn bytes(&self) -> &[u8] {
        if self.form.shape.contains(&0) {
            // SAFETY: no byte is read, and the address is aligned for every element type.
            return unsafe { std::slice::from_raw_parts(NonNull::<u64>::dangling().as_ptr().cast(), 0) };
        }
        let (low, high) = self.form.reach();
        let bytes = (high - low + 1) as usize * self.form.dtype.size();
        // SAFETY: every byte lies between elements of one tensor, which the caller keeps alive.
        unsafe { std::slice::from_raw_parts(self.start() as *const u8, bytes) }
    }

    /// The elements in row-major order, as `f64`.
    ///
    /// # Safety
    /// As [`Tensor::bytes`].
    pub unsafe fn numbers(&self) -> Vec<f64> {
        let Form { dtype, shape, strides } = &self.form;
        // SAFETY: the caller's promise.
        let bytes = unsafe { self.bytes() };
        let start = self.form.layout().offset;
        let packed = Layout::packed(shape).strides;
        (0..shape.iter().product())
            .map(|number: usize| {
                let position = |axis: usize| number as isize / packed[axis] % shape[axis] as isize;
                let place =
                    start + (0..shape.len()).map(|axis| position(axis) * strides[axis]).sum::<isize>();
                let size = dtype.size();
                match Scalar::from_bytes(*dtype, &bytes[place as usize * size..][..size]) {
                    Scalar::Float(number) => number,
                    Scalar::Integer(number) => number as f64,
                    Scalar::Bool(truth) => f64::from(u8::from(truth)),
                }
            })
            .collect()
    }

    /// The memory of a packed tensor, to be written.
    ///
    /// # Safety
    /// The tensor is packed and lies in the host's memory, which is alive, and nobody else reads or writes it meanwhile.
    #[allow(clippy::mut_from_ref, reason = "the tensor only stands for memory that Python owns")]
    pub unsafe fn bytes_mut(&self) -> &mut [u8] {
        if self.form.shape.contains(&0) {
            // SAFETY: no byte is written, and the address is aligned for every element type.
            return unsafe { std::slice::from_raw_parts_mut(NonNull::<u64>::dangling().as_ptr().cast(), 0) };
        }
        // SAFETY: a packed tensor's elements fill these bytes; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.form.ty().bytes()) }
    }
}
