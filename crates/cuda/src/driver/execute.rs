//! Runs a plan on a GPU.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, PoisonError};

use cudarc::driver::{result, sys};
use tilewright_ir::{Error, ErrorKind, Result};
use tilewright_plan::{Place, Plan};

use super::compiler::{self, OPTIONS};
use super::device::{Function, failed};
use super::{Device, DeviceMemory, Event, cache};
use crate::codegen::{self, Argument, Launch, Program, Step};

/// A plan, compiled for a device.
#[derive(Debug)]
pub struct Executable {
    device: Arc<Device>,
    plan: Plan,
    program: Program,
    /// One for each step that is a launch, in order.
    functions: Vec<Function>,
    constants: HashMap<usize, DeviceMemory>,
}

/// How long each step took, in milliseconds.
pub type Times = Vec<(usize, String, f32)>;

impl Executable {
    /// Compiles a plan; kernels that were compiled before come from the cache.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceUnavailable`] for kernels that the engine has not; those of the compiler.
    pub fn new(device: &Arc<Device>, plan: Plan) -> Result<Executable> {
        let program = codegen::lower(&plan, device.target)?;
        device.enter()?;
        let launches = program.steps.iter().filter_map(|(_, step)| match step {
            Step::Launch(launch) => Some(launch),
            Step::Zero { .. } => None,
        });
        let functions = launches.map(|launch| function(device, launch)).collect::<Result<_>>()?;
        let mut constants = HashMap::new();
        for (number, buffer) in plan.buffers.iter().enumerate() {
            if let Place::Constant(literal) = &buffer.place {
                constants.insert(number, DeviceMemory::of(device, literal.bytes())?);
            }
        }
        Ok(Executable { device: device.clone(), plan, program, functions, constants })
    }

    /// Bytes that a run takes beside inputs and outputs.
    pub fn scratch_bytes(&self) -> usize {
        self.program.scratch_bytes + self.plan.arena_bytes
    }

    /// Runs on inputs that lie on the device; gives the outputs. Nothing is waited for but the fault word.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] for a read out of range; [`ErrorKind::Shape`] for inputs that do not fit.
    pub fn run(&self, inputs: &[&DeviceMemory]) -> Result<Vec<DeviceMemory>> {
        self.run_timed(inputs, false).map(|(outputs, _)| outputs)
    }

    /// Outputs whatever they hold, and the fault word: see [`Program::fault`].
    ///
    /// # Errors
    /// As [`Executable::run`], but for [`ErrorKind::Index`].
    pub fn run_to_fault(&self, inputs: &[&DeviceMemory]) -> Result<(Vec<DeviceMemory>, u64)> {
        let (outputs, _, fault) = self.enqueue(inputs, false)?;
        Ok((outputs, word_of(&fault)?))
    }

    /// [`Executable::run`], and how long each step took where `timed`.
    ///
    /// # Errors
    /// As [`Executable::run`].
    pub fn run_timed(&self, inputs: &[&DeviceMemory], timed: bool) -> Result<(Vec<DeviceMemory>, Times)> {
        let (outputs, moments, fault) = self.enqueue(inputs, timed)?;
        if let Some(error) = self.program.fault(word_of(&fault)?) {
            return Err(error);
        }
        let names = self.program.steps.iter().map(|(kernel, step)| match step {
            Step::Launch(launch) => (*kernel, launch.source.entry.clone()),
            Step::Zero { .. } => (*kernel, "zero".into()),
        });
        let spans = moments.windows(2).map(|pair| pair[1].milliseconds_since(&pair[0]));
        let times = names.zip(spans).map(|((kernel, name), span)| Ok((kernel, name, span?)));
        Ok((outputs, times.collect::<Result<_>>()?))
    }

    /// Asks for all steps of a run: outputs, moments between the steps where `timed`, and the fault word.
    fn enqueue(
        &self,
        inputs: &[&DeviceMemory],
        timed: bool,
    ) -> Result<(Vec<DeviceMemory>, Vec<Event>, DeviceMemory)> {
        let device = &self.device;
        let arena = DeviceMemory::new(device, self.plan.arena_bytes)?;
        let scratch = DeviceMemory::new(device, self.program.scratch_bytes)?;
        let fault = DeviceMemory::new(device, 8)?;
        fault.fill(0, 8, 0xff)?;
        let mut outputs: Vec<Option<DeviceMemory>> = Vec::new();
        let mut addresses = Vec::with_capacity(self.plan.buffers.len());
        for (number, buffer) in self.plan.buffers.iter().enumerate() {
            let bytes = buffer.elements * buffer.dtype.size();
            addresses.push(match &buffer.place {
                Place::Input(input) => {
                    let memory = inputs.get(*input).filter(|memory| memory.bytes() >= bytes);
                    let found = inputs.get(*input).map_or(0, |memory| memory.bytes());
                    let missing = || {
                        let name = format!("input {input}");
                        Error::shape(name, format!("{bytes} bytes"), format!("{found} bytes"))
                    };
                    memory.ok_or_else(missing)?.address()
                }
                Place::Output(output) => {
                    let memory = DeviceMemory::new(device, bytes)?;
                    let address = memory.address();
                    outputs.resize_with(outputs.len().max(output + 1), || None);
                    outputs[*output] = Some(memory);
                    address
                }
                Place::Constant(_) => self.constants[&number].address(),
                Place::Arena(start) => arena.address() + *start as u64,
            });
        }
        let mut moments = Vec::new();
        let mut functions = self.functions.iter();
        if timed {
            moments.push(Event::record(device)?);
        }
        for (_, step) in &self.program.steps {
            match step {
                Step::Zero { place, bytes } => scratch.fill(*place, *bytes, 0)?,
                Step::Launch(launch) => {
                    let function = functions.next().expect("a function for each launch");
                    let word = |argument: &Argument| match *argument {
                        Argument::Buffer { buffer, bytes } => {
                            addresses[buffer.0].wrapping_add_signed(bytes as i64)
                        }
                        Argument::Scratch(place) => scratch.address() + place as u64,
                        Argument::Fault => fault.address(),
                        Argument::Integer(x) => x as u64,
                        Argument::Float(x) => x.to_bits(),
                        Argument::Null => 0,
                    };
                    let words: Vec<u64> = launch.arguments.iter().map(word).collect();
                    start(device, *function, launch, &words)?;
                }
            }
            if timed {
                moments.push(Event::record(device)?);
            }
        }
        let outputs = outputs.into_iter().map(|output| output.expect("a plan writes each output")).collect();
        Ok((outputs, moments, fault))
    }
}

/// The fault word; waits for everything before.
fn word_of(fault: &DeviceMemory) -> Result<u64> {
    let mut word = [0; 8];
    fault.read(&mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// The function of a launch, compiled at its first use.
fn function(device: &Device, launch: &Launch) -> Result<Function> {
    let known = device.functions.lock().unwrap_or_else(PoisonError::into_inner).get(&launch.source).copied();
    let function = match known {
        Some(function) => function,
        None => {
            let text = launch.source.text();
            let architecture = compiler::architecture(device.target.capability);
            let version = compiler::version()?;
            let key = cache::Key { text: &text, version, architecture: &architecture, options: &OPTIONS };
            let cubin = cache::get_or_compile(cache::folder().as_deref(), &key, || {
                compiler::compile(&text, &architecture).map(|compiled| compiled.cubin)
            })?;
            let function = load(&cubin, &launch.source.entry)?;
            let mut functions = device.functions.lock().unwrap_or_else(PoisonError::into_inner);
            functions.insert(launch.source.clone(), function);
            function
        }
    };
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: a loaded function of the current context.
    unsafe { result::function::set_function_attribute(function.0, attribute, launch.shared_bytes as i32) }
        .map_err(failed)?;
    Ok(function)
}

fn load(cubin: &[u8], entry: &str) -> Result<Function> {
    let entry = CString::new(entry).map_err(|error| Error::argument("entry", error.to_string()))?;
    // SAFETY: a cubin that the compiler made, whole; the module is never unloaded.
    let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.map_err(failed)?;
    // SAFETY: the module was just loaded.
    unsafe { result::module::get_function(module, entry) }.map(Function).map_err(failed)
}

fn start(device: &Device, function: Function, launch: &Launch, words: &[u64]) -> Result<()> {
    let blocks = i32::try_from(launch.blocks).map(|blocks| blocks as u32).map_err(|_| {
        Error::new(ErrorKind::TooLarge { what: "a launch".into(), limit: "2^31 blocks".into() })
    })?;
    device.enter()?;
    // The only parameter is the struct, whose fields are the words.
    let mut parameters = [words.as_ptr().cast_mut().cast::<c_void>()];
    // SAFETY: the words are the fields of the kernel's parameters, and copied before the call returns; the
    // buffers that they point to live at least until they are freed in the stream's order.
    unsafe {
        result::launch_kernel(
            function.0,
            (blocks, 1, 1),
            (launch.threads as u32, 1, 1),
            launch.shared_bytes as u32,
            device.stream(),
            &mut parameters,
        )
    }
    .map_err(failed)
}
