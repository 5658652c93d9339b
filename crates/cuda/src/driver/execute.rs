//! Runs a plan on a GPU.

use std::collections::HashSet;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use cudarc::driver::{result, sys};
use tilewright_ir::{Error, ErrorKind, Result};
use tilewright_plan::{Place, Plan};

use super::compiler::{self, OPTIONS};
use super::device::{Function, failed, lock};
use super::faults::Faults;
use super::graphs::Graphs;
use super::library::{Library, Prepared};
use super::{Device, DeviceMemory, Event, Stream, cache};
use crate::codegen::{self, Argument, Launch, Product, Program, Source, Step};

/// Programs of fewer steps are not worth a graph.
const GRAPH_STEPS: usize = 4;

/// Whether kernels are named on the standard error stream as they are compiled and launched, and each is waited for:
/// where the environment variable `TILEWRIGHT_TRACE` is set. For finding one that fails or does not end.
fn traced() -> bool {
    static TRACED: OnceLock<bool> = OnceLock::new();
    *TRACED.get_or_init(|| std::env::var_os("TILEWRIGHT_TRACE").is_some())
}

/// A plan, compiled for a device.
#[derive(Debug)]
pub struct Executable {
    device: Arc<Device>,
    program: Program,
    /// What each step of the program is done by.
    steps: Vec<Ready>,
    /// Where each buffer of the plan is.
    places: Vec<Where>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    /// Where the steps' scratch memory and the library's workspace begin, after the plan's arena.
    scratch: usize,
    workspace: usize,
    scratch_bytes: usize,
    faults: Arc<Faults>,
    graphs: Graphs,
}

/// A step, ready to be asked for.
#[derive(Debug)]
enum Ready {
    Zero,
    Launch(Kernel),
    /// A matrix product by the library, and the kernel for operands that do not lie as the library needs them.
    Library(Vec<Prepared>, Kernel),
}

/// A launch's function, and on how many blocks it runs.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    function: Function,
    blocks: u32,
}

/// Where a buffer is.
#[derive(Debug)]
enum Where {
    Input(usize),
    Output(usize),
    Constant(DeviceMemory),
    Arena(usize),
}

/// How long each step took: the plan's kernel that it is part of, its name, and milliseconds.
pub type Times = Vec<(usize, String, f32)>;

impl Executable {
    /// Compiles a plan; kernels that were compiled before come from the cache.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`] for kernels that the engine has not; those of the compiler.
    pub fn new(device: &Arc<Device>, plan: Plan) -> Result<Executable> {
        let mut program = codegen::lower(&plan, device.target)?;
        let _entered = device.enter()?;
        compile_all(device, &program)?;
        let steps = program.steps.iter().enumerate().map(|(place, (_, step))| {
            let products = program.products.get(&place).map_or(&[][..], |products| products);
            ready(device, step, products)
        });
        let steps = steps.collect::<Result<Vec<_>>>()?;
        let (mut inputs, mut outputs, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for buffer in plan.buffers {
            let bytes = buffer.elements * buffer.dtype.size();
            let most = |sizes: &mut Vec<usize>, number: usize| {
                sizes.resize(sizes.len().max(number + 1), 0);
                sizes[number] = sizes[number].max(bytes);
            };
            places.push(match buffer.place {
                Place::Input(input) => {
                    most(&mut inputs, input);
                    Where::Input(input)
                }
                Place::Output(output) => {
                    most(&mut outputs, output);
                    Where::Output(output)
                }
                Place::Constant(literal) => Where::Constant(DeviceMemory::of(device, literal.bytes())?),
                Place::Arena(start) => Where::Arena(start),
            });
        }
        let scratch = plan.arena_bytes.next_multiple_of(256);
        let workspace = (scratch + program.scratch_bytes).next_multiple_of(256);
        let largest = steps.iter().map(|step| match step {
            Ready::Library(products, _) => {
                products.iter().map(|product| product.workspace).max().unwrap_or(0)
            }
            Ready::Zero | Ready::Launch(_) => 0,
        });
        let scratch_bytes = workspace + largest.max().unwrap_or(0);
        let faults = Faults::new(device, std::mem::take(&mut program.sites))?;
        Ok(Executable {
            device: device.clone(),
            program,
            steps,
            places,
            inputs,
            outputs,
            scratch,
            workspace,
            scratch_bytes,
            faults,
            graphs: Graphs::default(),
        })
    }

    /// The device that it was compiled for.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Bytes that a run takes beside inputs and outputs.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_bytes
    }

    /// Bytes of each output, which is packed.
    pub fn output_bytes(&self) -> &[usize] {
        &self.outputs
    }

    /// What is done, in order: for which of the plan's kernels, and by which GPU kernel.
    pub fn steps(&self) -> impl Iterator<Item = (usize, &str)> {
        self.program.steps.iter().zip(&self.steps).map(|((kernel, step), ready)| {
            let name = match (step, ready) {
                (Step::Zero { .. }, _) => "zero",
                (Step::Launch(_), Ready::Library(..)) => "cublasLt",
                (Step::Launch(launch), _) => &launch.source.entry,
            };
            (*kernel, name)
        })
    }

    /// The read out of range that a run met, as far as is known now: nothing is waited for, and a run that is not over
    /// may still meet one. None is given twice.
    pub fn take_fault(&self) -> Option<Error> {
        self.faults.take()
    }

    /// Runs on inputs that lie on the device; gives the outputs. Nothing is waited for: a read out of range is
    /// reported by the next call that waits for the device.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for inputs that do not fit; [`ErrorKind::OutOfMemory`].
    pub fn run(&self, inputs: &[&DeviceMemory]) -> Result<Vec<DeviceMemory>> {
        let (addresses, outputs, scratch) = self.memory(inputs)?;
        let _entered = self.device.enter()?;
        let enqueue = |stream| self.ask(&addresses, scratch.address(), stream, &mut || Ok(()));
        if traced() {
            self.ask(&addresses, scratch.address(), self.device.stream(), &mut || self.device.wait())?;
        } else if self.steps.len() < GRAPH_STEPS {
            enqueue(self.device.stream())?;
        } else {
            let used = inputs.iter().copied().chain(&outputs).chain([&scratch]).map(DeviceMemory::address);
            self.graphs.run(&self.device, used.collect(), enqueue)?;
        }
        Ok(outputs)
    }

    /// Outputs whatever they hold, and the fault word, of a run that is waited for: see [`Program::fault`].
    ///
    /// # Errors
    /// As [`Executable::run`].
    pub fn run_to_fault(&self, inputs: &[&DeviceMemory]) -> Result<(Vec<DeviceMemory>, u64)> {
        let outputs = self.run(inputs)?;
        self.device.wait()?;
        Ok((outputs, self.faults.take_word()))
    }

    /// [`Executable::run`], and how long each step took where `timed`; then the run is waited for.
    ///
    /// # Errors
    /// As [`Executable::run`], and those of [`Device::synchronize`].
    pub fn run_timed(&self, inputs: &[&DeviceMemory], timed: bool) -> Result<(Vec<DeviceMemory>, Times)> {
        if !timed {
            return Ok((self.run(inputs)?, Vec::new()));
        }
        let (addresses, outputs, scratch) = self.memory(inputs)?;
        let _entered = self.device.enter()?;
        let mut moments = vec![Event::record(&self.device)?];
        self.ask(&addresses, scratch.address(), self.device.stream(), &mut || {
            moments.push(Event::record(&self.device)?);
            Ok(())
        })?;
        self.device.synchronize()?;
        let spans = moments.windows(2).map(|pair| pair[1].milliseconds_since(&pair[0]));
        let times =
            self.steps().zip(spans).map(|((kernel, name), span)| Ok((kernel, name.to_owned(), span?)));
        Ok((outputs, times.collect::<Result<_>>()?))
    }

    /// Asks a stream for a run on memory of the caller's: `inputs[i]` is the address of the first byte that input i's
    /// layout is about, `outputs[i]` that of output i, packed, and `scratch` that of
    /// [`scratch_bytes`](Executable::scratch_bytes) bytes at a multiple of 256, which are free again when the run is
    /// over. Nothing is allocated and nothing waited for, so the stream may be one that is captured; then this
    /// executable has to live as long as the graph.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for a wrong number of addresses; [`ErrorKind::DeviceUnavailable`] where the driver fails.
    ///
    /// # Safety
    /// The stream is the device's. The addresses are those of the device's memory, as large as said, aligned to its
    /// elements, which stays until the run is over; nobody else reads or writes outputs and scratch memory, nor writes
    /// inputs, meanwhile.
    pub unsafe fn enqueue(
        &self,
        inputs: &[u64],
        outputs: &[u64],
        scratch: u64,
        stream: Stream,
    ) -> Result<()> {
        for (name, found, expected) in [("inputs", inputs, &self.inputs), ("outputs", outputs, &self.outputs)]
        {
            if found.len() < expected.len() {
                return Err(Error::shape(name, expected.len(), found.len()));
            }
        }
        let addresses = self.addresses(inputs, outputs, scratch);
        let _entered = self.device.enter()?;
        self.ask(&addresses, scratch, stream, &mut || Ok(()))
    }

    /// The address of each of the plan's buffers.
    fn addresses(&self, inputs: &[u64], outputs: &[u64], scratch: u64) -> Vec<u64> {
        let address = |place: &Where| match place {
            Where::Input(input) => inputs[*input],
            Where::Output(output) => outputs[*output],
            Where::Constant(memory) => memory.address(),
            Where::Arena(start) => scratch + *start as u64,
        };
        self.places.iter().map(address).collect()
    }

    /// The addresses of a run on memory from the device's pool, its outputs and its scratch memory.
    fn memory(&self, inputs: &[&DeviceMemory]) -> Result<(Vec<u64>, Vec<DeviceMemory>, DeviceMemory)> {
        for (number, &bytes) in self.inputs.iter().enumerate() {
            let found = inputs.get(number).map_or(0, |memory| memory.bytes());
            if found < bytes || number >= inputs.len() {
                let name = format!("input {number}");
                return Err(Error::shape(name, format!("{bytes} bytes"), format!("{found} bytes")));
            }
        }
        let new = |&bytes: &usize| DeviceMemory::new(&self.device, bytes);
        let outputs = self.outputs.iter().map(new).collect::<Result<Vec<_>>>()?;
        let scratch = new(&self.scratch_bytes)?;
        let inputs: Vec<u64> = inputs.iter().map(|memory| memory.address()).collect();
        let results: Vec<u64> = outputs.iter().map(DeviceMemory::address).collect();
        Ok((self.addresses(&inputs, &results, scratch.address()), outputs, scratch))
    }

    /// Asks a stream for all steps; calls `after` after each. The device's context is current.
    fn ask(
        &self,
        addresses: &[u64],
        scratch: u64,
        stream: Stream,
        after: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let (steps, workspace) = (scratch + self.scratch as u64, scratch + self.workspace as u64);
        let word = |argument: &Argument| match *argument {
            Argument::Buffer { buffer, bytes } => addresses[buffer.0].wrapping_add_signed(bytes as i64),
            Argument::Scratch(place) => steps + place as u64,
            Argument::Fault => self.faults.address(),
            Argument::Integer(x) => x as u64,
            Argument::Float(x) => x.to_bits(),
            Argument::Null => 0,
        };
        let mut words = Vec::new();
        let mut launch = |kernel: Kernel, launch: &Launch| {
            words.clear();
            words.extend(launch.arguments.iter().map(word));
            start(kernel, launch, &words, stream)
        };
        for ((_, step), ready) in self.program.steps.iter().zip(&self.steps) {
            if traced()
                && let Step::Launch(launch) = step
            {
                let Launch { source, blocks, threads, shared_bytes, .. } = launch;
                eprintln!("launch {}: {blocks} × {threads}, {shared_bytes} bytes", source.entry);
            }
            match (step, ready) {
                (Step::Zero { place, bytes }, _) => {
                    // SAFETY: within the scratch memory.
                    unsafe { result::memset_d8_async(steps + *place as u64, 0, *bytes, stream.0) }
                        .map_err(failed)?;
                }
                (Step::Launch(step), Ready::Launch(kernel)) => launch(*kernel, step)?,
                (Step::Launch(step), Ready::Library(products, kernel)) => {
                    let fits =
                        |library: &&Library| products.iter().all(|product| library.fits(product, &word));
                    match self.device.library.as_ref().filter(fits) {
                        Some(library) => products.iter().try_for_each(|product| {
                            // SAFETY: a verified plan's operands lie within their buffers; the workspace is as
                            // large as the largest that any product asks for.
                            unsafe { library.run(product, &word, workspace, stream) }
                        })?,
                        None => launch(*kernel, step)?,
                    }
                }
                (Step::Launch(_), Ready::Zero) => unreachable!("made by `ready` of this step"),
            }
            after()?;
        }
        Ok(())
    }
}

/// What a step is done by; kernels are compiled at their first use. The device's context is current.
fn ready(device: &Device, step: &Step, products: &[Product]) -> Result<Ready> {
    let Step::Launch(launch) = step else { return Ok(Ready::Zero) };
    let function = function(device, launch)?;
    let kernel = Kernel { function, blocks: blocks(device, function, launch)? };
    let prepared = device.library.as_ref().and_then(|library| {
        products.iter().map(|product| library.prepare(*product)).collect::<Option<Vec<_>>>()
    });
    Ok(match prepared {
        Some(prepared) if !prepared.is_empty() => Ready::Library(prepared, kernel),
        _ => Ready::Launch(kernel),
    })
}

/// The function of a launch, which [`compile_all`] has loaded, allowed the shared memory that the launch asks for.
fn function(device: &Device, launch: &Launch) -> Result<Function> {
    let mut functions = lock(&device.functions);
    let (function, allowed) = functions.get_mut(&launch.source).expect("every kernel is loaded first");
    // Launches of one text may ask for different amounts: what one was allowed must not be taken from another.
    if launch.shared_bytes > *allowed {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a loaded function of the current context.
        unsafe {
            result::function::set_function_attribute(function.0, attribute, launch.shared_bytes as i32)
        }
        .map_err(failed)?;
        *allowed = launch.shared_bytes;
    }
    Ok(*function)
}

/// How many blocks a launch is of: where all have to run at once, no more than the device has room for.
fn blocks(device: &Device, function: Function, launch: &Launch) -> Result<u32> {
    let mut blocks = launch.blocks;
    if launch.source.all_at_once {
        // SAFETY: a loaded function of the current context.
        let room = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(
                function.0,
                launch.threads as i32,
                launch.shared_bytes,
            )
        };
        blocks = blocks.min(device.multiprocessors * room.map_err(failed)? as usize);
    }
    i32::try_from(blocks)
        .map(|blocks| blocks as u32)
        .map_err(|_| Error::new(ErrorKind::TooLarge { what: "a launch".into(), limit: "2^31 blocks".into() }))
}

/// Compiles and loads a program's kernels, as far as they are new to the device: several at a time, since the compiler
/// takes a moment for each. The device's context is current.
fn compile_all(device: &Device, program: &Program) -> Result<()> {
    let mut sources: Vec<&Arc<Source>> = Vec::new();
    {
        let known = lock(&device.functions);
        let mut seen = HashSet::new();
        for (_, step) in &program.steps {
            let Step::Launch(Launch { source, .. }) = step else { continue };
            if !known.contains_key(source) && seen.insert(source) {
                sources.push(source);
            }
        }
    }
    if sources.is_empty() {
        return Ok(());
    }
    let architecture = compiler::architecture(device.target.capability);
    let version = compiler::version()?;
    let folder = cache::folder();
    let compile = |source: &Source| {
        let start = Instant::now();
        let text = source.text();
        let key = cache::Key { text: &text, version, architecture: &architecture, options: &OPTIONS };
        let cubin = cache::get_or_compile(folder.as_deref(), &key, cache::warn, || {
            compiler::compile(&text, &architecture).map(|compiled| compiled.cubin)
        });
        if traced() {
            eprintln!("compiled {} in {:?}", source.entry, start.elapsed());
        }
        cubin
    };
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get()).min(sources.len());
    let work = || {
        let mut done = Vec::new();
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((*source, compile(source)));
        }
        done
    };
    let compiled: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for worker in workers {
            // A worker only panics where this thread would have.
            done.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    for (source, cubin) in compiled {
        let function = load(&cubin?, &source.entry)?;
        lock(&device.functions).insert(source.clone(), (function, 0));
    }
    Ok(())
}

fn load(cubin: &[u8], entry: &str) -> Result<Function> {
    let entry = CString::new(entry).map_err(|error| Error::argument("entry", error.to_string()))?;
    // SAFETY: a cubin that the compiler made, whole; the module is never unloaded.
    let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.map_err(failed)?;
    // SAFETY: the module was just loaded.
    unsafe { result::module::get_function(module, entry) }.map(Function).map_err(failed)
}

fn start(kernel: Kernel, launch: &Launch, words: &[u64], stream: Stream) -> Result<()> {
    // The only parameter is the struct, whose fields are the words.
    let mut parameters = [words.as_ptr().cast_mut().cast::<c_void>()];
    // A cooperative launch waits until there is room for all blocks.
    let start =
        if launch.source.all_at_once { result::launch_cooperative_kernel } else { result::launch_kernel };
    // SAFETY: the words are the fields of the kernel's parameters, and copied before the call returns; the
    // buffers that they point to live until the run is over.
    unsafe {
        start(
            kernel.function.0,
            (kernel.blocks, 1, 1),
            (launch.threads as u32, 1, 1),
            launch.shared_bytes as u32,
            stream.0,
            &mut parameters,
        )
    }
    .map_err(failed)
}
