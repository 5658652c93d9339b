//! Lowering of a region to a straight-line program.
//!
//! Code is pulled, not pushed: asked for one element of a value at given indices (registers, mostly
//! constants), each operation says which elements of its operands that takes. So arrays inside a region
//! are never built: a row of a captured table that is gathered, broadcast and reduced becomes as many
//! loads as the reduction has terms, and `table[q][k]` becomes one load. Equal requests share a register.
//!
//! A gather's index reaches the load of a captured table untouched, and is checked there when the program
//! runs. An index into an array that the region itself computes is clamped to it.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use tilewright_ir::{
    Binary, Compare, DType, DotAxes, Error, ErrorKind, Graph, Literal, Node, Op, Reduction, Result, Scalar,
    Value, ValueDefinition,
};
use tilewright_plan::{Kind, Operation, Program, Register};

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
    depth: usize,
}

/// Who checks an index that is passed on to an element of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checked {
    /// The load of a table, which also counts negative indices from the end.
    ByLoad,
    /// Nobody needs to: the element does not depend on it.
    Ignored,
    /// Nobody does.
    No,
}

impl<'a> Lowering<'a> {
    /// Begins, and lowers the scalars and smallest arrays that the results need.
    pub fn new(region: &'a Graph, arguments: &'a [Argument]) -> Result<Lowering<'a>> {
        let (builder, lowered) = (Builder::new(), HashMap::new());
        let mut lowering = Lowering { region, arguments, builder, lowered, depth: 0 };
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

    fn pad(
        &mut self,
        node: &Node,
        low: &[usize],
        interior: &[usize],
        index: &[Register],
    ) -> Result<Register> {
        let (operand, padding) = (node.operands[0], node.operands[1]);
        let padding = self.element(padding, &[])?;
        let mut inside = self.builder.constant(Kind::Bool, true);
        let mut inner = Vec::new();
        for (axis, &extent) in self.shape(operand).iter().enumerate() {
            let low = self.constant(low[axis]);
            let shifted = self.integer(Binary::Sub, index[axis], low);
            let step = self.constant(interior[axis] + 1);
            let remainder = self.integer(Binary::Rem, shifted, step);
            let position = self.integer(Binary::Div, shifted, step);
            let (zero, extent) = (self.constant(0), self.constant(extent));
            let conditions = [
                self.index_compare(Compare::Eq, remainder, zero),
                self.index_compare(Compare::Ge, position, zero),
                self.index_compare(Compare::Lt, position, extent),
            ];
            for condition in conditions {
                inside = self.builder.binary(Binary::And, inside, condition);
            }
            inner.push(self.clamped(position, self.shape(operand)[axis]));
        }
        if self.is_false(inside) || self.region.ty(operand).elements() == 0 {
            return Ok(padding);
        }
        let element = self.element(operand, &inner)?;
        Ok(self.builder.select(inside, element, padding))
    }

    fn concatenate(&mut self, node: &Node, axis: usize, index: &[Register]) -> Result<Register> {
        let mut start = 0;
        let mut picked = None;
        for &operand in &node.operands {
            let extent = self.shape(operand)[axis];
            if extent == 0 {
                continue;
            }
            let origin = self.constant(start);
            let shifted = self.integer(Binary::Sub, index[axis], origin);
            let here = self.index_compare(Compare::Ge, index[axis], origin);
            start += extent;
            if self.is_false(here) {
                break;
            }
            let mut inner = index.to_vec();
            inner[axis] = self.clamped(shifted, extent);
            let element = self.element(operand, &inner)?;
            picked = Some(match picked {
                Some(before) => self.builder.select(here, element, before),
                None => element,
            });
        }
        Ok(picked.expect("an operand that holds the element"))
    }

    fn reduce(
        &mut self,
        operand: Value,
        kind: Reduction,
        axes: &[usize],
        index: &[Register],
    ) -> Result<Register> {
        let (shape, dtype) = (self.shape(operand), self.dtype(operand));
        let reduced: Vec<usize> = axes.iter().map(|&axis| shape[axis]).collect();
        let function = match kind {
            Reduction::Sum => Binary::Add,
            Reduction::Prod => Binary::Mul,
            Reduction::Max => Binary::Max,
            Reduction::Min => Binary::Min,
        };
        let mut total = None;
        self.check_limit(reduced.iter().product(), operand)?;
        for position in positions(&reduced) {
            let mut rest = index.iter();
            let at: Vec<Register> = (0..shape.len())
                .map(|axis| match axes.iter().position(|&a| a == axis) {
                    Some(i) => self.constant(position[i]),
                    None => *rest.next().expect("an index for each axis that stays"),
                })
                .collect();
            let element = self.element(operand, &at)?;
            total = Some(match total {
                Some(total) => self.builder.binary(function, total, element),
                None => element,
            });
        }
        let accumulator = dtype.accumulator();
        let total = match total {
            Some(total) => total,
            None => self.builder.constant(Kind::of(accumulator), nothing(kind, dtype)),
        };
        Ok(elementwise::round(&mut self.builder, total, dtype))
    }

    fn arg_max(&mut self, operand: Value, axis: usize, index: &[Register]) -> Result<Register> {
        let mut best = None;
        for i in 0..self.shape(operand)[axis] {
            let mut at = index.to_vec();
            at.insert(axis, self.constant(i));
            let element = self.element(operand, &at)?;
            let position = self.builder.constant(Kind::I64, i as i64);
            best = Some(match best {
                None => (element, position),
                Some((greatest, first)) => {
                    let greater = self.exceeds(element, greatest);
                    (
                        self.builder.select(greater, element, greatest),
                        self.builder.select(greater, position, first),
                    )
                }
            });
        }
        Ok(best.expect("an element on an axis of extent at least 1").1)
    }

    /// Whether `x` is greater than `y`, a NaN being greater than any number.
    fn exceeds(&mut self, x: Register, y: Register) -> Register {
        let greater = self.builder.compare(Compare::Gt, x, y);
        if !matches!(self.builder.kind(x), Kind::F64 | Kind::F32) {
            return greater;
        }
        let x_is_nan = self.builder.compare(Compare::Ne, x, x);
        let y_is_number = self.builder.compare(Compare::Eq, y, y);
        let first_nan = self.builder.binary(Binary::And, x_is_nan, y_is_number);
        self.builder.binary(Binary::Or, greater, first_nan)
    }

    fn dot(&mut self, node: &Node, axes: &DotAxes, index: &[Register]) -> Result<Register> {
        let (left, right) = (node.operands[0], node.operands[1]);
        let dtype = self.dtype(left);
        let left_free = axes.left_free(self.shape(left).len());
        let right_free = axes.right_free(self.shape(right).len());
        let (batch, free) = index.split_at(axes.left_batch.len());
        let (left_index, right_index) = free.split_at(left_free.len());
        let contracted: Vec<usize> = axes.left_contract.iter().map(|&axis| self.shape(left)[axis]).collect();
        self.check_limit(contracted.iter().product(), left)?;
        let zero = self.constant(0);
        let place = |rank: usize, parts: [(&[usize], &[Register]); 3]| {
            let mut at = vec![zero; rank];
            for (axes, registers) in parts {
                axes.iter().zip(registers).for_each(|(&axis, &register)| at[axis] = register);
            }
            at
        };
        let mut total = None;
        for position in positions(&contracted) {
            let position = self.constants(&position);
            let left_at = place(
                self.shape(left).len(),
                [(&axes.left_batch, batch), (&left_free, left_index), (&axes.left_contract, &position)],
            );
            let right_at = place(
                self.shape(right).len(),
                [(&axes.right_batch, batch), (&right_free, right_index), (&axes.right_contract, &position)],
            );
            let x = self.element(left, &left_at)?;
            let y = self.element(right, &right_at)?;
            let product = self.builder.binary(Binary::Mul, x, y);
            total = Some(match total {
                Some(total) => self.builder.binary(Binary::Add, total, product),
                None => product,
            });
        }
        let total = match total {
            Some(total) => total,
            None => self.builder.constant(Kind::of(dtype), 0),
        };
        Ok(elementwise::round(&mut self.builder, total, dtype))
    }

    fn gather(&mut self, node: &Node, index: &[Register]) -> Result<Register> {
        let (array, indices) = node.operands.split_first().expect("the array of a gather");
        let leading = index.len() - (self.shape(*array).len() - indices.len());
        let (space, rest) = index.split_at(leading);
        let mut at = Vec::new();
        for (axis, &operand) in indices.iter().enumerate() {
            let position = self.element(operand, space)?;
            at.push(self.checked_index(*array, axis, position));
        }
        at.extend(rest);
        self.element(*array, &at)
    }

    /// One element of a value, at indices as a gather has them: perhaps negative, perhaps out of range.
    pub fn gathered(&mut self, value: Value, index: &[Register]) -> Result<Register> {
        let at: Vec<Register> =
            index.iter().enumerate().map(|(axis, &i)| self.checked_index(value, axis, i)).collect();
        self.element(value, &at)
    }

    /// A gather's index, made fit for [`Lowering::element`] of what it indexes.
    fn checked_index(&mut self, value: Value, axis: usize, index: Register) -> Register {
        match self.checked(value, axis) {
            Checked::ByLoad | Checked::Ignored => index,
            Checked::No => {
                let extent = self.shape(value)[axis];
                let counted = self.counted(index, extent);
                self.clamped(counted, extent)
            }
        }
    }

    fn scatter_add(
        &mut self,
        node: &Node,
        value: Value,
        shape: &[usize],
        index: &[Register],
    ) -> Result<Register> {
        let (updates, indices) = node.operands.split_first().expect("the updates of a scatter");
        let dtype = self.dtype(value);
        let space = &self.shape(*updates)[..self.shape(*updates).len() - (shape.len() - indices.len())];
        let (places, rest) = index.split_at(indices.len());
        let zero = self.builder.constant(Kind::of(dtype), 0);
        let mut total = None;
        self.check_limit(space.iter().product(), value)?;
        for position in positions(space) {
            let position = self.constants(&position);
            let mut here = self.builder.constant(Kind::Bool, true);
            for (axis, &operand) in indices.iter().enumerate() {
                let target = self.element(operand, &position)?;
                let target = self.counted(target, shape[axis]);
                let equal = self.index_compare(Compare::Eq, target, places[axis]);
                here = self.builder.binary(Binary::And, here, equal);
            }
            if self.is_false(here) {
                continue;
            }
            let update = self.element(*updates, &[&position[..], rest].concat())?;
            let added = self.builder.select(here, update, zero);
            total = Some(match total {
                Some(total) => self.builder.binary(Binary::Add, total, added),
                None => added,
            });
        }
        Ok(elementwise::round(&mut self.builder, total.unwrap_or(zero), dtype))
    }

    /// Who checks an index along `axis` that is passed to [`Lowering::element`] of `value`.
    fn checked(&self, value: Value, axis: usize) -> Checked {
        let Some(node) = self.region.producer(value) else {
            let ValueDefinition::Parameter(number) = self.region.definition(value) else {
                return Checked::No;
            };
            return match self.arguments[number] {
                Argument::Table(_) => Checked::ByLoad,
                Argument::Input(_) | Argument::Part { .. } => Checked::No,
            };
        };
        match &node.op {
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) | Op::StopGradient => {
                node.operands.iter().map(|&operand| self.checked(operand, axis)).fold(
                    Checked::Ignored,
                    |all, one| match (all, one) {
                        (Checked::No, _) | (_, Checked::No) => Checked::No,
                        (Checked::Ignored, other) | (other, Checked::Ignored) => other,
                        (Checked::ByLoad, Checked::ByLoad) => Checked::ByLoad,
                    },
                )
            }
            Op::Broadcast { shape: _, axes } => match axes.iter().position(|&a| a == axis) {
                Some(i) if self.shape(node.operands[0])[i] == self.shape(value)[axis] => {
                    self.checked(node.operands[0], i)
                }
                Some(_) | None => Checked::Ignored,
            },
            Op::Transpose { permutation } => self.checked(node.operands[0], permutation[axis]),
            Op::Gather => {
                let indexed = node.operands.len() - 1;
                let array = node.operands[0];
                let leading = self.shape(value).len() - (self.shape(array).len() - indexed);
                if axis < leading { Checked::No } else { self.checked(array, axis - leading + indexed) }
            }
            Op::Constant(_)
            | Op::Iota { .. }
            | Op::Reshape { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Reverse { .. }
            | Op::Concatenate { .. }
            | Op::Reduce { .. }
            | Op::ArgMax { .. }
            | Op::Dot(_)
            | Op::ScatterAdd { .. }
            | Op::RandomBits { .. }
            | Op::FlexAttention(_)
            | Op::FlexAttentionBackward(_)
            | Op::AssociativeScan(_) => Checked::No,
        }
    }

    // Index arithmetic: in `I32` while it cannot overflow, else in `I64`.

    /// A constant index.
    pub fn constant(&mut self, index: usize) -> Register {
        let kind = if index <= i32::MAX as usize { Kind::I32 } else { Kind::I64 };
        self.builder.constant(kind, index as i64)
    }

    fn constants(&mut self, position: &[usize]) -> Vec<Register> {
        position.iter().map(|&i| self.constant(i)).collect()
    }

    /// Two indices in one kind.
    fn unified(&mut self, x: Register, y: Register) -> (Register, Register) {
        if self.builder.kind(x) == self.builder.kind(y) {
            return (x, y);
        }
        (self.builder.cast(x, Kind::I64), self.builder.cast(y, Kind::I64))
    }

    /// Arithmetic on two indices.
    pub fn integer(&mut self, function: Binary, x: Register, y: Register) -> Register {
        let (x, y) = self.unified(x, y);
        self.builder.binary(function, x, y)
    }

    fn index_compare(&mut self, comparison: Compare, x: Register, y: Register) -> Register {
        let (x, y) = self.unified(x, y);
        self.builder.compare(comparison, x, y)
    }

    /// `scale · x + offset`, the result being an index of an array.
    pub fn affine(&mut self, x: Register, scale: usize, offset: usize) -> Register {
        let (scale, offset) = (self.constant(scale), self.constant(offset));
        let scaled = self.integer(Binary::Mul, x, scale);
        self.integer(Binary::Add, scaled, offset)
    }

    /// An index with negative ones counted from the end of an axis.
    pub fn counted(&mut self, x: Register, extent: usize) -> Register {
        let (zero, extent) = (self.constant(0), self.constant(extent));
        let (wide, extent) = self.unified(x, extent);
        let wrapped = self.builder.binary(Binary::Add, wide, extent);
        let negative = self.index_compare(Compare::Lt, x, zero);
        self.builder.select(negative, wrapped, wide)
    }

    fn clamped(&mut self, x: Register, extent: usize) -> Register {
        let (zero, last) = (self.constant(0), self.constant(extent.saturating_sub(1)));
        let raised = self.integer(Binary::Max, x, zero);
        self.integer(Binary::Min, raised, last)
    }

    fn is_false(&self, condition: Register) -> bool {
        self.builder.constant_value(condition) == Some(Scalar::Bool(false))
    }

    /// The row-major position of an index in an array of `shape`.
    pub fn row_major(&mut self, index: &[Register], shape: &[usize]) -> Register {
        let wide = shape.iter().product::<usize>() > i32::MAX as usize;
        let mut position = self.constant(0);
        for (&i, &extent) in index.iter().zip(shape) {
            let i = if wide { self.builder.cast(i, Kind::I64) } else { i };
            let extent = self.constant(extent);
            let above = self.integer(Binary::Mul, position, extent);
            position = self.integer(Binary::Add, above, i);
        }
        position
    }

    /// The index in an array of shape `to` of the element at `index` of an array of shape `from`.
    pub fn reshaped(&mut self, index: &[Register], from: &[usize], to: &[usize]) -> Vec<Register> {
        let long = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        let zero = self.constant(0);
        if long(from) == long(to) {
            let mut kept = index.iter().zip(from).filter(|&(_, &n)| n != 1).map(|(&register, _)| register);
            return to.iter().map(|&n| if n == 1 { zero } else { kept.next().expect("as many") }).collect();
        }
        let mut rest = self.row_major(index, from);
        let mut reshaped = vec![zero; to.len()];
        for axis in (0..to.len()).rev() {
            let extent = self.constant(to[axis]);
            reshaped[axis] = self.integer(Binary::Rem, rest, extent);
            rest = self.integer(Binary::Div, rest, extent);
        }
        reshaped
    }
}

/// What a reduction over no elements gives.
fn nothing(kind: Reduction, dtype: DType) -> Scalar {
    let extreme = |float: f64, integer: fn(DType) -> i64, truth: bool| {
        if dtype.is_float() {
            Scalar::Float(float)
        } else if dtype == DType::Bool {
            Scalar::Bool(truth)
        } else {
            Scalar::Integer(integer(dtype))
        }
    };
    match kind {
        Reduction::Sum => Scalar::Integer(0).cast(dtype),
        Reduction::Prod => Scalar::Integer(1).cast(dtype),
        Reduction::Max => extreme(f64::NEG_INFINITY, least_integer, false),
        Reduction::Min => extreme(f64::INFINITY, greatest_integer, true),
    }
}

fn least_integer(dtype: DType) -> i64 {
    match dtype {
        DType::I64 => i64::MIN,
        DType::I32 => i64::from(i32::MIN),
        DType::U8 | DType::Bool | DType::F64 | DType::F32 | DType::BF16 | DType::F16 => 0,
    }
}

fn greatest_integer(dtype: DType) -> i64 {
    match dtype {
        DType::I64 => i64::MAX,
        DType::I32 => i64::from(i32::MAX),
        DType::U8 => 255,
        DType::Bool | DType::F64 | DType::F32 | DType::BF16 | DType::F16 => 1,
    }
}

/// The positions of an array of `shape`, in row-major order.
pub(crate) fn positions(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let shape = shape.to_vec();
    (0..shape.iter().product()).map(move |mut rest: usize| {
        let mut position = vec![0; shape.len()];
        for (place, &extent) in position.iter_mut().zip(&shape).rev() {
            *place = rest % extent;
            rest /= extent;
        }
        position
    })
}
