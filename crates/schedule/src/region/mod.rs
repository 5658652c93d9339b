//! Lowering of a region to a straight-line program.
//!
//! Code is pulled, not pushed: asked for one element of a value at given indices (registers, mostly
//! constants), each operation says which elements of its operands that takes. So arrays inside a region
//! are never built: a row of a captured table that is gathered, broadcast and reduced becomes as many
//! loads as the reduction has terms, and `table[q][k]` becomes one load. Equal requests share a register.
//!
//! A gather's index reaches the load of a captured table untouched, and is checked there when the program
//! runs. An index into an array that the region itself computes is clamped to it.

mod indexing;
mod movement;
mod position;
mod reduction;
#[cfg(test)]
mod tests;

pub(crate) use position::positions;

use std::collections::HashMap;

use tilewright_ir::{
    Binary, Compare, DType, Error, ErrorKind, Graph, Literal, Node, Op, Result, Value, ValueDefinition,
};
use tilewright_plan::{Kind, Operation, Program, Register};

use self::indexing::{Checked, who_checks};
use crate::builder::{Builder, Push};
use crate::elementwise;

/// Instructions that a region may take, those of arrays element by element included.
pub(crate) const INSTRUCTION_LIMIT: usize = 16_384;

/// How deep array expressions may nest.
const DEPTH_LIMIT: usize = 256;

/// Arrays up to this many elements are lowered in the order of the region; larger ones where needed.
const EAGER_ELEMENTS: usize = 8;

/// What stands for a parameter of a region.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Argument {
    /// A scalar: the program's input of this number.
    Input(usize),
    /// A part of an array: along `axes` an input for each element, in row-major order; along its other
    /// axes the element at the position that the program runs for, whatever the index.
    Part {
        /// The axes that are there element by element, ascending.
        axes: Vec<usize>,
        /// The inputs.
        inputs: Vec<usize>,
    },
    /// An array that is read by loads from the table of this number.
    Table(usize),
}

/// The program of a region, whose results are the region's, arrays element by element in row-major order.
///
/// # Errors
/// [`ErrorKind::Limit`] where the program grows too large, with the user's line.
pub(crate) fn lower_region(region: &Graph, arguments: &[Argument]) -> Result<Program> {
    let mut lowering = Lowering::new(region, arguments)?;
    let mut results = Vec::new();
    for &result in region.results() {
        results.extend(lowering.elements(result)?);
    }
    Ok(lowering.builder.program(&results))
}

/// A region in the course of being lowered.
pub(crate) struct Lowering<'a> {
    region: &'a Graph,
    arguments: &'a [Argument],
    /// The program so far.
    pub builder: Builder,
    lowered: HashMap<(Value, Vec<Register>), Register>,
    checked: Vec<Vec<Checked>>,
    depth: usize,
}

impl<'a> Lowering<'a> {
    /// Begins, and lowers the scalars and smallest arrays that the results need.
    pub fn new(region: &'a Graph, arguments: &'a [Argument]) -> Result<Lowering<'a>> {
        let (builder, lowered) = (Builder::new(), HashMap::new());
        let checked = who_checks(region, arguments);
        let mut lowering = Lowering { region, arguments, builder, lowered, checked, depth: 0 };
        let mut needed = vec![false; region.value_count()];
        for result in region.results() {
            needed[result.index()] = true;
        }
        for node in region.nodes().iter().rev() {
            if node.results.iter().any(|result| needed[result.index()]) {
                node.operands.iter().for_each(|operand| needed[operand.index()] = true);
            }
        }
        for &value in region.nodes().iter().flat_map(|node| &node.results) {
            if needed[value.index()] && region.ty(value).elements() <= EAGER_ELEMENTS {
                lowering.elements(value)?;
            }
        }
        Ok(lowering)
    }

    /// The region being lowered.
    pub fn region(&self) -> &'a Graph {
        self.region
    }

    fn shape(&self, value: Value) -> &'a [usize] {
        &self.region.ty(value).shape
    }

    fn dtype(&self, value: Value) -> DType {
        self.region.ty(value).dtype
    }

    /// Every element of a value, in row-major order.
    pub fn elements(&mut self, value: Value) -> Result<Vec<Register>> {
        let shape = self.shape(value);
        self.check_limit(self.region.ty(value).elements(), value)?;
        let mut elements = Vec::new();
        for position in positions(shape) {
            let index = self.constants(&position);
            elements.push(self.element(value, &index)?);
        }
        Ok(elements)
    }

    /// One element of a value. Each index is in range, or is checked by a load (see [`Checked`]).
    pub fn element(&mut self, value: Value, index: &[Register]) -> Result<Register> {
        if let Some(&register) = self.lowered.get(&(value, index.to_vec())) {
            return Ok(register);
        }
        self.check_limit(self.builder.instruction_count(), value)?;
        if self.depth >= DEPTH_LIMIT {
            return Err(self.limit("the nesting of array expressions in a function", DEPTH_LIMIT, value));
        }
        self.depth += 1;
        let register = match self.region.definition(value) {
            ValueDefinition::Parameter(number) => self.parameter(number, value, index)?,
            ValueDefinition::Result(node, _) => {
                let region = self.region;
                let node = region.node(node);
                self.node(node, value, index).map_err(|error| error.at(node.origin.clone()))?
            }
        };
        self.depth -= 1;
        self.lowered.insert((value, index.to_vec()), register);
        Ok(register)
    }

    fn check_limit(&self, count: usize, value: Value) -> Result<()> {
        if count <= INSTRUCTION_LIMIT {
            return Ok(());
        }
        Err(self.limit("the code of a function, its arrays element by element,", INSTRUCTION_LIMIT, value))
    }

    fn limit(&self, what: &str, limit: usize, value: Value) -> Error {
        let origin = self.region.producer(value).and_then(|node| node.origin.clone());
        Error::new(ErrorKind::Limit { what: what.into(), limit })
            .at(origin)
            .help("compute large arrays outside of the function and read them in it by index")
    }

    fn parameter(&mut self, number: usize, value: Value, index: &[Register]) -> Result<Register> {
        let kind = Kind::of(self.dtype(value));
        match &self.arguments[number] {
            Argument::Input(input) => Ok(self.builder.input(*input, kind)),
            Argument::Part { axes, inputs } => {
                let elements: Vec<Register> =
                    inputs.iter().map(|&input| self.builder.input(input, kind)).collect();
                let shape: Vec<usize> = axes.iter().map(|&axis| self.shape(value)[axis]).collect();
                let index: Vec<Register> = axes.iter().map(|&axis| index[axis]).collect();
                self.pick(&elements, &shape, value, &index)
            }
            Argument::Table(table) => Ok(self.builder.push(Operation::Load(*table, index.to_vec()), kind)),
        }
    }

    /// The element at `index` of a value whose elements are all in registers.
    fn pick(
        &mut self,
        elements: &[Register],
        shape: &[usize],
        value: Value,
        index: &[Register],
    ) -> Result<Register> {
        let position = self.row_major(index, shape);
        if let Some(position) = self.builder.constant_value(position) {
            return Ok(elements[position.to_i64() as usize]);
        }
        self.check_limit(self.builder.instruction_count() + 2 * elements.len(), value)?;
        let (&last, others) = elements.split_last().expect("an element of an array that has some");
        let mut picked = last;
        for (i, &element) in others.iter().enumerate().rev() {
            let kind = self.builder.kind(position);
            let i = self.builder.constant(kind, i as i64);
            let here = self.builder.compare(Compare::Eq, position, i);
            picked = self.builder.select(here, element, picked);
        }
        Ok(picked)
    }

    fn node(&mut self, node: &'a Node, value: Value, index: &[Register]) -> Result<Register> {
        let dtype = self.dtype(value);
        match &node.op {
            Op::Constant(literal) => self.literal(literal, value, index),
            Op::Iota { dtype, shape: _, axis } => {
                let from = match self.builder.kind(index[*axis]) {
                    Kind::I32 => DType::I32,
                    _ => DType::I64,
                };
                Ok(elementwise::cast(&mut self.builder, index[*axis], from, *dtype))
            }
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) | Op::StopGradient => {
                let operands: Vec<Register> = node
                    .operands
                    .iter()
                    .map(|&operand| self.element(operand, index))
                    .collect::<Result<_>>()?;
                let operand = self.dtype(*node.operands.last().expect("an element-wise operand"));
                let lowered = elementwise::push(&mut self.builder, &node.op, &operands, operand, dtype);
                Ok(lowered.expect("an element-wise operation"))
            }
            Op::Broadcast { shape: _, axes } => {
                let operand = node.operands[0];
                let zero = self.constant(0);
                let extents = self.shape(operand);
                let index: Vec<Register> = axes
                    .iter()
                    .zip(extents)
                    .map(|(&axis, &n)| if n == 1 { zero } else { index[axis] })
                    .collect();
                self.element(operand, &index)
            }
            Op::Reshape { shape } => {
                let operand = node.operands[0];
                let index = self.reshaped(index, shape, self.shape(operand));
                self.element(operand, &index)
            }
            Op::Transpose { permutation } => {
                let mut permuted = index.to_vec();
                for (i, &axis) in permutation.iter().enumerate() {
                    permuted[axis] = index[i];
                }
                self.element(node.operands[0], &permuted)
            }
            Op::Slice { start, limit: _, step } => {
                let index: Vec<Register> =
                    (0..index.len()).map(|i| self.affine(index[i], step[i], start[i])).collect();
                self.element(node.operands[0], &index)
            }
            Op::Pad { low, high: _, interior } => self.pad(node, low, interior, index),
            Op::Reverse { axes } => {
                let mut index = index.to_vec();
                for &axis in axes {
                    let last = self.constant(self.shape(value)[axis] - 1);
                    index[axis] = self.integer(Binary::Sub, last, index[axis]);
                }
                self.element(node.operands[0], &index)
            }
            Op::Concatenate { axis } => self.concatenate(node, *axis, index),
            Op::Reduce { kind, axes } => self.reduce(node.operands[0], *kind, axes, index),
            Op::ArgMax { axis } => self.arg_max(node.operands[0], *axis, index),
            Op::Dot(axes) => self.dot(node, axes, index),
            Op::Gather => self.gather(node, index),
            Op::ScatterAdd { shape } => self.scatter_add(node, value, shape, index),
            Op::RandomBits { shape } => {
                let key = self.element(node.operands[0], &[])?;
                let position = self.row_major(index, shape);
                let counter = self.builder.cast(position, Kind::I64);
                Ok(self.builder.push(Operation::RandomBits(key, counter), Kind::I32))
            }
            Op::FlexAttention(_) | Op::FlexAttentionBackward(_) | Op::AssociativeScan(_) => {
                Err(Error::trace("stands inside the function of another attention or scan")
                    .in_operation(node.op.name()))
            }
        }
    }

    fn literal(&mut self, literal: &Literal, value: Value, index: &[Register]) -> Result<Register> {
        let kind = Kind::of(literal.ty().dtype);
        if let Some(scalar) = literal.splat() {
            return Ok(self.builder.constant(kind, scalar));
        }
        let position = self.row_major(index, self.shape(value));
        if let Some(position) = self.builder.constant_value(position) {
            return Ok(self.builder.constant(kind, literal.element(position.to_i64() as usize)));
        }
        self.check_limit(2 * literal.ty().elements(), value)?;
        let elements: Vec<Register> =
            literal.elements().map(|scalar| self.builder.constant(kind, scalar)).collect();
        self.pick(&elements, self.shape(value), value, index)
    }
}
