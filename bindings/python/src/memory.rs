//! Tensors of Python as the compiler sees them: an address, a shape, strides, an element type.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;
use tilewright_ir::{DType, Type};

/// A tensor in somebody else's memory.
pub struct Tensor {
    address: usize,
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

/// A new packed tensor of PyTorch.
pub fn empty_torch<'py>(py: Python<'py>, empty: &Bound<'py, PyAny>, ty: &Type) -> PyResult<Bound<'py, PyAny>> {
    let (dtype, _) =
        torch_types(py)?.iter().find(|(_, dtype)| *dtype == ty.dtype).expect("every element type is listed");
    let options = pyo3::types::PyDict::new(py);
    options.set_item("dtype", dtype)?;
    empty.call((PyTuple::new(py, &ty.shape)?,), Some(&options))
}

impl Tensor {
    /// A tensor of PyTorch that lives on the CPU.
    pub fn of_torch(tensor: &Bound<'_, PyAny>) -> PyResult<Tensor> {
        let py = tensor.py();
        let dtype = tensor.getattr("dtype")?;
        let known = torch_types(py)?.iter().find(|(known, _)| known.is(&dtype));
        let Some(&(_, dtype)) = known else {
            let message = format!("a tensor of element type {dtype} is not supported");
            return Err(crate::raise(py, tilewright_ir::Error::argument("input", message)));
        };
        Ok(Tensor {
            address: tensor.call_method0("data_ptr")?.extract()?,
            dtype,
            shape: tensor.getattr("shape")?.extract()?,
            strides: tensor.call_method0("stride")?.extract()?,
        })
    }

    /// Its type.
    pub fn ty(&self) -> Type {
        Type::new(self.dtype, self.shape.clone())
    }

    /// Whether its elements stand one after the other in row-major order.
    pub fn is_packed(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
            let fits = extent <= 1 || stride == expected;
            expected *= extent as isize;
            fits
        })
    }

    /// Position of the first element within [`Tensor::bytes`], in elements.
    pub fn offset(&self) -> isize {
        -self.reach().0
    }

    /// Least and greatest distance of an element from the first, in elements.
    fn reach(&self) -> (isize, isize) {
        self.shape.iter().zip(&self.strides).fold((0, 0), |(low, high), (&extent, &stride)| {
            let distance = stride * (extent as isize - 1);
            (low + distance.min(0), high + distance.max(0))
        })
    }

    /// The memory between its least and greatest element.
    ///
    /// # Safety
    /// The tensor's memory is alive, and nobody writes to it meanwhile.
    pub unsafe fn bytes(&self) -> &[u8] {
        if self.shape.contains(&0) {
            return &[];
        }
        let (low, high) = self.reach();
        let size = self.dtype.size();
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
        if self.shape.contains(&0) {
            return &mut [];
        }
        // SAFETY: a packed tensor's elements fill these bytes; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.ty().bytes()) }
    }
}
