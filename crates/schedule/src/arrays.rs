//! Where the values of a normalised graph lie.

use tilewright_ir::{DType, Graph, Type, Value, ValueDefinition};
use tilewright_plan::{Buffer, BufferId, Place, View};

use crate::access::{Access, Affine};
use crate::normalise::Normal;
use crate::{Layout, Operand};

/// A normalised graph with the places of its stored values.
pub(crate) struct Arrays<'a> {
    pub graph: &'a Graph,
    pub accesses: &'a [Access],
    pub buffers: Vec<Buffer>,
    /// For each value the step that computes it, where one does.
    pub made: Vec<Option<usize>>,
    homes: Vec<Option<Home>>,
}

/// Where a base lies: its elements, packed from a buffer's first one, or (an input) strided.
struct Home {
    buffer: BufferId,
    strided: Option<Layout>,
}

impl<'a> Arrays<'a> {
    pub fn new(normal: &'a Normal, made: Vec<Option<usize>>) -> Arrays<'a> {
        let homes = normal.accesses.iter().map(|_| None).collect();
        Arrays { graph: &normal.graph, accesses: &normal.accesses, buffers: Vec::new(), made, homes }
    }

    /// Gives a base a buffer.
    pub fn give(&mut self, base: Value, elements: usize, place: Place, strided: Option<Layout>) -> BufferId {
        let buffer = BufferId(self.buffers.len());
        self.buffers.push(Buffer { dtype: self.dtype(base), elements, place });
        self.homes[base.index()] = Some(Home { buffer, strided });
        buffer
    }

    /// Gives a base a place within another's buffer.
    pub fn give_within(&mut self, base: Value, buffer: BufferId, layout: Layout) {
        self.homes[base.index()] = Some(Home { buffer, strided: Some(layout) });
    }

    /// A further buffer for a base's data is not needed: this is the one that it has.
    pub fn home(&self, base: Value) -> Option<BufferId> {
        self.homes[base.index()].as_ref().map(|home| home.buffer)
    }

    pub fn ty(&self, value: Value) -> &'a Type {
        self.graph.ty(value)
    }

    pub fn dtype(&self, value: Value) -> DType {
        self.graph.ty(value).dtype
    }

    pub fn shape(&self, value: Value) -> &'a [usize] {
        &self.graph.ty(value).shape
    }

    /// The elements of an access, its positions being functions of a space of `rank` axes.
    pub fn locate(&self, access: &Access, at: &[Affine], rank: usize) -> View {
        let home = self.homes[access.base.index()].as_ref().expect("a stored array");
        let affine = match &home.strided {
            None => access.flat.compose(at, rank),
            Some(layout) => {
                let index = access.index.as_ref().expect("a strided array is seen by its axes");
                let index: Vec<Affine> = index.iter().map(|i| i.compose(at, rank)).collect();
                Affine { offset: layout.offset, strides: layout.strides.clone() }.compose(&index, rank)
            }
        };
        View { buffer: home.buffer, offset: affine.offset, strides: affine.strides }
    }

    /// A whole value, one stride per axis.
    pub fn view(&self, value: Value) -> View {
        let rank = self.shape(value).len();
        let at: Vec<Affine> = (0..rank).map(|axis| Affine::axis(axis, rank)).collect();
        self.locate(&self.accesses[value.index()], &at, rank)
    }

    /// A whole value with its name, for kernels that report errors.
    pub fn operand(&self, value: Value) -> Operand {
        Operand {
            view: self.view(value),
            ty: self.ty(value).clone(),
            name: self.name(value),
            origin: self.graph.producer(value).and_then(|node| node.origin.clone()),
        }
    }

    /// What to call a value in an error.
    pub fn name(&self, value: Value) -> String {
        let base = self.accesses[value.index()].base;
        match self.graph.definition(base) {
            ValueDefinition::Parameter(number) => format!("input {number}"),
            ValueDefinition::Result(node, _) => format!("the result of {}", self.graph.node(node).op.name()),
        }
    }
}

/// How many elements a strided input reaches over, or nothing where it reaches below its first.
pub(crate) fn reach(layout: &Layout, shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let (mut low, mut high) = (layout.offset, layout.offset);
    for (&stride, &extent) in layout.strides.iter().zip(shape) {
        let step = stride.checked_mul(extent as isize - 1)?;
        if step < 0 {
            low = low.checked_add(step)?;
        } else {
            high = high.checked_add(step)?;
        }
    }
    (low >= 0).then_some(high as usize + 1)
}
