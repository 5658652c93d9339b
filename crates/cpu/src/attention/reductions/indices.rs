//! What an indices program depends on, and the flat indices that it gives.

use tilewright_ir::{Binary, Error, ErrorKind, Result, Unary};
use tilewright_plan::attention::{AttentionShape, CaptureCotangent, CaptureReduction};
use tilewright_plan::{Operation, Program, Register, evaluate};

/// Which pairs of different batch elements or heads may share an element, where pairs of one do not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reach {
    /// None.
    Apart,
    /// Those of the same query and key only.
    SamePair,
    /// Any.
    Anywhere,
}

/// How far the indices of a pair-wise reduction reach.
pub(super) fn reach(program: &Program, shape: &AttentionShape) -> Reach {
    let inputs = dependencies(program);
    let is_input =
        |input: usize| program.results.iter().any(|&result| source(program, result) == Some(input));
    if (shape.batch == 1 || is_input(0)) && (shape.heads == 1 || is_input(1)) {
        return Reach::Apart;
    }
    let mixes = |result: &Register| {
        let set = inputs[result.index()];
        (set[0] || set[1]) && (set[2] || set[3])
    };
    if program.results.iter().any(mixes) { Reach::Anywhere } else { Reach::SamePair }
}

/// The input that a register is, conversions aside.
fn source(program: &Program, register: Register) -> Option<usize> {
    match &program.instructions[register.index()].operation {
        Operation::Input(input) => Some(*input),
        Operation::Cast(x) => source(program, *x),
        Operation::Constant(_)
        | Operation::Unary(..)
        | Operation::Binary(..)
        | Operation::Compare(..)
        | Operation::Select(..)
        | Operation::Round(..)
        | Operation::Load(..)
        | Operation::RandomBits(..) => None,
    }
}

/// Which of the inputs `b, h, q, k, score` each register depends on.
fn dependencies(program: &Program) -> Vec<[bool; 5]> {
    let mut sets: Vec<[bool; 5]> = Vec::with_capacity(program.instructions.len());
    for instruction in &program.instructions {
        let mut set = [false; 5];
        if let Operation::Input(input) = instruction.operation {
            set[input] = true;
        }
        for operand in instruction.operation.operands() {
            for (to, from) in set.iter_mut().zip(sets[operand.index()]) {
                *to |= from;
            }
        }
        sets.push(set);
    }
    sets
}

/// How each result grows with the query and the key, if all do so by constants.
pub(super) fn steps(program: &Program) -> Option<Vec<(i64, i64)>> {
    let sets = dependencies(program);
    let mut steps: Vec<Option<(i64, i64)>> = Vec::with_capacity(sets.len());
    for (instruction, set) in program.instructions.iter().zip(&sets) {
        let of = |x: &Register| steps[x.index()];
        let add = |x: (i64, i64), y: (i64, i64), sign: i64| {
            Some((x.0.checked_add(sign.checked_mul(y.0)?)?, x.1.checked_add(sign.checked_mul(y.1)?)?))
        };
        let constant = |x: &Register| match &program.instructions[x.index()].operation {
            Operation::Constant(scalar) => Some(scalar.to_i64()),
            _ => None,
        };
        let step = match &instruction.operation {
            _ if !set[2] && !set[3] && !set[4] => Some((0, 0)),
            Operation::Input(2) => Some((1, 0)),
            Operation::Input(3) => Some((0, 1)),
            Operation::Unary(Unary::Neg, x) => of(x).and_then(|x| add((0, 0), x, -1)),
            Operation::Binary(Binary::Add, x, y) => of(x).zip(of(y)).and_then(|(x, y)| add(x, y, 1)),
            Operation::Binary(Binary::Sub, x, y) => of(x).zip(of(y)).and_then(|(x, y)| add(x, y, -1)),
            Operation::Binary(Binary::Mul, x, y) => match (constant(x), constant(y)) {
                (Some(factor), _) => of(y).and_then(|y| add((0, 0), y, factor)),
                (_, Some(factor)) => of(x).and_then(|x| add((0, 0), x, factor)),
                (None, None) => None,
            },
            Operation::Cast(x) => of(x),
            Operation::Input(_)
            | Operation::Constant(_)
            | Operation::Unary(..)
            | Operation::Binary(..)
            | Operation::Compare(..)
            | Operation::Select(..)
            | Operation::Round(..)
            | Operation::Load(..)
            | Operation::RandomBits(..) => None,
        };
        steps.push(step);
    }
    program.results.iter().map(|result| steps[result.index()]).collect()
}

/// A capture as a scatter sees it.
#[derive(Clone, Debug)]
pub(super) struct Axes {
    /// Extent of each indexed axis: those of the capture, or all of it as one.
    pub extents: Vec<usize>,
    /// Elements between neighbours along each.
    pub strides: Vec<usize>,
}

impl Axes {
    /// `flat`: the only index is that of the capture seen as flat.
    pub(super) fn new(capture: &CaptureCotangent, flat: bool) -> Axes {
        if flat {
            return Axes { extents: vec![capture.shape.iter().product()], strides: vec![1] };
        }
        let mut strides = vec![1; capture.shape.len()];
        for axis in (1..strides.len()).rev() {
            strides[axis - 1] = strides[axis] * capture.shape[axis];
        }
        Axes { extents: capture.shape.clone(), strides }
    }

    /// What an index adds to the flat index; none where it is out of range.
    #[inline(always)]
    pub(super) fn part(&self, axis: usize, index: i64) -> Option<usize> {
        evaluate::position(index, self.extents[axis]).map(|position| position * self.strides[axis])
    }

    /// Adds to each flat index what the index along an axis adds; 0 for those out of range. Gives whether
    /// there is one.
    ///
    /// # Safety
    /// As many indices as there are of `flat` are at `indices`.
    #[inline(always)]
    pub(super) unsafe fn add<T: Copy + Into<i64>>(
        &self,
        axis: usize,
        flat: &mut [usize],
        indices: *const T,
    ) -> bool {
        let (extent, stride) = (self.extents[axis], self.strides[axis]);
        let mut outside = false;
        for (i, flat) in flat.iter_mut().enumerate() {
            // SAFETY: as the caller vouches.
            let index: i64 = unsafe { (*indices.add(i)).into() };
            let index = (if index < 0 { index.wrapping_add(extent as i64) } else { index }) as usize;
            let inside = index < extent;
            outside |= !inside;
            *flat += if inside { index.wrapping_mul(stride) } else { 0 };
        }
        outside
    }

    /// The error of an index out of range.
    pub(super) fn outside(&self, reduction: &CaptureReduction, axis: usize, index: i64) -> Error {
        let buffer = format!("cotangent of capture {}", reduction.capture);
        let size = self.extents[axis];
        Error::new(ErrorKind::Index { buffer, axis, index, size }).at(reduction.origin.clone())
    }
}

/// The integer at a place that a tile program wrote.
///
/// # Safety
/// An element of `size` bytes, 4 or 8, is at `data + at · size`.
#[inline(always)]
pub(super) unsafe fn integer(data: *const u8, size: usize, at: usize) -> i64 {
    // SAFETY: as the caller vouches.
    unsafe {
        match size {
            8 => data.cast::<i64>().add(at).read_unaligned(),
            _ => data.cast::<i32>().add(at).read_unaligned() as i64,
        }
    }
}

/// Checks that an indices program gives an index for each axis.
pub(super) fn check(program: &Program, axes: &Axes) -> Result<()> {
    if program.results.len() == axes.extents.len() {
        return Ok(());
    }
    Err(crate::memory::broken(format!(
        "{} indices for {} axes of a captured array",
        program.results.len(),
        axes.extents.len()
    )))
}
