//! Element types and register kinds as C++ types.

use tilewright_ir::DType;
use tilewright_plan::Kind;

/// The type of an element in memory.
pub fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "double",
        DType::F32 => "float",
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::I64 => "long long",
        DType::I32 => "int",
        DType::U8 | DType::Bool => "unsigned char",
    }
}

/// The type of a register.
pub fn register(kind: Kind) -> &'static str {
    match kind {
        Kind::F64 => "double",
        Kind::F32 => "float",
        Kind::I64 => "long long",
        Kind::I32 => "int",
        Kind::Bool => "bool",
    }
}

/// An element that was read, as its register's value.
pub fn loaded(dtype: DType, read: &str) -> String {
    match dtype {
        DType::F64 | DType::F32 | DType::I64 | DType::I32 => read.into(),
        DType::BF16 | DType::F16 => format!("to_float({read})"),
        DType::U8 => format!("(int){read}"),
        DType::Bool => format!("{read} != 0"),
    }
}

/// A register's value, as the element that is written.
pub fn stored(dtype: DType, value: &str) -> String {
    match dtype {
        DType::F64 | DType::F32 | DType::I64 | DType::I32 => value.into(),
        DType::BF16 | DType::F16 => format!("from_float<{}>({value})", element(dtype)),
        DType::U8 | DType::Bool => format!("(unsigned char){value}"),
    }
}
