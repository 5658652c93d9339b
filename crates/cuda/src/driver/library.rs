//! cuBLASLt: matrix products, loaded at run time where the machine has it.
//!
//! Results have the same bits in each run: an algorithm is chosen once for a product's sizes and layouts, from those
//! that add in a fixed order, and half types are added up as `f32` throughout. `f32` is never rounded to fewer bits.

use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};
use tilewright_ir::{DType, Result};

use super::device::{Stream, unavailable};
use crate::codegen::{Argument, Operand, Product};

/// Bytes of workspace that an algorithm may ask for.
const WORKSPACE: usize = 32 << 20;

/// Bytes that addresses of a plan's buffers are multiples of, as far as algorithms care.
const ALIGNMENT: usize = 16;

/// The library.
#[derive(Debug)]
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
}

// SAFETY: the library lets any thread use a handle.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// A product with its algorithm.
#[derive(Debug)]
pub(super) struct Prepared {
    product: Product,
    description: sys::cublasLtMatmulDesc_t,
    /// Of the first operand, the second, and the result.
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Bytes of workspace.
    pub workspace: usize,
}

// SAFETY: descriptions are only read once they are made.
unsafe impl Send for Prepared {}
// SAFETY: as above.
unsafe impl Sync for Prepared {}

impl Library {
    /// The library, unless the machine has none, or `TILEWRIGHT_CUBLASLT` is `0`. The device's context is current.
    pub fn open() -> Option<Library> {
        if std::env::var_os("TILEWRIGHT_CUBLASLT").is_some_and(|wanted| wanted == "0") {
            return None;
        }
        // SAFETY: opens the library if it is there.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        result::create_handle().ok().map(|handle| Library { handle })
    }

    /// A product with the algorithm that the library thinks fastest; none where it has none.
    pub fn prepare(&self, product: Product) -> Option<Prepared> {
        let (compute, scale) = match product.dtype {
            DType::F64 => (sys::cublasComputeType_t::CUBLAS_COMPUTE_64F, sys::cudaDataType_t::CUDA_R_64F),
            DType::F32 | DType::BF16 | DType::F16 => {
                (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F)
            }
            DType::I64 | DType::I32 | DType::U8 | DType::Bool => return None,
        };
        let description = result::create_matmul_desc(compute, scale).ok()?;
        // From here on what was made is freed when `prepared` is dropped.
        let mut prepared = Prepared {
            product,
            description,
            layouts: Vec::new(),
            // SAFETY: a structure of plain numbers.
            algorithm: unsafe { std::mem::zeroed() },
            workspace: 0,
        };
        use sys::cublasLtMatmulDescAttributes_t::*;
        for (attribute, operand) in
            [(CUBLASLT_MATMUL_DESC_TRANSA, product.first), (CUBLASLT_MATMUL_DESC_TRANSB, product.second)]
        {
            // The library's names of "as it is" and "transposed".
            let operation = u32::from(operand.transposed);
            // SAFETY: the description was just made; the value has the attribute's type.
            unsafe {
                let value = std::ptr::from_ref(&operation).cast();
                result::set_matmul_desc_attribute(description, attribute, value, size_of_val(&operation))
            }
            .ok()?;
        }
        let Product { rows, columns, depth, batch, first, second, output, .. } = product;
        for (operand, rows, columns) in
            [(first, rows, depth), (second, depth, columns), (output, rows, columns)]
        {
            prepared.layouts.push(layout(product.dtype, operand, rows, columns, batch)?);
        }
        let preference = Preference(result::create_matmul_pref().ok()?);
        use sys::cublasLtMatmulPreferenceAttributes_t::*;
        preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE)?;
        // Parts of a sum are added up in the type of the sum, by whoever owns the result.
        preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 2u32)?;
        for (attribute, operand) in [
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, first),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, second),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, output),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, output),
        ] {
            preference.set(attribute, alignment(&operand) as u32)?;
        }
        let [first, second, output] = prepared.layouts[..] else { return None };
        // SAFETY: all descriptions live.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                description,
                first,
                second,
                output,
                output,
                preference.0,
            )
        }
        .ok()?;
        prepared.algorithm = found.algo;
        prepared.workspace = found.workspaceSize;
        Some(prepared)
    }

    /// Whether the operands lie as the algorithm was chosen for.
    pub fn fits(&self, prepared: &Prepared, address: &impl Fn(&Argument) -> u64) -> bool {
        let Product { first, second, output, .. } = &prepared.product;
        [first, second, output]
            .into_iter()
            .all(|operand| address(&operand.start).is_multiple_of(alignment(operand) as u64))
    }

    /// Asks for a product.
    ///
    /// # Safety
    /// The operands' addresses are those of memory that holds them; there is as much workspace as was asked for.
    pub unsafe fn run(
        &self,
        prepared: &Prepared,
        address: &impl Fn(&Argument) -> u64,
        workspace: u64,
        stream: Stream,
    ) -> Result<()> {
        let Prepared { product, description, layouts, algorithm, workspace: bytes } = prepared;
        let (one, zero) = (1.0f64, 0.0f64);
        let (one_f32, zero_f32) = (1.0f32, 0.0f32);
        let (alpha, beta): (*const c_void, *const c_void) = match product.dtype {
            DType::F64 => (std::ptr::from_ref(&one).cast(), std::ptr::from_ref(&zero).cast()),
            _ => (std::ptr::from_ref(&one_f32).cast(), std::ptr::from_ref(&zero_f32).cast()),
        };
        let at = |operand: &Operand| address(&operand.start) as *mut c_void;
        let output = at(&product.output);
        // SAFETY: descriptions that live, and the caller's promise.
        unsafe {
            result::matmul(
                self.handle,
                *description,
                alpha,
                beta,
                at(&product.first),
                layouts[0],
                at(&product.second),
                layouts[1],
                output,
                layouts[2],
                output,
                layouts[2],
                algorithm,
                workspace as *mut c_void,
                *bytes,
                stream.0.cast(),
            )
        }
        .map_err(|error| unavailable(format!("cuBLASLt: {:?}", error.0), "a working GPU"))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // A failure to free leaves nothing to be done.
        // SAFETY: made by `open`, not used again.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY (both): made by `prepare`, not used again.
        let _ = unsafe { result::destroy_matmul_desc(self.description) };
        for &layout in &self.layouts {
            let _ = unsafe { result::destroy_matrix_layout(layout) };
        }
    }
}

/// What an algorithm has to keep to.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Option<()> {
        // SAFETY: the preference lives; the value has the attribute's type.
        unsafe {
            result::set_matmul_pref_attribute(
                self.0,
                attribute,
                std::ptr::from_ref(&value).cast(),
                size_of_val(&value),
            )
        }
        .ok()
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `create_matmul_pref`, not used again.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn layout(
    dtype: DType,
    operand: Operand,
    rows: usize,
    columns: usize,
    batch: usize,
) -> Option<sys::cublasLtMatrixLayout_t> {
    let ty = match dtype {
        DType::F64 => sys::cudaDataType_t::CUDA_R_64F,
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => return None,
    };
    let (rows, columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
    let layout = result::create_matrix_layout(ty, rows as u64, columns as u64, operand.lead).ok()?;
    let count = i32::try_from(batch).ok()?;
    use sys::cublasLtMatrixLayoutAttribute_t::*;
    // SAFETY: the layout was just made; the values have the attributes' types.
    let set = unsafe {
        let of = |value: *const c_void, bytes, attribute| {
            result::set_matrix_layout_attribute(layout, attribute, value, bytes)
        };
        of(std::ptr::from_ref(&count).cast(), 4, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT).and_then(|()| {
            let stride = std::ptr::from_ref(&operand.batch_stride).cast();
            of(stride, 8, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET)
        })
    };
    if set.is_err() {
        // SAFETY: made above, not used again.
        let _ = unsafe { result::destroy_matrix_layout(layout) };
        return None;
    }
    Some(layout)
}

/// The greatest power of two that divides the place within its buffer of each matrix's start.
fn alignment(operand: &Operand) -> usize {
    match operand.start {
        Argument::Buffer { bytes, .. } => 1 << (bytes as usize | ALIGNMENT).trailing_zeros(),
        Argument::Scratch(_)
        | Argument::Fault
        | Argument::Integer(_)
        | Argument::Float(_)
        | Argument::Null => ALIGNMENT,
    }
}
