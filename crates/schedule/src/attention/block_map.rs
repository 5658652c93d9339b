//! The plan of a block map alone, for those who want to see the blocks that a mask leaves.

use tilewright_ir::{DType, Error, Graph, Result, Type};
use tilewright_plan::{
    BlockMap, Buffer, BufferId, Kernel, Kind, Operation, Place, Plan, Program, Table, View,
};

use super::{COORDINATES, keep_tables, lower_mask};
use crate::Layout;
use crate::lower::input_elements;

/// The plan that makes a block map and nothing else: the blocks of `[query_block, key_block]` pairs that `mask`
/// leaves of `[batch, heads, queries, keys]`. The mask's parameters are b, h, q, k and captures; the plan's
/// inputs are the captures, which lie as `captures` says.
///
/// # Errors
/// `Argument` for an empty block, `Shape` where layouts and captures disagree in number, and what a mask within
/// attention is refused for.
pub fn block_map(
    mask: &Graph,
    captures: &[Layout],
    [batch, heads, queries, keys]: [usize; 4],
    [query_block, key_block]: [usize; 2],
) -> Result<Plan> {
    if query_block == 0 || key_block == 0 {
        return Err(Error::argument("block", "at least one query and one key expected"));
    }
    let types: Vec<&Type> = mask.parameter_types().into_iter().skip(COORDINATES.len()).collect();
    if types.len() != captures.len() {
        return Err(Error::shape("captures", types.len(), captures.len()));
    }
    let mut buffers = Vec::new();
    let mut tables = Vec::new();
    for (number, (ty, layout)) in types.iter().zip(captures).enumerate() {
        let elements = input_elements(number, layout, &ty.shape)?;
        let view = View { buffer: BufferId(number), offset: layout.offset, strides: layout.strides.clone() };
        buffers.push(Buffer { dtype: ty.dtype, elements, place: Place::Input(number) });
        tables.push(Table {
            view,
            dtype: ty.dtype,
            shape: ty.shape.clone(),
            name: format!("captured array {number}"),
            origin: None,
        });
    }
    let mut mask = lower_mask(Some(mask), captures.len())?.unwrap_or_else(all_pairs);
    let tables = keep_tables(vec![&mut mask], tables);
    let map = BlockMap { slot: 0, batch, heads, queries, keys, query_block, key_block, mask, tables };
    Ok(Plan { buffers, kernels: vec![Kernel::BlockMap(map)], block_maps: 1, arena_bytes: 0 })
}

/// The mask that admits every pair.
fn all_pairs() -> Program {
    let mut program = Program::default();
    let admitted = program.push(Operation::Constant(true.into()), Kind::of(DType::Bool));
    program.results.push(admitted);
    program
}
