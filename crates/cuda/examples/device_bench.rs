//! Times attention and its gradient on a GPU, as `bench/device.sh` runs it: one line for each score function and
//! mask, with the time of each kernel.
//!
//! `device_bench BATCH HEADS LENGTH SIZE [bf16|f16|f32 [part of a score function's name ...]]`

#[path = "../tests/kernels/case.rs"]
#[allow(dead_code, reason = "the example takes from the tests what it times, and not what they compare")]
mod case;
#[path = "../tests/kernels/table.rs"]
mod table;

use std::process::ExitCode;

use case::{Sizes, attention};
use table::{MASKS, SCORES};
use tilewright_autodiff::reverse;
use tilewright_cuda::driver::{Device, DeviceMemory, Event, Executable};
use tilewright_ir::{DType, Graph, Result, Type};
use tilewright_schedule::{Layout, simplify};

/// Runs of each program; the median is shown.
const RUNS: usize = 11;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let dtype = arguments.get(4).and_then(|name| DType::from_name(name)).unwrap_or(DType::BF16);
    let [batch, heads, length, size] = numbers[..] else {
        eprintln!("usage: device_bench BATCH HEADS LENGTH SIZE [bf16|f16|f32]");
        return ExitCode::FAILURE;
    };
    let sizes = Sizes {
        batch,
        heads,
        key_batch: batch,
        key_heads: heads,
        queries: length,
        keys: length,
        head_size: size,
        value_size: size,
    };
    match measure(sizes, dtype, arguments.get(5..).unwrap_or_default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(sizes: Sizes, dtype: DType, wanted: &[String]) -> Result<()> {
    let device = Device::open(0)?;
    println!("{}, {dtype}, {sizes:?}", device.name);
    // Tables of the test's lengths are too short here: only functions whose arrays grow with the call.
    let short = ["700", "[9]"];
    for score in SCORES {
        if score.captures.iter().any(|(_, ty, _)| short.iter().any(|part| ty.contains(part))) {
            continue;
        }
        if !wanted.is_empty() && !wanted.iter().any(|part| score.name.contains(part.as_str())) {
            continue;
        }
        for mask in [None, Some(&MASKS[0])] {
            let name = format!("{}, {}", score.name, mask.map_or("no mask", |mask| mask.name));
            let (graph, limits) = attention(dtype, sizes, score, mask);
            let limits = [&[0, 0, 0], &limits[..]].concat();
            let admitted = if mask.is_some() { 0.5 } else { 1.0 };
            let Sizes { batch, heads, queries, keys, head_size, .. } = sizes;
            let flops = 4.0 * admitted * (batch * heads * queries * keys * head_size) as f64;
            let forward = median(&device, &graph, &limits)?;
            let both = median(&device, &with_gradients(graph), &limits)?;
            println!(
                "{name}: forward {:.3} ms, {:.0} TFLOP/s; with backward {:.3} ms, backward {:.0} TFLOP/s",
                forward.0,
                flops / forward.0 as f64 * 1e-9,
                both.0,
                2.5 * flops / f64::from(both.0 - forward.0) * 1e-9
            );
            println!("    {}", both.1);
        }
    }
    Ok(())
}

fn with_gradients(mut graph: Graph) -> Graph {
    let output = graph.results()[0];
    let wanted: Vec<_> =
        graph.parameters().iter().copied().filter(|&value| graph.ty(value).dtype.is_float()).collect();
    let ty = graph.ty(output).clone();
    let cotangent = graph.parameter(ty);
    let gradients = reverse(&mut graph, &[(output, cotangent)], &wanted).expect("attention differentiates");
    graph.set_results([vec![output], gradients.into_iter().flatten().collect()].concat());
    graph
}

/// The median time of a graph's runs in milliseconds, and the time of each kernel in one more run.
fn median(device: &std::sync::Arc<Device>, graph: &Graph, limits: &[i64]) -> Result<(f32, String)> {
    let layouts: Vec<Layout> = graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
    let plan = tilewright_schedule::lower(&simplify(graph)?, &layouts)?;
    let executable = Executable::new(device, plan)?;
    let mut seed = 1;
    let mut inputs = Vec::new();
    for (i, ty) in graph.parameter_types().into_iter().enumerate() {
        inputs.push(DeviceMemory::of(device, &random(ty, limits.get(i).copied().unwrap_or(0), &mut seed))?);
    }
    let inputs: Vec<&DeviceMemory> = inputs.iter().collect();
    executable.run(&inputs)?;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = Event::record(device)?;
        executable.run(&inputs)?;
        times.push(Event::record(device)?.milliseconds_since(&start)?);
    }
    times.sort_by(f32::total_cmp);
    let (_, kernels) = executable.run_timed(&inputs, true)?;
    let kernels: Vec<String> = kernels.iter().map(|(_, name, time)| format!("{name} {time:.3}")).collect();
    Ok((times[RUNS / 2], kernels.join(", ")))
}

/// Elements that are drawn; a prime number, so that they meet each row elsewhere.
const DRAWN: usize = 1_000_003;

/// Random elements, again and again: floats from −1 to 1, integers from 0 to `limit`.
fn random(ty: &Type, limit: i64, seed: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ty.bytes());
    for _ in 0..ty.elements().min(DRAWN) {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let bits = *seed >> 40;
        let scalar = if ty.dtype.is_float() {
            tilewright_ir::Scalar::Float(bits as f64 / (1u64 << 23) as f64 - 1.0)
        } else {
            tilewright_ir::Scalar::Integer(bits as i64 % limit.max(1))
        };
        bytes.extend(scalar.to_bytes(ty.dtype));
    }
    while bytes.len() < ty.bytes() {
        let more = bytes.len().min(ty.bytes() - bytes.len());
        bytes.extend_from_within(..more);
    }
    bytes
}
