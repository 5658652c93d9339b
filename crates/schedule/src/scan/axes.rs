//! Which axes of a combine function are parallel: it does the same at each position along them, and
//! positions do not meet.
//!
//! Axes of values that move together form a class (union-find over the region). A class is *mixed* if some
//! operation reduces, contracts, indexes or reorders along it, or if one value has it twice (`x + xᵀ`).
//! The others are parallel: an element of a result needs only elements with the same positions along them.

use tilewright_ir::{Graph, Op, Value};

/// The classes of the axes of a region's values.
pub(super) struct Axes<'a> {
    region: &'a Graph,
    /// For each axis of each value another of its class; a class's representative points to itself.
    parent: Vec<usize>,
    /// For each representative: whether the class is mixed.
    mixed: Vec<bool>,
    /// Where each value's axes start in `parent`.
    start: Vec<usize>,
}

/// A class: the number of its representative.
pub(super) type Class = usize;

impl<'a> Axes<'a> {
    /// Analyses a combine region with so many leaves.
    pub fn new(region: &'a Graph, leaves: usize) -> Axes<'a> {
        let mut start = vec![0; region.value_count()];
        let mut total = 0;
        let defined = region.nodes().iter().flat_map(|node| &node.results);
        for &value in region.parameters().iter().chain(defined) {
            start[value.index()] = total;
            total += region.ty(value).rank();
        }
        let mut axes = Axes { region, parent: (0..total).collect(), mixed: vec![false; total], start };
        for leaf in 0..leaves {
            let (left, right) = (region.parameters()[leaf], region.parameters()[leaves + leaf]);
            axes.join_all(left, right);
            axes.join_all(left, region.results()[leaf]);
        }
        for node in region.nodes() {
            axes.operation(&node.op, &node.operands, &node.results);
        }
        axes.mix_repeated();
        axes
    }

    /// The class of an axis of a value, if it is parallel.
    pub fn parallel(&self, value: Value, axis: usize) -> Option<Class> {
        let class = self.find(self.start[value.index()] + axis);
        (!self.mixed[class]).then_some(class)
    }

    fn rank(&self, value: Value) -> usize {
        self.region.ty(value).rank()
    }

    fn shape(&self, value: Value) -> &'a [usize] {
        &self.region.ty(value).shape
    }

    fn find(&self, mut axis: usize) -> Class {
        while self.parent[axis] != axis {
            axis = self.parent[axis];
        }
        axis
    }

    fn join(&mut self, (x, i): (Value, usize), (y, j): (Value, usize)) {
        let (x, y) = (self.find(self.start[x.index()] + i), self.find(self.start[y.index()] + j));
        let (low, high) = (x.min(y), x.max(y));
        self.parent[high] = low;
        self.mixed[low] |= self.mixed[high];
    }

    fn mix(&mut self, value: Value, axis: usize) {
        let class = self.find(self.start[value.index()] + axis);
        self.mixed[class] = true;
    }

    fn mix_all(&mut self, value: Value) {
        (0..self.rank(value)).for_each(|axis| self.mix(value, axis));
    }

    fn join_all(&mut self, x: Value, y: Value) {
        (0..self.rank(x)).for_each(|axis| self.join((x, axis), (y, axis)));
    }

    /// Classes that one value has twice are mixed.
    fn mix_repeated(&mut self) {
        for number in 0..self.start.len() {
            let end = self.start.get(number + 1).copied().unwrap_or(self.parent.len());
            for i in self.start[number]..end {
                for j in i + 1..end {
                    let class = self.find(i);
                    if class == self.find(j) {
                        self.mixed[class] = true;
                    }
                }
            }
        }
    }

    fn operation(&mut self, op: &Op, operands: &[Value], results: &[Value]) {
        let result = results[0];
        match op {
            Op::Constant(_) | Op::Iota { .. } => {}
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast(_) | Op::StopGradient => {
                operands.iter().for_each(|&operand| self.join_all(operand, result))
            }
            Op::Broadcast { shape, axes } => {
                for (i, &axis) in axes.iter().enumerate() {
                    if self.shape(operands[0])[i] == shape[axis] {
                        self.join((operands[0], i), (result, axis));
                    }
                }
            }
            Op::Reshape { .. } => self.reshape(operands[0], result),
            Op::Transpose { permutation } => {
                for (axis, &from) in permutation.iter().enumerate() {
                    self.join((operands[0], from), (result, axis));
                }
            }
            Op::Slice { .. } | Op::Pad { .. } => {
                for axis in 0..self.rank(result) {
                    // Of the same extent as before, it is the identity along the axis, or all padding.
                    if self.shape(operands[0])[axis] == self.shape(result)[axis]
                        && matches!(op, Op::Slice { .. })
                    {
                        self.join((operands[0], axis), (result, axis));
                    } else {
                        self.mix(operands[0], axis);
                        self.mix(result, axis);
                    }
                }
            }
            Op::Reverse { axes } => {
                self.join_all(operands[0], result);
                axes.iter().for_each(|&axis| self.mix(result, axis));
            }
            Op::Concatenate { axis } => {
                for &operand in operands {
                    (0..self.rank(result))
                        .filter(|i| i != axis)
                        .for_each(|i| self.join((operand, i), (result, i)));
                    self.mix(operand, *axis);
                }
                self.mix(result, *axis);
            }
            Op::Reduce { axes, .. } => self.reduce(operands[0], result, axes),
            Op::ArgMax { axis } => self.reduce(operands[0], result, &[*axis]),
            Op::Dot(axes) => {
                let (left, right) = (operands[0], operands[1]);
                let (free_left, free_right) =
                    (axes.left_free(self.rank(left)), axes.right_free(self.rank(right)));
                for (i, (&l, &r)) in axes.left_batch.iter().zip(&axes.right_batch).enumerate() {
                    self.join((left, l), (result, i));
                    self.join((right, r), (result, i));
                }
                let batch = axes.left_batch.len();
                for (i, &axis) in free_left.iter().enumerate() {
                    self.join((left, axis), (result, batch + i));
                }
                for (i, &axis) in free_right.iter().enumerate() {
                    self.join((right, axis), (result, batch + free_left.len() + i));
                }
                axes.left_contract.iter().for_each(|&axis| self.mix(left, axis));
                axes.right_contract.iter().for_each(|&axis| self.mix(right, axis));
            }
            Op::Gather => {
                let (array, indices) = (operands[0], &operands[1..]);
                let leading = indices.first().map_or(0, |&index| self.rank(index));
                indices
                    .iter()
                    .for_each(|&index| (0..leading).for_each(|i| self.join((index, i), (result, i))));
                (0..indices.len()).for_each(|axis| self.mix(array, axis));
                for axis in indices.len()..self.rank(array) {
                    self.join((array, axis), (result, leading + axis - indices.len()));
                }
            }
            Op::ScatterAdd { .. }
            | Op::RandomBits { .. }
            | Op::FlexAttention(_)
            | Op::FlexAttentionBackward(_)
            | Op::AssociativeScan(_) => {
                operands.iter().chain(results).for_each(|&value| self.mix_all(value));
            }
        }
    }

    fn reduce(&mut self, operand: Value, result: Value, axes: &[usize]) {
        let kept = (0..self.rank(operand)).filter(|axis| !axes.contains(axis));
        kept.enumerate().for_each(|(i, axis)| self.join((operand, axis), (result, i)));
        axes.iter().for_each(|&axis| self.mix(operand, axis));
    }

    /// Axes correspond where the extents before them multiply to the same.
    fn reshape(&mut self, operand: Value, result: Value) {
        let (from, to) = (self.shape(operand), self.shape(result));
        let before = |shape: &[usize], axis: usize| shape[..axis].iter().product::<usize>();
        for i in 0..from.len() {
            let same = (0..to.len()).find(|&j| to[j] == from[i] && before(to, j) == before(from, i));
            match same {
                Some(j) => self.join((operand, i), (result, j)),
                None => self.mix(operand, i),
            }
        }
        for j in 0..to.len() {
            if !(0..from.len()).any(|i| to[j] == from[i] && before(to, j) == before(from, i)) {
                self.mix(result, j);
            }
        }
    }
}
