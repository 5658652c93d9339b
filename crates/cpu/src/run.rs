//! Runs the kernels of a plan one after the other.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tilewright_ir::{Error, ErrorKind, Result};
use tilewright_plan::{Kernel, Plan};

use crate::memory::{Aligned, Memory, broken};
use crate::{Context, Isa, attention, block_map, loops, matmul, scan, scatter};

/// Runs a plan: `inputs[i]` feeds the plan's input i (its elements in the byte order of the machine, aligned
/// to them), `outputs[i]` receives its output i, packed. `threads` 0 means one for each core. The result
/// has the same bits for any number of threads.
///
/// # Errors
/// [`ErrorKind::Index`] for a gather out of range, [`ErrorKind::OutOfMemory`], [`ErrorKind::Shape`] or
/// [`ErrorKind::Layout`] where an input or output does not fit the plan, [`ErrorKind::Invariant`] where the
/// plan is at fault. Outputs are then in no particular state.
pub fn run(plan: &Plan, inputs: &[&[u8]], outputs: &mut [&mut [u8]], threads: usize) -> Result<()> {
    run_on(plan, inputs, outputs, threads, Isa::preferred())
}

/// [`run`] with a chosen instruction set.
///
/// # Errors
/// As [`run`]; and [`ErrorKind::DeviceUnavailable`] where the machine has not that instruction set.
pub fn run_with(
    plan: &Plan,
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
    threads: usize,
    isa: Isa,
) -> Result<()> {
    if !Isa::available().contains(&isa) {
        return Err(Error::new(ErrorKind::DeviceUnavailable {
            device: "the CPU".into(),
            found: Isa::preferred().name().into(),
            required: isa.name().into(),
        }));
    }
    run_on(plan, inputs, outputs, threads, isa)
}

/// [`run`] with an instruction set that the machine has. (To ask which it has takes microseconds on a virtual one, where
/// the question goes to the host.)
fn run_on(plan: &Plan, inputs: &[&[u8]], outputs: &mut [&mut [u8]], threads: usize, isa: Isa) -> Result<()> {
    let threads = threads_or_all(threads);
    let mut arena = take_arena(plan.arena_bytes)?;
    let ran = run_kernels(plan, inputs, outputs, &mut arena, (threads, isa), &|_, kernel| kernel());
    keep_arena(arena);
    ran
}

/// [`run`], and how long each kernel took: when it started after the first, and for how long it ran.
///
/// # Errors
/// As [`run`].
pub fn profile(
    plan: &Plan,
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
    threads: usize,
) -> Result<Vec<(Duration, Duration)>> {
    let mut arena = take_arena(plan.arena_bytes)?;
    let spans = Mutex::new(vec![(Duration::ZERO, Duration::ZERO); plan.kernels.len()]);
    let start = Instant::now();
    let timed = |number: usize, kernel: &dyn Fn() -> Result<()>| {
        let begun = start.elapsed();
        let ran = kernel();
        spans.lock().unwrap_or_else(PoisonError::into_inner)[number] = (begun, start.elapsed() - begun);
        ran
    };
    let machine = (threads_or_all(threads), Isa::preferred());
    let ran = run_kernels(plan, inputs, outputs, &mut arena, machine, &timed);
    keep_arena(arena);
    ran.map(|()| spans.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn threads_or_all(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    }
}

/// What is done around each kernel, given its number.
type Around<'a> = dyn Fn(usize, &dyn Fn() -> Result<()>) -> Result<()> + Sync + 'a;

fn run_kernels(
    plan: &Plan,
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
    arena: &mut [u8],
    (threads, isa): (usize, Isa),
    around: &Around,
) -> Result<()> {
    let memory = Memory::new(plan, inputs, outputs, arena)?;
    let block_maps = (0..plan.block_maps).map(|_| OnceLock::new()).collect();
    let context = Context { isa, threads, block_maps };
    let run = || {
        plan.kernels
            .iter()
            .enumerate()
            .try_for_each(|(number, kernel)| around(number, &|| run_kernel(kernel, &memory, &context)))
    };
    catch_unwind(AssertUnwindSafe(|| match threads {
        1 => run(),
        _ => pool(threads)?.install(run),
    }))
    .unwrap_or_else(|panic| Err(broken(panic_message(panic.as_ref()))))
}

fn run_kernel(kernel: &Kernel, memory: &Memory, context: &Context) -> Result<()> {
    match kernel {
        Kernel::Loops(kernel) => loops::run(kernel, memory, context),
        Kernel::MatMul(kernel) => matmul::run(kernel, memory, context),
        Kernel::ScatterAdd(kernel) => scatter::run(kernel, memory, context),
        Kernel::BlockMap(map) => {
            let blocks = block_map::build(map, memory, context)?;
            let slot =
                context.block_maps.get(map.slot).ok_or_else(|| broken("a block map without a slot"))?;
            slot.set(blocks).map_err(|_| broken("a block map is made twice"))
        }
        Kernel::AttentionForward(kernel) => attention::forward(kernel, memory, context),
        Kernel::AttentionBackward(kernel) => attention::backward(kernel, memory, context),
        Kernel::Scan(kernel) => scan::run(kernel, memory, context),
    }
}

/// The largest arena of the runs before that is not in use: fresh memory would cost a fault for each page.
static ARENA: Mutex<Option<Aligned<u8>>> = Mutex::new(None);

fn take_arena(bytes: usize) -> Result<Aligned<u8>> {
    let kept = ARENA.lock().unwrap_or_else(PoisonError::into_inner).take();
    match kept {
        Some(arena) if arena.len() >= bytes => Ok(arena),
        _ => Aligned::new(bytes),
    }
}

fn keep_arena(arena: Aligned<u8>) {
    let mut kept = ARENA.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.as_ref().is_none_or(|kept| kept.len() < arena.len()) {
        *kept = Some(arena);
    }
}

/// The pool of so many threads, made at its first use and kept.
fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    static POOLS: OnceLock<Mutex<HashMap<usize, Arc<ThreadPool>>>> = OnceLock::new();
    let mut pools = POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&threads) {
        return Ok(pool.clone());
    }
    let made = ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = Arc::new(made.map_err(|error| Error::argument("threads", error.to_string()))?);
    pools.insert(threads, pool.clone());
    Ok(pool)
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a kernel panicked: {}", text.unwrap_or_default())
}
