//! Combine functions that have vector code of their own: which compiled kernels one takes.

use std::array::from_fn;
use std::marker::PhantomData;

use tilewright_ir::Result;
use tilewright_plan::Kind;

use super::column::{self, Column, ColumnArguments};
use super::edges::Run;
use super::engine::{Combine, Folded, Outputs};
use super::lanes::{Element, Lanes, Portable};
use super::monoid::{Affine, Greatest, Least, Monoid, Pattern, Product, Sum};
use super::row::{Row, RowArguments};
use crate::Isa;
use crate::isa::{Baseline, Best, Better, Compiled, Level};

#[cfg(target_arch = "x86_64")]
use super::lanes::avx2::{F32x8 as WideF32, F64x4 as WideF64};
#[cfg(not(target_arch = "x86_64"))]
type WideF32 = Portable<f32, 8>;
#[cfg(not(target_arch = "x86_64"))]
type WideF64 = Portable<f64, 4>;

/// Positions in a tile of a row: a few kilobytes for each array.
pub(super) const TILE: usize = 1024;

/// What is to be done with the kernels, once their types are known.
pub(super) trait Visitor {
    fn visit<E: Element, const S: usize>(self, vector: &Vector<E, S>) -> Result<()>;
}

/// The kernels of one combine function on `S` elements of type `E`.
pub(super) struct Vector<E, const S: usize> {
    row: Compiled<RowArguments<E, S>>,
    lanes: Compiled<ColumnArguments<E, S>>,
    /// The place in the plan's state of each of the monoid's elements.
    order: [usize; S],
    element: PhantomData<E>,
}

/// Chooses the kernels of `pattern` on elements of `kind`.
pub(super) fn choose(
    isa: Isa,
    (pattern, kind): (Pattern, Kind),
    reverse: bool,
    visitor: impl Visitor,
) -> Result<()> {
    match (kind, isa) {
        (Kind::F32, Isa::Portable) => with::<Portable<f32, 8>, Baseline>(isa, pattern, reverse, visitor),
        (Kind::F32, _) => with::<WideF32, Best>(isa, pattern, reverse, visitor),
        (Kind::F64, Isa::Portable) => with::<Portable<f64, 4>, Baseline>(isa, pattern, reverse, visitor),
        (Kind::F64, _) => with::<WideF64, Best>(isa, pattern, reverse, visitor),
        (Kind::I32, Isa::Portable) => with::<Portable<i32, 8>, Baseline>(isa, pattern, reverse, visitor),
        (Kind::I32, _) => with::<Portable<i32, 8>, Better>(isa, pattern, reverse, visitor),
        (Kind::I64, Isa::Portable) => with::<Portable<i64, 4>, Baseline>(isa, pattern, reverse, visitor),
        (Kind::I64, _) => with::<Portable<i64, 4>, Better>(isa, pattern, reverse, visitor),
        (Kind::Bool, _) => unreachable!("no pattern is recognised on truth values"),
    }
}

fn with<L: Lanes, I: Level>(isa: Isa, pattern: Pattern, reverse: bool, visitor: impl Visitor) -> Result<()> {
    match pattern {
        Pattern::Sum => visitor.visit(&vector::<L, I, Sum, 1>(isa, reverse, [0])),
        Pattern::Product => visitor.visit(&vector::<L, I, Product, 1>(isa, reverse, [0])),
        Pattern::Greatest => visitor.visit(&vector::<L, I, Greatest, 1>(isa, reverse, [0])),
        Pattern::Least => visitor.visit(&vector::<L, I, Least, 1>(isa, reverse, [0])),
        Pattern::Affine(a) => visitor.visit(&vector::<L, I, Affine, 2>(isa, reverse, [a, 1 - a])),
    }
}

fn vector<L: Lanes, I: Level, M: Monoid<S>, const S: usize>(
    isa: Isa,
    reverse: bool,
    order: [usize; S],
) -> Vector<L::Element, S> {
    Vector {
        row: if reverse {
            I::select::<Row<L, M, S, true>>(isa)
        } else {
            I::select::<Row<L, M, S, false>>(isa)
        },
        lanes: I::select::<Column<L, M, S>>(isa),
        order,
        element: PhantomData,
    }
}

impl<E: Element, const S: usize> Combine for Vector<E, S> {
    type Scratch = ();
    const DIRECT: bool = true;
    const POSITIONS: usize = column::POSITIONS;

    fn scratch(&self) {}

    unsafe fn row(
        &self,
        _: &mut (),
        run: &Run,
        inputs: &[*const u8],
        outputs: Outputs,
        (carry, kept): (&mut Folded, &[bool]),
        mut total: Option<&mut Folded>,
    ) -> Result<()> {
        let null = std::ptr::null_mut();
        let arguments = RowArguments {
            inputs: self.order.map(|place| inputs[place].cast::<E>()),
            outputs: self.order.map(|place| outputs.pointers[place].cast::<E>()),
            stream: outputs.stream,
            aligned: outputs.aligned.cast::<E>(),
            count: run.count,
            carry: self.order.map(|place| (&raw mut carry.elements[place]).cast::<E>()),
            fresh: carry.empty,
            alone: total.as_ref().is_none_or(|total| total.empty),
            total: self.order.map(|place| {
                total.as_mut().map_or(null, |total| (&raw mut total.elements[place]).cast::<E>())
            }),
            aside: kept[self.order[0]],
        };
        carry.empty = false;
        if let Some(total) = total {
            total.empty = false;
        }
        // SAFETY: the caller's promise; the processor has the features that the kernels were chosen for.
        unsafe { (self.row)(&arguments) };
        Ok(())
    }

    unsafe fn lanes(
        &self,
        _: &mut (),
        run: &Run,
        inputs: &[*const u8],
        state: (&[*mut u8], &[bool]),
        outputs: Outputs,
        fresh: bool,
    ) -> Result<()> {
        let (state, kept) = state;
        let positions = inputs.len() / S;
        // Of one position alone there is no next one to be read.
        let first = |position: usize| if position < positions { position * S } else { 0 };
        let arguments = ColumnArguments {
            inputs: from_fn(|p| self.order.map(|place| inputs[first(p) + place].cast::<E>())),
            state: self.order.map(|place| state[place].cast::<E>()),
            outputs: from_fn(|p| self.order.map(|place| outputs.pointers[first(p) + place].cast::<E>())),
            stream: outputs.stream,
            positions,
            count: run.count,
            fresh,
            aside: kept[self.order[0]],
        };
        // SAFETY: as above.
        unsafe { (self.lanes)(&arguments) };
        Ok(())
    }
}
