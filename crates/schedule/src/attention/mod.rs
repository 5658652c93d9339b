//! Lowering of attention and its gradient.
//!
//! Score function and mask become programs, each distinct mask one block map. In the backward pass each
//! read of a learned capture is a [`terms::Term`]; [`index_map`] finds the smallest key that its indices
//! are a function of, and [`zero`] the terms whose sums cancel along each row.

mod block_map;
mod index_map;
#[cfg(test)]
mod reference;
mod terms;
#[cfg(test)]
mod tests;
mod zero;

pub use block_map::block_map;
use tilewright_ir::{FlexAttention, FlexAttentionBackward, Graph, Origin, Result, Scalar};
use tilewright_plan::attention::{Attention, AttentionShape, CaptureCotangent};
use tilewright_plan::{
    AttentionBackward, AttentionForward, BlockMap, Kernel, Operation, Program, Table, View,
};

use crate::operand::{Operand, line_of_read};
use crate::region::{Argument, Lowering, lower_region};

/// Queries per block of a block map.
pub(crate) const QUERY_BLOCK: usize = 64;

/// Keys per block of a block map.
pub(crate) const KEY_BLOCK: usize = 128;

/// The block maps of a plan, one for each distinct mask.
#[derive(Default)]
pub(crate) struct BlockMaps {
    maps: Vec<BlockMap>,
}

impl BlockMaps {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.maps.len()
    }

    /// The slot of a map, and the kernel that makes it if it is new.
    fn slot(&mut self, mut map: BlockMap) -> (usize, Option<Kernel>) {
        for known in &self.maps {
            if same_blocks(&map, known) {
                return (known.slot, None);
            }
        }
        map.slot = self.maps.len();
        self.maps.push(map.clone());
        (map.slot, Some(Kernel::BlockMap(map)))
    }
}

/// Whether two maps hold the same blocks: slots, and the lines that read tables, may differ.
fn same_blocks(map: &BlockMap, other: &BlockMap) -> bool {
    let anonymous = |map: &BlockMap| {
        let tables = map.tables.iter().map(|table| Table { origin: None, ..table.clone() }).collect();
        BlockMap { slot: 0, tables, ..map.clone() }
    };
    anonymous(map) == anonymous(other)
}

/// The inputs of programs (see [`tilewright_plan::attention`]).
const COORDINATES: [usize; 4] = [0, 1, 2, 3];
const SCORE: usize = 4;
const COTANGENT: usize = 5;

/// The kernels of an attention: its block map where that is new, and itself. `results` are output,
/// log-sum-exp, maximum and (of half types) unrounded output; the first is present.
///
/// # Errors
/// Those of [`lower_region`].
pub(crate) fn lower_forward(
    attention: &FlexAttention,
    operands: &[Operand],
    results: &[Option<View>],
    block_maps: &mut BlockMaps,
    origin: &Option<Origin>,
) -> Result<Vec<Kernel>> {
    let (inputs, captures) = operands.split_at(3);
    let mut score = Some(lower_region(&attention.score, &score_arguments(captures.len()))?);
    score.take_if(|score| is_input(score, 0, SCORE));
    let mask = lower_mask(attention.mask.as_ref(), captures.len())?;
    let tables = Tables { captures, score: &attention.score, mask: attention.mask.as_ref(), origin };
    let Common { mut attention, mut kernels } = common(inputs, tables, attention.scale, mask, block_maps);
    let programs = score.iter_mut().chain(&mut attention.mask);
    attention.tables = keep_tables(programs.collect(), attention.tables);
    kernels.push(Kernel::AttentionForward(AttentionForward {
        attention,
        score,
        output: results[0].clone().expect("the output of attention has a place"),
        unrounded: results.get(3).cloned().flatten(),
        log_sum_exp: results[1].clone(),
        maximum: results[2].clone(),
    }));
    Ok(kernels)
}

/// The kernels of the gradient of attention: its block map where that is new, and itself. What has no
/// place in `results` is not computed.
///
/// # Errors
/// Those of [`lower_region`].
pub(crate) fn lower_backward(
    backward: &FlexAttentionBackward,
    operands: &[Operand],
    results: &[Option<View>],
    block_maps: &mut BlockMaps,
    origin: &Option<Origin>,
) -> Result<Vec<Kernel>> {
    let leading = 6 + usize::from(backward.log_sum_exp_cotangent);
    let (inputs, captures) = operands.split_at(leading);
    let mask = lower_mask(backward.mask.as_ref(), captures.len())?;
    let tables = Tables { captures, score: &backward.joint, mask: backward.mask.as_ref(), origin };
    let Common { mut attention, mut kernels } = common(inputs, tables, backward.scale, mask, block_maps);

    let mut learned = Vec::new();
    let mut place_of = vec![None; captures.len()];
    for (&capture, view) in backward.learned.iter().zip(&results[3..]) {
        if let Some(view) = view {
            place_of[capture] = Some(learned.len());
            let ty = &captures[capture].ty;
            learned.push(CaptureCotangent { view: view.clone(), dtype: ty.dtype, shape: ty.shape.clone() });
        }
    }
    let arguments = joint_arguments(captures.len());
    let mut lowering = Lowering::new(&backward.joint, &arguments)?;
    let lengths = (attention.shape.queries, attention.shape.keys);
    let terms::Terms { mut joint, mut reductions, zero_terms } =
        terms::lower(backward, &mut lowering, &place_of, lengths)?;
    let programs = (attention.mask.iter_mut())
        .chain([&mut joint])
        .chain(reductions.iter_mut().map(|reduction| &mut reduction.indices));
    attention.tables = keep_tables(programs.collect(), attention.tables);
    let identity = is_input(&joint, 0, SCORE) && is_input(&joint, 1, COTANGENT) && reductions.is_empty();
    kernels.push(Kernel::AttentionBackward(Box::new(AttentionBackward {
        attention,
        joint: (!identity).then_some(joint),
        output: inputs[3].view.clone(),
        log_sum_exp: inputs[4].view.clone(),
        output_cotangent: inputs[5].view.clone(),
        log_sum_exp_cotangent: inputs.get(6).map(|operand| operand.view.clone()),
        query_cotangent: results[0].clone(),
        key_cotangent: results[1].clone(),
        value_cotangent: results[2].clone(),
        captures: learned,
        reductions,
        zero_terms,
    })));
    Ok(kernels)
}

fn tables(captures: usize) -> impl Iterator<Item = Argument> {
    (0..captures).map(Argument::Table)
}

fn score_arguments(captures: usize) -> Vec<Argument> {
    let coordinates = COORDINATES.into_iter().map(Argument::Input);
    std::iter::once(Argument::Input(SCORE)).chain(coordinates).chain(tables(captures)).collect()
}

fn joint_arguments(captures: usize) -> Vec<Argument> {
    let mut arguments = score_arguments(captures);
    arguments.insert(5, Argument::Input(COTANGENT));
    arguments
}

/// The program of a mask; none where it admits every pair.
fn lower_mask(mask: Option<&Graph>, captures: usize) -> Result<Option<Program>> {
    let Some(mask) = mask else { return Ok(None) };
    let arguments: Vec<Argument> =
        COORDINATES.into_iter().map(Argument::Input).chain(tables(captures)).collect();
    let program = lower_region(mask, &arguments)?;
    let admits_all = matches!(result(&program, 0), Operation::Constant(Scalar::Bool(true)));
    Ok((!admits_all).then_some(program))
}

fn result(program: &Program, number: usize) -> &Operation {
    &program.instructions[program.results[number].index()].operation
}

fn is_input(program: &Program, number: usize, input: usize) -> bool {
    *result(program, number) == Operation::Input(input)
}

/// What forward and backward have in common, and the kernel of the block map where it is new.
struct Common {
    attention: Attention,
    kernels: Vec<Kernel>,
}

fn common(
    inputs: &[Operand],
    captures: Tables,
    scale: f64,
    mask: Option<Program>,
    block_maps: &mut BlockMaps,
) -> Common {
    let (query, key, value) = (&inputs[0].ty.shape, &inputs[1].ty.shape, &inputs[2].ty.shape);
    let shape = AttentionShape {
        batch: query[0],
        heads: query[1],
        key_batch: key[0],
        key_heads: key[1],
        queries: query[2],
        keys: key[2],
        head_size: query[3],
        value_size: value[3],
    };
    let (mut block_map, mut kernels) = (None, Vec::new());
    if let Some(mut mask) = mask.clone() {
        let tables = keep_tables(vec![&mut mask], captures.read_by([captures.mask, None]));
        let (slot, made) = block_maps.slot(map_of(mask, tables, &shape));
        block_map = Some(slot);
        kernels.extend(made);
    }
    let attention = Attention {
        shape,
        dtype: inputs[0].ty.dtype,
        scale,
        query: inputs[0].view.clone(),
        key: inputs[1].view.clone(),
        value: inputs[2].view.clone(),
        mask,
        tables: captures.read_by([Some(captures.score), captures.mask]),
        block_map,
        origin: captures.origin.clone(),
    };
    Common { attention, kernels }
}

/// The captured arrays of an attention, and the regions that read them.
#[derive(Clone, Copy)]
struct Tables<'a> {
    captures: &'a [Operand],
    /// The score function, or the joint one.
    score: &'a Graph,
    mask: Option<&'a Graph>,
    /// The user's line of the attention.
    origin: &'a Option<Origin>,
}

impl Tables<'_> {
    /// The captured arrays as tables, with the line of the first of `regions` that reads each.
    fn read_by(&self, regions: [Option<&Graph>; 2]) -> Vec<Table> {
        let read = |number: usize| {
            regions.into_iter().flatten().find_map(|region| {
                let leading = region.parameters().len() - self.captures.len();
                line_of_read(region, region.parameters()[leading + number])
            })
        };
        let table = |(number, operand): (usize, &Operand)| {
            operand.table(read(number).or_else(|| self.origin.clone()))
        };
        self.captures.iter().enumerate().map(table).collect()
    }
}

fn map_of(mask: Program, tables: Vec<Table>, shape: &AttentionShape) -> BlockMap {
    let reads = |input| mask.instructions.iter().any(|i| i.operation == Operation::Input(input));
    BlockMap {
        slot: 0,
        batch: if reads(0) { shape.batch } else { 1 },
        heads: if reads(1) { shape.heads } else { 1 },
        queries: shape.queries,
        keys: shape.keys,
        query_block: QUERY_BLOCK,
        key_block: KEY_BLOCK,
        mask,
        tables,
    }
}

/// The tables that the programs read; their loads are renumbered.
fn keep_tables(programs: Vec<&mut Program>, tables: Vec<Table>) -> Vec<Table> {
    let mut number_of = vec![None; tables.len()];
    for instruction in programs.iter().flat_map(|program| &program.instructions) {
        if let Operation::Load(table, _) = instruction.operation {
            number_of[table] = Some(0);
        }
    }
    for (number, place) in number_of.iter_mut().flatten().enumerate() {
        *place = number;
    }
    for instruction in programs.into_iter().flat_map(|program| &mut program.instructions) {
        if let Operation::Load(table, _) = &mut instruction.operation {
            *table = number_of[*table].expect("a table that is read");
        }
    }
    tables.into_iter().zip(number_of).filter(|(_, number)| number.is_some()).map(|(table, _)| table).collect()
}
