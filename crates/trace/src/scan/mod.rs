//! Associative scans over trees.
//!
//! What a scan starts from, shifts by and is cut into is expressed in the elements that are scanned:
//! - `init` is combined with the element at the first position; `exclusive` scans `init` and all elements but
//!   the last. Both choose by position, so nothing is concatenated. In segments, `exclusive` puts `init` where each
//!   starts.
//! - `segments` scans pairs (a segment starts here, value), where a right side that starts a segment forgets
//!   the left one: (f, x) · (g, y) = (f ∨ g, y if g else x · y), which is associative where · is (Blelloch,
//!   Prefix sums and their applications, 1990).

mod cumulative;
mod region;

pub use self::cumulative::linear_recurrence;

use tilewright_ir::{AssociativeScan, DType, Error, Op, Result, Type};

use self::region::{Combine, for_leaf, slices};
use crate::elementwise::broadcast_shapes;
use crate::recording::{self, describe, record_all};
use crate::tree::{leaves, map_leaves};
use crate::{Tensor, TensorTree, iota};

/// A scan about to be recorded: [`Scan::call`] records it.
#[must_use = "call() records the scan"]
pub struct Scan<T, F> {
    elements: T,
    combine: F,
    options: Options,
    init: Option<T>,
}

/// How a scan runs.
struct Options {
    axis: isize,
    reverse: bool,
    exclusive: bool,
    segments: Option<Tensor>,
    /// Whether the fold of all positions is asked for.
    carry: bool,
}

/// A scan of `elements` along `axis` with an associative `combine`: the result at position t combines
/// positions 0 to t. The leaves have one extent along `axis`; `combine` works on slices without it, may use
/// any tensor from outside, and returns a tree like `elements`.
///
/// The result is a tree like `elements`; every leaf's shape and element type stay. Gradients reach the elements,
/// `init`, and what `combine` captures. [`check_associative`](https://docs.rs/tilewright) tries whether a
/// combine function is associative.
///
/// ```
/// use tilewright::prelude::*;
///
/// // yₜ = aₜ yₜ₋₁ + bₜ along axis 1, as the second leaf.
/// let recurrence = compile(|(a, b): (Tensor, Tensor)| {
///     associative_scan((a, b), 1, |l, r| (l.0 * r.0, r.0 * l.1 + r.1)).call().1
/// });
/// let a = Array::new([1, 3], &[0.5f32, 0.5, 0.5])?;
/// let b = Array::new([1, 3], &[1.0f32, 1.0, 1.0])?;
/// assert_eq!(recurrence.call((&a, &b))?.to_vec::<f32>()?, [1.0, 1.5, 1.75]);
///
/// // The combine function must give slices like those that it gets.
/// let wrong = compile(|x: Tensor| associative_scan(x, 0, |l: Tensor, _| l.sum(..)).call());
/// let error = wrong.call(&Array::zeros(DType::F32, [4, 2])?).unwrap_err();
/// assert!(error.to_string().contains("associative_scan"));
/// # Ok::<(), Error>(())
/// ```
///
/// A Rust `if` in it cannot ask for an element's value, and does not compile; [`Tensor::select`] chooses.
/// ```compile_fail
/// use tilewright::prelude::*;
///
/// let greatest = |x: Tensor| associative_scan(x, 0, |l, r| if l > r { l } else { r }).call();
/// ```
/// ```
/// use tilewright::prelude::*;
///
/// let greatest = compile(|x: Tensor| associative_scan(x, 0, |l: Tensor, r| l.gt(r).select(l, r)).call());
/// let y = greatest.call(&Array::new([3], &[1.0f32, 4.0, 2.0])?)?;
/// assert_eq!(y.to_vec::<f32>()?, [1.0, 4.0, 4.0]);
/// # Ok::<(), Error>(())
/// ```
pub fn associative_scan<T: TensorTree, F: FnOnce(T, T) -> T>(
    elements: T,
    axis: isize,
    combine: F,
) -> Scan<T, F> {
    let options = Options { axis, reverse: false, exclusive: false, segments: None, carry: false };
    Scan { elements, combine, options, init: None }
}

impl<T: TensorTree, F: FnOnce(T, T) -> T> Scan<T, F> {
    /// From the last position to the first: the result at t combines the positions from the last down to t, the
    /// later ones on the left.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|x: Tensor| associative_scan(x, 0, |l, r| l + r).reverse().call());
    /// let y = f.call(&Array::new([3], &[1.0f32, 2.0, 4.0])?)?;
    /// assert_eq!(y.to_vec::<f32>()?, [7.0, 6.0, 4.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn reverse(mut self) -> Scan<T, F> {
        self.options.reverse = true;
        self
    }

    /// A tree of slices to start from: it is combined in front of the first position (in reverse, of the last).
    /// Leaves broadcast to the slices of the elements.
    ///
    /// With [`Scan::segments`] it enters the segment that the first position goes on with, and is forgotten where
    /// one starts (but see [`Scan::exclusive`]). So what is scanned in parts, each from the carry of the part before
    /// ([`Scan::call_with_carry`]) and with its part of the starts, is what is scanned at once:
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let parts = compile(|(x, starts): (Tensor, Tensor)| {
    ///     let sum = |x: Tensor, starts: Tensor, init: Tensor| {
    ///         associative_scan(x, 0, |l, r| l + r).init(init).segments(starts).call_with_carry()
    ///     };
    ///     let (head, carry) = sum(x.slice(0, ..3), starts.slice(0, ..3), zeros((), DType::F32));
    ///     let (tail, _) = sum(x.slice(0, 3..), starts.slice(0, 3..), carry);
    ///     concatenate(&[head, tail], 0)
    /// });
    /// let x = Array::new([5], &[1.0f32, 2.0, 3.0, 4.0, 5.0])?;
    /// let starts = Array::new([5], &[true, false, false, false, true])?;
    /// assert_eq!(parts.call((&x, &starts))?.to_vec::<f32>()?, [1.0, 3.0, 6.0, 10.0, 5.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn init(mut self, init: T) -> Scan<T, F> {
        self.init = Some(init);
        self
    }

    /// The result at a position combines `init`, which must be given, and the positions before it. With
    /// [`Scan::segments`], the positions before it in its own segment: each segment starts from `init`.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|x: Tensor| {
    ///     associative_scan(x, 0, |l, r| l + r).init(zeros((), DType::F32)).exclusive().call()
    /// });
    /// let y = f.call(&Array::new([3], &[1.0f32, 2.0, 4.0])?)?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, 1.0, 3.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn exclusive(mut self) -> Scan<T, F> {
        self.options.exclusive = true;
        self
    }

    /// Cuts the axis into segments that are scanned each by itself. `starts`, of `bool`, holds where one
    /// starts: its shape is `[length]`, or that of the leaves up to the scan's axis at the least, with 1 where
    /// all positions share it. In reverse, the scan of a segment begins at its last position.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|(x, starts): (Tensor, Tensor)| {
    ///     associative_scan(x, -1, |l, r| l + r).segments(starts).call()
    /// });
    /// let x = Array::new([2, 4], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])?;
    /// let starts = Array::new([4], &[true, false, true, false])?;
    /// assert_eq!(f.call((&x, &starts))?.to_vec::<f32>()?, [1.0, 3.0, 3.0, 7.0, 5.0, 11.0, 7.0, 15.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn segments(mut self, starts: Tensor) -> Scan<T, F> {
        self.options.segments = Some(starts);
        self
    }

    /// Records the scan, and gives a tree like the elements; of length 0, the elements.
    ///
    /// # Errors (of the trace)
    /// `Shape` where there is no leaf, the leaves' extents along the axis differ, or `combine` returns
    /// another tree or shape; `DType` where it returns another element type; `Argument` for `exclusive`
    /// without `init`.
    #[track_caller]
    pub fn call(self) -> T {
        let (elements, [results, _]) = self.record();
        rebuild(&elements, results)
    }

    /// [`Scan::call`], and the fold of `init` and all positions, with which a later scan can go on: a tree of slices.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|x: Tensor| associative_scan(x, 1, |l, r| l.maximum(r)).call_with_carry());
    /// let (y, carry): (Array, Array) = f.call(&Array::new([1, 3], &[1.0f32, 3.0, 2.0])?)?;
    /// assert_eq!((y.shape(), carry.shape()), (&[1, 3][..], &[1][..]));
    /// assert_eq!(carry.to_vec::<f32>()?, [3.0]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors (of the trace)
    /// As [`Scan::call`]; `Argument` for length 0 without `init`.
    #[track_caller]
    pub fn call_with_carry(mut self) -> (T, T) {
        self.options.carry = true;
        let (elements, [results, carry]) = self.record();
        (rebuild(&elements, results), rebuild(&elements, carry))
    }

    /// The elements, and the leaves of the results and, if it is asked for, of the carry.
    #[track_caller]
    fn record(self) -> (T, [Vec<Tensor>; 2]) {
        let Scan { elements, combine, options, init } = self;
        let inputs = tensors(&elements);
        let results = match record(&elements, &inputs, combine, &options, init.as_ref().map(tensors)) {
            Ok(Some(results)) => results,
            Ok(None) => poisoned(&inputs, options.axis),
            Err(error) => {
                let first = inputs.first().map_or(Type::scalar(DType::F32), |leaf| leaf.ty());
                recording::poison(error.in_operation("associative_scan"), first);
                poisoned(&inputs, options.axis)
            }
        };
        (elements, results)
    }
}

/// Records a scan; nothing where a value is poisoned.
#[track_caller]
fn record<T: TensorTree>(
    elements: &T,
    inputs: &[Tensor],
    combine: impl FnOnce(T, T) -> T,
    options: &Options,
    init: Option<Vec<Tensor>>,
) -> Result<Option<[Vec<Tensor>; 2]>> {
    let Options { reverse, exclusive, carry, .. } = *options;
    let (axis, slices) = slices(inputs, options.axis)?;
    let length = inputs[0].shape()[axis];
    let init = init.map(|init| checked_init(&init, &slices)).transpose()?;
    let flags = options.segments.map(|starts| flags(starts, inputs, axis, reverse)).transpose()?;
    if exclusive && init.is_none() {
        return Err(Error::argument("exclusive", "needs init, which is the result at the first position"));
    }
    let Some(combine) = Combine::trace(elements, &slices, axis, flags, combine)? else { return Ok(None) };
    if length == 0 {
        let carry = match (init, carry) {
            (Some(init), _) => init,
            (None, false) => Vec::new(),
            (None, true) => {
                return Err(Error::argument("elements", "a scan of length 0 has no carry without init"));
            }
        };
        return Ok(Some([inputs.to_vec(), carry]));
    }

    let (first, last) = if reverse { (length - 1, 0) } else { (0, length - 1) };
    let at = |inputs: &[Tensor], position: usize| -> Vec<Tensor> {
        inputs.iter().map(|leaf| leaf.index(axis as isize, position as isize)).collect()
    };
    let scanned = match init {
        Some(init) if exclusive => {
            let started = start_with(&moved(inputs, axis, reverse), axis, first, &init);
            match flags {
                Some(flags) => start_segments_with(&started, axis, flags, &init),
                None => started,
            }
        }
        Some(init) => {
            // Where the first position starts a segment, its flag makes the combination forget init.
            let flag: Vec<Tensor> =
                flags.iter().map(|flags| flags.index(axis as isize, first as isize)).collect();
            let left: Vec<Tensor> = flag.iter().map(Tensor::zeros_like).chain(init).collect();
            let right = [&flag[..], &at(inputs, first)].concat();
            let Some(mut joined) = combine.apply(&left, &right) else { return Ok(None) };
            start_with(inputs, axis, first, &joined.split_off(flag.len()))
        }
        None => inputs.to_vec(),
    };
    let operands: Vec<Tensor> = flags.iter().chain(&scanned).chain(&combine.captures).copied().collect();
    let count = flags.iter().len() + inputs.len();
    let scan = AssociativeScan { combine: combine.region.clone(), leaves: count, axis, reverse };
    let results =
        record_all(Op::AssociativeScan(Box::new(scan)), &operands, count).split_off(count - inputs.len());
    let carried = match (carry, exclusive) {
        (false, _) => Some(Vec::new()),
        (true, false) => Some(at(&results, last)),
        (true, true) => {
            // The last position goes on with the segment that it is in, whether one starts there or not.
            let no: Vec<Tensor> =
                flags.iter().map(|flags| flags.index(axis as isize, last as isize).zeros_like()).collect();
            let [left, right] = [&results, inputs].map(|leaves| [&no[..], &at(leaves, last)].concat());
            combine.apply(&left, &right).map(|mut joined| joined.split_off(no.len()))
        }
    };
    Ok(carried.map(|carried| [results, carried]))
}

/// The leaves of `init`, each as wide as a slice.
#[track_caller]
fn checked_init(init: &[Tensor], slices: &[Type]) -> Result<Vec<Tensor>> {
    if init.len() != slices.len() {
        let expected = format!("{} leaves, as the elements have", slices.len());
        return Err(Error::shape("init", expected, init.len()));
    }
    let mut wide = Vec::with_capacity(init.len());
    for (i, (leaf, slice)) in init.iter().zip(slices).enumerate() {
        let (ty, argument) = (leaf.ty(), format!("leaf {i} of init"));
        if ty.dtype != slice.dtype && !leaf.is_poisoned() {
            return Err(Error::dtype(argument, slice.dtype, ty.dtype).note(describe(*leaf)));
        }
        if broadcast_shapes(&slice.shape, &ty.shape).ok().as_ref() != Some(&slice.shape) {
            let expected = format!("{:?}, as a slice of the elements has", slice.shape);
            return Err(Error::shape(argument, expected, format!("{:?}", ty.shape)).note(describe(*leaf)));
        }
        wide.push(leaf.broadcast_to(&slice.shape));
    }
    Ok(wide)
}

/// Where a scan in the given direction starts afresh, as a leaf to scan with the others.
#[track_caller]
fn flags(starts: Tensor, inputs: &[Tensor], axis: usize, reverse: bool) -> Result<Tensor> {
    let (Type { dtype, mut shape }, length) = (starts.ty(), inputs[0].shape()[axis]);
    if dtype != DType::Bool && !starts.is_poisoned() {
        return Err(Error::dtype("segments", DType::Bool, dtype).note(describe(starts)));
    }
    if shape.len() == 1 {
        shape.splice(0..0, vec![1; axis]);
    }
    if shape.len() <= axis {
        let expected = format!("[{length}], or an axis for each of the leaves' up to axis {axis}");
        return Err(Error::shape("segments", expected, format!("{shape:?}")).note(describe(starts)));
    }
    for (i, &extent) in shape.iter().enumerate() {
        for leaf in inputs {
            let there = leaf.shape().get(i).copied().unwrap_or(1);
            if extent != there && (i == axis || extent != 1) {
                let expected = if i == axis { there.to_string() } else { format!("1 or {there}") };
                let error = Error::axis("segments", i, expected, extent);
                return Err(error.note(describe(starts)).note(describe(*leaf)));
            }
        }
    }
    let flags = starts.reshape(shape);
    let along = axis as isize;
    // From the end, a segment begins before the start of the next one; what follows the last position is unknown.
    Ok(if reverse && length > 0 { flags.slice(along, 1..).pad(along, 0, 1, false) } else { flags })
}

/// Each leaf moved by one position in the direction of the scan; what is at the first position is of no use.
#[track_caller]
fn moved(inputs: &[Tensor], axis: usize, reverse: bool) -> Vec<Tensor> {
    let along = axis as isize;
    let mut moved = Vec::with_capacity(inputs.len());
    for leaf in inputs {
        let nothing = crate::zeros((), leaf.dtype());
        moved.push(if reverse {
            leaf.slice(along, 1..).pad(along, 0, 1, nothing)
        } else {
            leaf.slice(along, ..-1).pad(along, 1, 0, nothing)
        });
    }
    moved
}

/// Each leaf with its slice at the first position replaced.
#[track_caller]
fn start_with(inputs: &[Tensor], axis: usize, first: usize, slices: &[Tensor]) -> Vec<Tensor> {
    let mut started = Vec::with_capacity(inputs.len());
    for (leaf, slice) in inputs.iter().zip(slices) {
        let is_first = iota(leaf.shape(), axis as isize, DType::I64).eq(first as i64);
        started.push(is_first.select(slice.unsqueeze(axis as isize), leaf));
    }
    started
}

/// Each leaf with its slices at the positions where segments start replaced.
#[track_caller]
fn start_segments_with(inputs: &[Tensor], axis: usize, flags: Tensor, slices: &[Tensor]) -> Vec<Tensor> {
    let mut started = Vec::with_capacity(inputs.len());
    for (leaf, slice) in inputs.iter().zip(slices) {
        started.push(for_leaf(flags, leaf.rank()).select(slice.unsqueeze(axis as isize), leaf));
    }
    started
}

fn tensors<T: TensorTree>(tree: &T) -> Vec<Tensor> {
    leaves(tree).into_iter().map(|(_, leaf)| leaf).collect()
}

/// A tree like `tree` with the given leaves.
fn rebuild<T: TensorTree>(tree: &T, leaves: Vec<Tensor>) -> T {
    let mut leaves = leaves.into_iter();
    map_leaves(tree, |_, leaf| Ok(leaves.next().unwrap_or(*leaf))).expect("the mapper does not fail")
}

/// What stands for the results and the carry of a scan whose error is known already.
fn poisoned(inputs: &[Tensor], axis: isize) -> [Vec<Tensor>; 2] {
    let result = |leaf: &Tensor| recording::poisoned(leaf.ty());
    let carry = |leaf: &Tensor| {
        let Type { dtype, mut shape } = leaf.ty();
        if let Ok(axis) = crate::arguments::axis(axis, shape.len()) {
            shape.remove(axis);
        }
        recording::poisoned(Type::new(dtype, shape))
    };
    [inputs.iter().map(result).collect(), inputs.iter().map(carry).collect()]
}
