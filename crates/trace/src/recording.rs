//! The recording in progress: frames, captures, the first error.
//!
//! Which graph an operation goes to is ambient: the innermost open frame of the thread's innermost
//! recording. It is the one ambient thing of the library, and the price of writing `a + b` instead of
//! `graph.add(a, b)`. It is safe because a recording belongs to one thread and to one call of [`trace`], is
//! opened and closed by a guard (so a panic in the user's function closes it), and every [`Tensor`] says
//! which frame it belongs to, so that a value that has outlived its frame is an error and never another
//! value. Recordings nest: a traced function may call a compiled one that is traced at that moment.

use std::cell::RefCell;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tilewright_ir::{DType, Error, Graph, Op, Origin, Result, Type, Value, ValueDefinition, infer};

use crate::tensor::{Slot, Tensor};

thread_local! {
    static RECORDINGS: RefCell<Vec<Recording>> = const { RefCell::new(Vec::new()) };
}

/// Returns a poisoned tensor from a method whose argument does not fit, with the error kept.
macro_rules! check {
    ($operation:expr, $guess:expr, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return crate::recording::poison(error.in_operation($operation), $guess),
        }
    };
}

/// Identity of a frame, unique in the process, so that a tensor of a closed frame is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameId(u64);

impl FrameId {
    /// The frame of tensors that were made outside of any recording.
    pub(crate) const NONE: FrameId = FrameId(0);

    fn fresh() -> FrameId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        FrameId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a frame's graph will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// The traced function itself.
    Function,
    /// A score function or a mask, which runs once per pair.
    Pair,
    /// A combine function of a scan.
    Combine,
}

/// A graph being recorded.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) id: FrameId,
    pub(crate) kind: FrameKind,
    pub(crate) graph: Graph,
    /// What the frame reads of the frame around it, and the parameter that stands for it.
    pub(crate) captures: Vec<(Tensor, Value)>,
    /// Names of the first parameters.
    names: Vec<String>,
}

impl Frame {
    pub(crate) fn new(kind: FrameKind) -> Frame {
        Frame { id: FrameId::fresh(), kind, graph: Graph::new(), captures: Vec::new(), names: Vec::new() }
    }

    /// Adds a parameter that the frame's function receives.
    pub(crate) fn parameter(&mut self, name: impl Into<String>, ty: Type) -> Tensor {
        self.names.push(name.into());
        Tensor { frame: self.id, slot: Slot::Value(self.graph.parameter(ty)) }
    }

    fn capture(&mut self, outer: Tensor, ty: Type) -> Value {
        if let Some((_, inner)) = self.captures.iter().find(|(tensor, _)| tensor.same(outer)) {
            return *inner;
        }
        let inner = self.graph.parameter(ty);
        self.captures.push((outer, inner));
        inner
    }

    /// The region that computes `results`, with a parameter for each of the first `leading` parameters and
    /// then for each of `captures`, and without the operations that the results do not need.
    pub(crate) fn region(&self, leading: usize, captures: &[Tensor], results: &[Value]) -> Result<Graph> {
        let mut needed = vec![false; self.graph.value_count()];
        results.iter().for_each(|value| needed[value.index()] = true);
        for node in self.graph.nodes().iter().rev() {
            if node.results.iter().any(|value| needed[value.index()]) {
                node.operands.iter().for_each(|value| needed[value.index()] = true);
            }
        }
        let mut region = Graph::new();
        let mut map: Vec<Option<Value>> = vec![None; self.graph.value_count()];
        for &parameter in &self.graph.parameters()[..leading] {
            map[parameter.index()] = Some(region.parameter(self.graph.ty(parameter).clone()));
        }
        for &capture in captures {
            let parameter = region.parameter(capture.ty());
            if let Some((_, inner)) = self.captures.iter().find(|(tensor, _)| tensor.same(capture)) {
                map[inner.index()] = Some(parameter);
            }
        }
        let lookup = |map: &[Option<Value>], value: &Value| {
            map[value.index()].ok_or_else(|| Error::trace("a region reads a value that is not its own"))
        };
        for node in self.graph.nodes() {
            if node.results.iter().any(|value| needed[value.index()]) {
                let operands =
                    node.operands.iter().map(|value| lookup(&map, value)).collect::<Result<Vec<_>>>()?;
                let results = region.add(node.op.clone(), &operands, node.origin.clone())?;
                node.results.iter().zip(results).for_each(|(old, new)| map[old.index()] = Some(new));
            }
        }
        let results = results.iter().map(|value| lookup(&map, value)).collect::<Result<_>>()?;
        region.set_results(results);
        Ok(region)
    }
}

fn outside() -> Error {
    Error::trace("a traced value is used outside the function that made it").help(
        "return the value from that function; what a score function, mask or combine computes exists only \
         inside it",
    )
}

/// One call of [`trace`].
#[derive(Debug, Default)]
struct Recording {
    frames: Vec<Frame>,
    error: Option<Error>,
    /// Types of the poisoned values.
    poisoned: Vec<Type>,
    /// The file names met so far, so that origins share them.
    files: Vec<(&'static str, Arc<str>)>,
}

impl Recording {
    fn origin(&mut self, location: &'static Location<'static>) -> Origin {
        let file = location.file();
        let known = self.files.iter().rev().find(|(name, _)| std::ptr::eq(*name, file));
        let file = match known {
            Some((_, shared)) => shared.clone(),
            None => {
                let shared: Arc<str> = file.into();
                self.files.push((file, shared.clone()));
                shared
            }
        };
        Origin { file, line: location.line(), column: location.column() }
    }

    fn innermost(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("a recording has a frame as long as it lives")
    }

    fn ty(&self, tensor: Tensor) -> Option<&Type> {
        match tensor.slot {
            Slot::Poisoned(i) => self.poisoned.get(i as usize),
            Slot::Value(value) => {
                let frame = self.frames.iter().rev().find(|frame| frame.id == tensor.frame)?;
                Some(frame.graph.ty(value))
            }
        }
    }

    /// The value of the innermost frame that stands for `tensor`, captured where it is from further out;
    /// none where it is poisoned.
    fn lift(&mut self, tensor: Tensor) -> Result<Option<Value>> {
        let Slot::Value(mut value) = tensor.slot else { return Ok(None) };
        let Some(depth) = self.frames.iter().rposition(|frame| frame.id == tensor.frame) else {
            return Err(outside());
        };
        for level in depth + 1..self.frames.len() {
            let outer = Tensor { frame: self.frames[level - 1].id, slot: Slot::Value(value) };
            let ty = self.frames[level - 1].graph.ty(value).clone();
            value = self.frames[level].capture(outer, ty);
        }
        Ok(Some(value))
    }

    fn poison(&mut self, types: Vec<Type>) -> Vec<Tensor> {
        let frame = self.innermost().id;
        let mut tensors = Vec::with_capacity(types.len());
        for ty in types {
            tensors.push(Tensor { frame, slot: Slot::Poisoned(self.poisoned.len() as u32) });
            self.poisoned.push(ty);
        }
        tensors
    }

    fn fail(&mut self, error: Error, origin: Option<Origin>) {
        if self.error.is_none() {
            self.error = Some(error.at(origin));
        }
    }

    fn record(&mut self, op: Op, operands: &[Tensor], location: &'static Location<'static>) -> Vec<Tensor> {
        let origin = Some(self.origin(location));
        let scalar = Type::scalar(DType::F32);
        let types: Vec<Type> =
            operands.iter().map(|&tensor| self.ty(tensor).unwrap_or(&scalar).clone()).collect();
        let result = operands.iter().map(|&tensor| self.lift(tensor)).collect::<Result<Option<Vec<_>>>>();
        let result = result.and_then(|values| match values {
            None => Ok(None),
            Some(values) => {
                let frame = self.innermost();
                if frame.kind == FrameKind::Pair
                    && (!op.regions().is_empty() || matches!(op, Op::RandomBits { .. }))
                {
                    return Err(Error::trace(format!(
                        "{} cannot stand in a score function or mask, which runs once for each pair",
                        op.name()
                    ))
                    .help("compute it outside and use its result inside"));
                }
                Ok(Some((frame.id, frame.graph.add(op.clone(), &values, origin.clone())?)))
            }
        });
        match result {
            Ok(Some((frame, values))) => {
                values.into_iter().map(|value| Tensor { frame, slot: Slot::Value(value) }).collect()
            }
            Ok(None) => self.poison_like(&op, types),
            Err(mut error) => {
                for (&operand, ty) in operands.iter().zip(&types).take(4) {
                    error = error.note(self.describe(operand, ty));
                }
                self.fail(error.in_operation(op.name()), origin);
                self.poison_like(&op, types)
            }
        }
    }

    fn poison_like(&mut self, op: &Op, operands: Vec<Type>) -> Vec<Tensor> {
        let references: Vec<&Type> = operands.iter().collect();
        let types = infer(op, &references);
        self.poison(types.unwrap_or_else(|_| {
            vec![references.first().map_or_else(|| Type::scalar(DType::F32), |&ty| ty.clone())]
        }))
    }

    /// What a tensor is, for people: its type, and its name or the line that made it.
    fn describe(&self, mut tensor: Tensor, ty: &Type) -> String {
        loop {
            let Slot::Value(value) = tensor.slot else { return ty.to_string() };
            let Some(frame) = self.frames.iter().rev().find(|frame| frame.id == tensor.frame) else {
                return ty.to_string();
            };
            match frame.graph.definition(value) {
                ValueDefinition::Parameter(i) => {
                    if let Some((outer, _)) = frame.captures.iter().find(|(_, inner)| *inner == value) {
                        tensor = *outer;
                        continue;
                    }
                    return match frame.names.get(i) {
                        Some(name) => format!("`{name}`: {ty}"),
                        None => ty.to_string(),
                    };
                }
                ValueDefinition::Result(node, _) => {
                    let node = frame.graph.node(node);
                    let made = node.origin.as_ref().map(|origin| format!(" at {origin}")).unwrap_or_default();
                    return format!("{ty}, made by {}{made}", node.op.name());
                }
            }
        }
    }
}

fn with<R>(f: impl FnOnce(&mut Recording) -> R) -> Option<R> {
    RECORDINGS.with_borrow_mut(|recordings| recordings.last_mut().map(f))
}

/// Appends an operation to the innermost frame.
#[track_caller]
pub(crate) fn record_all(op: Op, operands: &[Tensor], results: usize) -> Vec<Tensor> {
    let location = Location::caller();
    let mut tensors =
        with(|recording| recording.record(op, operands, location)).unwrap_or_else(|| vec![Tensor::husk()]);
    let last = tensors[tensors.len() - 1];
    tensors.resize(results, last);
    tensors
}

/// [`record_all`] for an operation with one result.
#[track_caller]
pub(crate) fn record(op: Op, operands: &[Tensor]) -> Tensor {
    record_all(op, operands, 1)[0]
}

/// Keeps an error, and gives a value to go on with.
#[track_caller]
pub(crate) fn poison(error: Error, guess: Type) -> Tensor {
    let location = Location::caller();
    with(|recording| {
        let origin = recording.origin(location);
        recording.fail(error, Some(origin));
        recording.poison(vec![guess])[0]
    })
    .unwrap_or(Tensor::husk())
}

/// A value that stands for the result of an operation whose error is known already.
pub(crate) fn poisoned(ty: Type) -> Tensor {
    with(|recording| recording.poison(vec![ty])[0]).unwrap_or(Tensor::husk())
}

/// The type of a tensor; that of an `f32` scalar where its frame is closed.
pub(crate) fn ty(tensor: Tensor) -> Type {
    with(|recording| recording.ty(tensor).cloned()).flatten().unwrap_or(Type::scalar(DType::F32))
}

/// Whether a tensor is of an open frame, or poisoned.
///
/// # Errors
/// Where it is neither: its type is not known then.
pub(crate) fn alive(tensor: Tensor) -> Result<()> {
    with(|recording| match recording.ty(tensor) {
        Some(_) => Ok(()),
        None => Err(outside()),
    })
    .unwrap_or(Ok(()))
}

/// What a tensor is, for an error.
pub(crate) fn describe(tensor: Tensor) -> String {
    let ty = ty(tensor);
    with(|recording| recording.describe(tensor, &ty)).unwrap_or_else(|| ty.to_string())
}

/// The operation and operands that made a tensor of the innermost frame.
pub(crate) fn producer(tensor: Tensor) -> Option<(Op, Vec<Tensor>)> {
    with(|recording| {
        let Slot::Value(value) = tensor.slot else { return None };
        let frame = recording.innermost();
        let node = (frame.id == tensor.frame).then(|| frame.graph.producer(value)).flatten()?;
        let operands =
            node.operands.iter().map(|&value| Tensor { frame: frame.id, slot: Slot::Value(value) });
        Some((node.op.clone(), operands.collect()))
    })
    .flatten()
}

/// A captured array that is read with fewer indices than it has axes.
pub(crate) struct PartialRead {
    pub(crate) array: Tensor,
    pub(crate) indices: usize,
    pub(crate) origin: Option<Origin>,
}

/// The first partial read that a tensor of the innermost frame is computed from.
pub(crate) fn partial_read(tensor: Tensor) -> Option<PartialRead> {
    with(|recording| {
        let Slot::Value(value) = tensor.slot else { return None };
        let frame = recording.innermost();
        let mut needed = vec![false; frame.graph.value_count()];
        needed[value.index()] = true;
        let mut found = None;
        for node in frame.graph.nodes().iter().rev() {
            if node.results.iter().any(|value| needed[value.index()]) {
                node.operands.iter().for_each(|value| needed[value.index()] = true);
                if matches!(node.op, Op::Gather) && frame.graph.ty(node.results[0]).rank() > 0 {
                    let array = Tensor { frame: frame.id, slot: Slot::Value(node.operands[0]) };
                    let indices = node.operands.len() - 1;
                    found = Some(PartialRead { array, indices, origin: node.origin.clone() });
                }
            }
        }
        found
    })
    .flatten()
}

/// What the innermost frame's graph will be.
pub(crate) fn innermost_kind() -> FrameKind {
    with(|recording| recording.innermost().kind).unwrap_or(FrameKind::Function)
}

/// A region whose function is being traced: its frame is the innermost one until it is closed or dropped.
#[must_use = "dropping it closes the frame and loses what was recorded"]
pub(crate) struct Open(FrameId);

impl Open {
    /// Makes `frame` the innermost one.
    pub(crate) fn new(frame: Frame) -> Open {
        let id = frame.id;
        with(|recording| recording.frames.push(frame)).map_or(Open(FrameId::NONE), |()| Open(id))
    }

    /// Ends the region's function. Outside of any recording the frame is lost, as all else there.
    pub(crate) fn close(self) -> Option<Frame> {
        with(|recording| recording.frames.pop_if(|frame| frame.id == self.0)).flatten()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        with(|recording| recording.frames.pop_if(|frame| frame.id == self.0));
    }
}

/// The values in the innermost frame that tensors stand for; none where one is poisoned.
///
/// # Errors
/// Where a tensor belongs to no open frame.
pub(crate) fn lifted(tensors: &[Tensor]) -> Result<Option<Vec<Value>>> {
    with(|recording| tensors.iter().map(|&tensor| recording.lift(tensor)).collect()).unwrap_or(Ok(None))
}

/// A traced function.
#[derive(Debug)]
pub struct Traced<R> {
    /// The program: a parameter for each input, a result for each output.
    pub graph: Graph,
    /// What the function returned.
    pub result: R,
}

/// Calls `f` once with a tensor for each of `inputs` (name and type), and records what it does.
/// `outputs` picks the tensors out of what it returns; they become the graph's results.
///
/// # Errors
/// The first error of the function, with the user's line.
pub fn trace<R>(
    inputs: &[(String, Type)],
    f: impl FnOnce(&[Tensor]) -> R,
    outputs: impl FnOnce(&R) -> Vec<Tensor>,
) -> Result<Traced<R>> {
    struct Close;
    impl Drop for Close {
        fn drop(&mut self) {
            RECORDINGS.with_borrow_mut(|recordings| recordings.pop());
        }
    }
    let mut frame = Frame::new(FrameKind::Function);
    let parameters: Vec<Tensor> =
        inputs.iter().map(|(name, ty)| frame.parameter(name.clone(), ty.clone())).collect();
    let recording = Recording { frames: vec![frame], ..Recording::default() };
    RECORDINGS.with_borrow_mut(|recordings| recordings.push(recording));
    let close = Close;
    let result = f(&parameters);
    let outputs = outputs(&result);
    std::mem::forget(close);
    let mut recording = RECORDINGS
        .with_borrow_mut(|recordings| recordings.pop())
        .expect("recordings close in the reverse of the order in which they opened");
    let values = outputs.iter().map(|&tensor| recording.lift(tensor)).collect::<Result<Option<Vec<_>>>>();
    match (recording.error.take(), values) {
        (Some(error), _) | (None, Err(error)) => Err(error),
        (None, Ok(None)) => Err(Error::trace("an output was made outside of the traced function")),
        (None, Ok(Some(values))) => {
            let mut graph = recording.frames.remove(0).graph;
            graph.set_results(values);
            Ok(Traced { graph, result })
        }
    }
}

/// Lets a transformation append to the innermost graph: `f` gets the graph and the values of `inputs`, and
/// gives the values of its results, where there are any. Differentiation is built on it.
/// `location` is the user's line, for errors.
///
/// Where an input is poisoned, or `f` fails, each result is absent and the error is kept.
pub fn append(
    location: &'static Location<'static>,
    inputs: &[Tensor],
    f: impl FnOnce(&mut Graph, &[Value]) -> Result<Vec<Option<Value>>>,
) -> Vec<Option<Tensor>> {
    with(|recording| {
        let origin = recording.origin(location);
        let values = inputs.iter().map(|&tensor| recording.lift(tensor)).collect::<Result<Option<Vec<_>>>>();
        let frame = recording.innermost();
        let id = frame.id;
        let results = match values {
            Ok(None) => return Vec::new(),
            Ok(Some(values)) => f(&mut frame.graph, &values),
            Err(error) => Err(error),
        };
        match results {
            Ok(results) => {
                let tensor = |value| Tensor { frame: id, slot: Slot::Value(value) };
                results.into_iter().map(|value| value.map(tensor)).collect()
            }
            Err(error) => {
                recording.fail(error, Some(origin));
                Vec::new()
            }
        }
    })
    .unwrap_or_default()
}
