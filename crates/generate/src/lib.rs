//! Random programs for differential tests: the same seed gives the same program and inputs.
//!
//! A test that compares two evaluations, or a gradient with central differences, needs programs whose
//! results are well-conditioned. So each float value is kept within a known bound; what jumps (comparison,
//! rounding, conversion to integers, `argmax`) reads only *exact* values, which no evaluation computes
//! differently: parameters, constants and what merely moves them; and what has a kink (`max`, `abs`) has it
//! at an irregular constant, near which no value is likely to lie (take steps of about 1e-6 in `f64`).
//! Indices are brought into range by the programs themselves.

#![forbid(unsafe_code)]

mod attention;
mod gated;
mod graph;
mod mask;
mod random;
mod scan;
mod score;

pub use attention::{random_attention, random_attention_of};
pub use gated::gated_recurrence;
pub use graph::{Config, random_graph};
pub use random::Random;
pub use scan::{random_scan, random_scan_of};

use tilewright_interp::Array;
use tilewright_ir::{DType, Graph, Type};

/// An array for each parameter of `graph`: floats between −2 and 2, integers from −4 to 4 (`u8`: 0 to 8).
pub fn random_inputs(graph: &Graph, seed: u64) -> Vec<Array> {
    let mut random = Random::new(seed);
    graph.parameter_types().into_iter().map(|ty| random_array(&mut random, ty.clone())).collect()
}

/// One such array.
fn random_array(random: &mut Random, ty: Type) -> Array {
    let count = ty.elements();
    match ty.dtype {
        DType::F64 | DType::F32 | DType::BF16 | DType::F16 => {
            let elements: Vec<f64> = (0..count).map(|_| random.float(-2.0, 2.0)).collect();
            Array::from_f64s(ty, &elements)
        }
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
            let (low, high) = match ty.dtype {
                DType::U8 => (0, 9),
                DType::Bool => (0, 2),
                _ => (-4, 5),
            };
            let elements: Vec<i64> = (0..count).map(|_| random.integer(low, high)).collect();
            Array::from_i64s(ty, &elements)
        }
    }
}
