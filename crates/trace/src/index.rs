//! Reading and adding at computed places.

use tilewright_ir::{DType, Error, Op, Result, Type};

use crate::arguments::Dims;
use crate::elementwise::{broadcast_shapes, number};
use crate::recording::{describe, poison, producer, record};
use crate::{Operand, Tensor, iota};

/// One index for each leading axis: `[at.head, at.query]`, a slice, or a tuple that may hold plain integers.
pub trait Indices {
    /// The indices in order.
    fn operands(self) -> Vec<Operand>;
}

impl<T: Into<Operand>, const N: usize> Indices for [T; N] {
    fn operands(self) -> Vec<Operand> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<T: Into<Operand> + Clone> Indices for &[T] {
    fn operands(self) -> Vec<Operand> {
        self.iter().cloned().map(Into::into).collect()
    }
}

impl<T: Into<Operand>> Indices for Vec<T> {
    fn operands(self) -> Vec<Operand> {
        self.into_iter().map(Into::into).collect()
    }
}

macro_rules! tuples {
    ($($name:ident)*) => {
        impl<$($name: Into<Operand>),*> Indices for ($($name,)*) {
            fn operands(self) -> Vec<Operand> {
                #[allow(non_snake_case, reason = "the macro names each value as its type parameter")]
                let ($($name,)*) = self;
                vec![$($name.into()),*]
            }
        }
    };
}

tuples!(A B);
tuples!(A B C);
tuples!(A B C D);
tuples!(A B C D E);

/// Index arrays of one integer type and one shape.
#[track_caller]
fn aligned(indices: Vec<Operand>) -> Result<Vec<Tensor>> {
    let mut dtype: Option<DType> = None;
    let mut shape = Vec::new();
    for index in &indices {
        let Operand::Tensor(tensor) = index else { continue };
        if !tensor.dtype().is_integer() {
            return Err(Error::dtype("index", "an integer type", tensor.dtype())
                .note(describe(*tensor))
                .help("cast the index to an integer type"));
        }
        dtype = Some(match dtype {
            Some(dtype) if dtype != tensor.dtype() => DType::I64,
            Some(_) | None => tensor.dtype(),
        });
        shape = broadcast_shapes(&shape, &tensor.shape())?;
    }
    let dtype = dtype.unwrap_or(DType::I64);
    let mut tensors = Vec::with_capacity(indices.len());
    for index in indices {
        let tensor = match index {
            Operand::Tensor(tensor) => tensor.cast(dtype),
            Operand::Number(scalar) => number(dtype, scalar)?,
        };
        tensors.push(tensor.broadcast_to(&shape));
    }
    Ok(tensors)
}

impl Tensor {
    /// The elements (or, with fewer indices than axes, the rows) at computed places: the result has the
    /// shape that the indices broadcast to, then this array's remaining axes. A negative index counts from
    /// the end; any other outside the axis is an error of the run.
    ///
    /// In a score function or mask this is how captured arrays are read:
    /// `bias.at([at.head, at.query - at.key + n])`. There `bf16` and `f16` elements widen to `f32`, in which
    /// scores are computed. Reads chain: `table.at([at.query]).at([at.key])` is one read.
    #[track_caller]
    pub fn at(&self, indices: impl Indices) -> Tensor {
        let indices = indices.operands();
        let (rank, count) = (self.rank(), indices.len());
        if count > rank {
            let (axes, help) = (plural(rank), "index every axis once, or reshape the array before the call");
            let message = format!("an array of {rank} {axes} is indexed with {count}");
            let error = Error::shape("indices", format!("at most {rank}"), count).note(message);
            return poison(error.note(describe(*self)).help(help).in_operation("at"), self.ty());
        }
        let indices = check!("at", self.ty(), aligned(indices));
        if let Some((Op::Gather, earlier)) = producer(self.unwidened())
            && earlier[1..].iter().all(|index| index.rank() == 0)
        {
            let joined = earlier[1..].iter().chain(&indices).map(|&index| Operand::Tensor(index));
            let joined = check!("at", self.ty(), aligned(joined.collect()));
            return record(Op::Gather, &[&earlier[..1], &joined].concat()).widened();
        }
        record(Op::Gather, &[&[*self], &indices[..]].concat()).widened()
    }

    /// What was read, where [`Tensor::widened`] converted it.
    fn unwidened(self) -> Tensor {
        match producer(self) {
            Some((Op::Cast(dtype), operands)) if operands[0].dtype().accumulator() == dtype => operands[0],
            _ => self,
        }
    }

    /// The slices of an axis at the positions that `indices` (an integer array) holds: its axes stand in
    /// place of that axis.
    #[track_caller]
    pub fn take(&self, indices: impl std::borrow::Borrow<Tensor>, axis: isize) -> Tensor {
        let indices = *indices.borrow();
        let (rank, placed) = (self.rank(), indices.rank());
        let axis = check!("take", self.ty(), self.axis(axis));
        let taken = record(Op::Gather, &[self.move_axis(axis as isize, 0), indices]);
        // The taken axes stand first; those that stood before `axis` go in front of them again.
        let order = (placed..placed + axis).chain(0..placed).chain(placed + axis..placed + rank - 1);
        taken.permute(order.collect::<Vec<_>>())
    }

    /// One element for each element of `indices`: `result[…, i, …] = self[…, indices[…, i, …], …]` along
    /// `axis`, other axes walking together.
    #[track_caller]
    pub fn take_along_axis(&self, indices: impl std::borrow::Borrow<Tensor>, axis: isize) -> Tensor {
        let indices = *indices.borrow();
        let axis = check!("take_along_axis", self.ty(), self.axis(axis));
        let shape = indices.shape();
        if shape.len() != self.rank() {
            let error = Error::shape("indices", format!("{} axes", self.rank()), format!("{shape:?}"));
            return poison(error.in_operation("take_along_axis"), self.ty());
        }
        let own = self.shape();
        if let Some(i) = (0..own.len()).find(|&i| i != axis && own[i] != shape[i]) {
            let error = Error::axis("indices", i, own[i], shape[i]);
            return poison(error.in_operation("take_along_axis"), self.ty());
        }
        let mut places = Vec::with_capacity(shape.len());
        for i in 0..shape.len() {
            places.push(if i == axis { indices } else { iota(&shape, i as isize, indices.dtype()) });
        }
        record(Op::Gather, &[&[*self], &places[..]].concat())
    }

    /// Zeros of `shape` with this tensor's elements (or rows) added at `indices`; where places repeat, in
    /// row-major order. The indices broadcast to this tensor's leading axes; its remaining axes are the
    /// remaining ones of `shape`.
    #[track_caller]
    pub fn scatter_add(&self, indices: impl Indices, shape: impl Dims) -> Tensor {
        let shape = check!("scatter_add", self.ty(), shape.shape_for(0));
        let guess = Type::new(self.dtype(), shape.clone());
        let indices = check!("scatter_add", guess, aligned(indices.operands()));
        record(Op::ScatterAdd { shape }, &[&[*self], &indices[..]].concat())
    }

    /// For each integer a row of `classes` zeros with a one at its place.
    #[track_caller]
    pub fn one_hot(&self, classes: usize, dtype: DType) -> Tensor {
        let mut shape = self.shape();
        shape.push(classes);
        self.unsqueeze(-1).eq(iota(&shape, -1, self.dtype())).cast(dtype)
    }
}

fn plural(rank: usize) -> &'static str {
    if rank == 1 { "axis" } else { "axes" }
}
