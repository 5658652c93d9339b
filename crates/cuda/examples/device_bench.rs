//! Times attention and its gradient on a GPU, as `bench/device.sh` runs it: one line for each score function and
//! mask, with the time of each kernel.
//!
//! `device_bench [--compile FOLDER] BATCH HEADS LENGTH SIZE [bf16|f16|f32 [part of a row's name ...]]`: with a
//! folder, nothing is run: the text and machine code of the kernels of each gradient go there, and what compiling took
//! and the assembler says is printed, which needs no GPU.

#[path = "../tests/kernels/case.rs"]
#[allow(dead_code, reason = "the example takes from the tests what it times, and not what they compare")]
mod case;
#[path = "../tests/kernels/table.rs"]
mod table;

use std::process::ExitCode;
use std::time::Instant;

use case::{Sizes, attention};
use table::{MASKS, Mask, SCORES, Score};
use tilewright_autodiff::reverse;
use tilewright_cuda::codegen::{Step, Target, lower};
use tilewright_cuda::driver::{Device, DeviceMemory, Event, Executable, compiler};
use tilewright_ir::{DType, Error, Graph, Result, Type};
use tilewright_schedule::{Layout, simplify};

/// Runs of each program; the median is shown.
const RUNS: usize = 11;

/// Masks that leave little of each row, for the identity alone.
const NARROW: &[Mask] = &[
    Mask {
        name: "window of 512",
        captures: &[],
        body: "%behind = ge %q, %k\n %d = sub %q, %k\n %reach: i32[] = constant 512\n %near = le %d, %reach\n \
               %out = and %behind, %near",
    },
    Mask {
        name: "documents of 700",
        captures: &[("doc", "i32[Q]", -700)],
        body: "%behind = ge %q, %k\n %x = gather %doc, %q\n %y = gather %doc, %k\n %same = eq %x, %y\n \
               %out = and %behind, %same",
    },
];

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let compile = arguments.first().is_some_and(|first| first == "--compile") && arguments.len() > 1;
    let folder = compile.then(|| arguments.drain(..2).nth(1)).flatten();
    let numbers: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let dtype = arguments.get(4).and_then(|name| DType::from_name(name)).unwrap_or(DType::BF16);
    let [batch, heads, length, size] = numbers[..] else {
        eprintln!("usage: device_bench [--compile FOLDER] BATCH HEADS LENGTH SIZE [bf16|f16|f32]");
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
    let rows = rows(arguments.get(5..).unwrap_or_default());
    let outcome = match folder {
        Some(folder) => {
            rows.iter().try_for_each(|(score, mask)| compile_kernels(&folder, sizes, dtype, score, *mask))
        }
        None => measure(sizes, dtype, &rows),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Each score function without a mask and with a causal one, and the identity with narrow ones too: those that are wanted.
fn rows(wanted: &[String]) -> Vec<(&'static Score, Option<&'static Mask>)> {
    // Tables of the test's lengths are too short here: only functions whose arrays grow with the call.
    let short = ["700", "[9]"];
    let fits =
        |score: &&Score| !score.captures.iter().any(|(_, ty, _)| short.iter().any(|part| ty.contains(part)));
    let masks = |score: &Score| if score.name == "identity" { NARROW } else { &[] };
    let rows = SCORES.iter().filter(fits).flat_map(|score| {
        let usual = [(score, None), (score, Some(&MASKS[0]))];
        usual.into_iter().chain(masks(score).iter().map(move |mask| (score, Some(mask))))
    });
    let named = |&(score, mask): &(&Score, Option<&Mask>)| {
        wanted.is_empty() || wanted.iter().any(|part| name(score, mask).contains(part.as_str()))
    };
    rows.filter(named).collect()
}

fn name(score: &Score, mask: Option<&Mask>) -> String {
    format!("{}, {}", score.name, mask.map_or("no mask", |mask| mask.name))
}

fn measure(sizes: Sizes, dtype: DType, rows: &[(&Score, Option<&Mask>)]) -> Result<()> {
    let device = Device::open(0)?;
    println!("{}, {dtype}, {sizes:?}", device.name);
    for &(score, mask) in rows {
        let (graph, limits) = attention(dtype, sizes, score, mask);
        let limits = [&[0, 0, 0], &limits[..]].concat();
        let admitted = if mask.is_some() { 0.5 } else { 1.0 };
        let Sizes { batch, heads, queries, keys, head_size, .. } = sizes;
        let flops = 4.0 * admitted * (batch * heads * queries * keys * head_size) as f64;
        let forward = median(&device, &graph, &limits)?;
        let both = median(&device, &with_gradients(graph), &limits)?;
        println!(
            "{}: forward {:.3} ms, {:.0} TFLOP/s; with backward {:.3} ms, backward {:.0} TFLOP/s",
            name(score, mask),
            forward.0,
            flops / forward.0 as f64 * 1e-9,
            both.0,
            2.5 * flops / f64::from(both.0 - forward.0) * 1e-9
        );
        println!("    {}", both.1);
    }
    Ok(())
}

/// Writes the text and the machine code of the kernels of an attention with its gradient.
fn compile_kernels(
    folder: &str,
    sizes: Sizes,
    dtype: DType,
    score: &Score,
    mask: Option<&Mask>,
) -> Result<()> {
    let graph = with_gradients(attention(dtype, sizes, score, mask).0);
    let plan = tilewright_schedule::lower(&simplify(&graph)?, &layouts(&graph))?;
    println!("{}", name(score, mask));
    for (_, step) in lower(&plan, Target::HOPPER)?.steps {
        let Step::Launch(launch) = step else { continue };
        let start = Instant::now();
        let compiled = compiler::compile(&launch.source.text(), &compiler::architecture(90))?;
        println!(
            "    {}: {:?}, {} bytes of shared memory",
            launch.source.entry,
            start.elapsed(),
            launch.shared_bytes
        );
        let path = format!("{folder}/{}-{}", name(score, mask).replace([' ', ','], "-"), launch.source.entry);
        let written = std::fs::write(format!("{path}.cu"), launch.source.text())
            .and_then(|()| std::fs::write(format!("{path}.cubin"), &compiled.cubin));
        written.map_err(|error| Error::argument("folder", error.to_string()))?;
        let told = |line: &&str| ["Used", "spill", "C75"].iter().any(|word| line.contains(word));
        compiled.log.lines().filter(told).for_each(|line| println!("        {}", line.trim()));
    }
    Ok(())
}

fn layouts(graph: &Graph) -> Vec<Layout> {
    graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect()
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
    let plan = tilewright_schedule::lower(&simplify(graph)?, &layouts(graph))?;
    let executable = Executable::new(device, plan)?;
    let mut seed = 1;
    let mut inputs = Vec::new();
    for (i, ty) in graph.parameter_types().into_iter().enumerate() {
        inputs.push(DeviceMemory::of(device, &random(ty, limits.get(i).copied().unwrap_or(0), &mut seed))?);
    }
    let inputs: Vec<&DeviceMemory> = inputs.iter().collect();
    let first = contents(&executable.run(&inputs)?)?;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = Event::record(device)?;
        executable.run(&inputs)?;
        times.push(Event::record(device)?.milliseconds_since(&start)?);
    }
    times.sort_by(f32::total_cmp);
    let (last, kernels) = executable.run_timed(&inputs, true)?;
    if contents(&last)? != first {
        return Err(Error::argument("graph", "has other bits in another run"));
    }
    let kernels: Vec<String> = kernels.iter().map(|(_, name, time)| format!("{name} {time:.3}")).collect();
    Ok((times[RUNS / 2], kernels.join(", ")))
}

fn contents(arrays: &[DeviceMemory]) -> Result<Vec<Vec<u8>>> {
    let read = |array: &DeviceMemory| {
        let mut bytes = vec![0; array.bytes()];
        array.read(&mut bytes)?;
        Ok(bytes)
    };
    arrays.iter().map(read).collect()
}

/// Elements that are drawn; a prime number, so that they meet each row elsewhere.
const DRAWN: usize = 1_000_003;

/// Random elements, again and again: floats from −1 to 1, integers from 0 to `limit`; where that is negative, integers
/// that grow by 1 after so many elements.
fn random(ty: &Type, limit: i64, seed: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ty.bytes());
    for i in 0..ty.elements().min(DRAWN) {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let bits = *seed >> 40;
        let scalar = if ty.dtype.is_float() {
            tilewright_ir::Scalar::Float(bits as f64 / (1u64 << 23) as f64 - 1.0)
        } else if limit < 0 {
            tilewright_ir::Scalar::Integer(i as i64 / -limit)
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
