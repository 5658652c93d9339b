//! Programs as Python names them, compiled once per signature and kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tilewright::pipeline::{self, DeviceMemory, Executable, Layout, Program, Stream};
use tilewright_autodiff::{batch, forward, reverse};
use tilewright_ir::{Error, Graph, Op, Result, Type, Value, parse};
use tilewright_plan::attention::{Attention, AttentionShape};
use tilewright_plan::{Kernel, Plan};

use crate::memory::{Form, Tensor};

/// How many programs are kept, and how many forms of inputs for each; beyond them all are dropped, since a caller
/// with so many makes new ones for ever.
const KEPT: usize = 4096;
const FORMS_KEPT: usize = 256;

/// The compiled programs by text, then by the forms of the inputs.
static PROGRAMS: Mutex<Option<HashMap<String, Vec<Arc<Runnable>>>>> = Mutex::new(None);

/// A compiled program with the types of its results.
pub struct Runnable {
    inputs: Vec<Form>,
    program: Program,
    results: Vec<Type>,
    /// Whether other threads would cost more than they give.
    small: bool,
    /// The program for GPUs that it was run on.
    on_gpus: Mutex<Vec<(usize, Arc<Executable>)>>,
}

/// Multiplications and additions that take about as long as waking a thread.
const SMALL: usize = 1 << 19;

/// About how much a plan computes. The result does not depend on it.
fn work(plan: &Plan) -> usize {
    let pairs = |attention: &Attention| {
        let AttentionShape { batch, heads, queries, keys, head_size, value_size, .. } = attention.shape;
        batch * heads * queries * keys * (head_size + value_size)
    };
    let kernels = plan.kernels.iter().map(|kernel| match kernel {
        Kernel::AttentionForward(kernel) => pairs(&kernel.attention),
        Kernel::AttentionBackward(kernel) => 3 * pairs(&kernel.attention),
        Kernel::MatMul(product) => {
            product.batch.iter().product::<usize>() * product.rows * product.columns * product.depth
        }
        Kernel::BlockMap(_) | Kernel::Loops(_) | Kernel::ScatterAdd(_) | Kernel::Scan(_) => 0,
    });
    let elements: usize = plan.buffers.iter().map(|buffer| buffer.elements).sum();
    kernels.sum::<usize>() + 16 * elements
}

impl Runnable {
    /// The types of the results.
    pub fn results(&self) -> &[Type] {
        &self.results
    }

    /// What it consists of, for people.
    pub fn explain(&self) -> String {
        self.program.explain()
    }

    /// The program for the GPU of this number, compiled at its first use.
    ///
    /// # Errors
    /// `DeviceUnavailable`, `Fork`, and a read out of range that an earlier run met.
    pub fn on_gpu(&self, number: usize) -> Result<Arc<Executable>> {
        let mut on_gpus = self.on_gpus.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = on_gpus.iter().find(|(of, _)| *of == number) {
            known.device().check_process()?;
            return known.take_fault().map_or_else(|| Ok(known.clone()), Err);
        }
        let executable = self.program.on_gpu(number)?;
        // Its constants are on their way by another stream than the caller's.
        executable.device().synchronize()?;
        // A graph that was captured may run it for as long as the process lives.
        std::mem::forget(executable.clone());
        on_gpus.push((number, executable.clone()));
        Ok(executable)
    }

    /// Runs the program on the CPU.
    ///
    /// # Errors
    /// As the back end's.
    ///
    /// # Safety
    /// The memory of all tensors is alive; outputs are packed, of the program's result types, and nobody else reads or
    /// writes them meanwhile.
    pub unsafe fn run(&self, inputs: &[Tensor], outputs: &[Tensor], threads: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        let inputs: Vec<&[u8]> = inputs.iter().map(|tensor| unsafe { tensor.bytes() }).collect();
        // SAFETY: the caller's promise.
        let mut outputs: Vec<&mut [u8]> =
            outputs.iter().map(|tensor| unsafe { tensor.bytes_mut() }).collect();
        self.program.run(&inputs, &mut outputs, if self.small { 1 } else { threads })
    }
}

/// Asks a GPU's stream for a run.
///
/// # Errors
/// Where the driver fails.
///
/// # Safety
/// All tensors lie on the executable's GPU, whose stream it is, and stay until the run is over; outputs are packed, of
/// the program's result types, and nobody else reads or writes them or the scratch memory before, which begins at a
/// multiple of 256.
pub unsafe fn enqueue(
    executable: &Executable,
    inputs: &[Tensor],
    outputs: &[Tensor],
    scratch: usize,
    stream: Stream,
) -> Result<()> {
    let addresses =
        |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.start() as u64).collect::<Vec<u64>>();
    // SAFETY: the caller's promise.
    unsafe { executable.enqueue(&addresses(inputs), &addresses(outputs), scratch as u64, stream) }
}

/// Runs on inputs that other libraries lend, on the GPU's own stream, and waits: they may take their memory back when
/// this returns, and others may read the outputs.
///
/// # Errors
/// `OutOfMemory`, a read out of range, and where the driver fails.
///
/// # Safety
/// As for [`enqueue`], the stream being that which the inputs' libraries were told of.
pub unsafe fn run_lent(executable: &Executable, inputs: &[Tensor], outputs: &[Tensor]) -> Result<()> {
    let gpu = executable.device();
    let scratch = DeviceMemory::new(gpu, executable.scratch_bytes())?;
    // SAFETY: the caller's promise; the scratch memory is held until the run is over.
    let asked = unsafe { enqueue(executable, inputs, outputs, scratch.address() as usize, gpu.stream()) };
    // Even a run that was asked for in part reads what is lent.
    gpu.synchronize().and(asked)
}

/// The compiled form of a program for tensors of these types and strides.
///
/// # Errors
/// Where the text does not parse, does not fit the tensors, or cannot be differentiated.
pub fn compiled(program: &str, tensors: &[Tensor]) -> Result<Arc<Runnable>> {
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let programs = programs.get_or_insert_default();
    let fits = |known: &&Arc<Runnable>| known.inputs.iter().eq(tensors.iter().map(|tensor| &tensor.form));
    if let Some(known) = programs.get(program).and_then(|known| known.iter().find(fits)) {
        return Ok(known.clone());
    }
    let runnable = Arc::new(compile(program, tensors.iter().map(|tensor| tensor.form.clone()).collect())?);
    if programs.len() >= KEPT {
        programs.clear();
    }
    let forms = programs.entry(program.to_owned()).or_default();
    if forms.len() >= FORMS_KEPT {
        forms.clear();
    }
    forms.push(runnable.clone());
    Ok(runnable)
}

fn compile(program: &str, inputs: Vec<Form>) -> Result<Runnable> {
    let types: Vec<Type> = inputs.iter().map(Form::ty).collect();
    let graph = graph_of(program, &types)?;
    let results = graph.result_types().into_iter().cloned().collect();
    let layouts: Vec<Layout> = inputs.iter().map(Form::layout).collect();
    let program = pipeline::compile(graph, &layouts)?;
    let small = work(&program.plan) < SMALL;
    Ok(Runnable { inputs, program, results, small, on_gpus: Mutex::default() })
}

/// The graph of a program for inputs of these types: a text with `$n` for the type of input n, or a transformation of one
/// by a prefix, as `tilewright/_program.py` has them: two fields between colons, of which the first has a flag for each
/// input of the program within, or an order for each of its results.
fn graph_of(program: &str, types: &[Type]) -> Result<Graph> {
    if program.starts_with("graph") {
        return parse(&with_types(program, types)?);
    }
    let malformed = || Error::argument("program", "a prefix, `graph(…)` or a mask expected");
    let parts: Vec<&str> = program.splitn(4, ':').collect();
    let &[prefix, wanted, argument, inner] = parts.as_slice() else { return Err(malformed()) };
    if prefix == "ordered" {
        return transposed(graph_of(inner, types)?, wanted.split(','));
    }
    let wanted = flags(wanted);
    let inputs = types.get(..wanted.len()).ok_or_else(malformed)?;
    if prefix == "vmap" {
        return vectorised(inner, inputs, &wanted);
    }
    let graph = graph_of(inner, inputs)?;
    match prefix {
        "jvp" => tangents(graph, &wanted, &flags(argument)),
        "vjp" => derivative(&graph, &wanted, &flags(argument)),
        "grad" => with_gradients(graph, &wanted, argument.parse().map_err(|_| malformed())?),
        _ => Err(malformed()),
    }
}

fn flags(text: &str) -> Vec<bool> {
    text.bytes().map(|byte| byte == b'1').collect()
}

/// The graph with its first results transposed: for each the digits of its axes in their new order, or nothing.
fn transposed<'a>(mut graph: Graph, orders: impl Iterator<Item = &'a str>) -> Result<Graph> {
    let mut results = graph.results().to_vec();
    for (result, order) in results.iter_mut().zip(orders) {
        if !order.is_empty() {
            let permutation = order.bytes().map(|digit| usize::from(digit.wrapping_sub(b'0'))).collect();
            *result = graph.add1(Op::Transpose { permutation }, &[*result], None)?;
        }
    }
    graph.set_results(results);
    Ok(graph)
}

/// The derivative of a graph: from its parameters, its results and the present cotangents, to the cotangents of the
/// wanted parameters. Results are taken from the parameters that stand for them, not computed again.
fn derivative(graph: &Graph, wanted: &[bool], present: &[bool]) -> Result<Graph> {
    let mut whole = Graph::new();
    let parameters = |whole: &mut Graph, types: Vec<&Type>| -> Vec<Value> {
        types.into_iter().map(|ty| whole.parameter(ty.clone())).collect()
    };
    let inputs = parameters(&mut whole, graph.parameter_types());
    let saved = parameters(&mut whole, graph.result_types());
    let with_cotangent = graph.result_types().into_iter().zip(present).filter(|(_, flag)| **flag);
    let types: Vec<&Type> = with_cotangent.map(|(ty, _)| ty).collect();
    let cotangents = parameters(&mut whole, types);
    let results = whole.inline(graph, &inputs)?;
    let seeds: Vec<(Value, Value)> =
        results.iter().zip(present).filter(|(_, flag)| **flag).map(|(&r, _)| r).zip(cotangents).collect();
    let gradients = gradients(&mut whole, &seeds, &inputs, wanted)?;
    whole.set_results(gradients);
    substitute(&whole, &results, &saved)
}

/// The forward derivative of a graph: from its parameters and the tangents of the flagged ones to the tangents of the
/// wanted results.
fn tangents(mut graph: Graph, given: &[bool], wanted: &[bool]) -> Result<Graph> {
    let inputs: Vec<Value> = graph.parameters().to_vec();
    let moved = inputs.iter().zip(given).filter(|(_, flag)| **flag);
    let pairs: Vec<(Value, Value)> =
        moved.map(|(&input, _)| (input, graph.parameter(graph.ty(input).clone()))).collect();
    let wanted = graph.results().iter().zip(wanted).filter(|(_, flag)| **flag);
    let outputs: Vec<Value> = wanted.map(|(&output, _)| output).collect();
    let found = forward(&mut graph, &pairs, &outputs)?;
    let results = outputs.iter().zip(found).map(|(&output, tangent)| match tangent {
        Some(tangent) => Ok(tangent),
        None => zeros(&mut graph, output),
    });
    let results = results.collect::<Result<_>>()?;
    graph.set_results(results);
    Ok(graph)
}

/// A program at each position of the leading axis that its flagged inputs have, and all of its results.
fn vectorised(program: &str, types: &[Type], batched: &[bool]) -> Result<Graph> {
    let mut extents =
        types.iter().zip(batched).filter(|(_, flag)| **flag).map(|(ty, _)| ty.shape.first().copied());
    let leading =
        extents.next().flatten().ok_or_else(|| Error::argument("vmap", "an axis to map over expected"))?;
    if let Some(other) = extents.find(|extent| *extent != Some(leading)) {
        return Err(Error::shape("vmap", leading, other.unwrap_or_default()));
    }
    let within = |(ty, &flag): (&Type, &bool)| match flag {
        true => Type::new(ty.dtype, ty.shape[1..].to_vec()),
        false => ty.clone(),
    };
    let inner = graph_of(program, &types.iter().zip(batched).map(within).collect::<Vec<Type>>())?;
    let mut whole = Graph::new();
    let arguments: Vec<(Value, bool)> =
        types.iter().zip(batched).map(|(ty, &flag)| (whole.parameter(ty.clone()), flag)).collect();
    let results = batch(&mut whole, &inner, &[leading], &arguments)?;
    let everywhere = |(value, has_axis): (Value, bool)| {
        if has_axis {
            return Ok(value);
        }
        let shape = [&[leading], whole.ty(value).shape.as_slice()].concat();
        let axes = (1..shape.len()).collect();
        whole.add1(Op::Broadcast { shape, axes }, &[value], None)
    };
    let results = results.into_iter().map(everywhere).collect::<Result<_>>()?;
    whole.set_results(results);
    Ok(whole)
}

/// A graph with the gradients of one of its results, one number, as further results.
fn with_gradients(mut graph: Graph, wanted: &[bool], result: usize) -> Result<Graph> {
    let found = graph.results().len();
    let loss = *graph.results().get(result).ok_or_else(|| Error::shape("results", result + 1, found))?;
    let ty = graph.ty(loss).clone();
    if !ty.shape.is_empty() || !ty.dtype.is_float() {
        return Err(Error::argument("function", format!("a result that is one float expected, {ty} found")));
    }
    let one = graph.splat(&ty, 1.0)?;
    let inputs = graph.parameters().to_vec();
    let gradients = gradients(&mut graph, &[(loss, one)], &inputs, wanted)?;
    let results = graph.results().iter().copied().chain(gradients).collect();
    graph.set_results(results);
    Ok(graph)
}

/// The gradients with respect to the wanted inputs; zeros where a result does not depend on one.
fn gradients(
    graph: &mut Graph,
    seeds: &[(Value, Value)],
    inputs: &[Value],
    wanted: &[bool],
) -> Result<Vec<Value>> {
    let targets: Vec<Value> = inputs.iter().zip(wanted).filter(|(_, flag)| **flag).map(|(&x, _)| x).collect();
    let found = reverse(graph, seeds, &targets)?;
    targets
        .iter()
        .zip(found)
        .map(|(&target, gradient)| gradient.map_or_else(|| zeros(graph, target), Ok))
        .collect()
}

fn zeros(graph: &mut Graph, like: Value) -> Result<Value> {
    let ty = graph.ty(like).clone();
    graph.splat(&ty, 0.0)
}

/// The graph with each value of `old` read as the one of `new` at its place.
fn substitute(graph: &Graph, old: &[Value], new: &[Value]) -> Result<Graph> {
    let mut out = Graph::new();
    let mut map: Vec<Option<Value>> = vec![None; graph.value_count()];
    for &parameter in graph.parameters() {
        map[parameter.index()] = Some(out.parameter(graph.ty(parameter).clone()));
    }
    for node in graph.nodes() {
        let operands: Vec<Value> =
            node.operands.iter().map(|value| map[value.index()].expect("operands come first")).collect();
        let results = out.add(node.op.clone(), &operands, node.origin.clone())?;
        for (&before, after) in node.results.iter().zip(results) {
            let stands_for = old.iter().position(|&value| value == before).and_then(|i| map[new[i].index()]);
            map[before.index()] = Some(stands_for.unwrap_or(after));
        }
    }
    out.set_results(graph.results().iter().map(|value| map[value.index()].expect("defined")).collect());
    Ok(out)
}

/// The text with the type of input n in place of each `$n`.
fn with_types(program: &str, types: &[Type]) -> Result<String> {
    let mut pieces = program.split('$');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        let ty = piece[..digits].parse::<usize>().ok().and_then(|n| types.get(n));
        let ty =
            ty.ok_or_else(|| Error::shape("inputs", format!("one for ${}", &piece[..digits]), types.len()))?;
        text.push_str(&ty.to_string());
        text.push_str(&piece[digits..]);
    }
    Ok(text)
}

/// The kind of each block that a mask leaves: 0 empty, 1 partial, 2 full, row-major.
///
/// # Errors
/// Where the mask does not parse or reads a capture out of range.
///
/// # Safety
/// The memory of the captures is alive and nobody writes to it meanwhile.
pub unsafe fn block_kinds(
    program: &str,
    captures: &[Tensor],
    (batch, heads): (usize, usize),
    (queries, keys): (usize, usize),
    (query_block, key_block): (usize, usize),
) -> Result<Vec<u8>> {
    let types: Vec<Type> = captures.iter().map(|tensor| tensor.form.ty()).collect();
    let mask = parse(&with_types(program, &types)?)?;
    let layouts: Vec<Layout> = captures.iter().map(|tensor| tensor.form.layout()).collect();
    // SAFETY: the caller's promise.
    let bytes: Vec<&[u8]> = captures.iter().map(|tensor| unsafe { tensor.bytes() }).collect();
    let map = pipeline::block_map(
        &mask,
        &layouts,
        &bytes,
        [batch, heads, queries, keys],
        [query_block, key_block],
    )?;
    let mut kinds = vec![0; batch * heads * map.query_blocks * map.key_blocks];
    for (row, kinds) in kinds.chunks_exact_mut(map.key_blocks.max(1)).enumerate() {
        let (slice, row) = (row / map.query_blocks, row % map.query_blocks);
        for run in map.key_runs(slice / heads, slice % heads, row) {
            kinds[run.start as usize..run.end as usize].fill(if run.full { 2 } else { 1 });
        }
    }
    Ok(kinds)
}
