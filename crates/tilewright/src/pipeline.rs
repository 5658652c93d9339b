//! The one list of passes, from a traced graph to a plan.
//!
//! Each is timed and, in debug builds, followed by the verifier. With the environment variable
//! `TILEWRIGHT_DUMP` set to `all`, or to some of `traced`, `simplified`, `plan` with commas between, those stages
//! are printed to the standard error stream.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use tilewright_cpu::Blocks as BlockMap;
pub use tilewright_cuda::driver::{Device as Gpu, DeviceMemory, Executable, Stream};
use tilewright_plan::Plan;
use tilewright_schedule as schedule;
pub use tilewright_schedule::Layout;

use crate::profile::Profile;
use crate::{Array, Device, Graph, Result, Type};

/// A compiled program, and how it came about.
#[derive(Debug)]
pub struct Program {
    /// The graph as it was traced.
    pub traced: Graph,
    /// The graph that was lowered.
    pub simplified: Graph,
    /// What runs.
    pub plan: Plan,
    /// The passes in order, with the time that each took.
    pub passes: Vec<(&'static str, Duration)>,
    /// What the plan was compiled to for GPUs, with the time that took.
    executables: Mutex<Vec<(Arc<Executable>, Duration)>>,
}

/// Compiles a graph for inputs that lie as `inputs` says, one layout for each parameter.
///
/// # Errors
/// `Limit` and `TooLarge` for programs that the compiler does not take; `Invariant` for its own faults.
pub fn compile(traced: Graph, inputs: &[Layout]) -> Result<Program> {
    let mut passes = Vec::new();

    verified(&traced)?;
    dump("traced", &traced);

    let simplified = timed(&mut passes, "simplify", || schedule::simplify(&traced))?;
    verified(&simplified)?;
    dump("simplified", &simplified);

    let plan = timed(&mut passes, "lower", || schedule::lower(&simplified, inputs))?;
    if cfg!(debug_assertions) {
        tilewright_plan::verify(&plan)?;
    }
    dump("plan", &format_args!("{plan:#?}"));

    Ok(Program { traced, simplified, plan, passes, executables: Mutex::default() })
}

impl Program {
    /// What the program consists of: passes with their times, kernels, memory, and how the gradient of each
    /// captured array is reduced.
    pub fn explain(&self) -> String {
        crate::explain::explain(self)
    }

    /// The types of the outputs.
    pub fn outputs(&self) -> Vec<Type> {
        self.traced.result_types().into_iter().cloned().collect()
    }

    /// Runs the program on the CPU: the bytes that each input's layout is about, and packed outputs.
    /// `threads` 0 means one for each core; the result has the same bits for any number.
    ///
    /// # Errors
    /// `Index` for a gather out of range, `OutOfMemory`, and `Shape` or `Layout` for bytes that do not fit.
    pub fn run(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]], threads: usize) -> Result<()> {
        tilewright_cpu::run(&self.plan, inputs, outputs, threads)
    }

    /// [`Program::run`], and the time that each kernel took.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn profile(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]], threads: usize) -> Result<Profile> {
        let spans = tilewright_cpu::profile(&self.plan, inputs, outputs, threads)?;
        Ok(Profile::new(&self.plan, &spans))
    }

    /// The program for the GPU of this number, compiled at the first call. Its methods run it on memory and streams
    /// of the caller's.
    ///
    /// # Errors
    /// `DeviceUnavailable`, which says what is missing.
    pub fn on_gpu(&self, number: usize) -> Result<Arc<Executable>> {
        let gpu = tilewright_cuda::driver::Device::get(number)?;
        let mut executables = self.executables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, _)) = executables.iter().find(|(known, _)| known.device().number == number) {
            return Ok(known.clone());
        }
        let start = Instant::now();
        let executable = Arc::new(Executable::new(&gpu, self.plan.clone())?);
        executables.push((executable.clone(), start.elapsed()));
        Ok(executable)
    }

    /// What the program was compiled to for GPUs, with the time that took.
    pub(crate) fn executables(&self) -> Vec<(Arc<Executable>, Duration)> {
        self.executables.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs on a device, to which inputs that are elsewhere are copied; measures each kernel where `measured`.
    pub(crate) fn call(
        &self,
        inputs: &[Array],
        device: Device,
        threads: usize,
        measured: bool,
    ) -> Result<(Vec<Array>, Option<Profile>)> {
        let inputs = inputs.iter().map(|array| array.to_device(device)).collect::<Result<Vec<_>>>()?;
        let types = self.outputs();
        let mut profile = None;
        let Device::Cuda(number) = device else {
            let bytes = inputs.iter().map(Array::storage).collect::<Result<Vec<_>>>()?;
            let outputs = Array::filled_all(&types, |outputs| match measured {
                false => self.run(&bytes, outputs, threads),
                true => self.profile(&bytes, outputs, threads).map(|found| profile = Some(found)),
            })?;
            return Ok((outputs, profile));
        };
        let executable = self.on_gpu(number)?;
        let memory: Vec<&DeviceMemory> = inputs.iter().filter_map(Array::memory).collect();
        let (outputs, times) = executable.run_timed(&memory, measured)?;
        Ok((Array::on_device(&types, outputs), measured.then(|| Profile::on_gpu(&self.plan, times))))
    }
}

/// The blocks of `[query_block, key_block]` pairs that a mask leaves of `[batch, heads, queries, keys]`. The
/// mask's parameters are b, h, q and k (`i32`), then captures, which lie in `bytes` as `layouts` says.
///
/// # Errors
/// `Index` where the mask reads a capture out of range; `Shape` or `Layout` for bytes that do not fit; what a
/// mask within attention is refused for.
pub fn block_map(
    mask: &Graph,
    layouts: &[Layout],
    bytes: &[&[u8]],
    sizes: [usize; 4],
    block: [usize; 2],
) -> Result<BlockMap> {
    tilewright_cpu::block_map(&schedule::block_map(&schedule::simplify(mask)?, layouts, sizes, block)?, bytes)
}

fn timed<R>(
    passes: &mut Vec<(&'static str, Duration)>,
    name: &'static str,
    pass: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let start = Instant::now();
    let result = pass();
    passes.push((name, start.elapsed()));
    result
}

fn verified(graph: &Graph) -> Result<()> {
    if cfg!(debug_assertions) { tilewright_ir::verify(graph) } else { Ok(()) }
}

fn dump(stage: &str, program: &impl Display) {
    let Ok(wanted) = std::env::var("TILEWRIGHT_DUMP") else { return };
    if wanted.split(',').any(|name| name == stage || name == "all") {
        eprintln!("# {stage}\n{program}");
    }
}
