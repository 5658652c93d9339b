//! Arrays of Python as the compiler sees them: an address, a shape, strides, an element type.

use std::ptr::NonNull;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use tilewright::pipeline::Layout;
use tilewright_ir::{DType, Error, ErrorKind, Scalar, Type};

use crate::array::Array;
use crate::dlpack::{self, DlTensor, ElementType};
use crate::raise;

/// An array in somebody else's memory.
pub struct Tensor {
    address: usize,
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

/// Borrows arrays of any library, all in the host's memory.
///
/// # Errors
/// `DType` and `DeviceUnavailable`, and what the arrays' library raises.
pub fn borrow<'py>(arrays: Vec<Bound<'py, PyAny>>) -> PyResult<Borrowed<'py>> {
    let mut tensors = Vec::with_capacity(arrays.len());
    let mut lent = Vec::new();
    for array in &arrays {
        let (tensor, capsule) = dlpack::with_tensor(array, |tensor| Tensor::of(array.py(), tensor))?;
        tensors.push(tensor);
        lent.extend(capsule);
    }
    Ok(Borrowed { tensors, _arrays: arrays, _lent: lent })
}

/// New packed arrays of these types, and their memory: tensors of PyTorch where its `empty` is given, else our own.
///
/// # Errors
/// `OutOfMemory`, and what PyTorch raises.
pub fn allocate<'py>(
    py: Python<'py>,
    empty: Option<&Bound<'py, PyAny>>,
    types: &[Type],
) -> PyResult<(Vec<Bound<'py, PyAny>>, Vec<Tensor>)> {
    let one = |ty: &Type| match empty {
        Some(empty) => empty_torch(py, empty, ty),
        None => {
            let array = Array::new(ty).map_err(|error| raise(py, error))?;
            let tensor = Tensor { address: array.address(), form: Form::packed(ty) };
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
        let device = "cpu".into();
        match error.is_instance_of::<PyRuntimeError>(py) {
            true => raise(py, Error::new(ErrorKind::OutOfMemory { bytes: ty.bytes(), device })),
            false => error,
        }
    })?;
    let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
    Ok((tensor, Tensor { address, form: Form::packed(ty) }))
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
        if !tensor.is_on_host() {
            return Err(raise(
                py,
                Error::new(ErrorKind::DeviceUnavailable {
                    device: "cpu".into(),
                    found: format!("an array on DLPack device {}", tensor.device.kind),
                    required: "an array in the host's memory".into(),
                }),
            ));
        }
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
        Ok(Tensor { address: tensor.address(), form: Form { dtype, shape, strides } })
    }

    /// The memory between its least and greatest element.
    ///
    /// # Safety
    /// The tensor's memory is alive, and nobody writes to it meanwhile.
    pub unsafe fn bytes(&self) -> &[u8] {
        if self.form.shape.contains(&0) {
            // SAFETY: no byte is read, and the address is aligned for every element type.
            return unsafe { std::slice::from_raw_parts(NonNull::<u64>::dangling().as_ptr().cast(), 0) };
        }
        let (low, high) = self.form.reach();
        let size = self.form.dtype.size();
        let start = self.address.wrapping_add_signed(low * size as isize);
        // SAFETY: every byte lies between elements of one tensor, which the caller keeps alive.
        unsafe { std::slice::from_raw_parts(start as *const u8, (high - low + 1) as usize * size) }
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
    /// The tensor is packed, its memory is alive, and nobody else reads or writes it meanwhile.
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
