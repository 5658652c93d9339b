//! Matrix products: by a library where the machine has one and the operands lie as it knows them, else by a kernel.

mod product;

use tilewright_ir::DType;
use tilewright_plan::MatMul;

pub use product::{Operand, Product};

use super::FRAGMENTS;
use super::launch::{Launch, Lowering, Source};
use super::parameters::Parameters;
use super::types::element;

const ENGINE: &str = include_str!("../engines/matmul.cuh");
const MATRICES: &str = include_str!("../engines/matmul_matrices.cuh");
const SCALARS: &str = include_str!("../engines/matmul_scalars.cuh");

/// Rows and columns of a block's results.
const TILE: usize = 64;

pub(super) fn lower(matmul: &MatMul, lowering: &mut Lowering) {
    let launch = kernel(matmul);
    lowering.product(product::products(matmul), launch);
}

fn kernel(product: &MatMul) -> Launch {
    let MatMul { batch, rows, columns, depth, dtype, left, right, output } = product;
    let mut parameters = Parameters::default();
    parameters.integers("batch", batch.iter().map(|&extent| extent as i64));
    for (name, value) in [("rows", rows), ("columns", columns), ("depth", depth)] {
        parameters.integer(name, *value as i64);
    }
    parameters.view("left", left, *dtype, false);
    parameters.view("right", right, *dtype, false);
    parameters.view("output", output, *dtype, true);
    // Integers wrap: their sums are unsigned, where that is defined.
    let (matrices, sum) = match dtype {
        DType::BF16 | DType::F16 | DType::F32 => (true, "float"),
        DType::F64 => (false, "double"),
        DType::I64 => (false, "unsigned long long"),
        DType::I32 | DType::U8 | DType::Bool => (false, "unsigned"),
    };
    let text = format!(
        "typedef {} Element;\ntypedef {sum} Sum;\nconstexpr int BATCH_AXES = {};\n",
        element(*dtype),
        batch.len()
    );
    let engine = if matrices { vec![FRAGMENTS, ENGINE, MATRICES] } else { vec![ENGINE, SCALARS] };
    let comment = format!("matrix products of {dtype}.");
    let source = Source::new("matmul", &comment, &parameters, &text, &engine);
    Launch {
        source,
        blocks: batch.iter().product::<usize>() * rows.div_ceil(TILE) * columns.div_ceil(TILE),
        threads: 128,
        shared_bytes: if matrices { (TILE * 40 + 32 * (TILE + 8)) * dtype.size() } else { 0 },
        arguments: parameters.arguments,
    }
}
