//! Trees of arrays as safetensors files, an array under its path.

use std::borrow::Cow;
use std::fs;
use std::path::Path as FilePath;

use safetensors::{Dtype, SafeTensors, View};

use crate::tree::{MapLeaves, Tree, leaves, map_leaves};
use crate::{Array, DType, Error, ErrorKind, Result};

/// An array on its way to a file.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn stored_type(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

fn file_error(file: &FilePath, message: impl ToString) -> Error {
    Error::new(ErrorKind::File { path: file.display().to_string(), message: message.to_string() })
}

/// Saves a tree's arrays in safetensors format, each under its path (`layers.3.bias`; `array` for a tree that is
/// one array). The file is replaced whole or not at all.
///
/// # Errors
/// `File` where it cannot be written.
pub fn save<T: Tree<Array>>(file: impl AsRef<FilePath>, tree: &T) -> Result<()> {
    let file = file.as_ref();
    let mut arrays = Vec::new();
    for (path, array) in leaves(tree) {
        let dtype = stored_type(array.dtype());
        let stored = Stored { dtype, shape: array.shape().to_vec(), bytes: array.to_bytes()? };
        arrays.push((name(path.as_str()).to_string(), stored));
    }
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = FilePath::new(&partial);
    safetensors::serialize_to_file(arrays, None, partial).map_err(|error| file_error(file, error))?;
    fs::rename(partial, file).map_err(|error| file_error(file, error))
}

/// Loads a tree like `template` (whose arrays say shape and element type) from a file that [`save`] or any other
/// program wrote. Arrays in the file that the tree does not name are ignored.
///
/// # Errors
/// `File` where the file cannot be read or lacks an array; `Shape` or `DType`, with the path, where one differs.
pub fn load<T: MapLeaves<Array, Array>>(file: impl AsRef<FilePath>, template: &T) -> Result<T::Output> {
    let file = file.as_ref();
    let bytes = fs::read(file).map_err(|error| file_error(file, error))?;
    let arrays = SafeTensors::deserialize(&bytes).map_err(|error| file_error(file, error))?;
    map_leaves(template, |path, expected| {
        let name = name(path.as_str());
        let found = arrays.tensor(name).map_err(|_| file_error(file, format!("has no array `{name}`")))?;
        if found.dtype() != stored_type(expected.dtype()) {
            return Err(file_error(
                file,
                format!("array `{name}` is {:?}, {} expected", found.dtype(), expected.dtype()),
            ));
        }
        if found.shape() != expected.shape() {
            let (expected, found) = (format!("{:?}", expected.shape()), format!("{:?}", found.shape()));
            return Err(Error::shape(format!("array `{name}` of {}", file.display()), expected, found));
        }
        Array::from_bytes(expected.dtype(), expected.shape(), found.data())
    })
}

/// What an array is called in a file.
fn name(path: &str) -> &str {
    if path.is_empty() { "array" } else { path }
}
