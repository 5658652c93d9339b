//! `compile`: a traced function as a function on arrays.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tilewright_schedule::Layout;
use tilewright_trace::tree::{Entry, MapLeaves, Path, Tree, map_leaves};
use tilewright_trace::{Tensor, trace};

use crate::explain::explain;
use crate::pipeline::{self, Program};
use crate::profile::Profile;
use crate::{Array, Device, Error, Result, Type};

/// A compiled function. See [`compile`].
pub struct Compiled<T, O, F> {
    function: F,
    threads: usize,
    device: Option<Device>,
    cache: Mutex<Cache<O>>,
    inputs: PhantomData<fn(T)>,
}

/// The programs by what they are for, and the order in which they were asked for.
struct Cache<O> {
    programs: HashMap<Signature, Slot<O>>,
    order: Vec<Signature>,
}

/// A program, or the place for it, locked while it is compiled.
type Slot<O> = Arc<Mutex<Option<Arc<Ready<O>>>>>;

struct Ready<O> {
    program: Arc<Program>,
    /// What the function returned: the tree that the outputs are put in.
    outputs: O,
}

/// All that a program depends on: the structure of the inputs, and the type and layout of each array.
type Signature = Vec<(Path, Part)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Array(Type, Vec<isize>, isize),
    Static(String),
}

/// Makes a function on arrays out of a function on traced values.
///
/// The function is traced and compiled at the first [`call`](Compiled::call) with arrays of some shapes; the
/// program is kept for further calls. Inputs and outputs are trees: arrays, tuples, `Vec`s, maps, and structs
/// with `#[derive(Tree)]`, holding [`Tensor`]s within the function and [`Array`]s outside of it.
///
/// It runs where its inputs are: on a GPU where one of them is on a GPU, or where [`Compiled::on`] says.
///
/// ```
/// use tilewright::prelude::*;
///
/// let f = compile(|(x, y): (Tensor, Tensor)| (x * 2.0 + y).sum(-1));
/// let x = Array::new([2, 2], &[1.0f32, 2.0, 3.0, 4.0])?;
/// let y = Array::scalar(0.5f32);
/// let z: Array = f.call((&x, &y))?;
/// assert_eq!(z.to_vec::<f32>()?, [7.0, 15.0]);
/// # Ok::<(), Error>(())
/// ```
pub fn compile<T, O, F: Fn(T) -> O>(function: F) -> Compiled<T, O, F> {
    let cache = Mutex::new(Cache { programs: HashMap::new(), order: Vec::new() });
    Compiled { function, threads: 0, device: None, cache, inputs: PhantomData }
}

/// A lock that a panic elsewhere does not spoil: what it guards is replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T, O: MapLeaves<Tensor, Array>, F: Fn(T) -> O> Compiled<T, O, F> {
    /// Runs on so many threads; 0, as without it, means one for each core. The result is the same.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Compiled<T, O, F> {
        self.threads = threads;
        self
    }

    /// Runs on this device, wherever the inputs are: those that are elsewhere are copied there, in each call.
    ///
    /// ```
    /// use tilewright::prelude::*;
    ///
    /// let f = compile(|x: Tensor| x + 1.0).on(Device::Cpu);
    /// assert_eq!(f.call(&Array::scalar(1.0f32))?.item::<f32>()?, 2.0);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn on(mut self, device: Device) -> Compiled<T, O, F> {
        self.device = Some(device);
        self
    }

    /// Calls the function on arrays, compiling it first where arrays of these types are new.
    ///
    /// On a GPU the call returns as soon as the work is asked for; results stay there, and the next call may use
    /// them. An index out of range is then reported by the first read of an array that waits for the device, or by
    /// [`Device::synchronize`].
    ///
    /// # Errors
    /// What the function does wrong for inputs of these shapes, with the line; `Index` for a gather out of
    /// range; `OutOfMemory`; `DeviceUnavailable`; `Argument` for inputs on several GPUs.
    ///
    /// # Panics
    /// Where the function does, at its first call for these shapes; the compiled function stays usable.
    pub fn call<A: MapLeaves<Array, Tensor, Output = T>>(&self, inputs: A) -> Result<O::Output> {
        let (signature, arrays) = signature(&inputs);
        let device = self.device(&arrays)?;
        let ready = self.ready(signature, &arrays, &inputs)?;
        let (outputs, _) = ready.program.call(&arrays, device, self.threads, false)?;
        let mut outputs = outputs.into_iter();
        map_leaves(&ready.outputs, |_, _| Ok(outputs.next().expect("an output for each leaf")))
    }

    /// The program for arrays like these, compiled where it is new, and not run.
    ///
    /// # Errors
    /// As [`Compiled::call`], but for those of the run.
    pub fn program<A: MapLeaves<Array, Tensor, Output = T>>(&self, inputs: A) -> Result<Arc<Program>> {
        let (signature, arrays) = signature(&inputs);
        Ok(self.ready(signature, &arrays, &inputs)?.program.clone())
    }

    /// Calls the function on arrays and measures each kernel, waiting for it on a GPU too. The first call of a program
    /// also pays for memory that later ones find ready.
    ///
    /// # Errors
    /// As [`Compiled::call`].
    ///
    /// # Panics
    /// As [`Compiled::call`].
    pub fn profile<A: MapLeaves<Array, Tensor, Output = T>>(&self, inputs: A) -> Result<Profile> {
        let (signature, arrays) = signature(&inputs);
        let device = self.device(&arrays)?;
        let ready = self.ready(signature, &arrays, &inputs)?;
        let (_, profile) = ready.program.call(&arrays, device, self.threads, true)?;
        Ok(profile.expect("the run was measured"))
    }

    /// Where a call runs: where it was told to, else on the GPU that inputs are on, else on the CPU.
    fn device(&self, arrays: &[Array]) -> Result<Device> {
        if let Some(device) = self.device {
            return Ok(device);
        }
        let mut gpus = arrays.iter().map(Array::device).filter(|device| *device != Device::Cpu);
        let Some(first) = gpus.next() else { return Ok(Device::Cpu) };
        match gpus.find(|device| *device != first) {
            None => Ok(first),
            Some(other) => Err(Error::argument("inputs", format!("some are on {first}, others on {other}"))
                .help("move them with `to_device`, or choose a device with `on`")),
        }
    }

    /// The program for a signature. Where several threads ask for a new one, one compiles and the others wait.
    fn ready<A>(&self, signature: Signature, arrays: &[Array], inputs: &A) -> Result<Arc<Ready<O>>>
    where
        A: MapLeaves<Array, Tensor, Output = T>,
    {
        let slot = {
            let cache = &mut *lock(&self.cache);
            match cache.programs.get(&signature) {
                Some(slot) => slot.clone(),
                None => {
                    cache.order.push(signature.clone());
                    cache.programs.entry(signature.clone()).or_default().clone()
                }
            }
        };
        let mut slot = lock(&slot);
        if let Some(ready) = &*slot {
            return Ok(ready.clone());
        }
        let ready = Arc::new(self.trace_and_compile(&signature, arrays, inputs)?);
        Ok(slot.insert(ready).clone())
    }

    fn trace_and_compile<A>(&self, signature: &Signature, arrays: &[Array], inputs: &A) -> Result<Ready<O>>
    where
        A: MapLeaves<Array, Tensor, Output = T>,
    {
        let name = |path: &Path| if path.as_str().is_empty() { "input".into() } else { path.to_string() };
        let parameters: Vec<(String, Type)> = signature
            .iter()
            .filter_map(|(path, part)| match part {
                Part::Array(ty, ..) => Some((name(path), ty.clone())),
                Part::Static(_) => None,
            })
            .collect();
        let start = Instant::now();
        let traced = trace(
            &parameters,
            |tensors| {
                let mut tensors = tensors.iter();
                let inputs = map_leaves(inputs, |_, _| Ok(*tensors.next().expect("a tensor for each array")));
                (self.function)(inputs.expect("the mapper does not fail"))
            },
            |outputs| tilewright_trace::tree::leaves(outputs).into_iter().map(|(_, tensor)| tensor).collect(),
        )?;
        let elapsed = start.elapsed();
        let layouts: Vec<Layout> = arrays.iter().map(|array| array.layout().clone()).collect();
        let mut program = pipeline::compile(traced.graph, &layouts)?;
        program.passes.insert(0, ("trace", elapsed));
        Ok(Ready { program: Arc::new(program), outputs: traced.result })
    }

    /// What the programs compiled so far consist of: passes with their times, kernels, memory, and how the
    /// gradient of each captured array is reduced.
    pub fn explain(&self) -> String {
        self.describe(explain)
    }

    /// The programs compiled so far at each stage: as traced, as simplified, and the plan.
    pub fn dump(&self) -> String {
        self.describe(|program| {
            let Program { traced, simplified, plan, .. } = program;
            format!("# traced\n{traced}\n# simplified\n{simplified}\n# plan\n{plan:#?}\n")
        })
    }

    fn describe(&self, describe: impl Fn(&Program) -> String) -> String {
        let slots: Vec<Slot<O>> = {
            let cache = lock(&self.cache);
            cache.order.iter().filter_map(|signature| cache.programs.get(signature).cloned()).collect()
        };
        let texts: Vec<String> = slots
            .iter()
            .filter_map(|slot| lock(slot).as_ref().map(|ready| describe(&ready.program)))
            .collect();
        texts.join("\n")
    }
}

/// The signature of inputs, and their arrays.
fn signature<A: Tree<Array>>(inputs: &A) -> (Signature, Vec<Array>) {
    let (mut signature, mut arrays) = (Vec::new(), Vec::new());
    inputs.visit(&mut Path::default(), &mut |path, entry| {
        let part = match entry {
            Entry::Leaf(array) => {
                arrays.push(array.clone());
                Part::Array(array.ty().clone(), array.layout().strides.clone(), array.layout().offset)
            }
            Entry::Static(value) => Part::Static(format!("{value:?}")),
        };
        signature.push((path.clone(), part));
    });
    (signature, arrays)
}
