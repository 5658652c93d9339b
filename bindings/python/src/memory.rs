//! Tensors of Python as the compiler sees them: an address, a shape, strides, an element type.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use tilewright::pipeline::Layout;
use tilewright_ir::{DType, Type};

/// A tensor in somebody else's memory.
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

/// PyTorch's element types, looked up once.
static TORCH_TYPES: PyOnceLock<Vec<(Py<PyAny>, DType)>> = PyOnceLock::new();

fn torch_types(py: Python<'_>) -> PyResult<&Vec<(Py<PyAny>, DType)>> {
    TORCH_TYPES.get_or_try_init(py, || {
        let torch = py.import("torch")?;
        DType::ALL.iter().map(|&dtype| Ok((torch.getattr(torch_name(dtype))?.unbind(), dtype))).collect()
    })
}

fn torch_name(dtype: DType) -> &'static str {
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

/// The element type of a tensor of PyTorch.
fn torch_type(tensor: &Bound<'_, PyAny>) -> PyResult<DType> {
    let py = tensor.py();
    let dtype = tensor.getattr(intern!(py, "dtype"))?;
    let known = torch_types(py)?.iter().find(|(known, _)| known.is(&dtype));
    known.map(|&(_, dtype)| dtype).ok_or_else(|| {
        let message = format!("a tensor of element type {dtype} is not supported");
        crate::raise(py, tilewright_ir::Error::argument("input", message))
    })
}

/// A new packed tensor of PyTorch, and its memory.
pub fn empty_torch<'py>(
    py: Python<'py>,
    empty: &Bound<'py, PyAny>,
    ty: &Type,
) -> PyResult<(Bound<'py, PyAny>, Tensor)> {
    let (dtype, _) =
        torch_types(py)?.iter().find(|(_, dtype)| *dtype == ty.dtype).expect("every element type is listed");
    let options = PyDict::new(py);
    options.set_item(intern!(py, "dtype"), dtype)?;
    let tensor = empty.call((PyTuple::new(py, &ty.shape)?,), Some(&options))?;
    let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
    Ok((tensor, Tensor { address, form: Form::packed(ty) }))
}

impl Form {
    fn packed(ty: &Type) -> Form {
        let Layout { strides, .. } = Layout::packed(&ty.shape);
        Form { dtype: ty.dtype, shape: ty.shape.clone(), strides }
    }

    /// The type of the elements and their shape.
    pub fn ty(&self) -> Type {
        Type::new(self.dtype, self.shape.clone())
    }

    /// Whether the elements stand one after the other in row-major order.
    pub fn is_packed(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
            let fits = extent <= 1 || stride == expected;
            expected *= extent as isize;
            fits
        })
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
    /// A tensor of PyTorch that lives on the CPU.
    pub fn of_torch(tensor: &Bound<'_, PyAny>) -> PyResult<Tensor> {
        let py = tensor.py();
        Ok(Tensor {
            address: tensor.call_method0(intern!(py, "data_ptr"))?.extract()?,
            form: Form {
                dtype: torch_type(tensor)?,
                shape: numbers(&tensor.getattr(intern!(py, "shape"))?)?,
                strides: numbers(&tensor.call_method0(intern!(py, "stride"))?)?,
            },
        })
    }

    /// The memory between its least and greatest element.
    ///
    /// # Safety
    /// The tensor's memory is alive, and nobody writes to it meanwhile.
    pub unsafe fn bytes(&self) -> &[u8] {
        if self.form.shape.contains(&0) {
            return &[];
        }
        let (low, high) = self.form.reach();
        let size = self.form.dtype.size();
        let start = self.address.wrapping_add_signed(low * size as isize);
        // SAFETY: every byte lies between elements of one tensor, which the caller keeps alive.
        unsafe { std::slice::from_raw_parts(start as *const u8, (high - low + 1) as usize * size) }
    }

    /// The memory of a packed tensor, to be written.
    ///
    /// # Safety
    /// The tensor is packed, its memory is alive, and nobody else reads or writes it meanwhile.
    #[allow(clippy::mut_from_ref, reason = "the tensor only stands for memory that Python owns")]
    pub unsafe fn bytes_mut(&self) -> &mut [u8] {
        if self.form.shape.contains(&0) {
            return &mut [];
        }
        // SAFETY: a packed tensor's elements fill these bytes; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.form.ty().bytes()) }
    }
}

/// The numbers of a tuple.
fn numbers<'py, T>(tuple: &Bound<'py, PyAny>) -> PyResult<Vec<T>>
where
    T: for<'a> FromPyObject<'a, 'py, Error: Into<PyErr>>,
{
    tuple.cast::<PyTuple>()?.iter_borrowed().map(|number| number.extract().map_err(Into::into)).collect()
}
