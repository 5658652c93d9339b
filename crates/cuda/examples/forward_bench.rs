//! Times the forward of attention on a GPU: the rows that other libraries are measured at, one line each.
//!
//! `forward_bench [--compile FOLDER] [PART OF A NAME]...`: only the rows whose names have one of these parts. With a
//! folder, nothing is run: the text and machine code of each row's kernels go there, and what the assembler says of
//! them is printed, which needs no GPU.

use std::process::ExitCode;
use std::sync::Arc;

use tilewright_cuda::codegen::{Step, Target, lower};
use tilewright_cuda::driver::{Device, DeviceMemory, Executable, compiler};
use tilewright_ir::{DType, Graph, Result, Scalar, Type, parse};
use tilewright_schedule::{Layout, simplify};

/// Milliseconds that each row is measured for, after a fifth of that to warm up.
const SPAN: f32 = 150.0;

/// A row: its name, shape, what it captures, score function and mask, and the share of pairs that flops count.
struct Row {
    name: String,
    shape: [usize; 4],
    queries: usize,
    dtype: DType,
    captures: &'static str,
    score: &'static str,
    mask: &'static str,
    /// Whether the unrounded output is asked for, as a training step does.
    training: bool,
    share: f64,
}

const CAUSAL: &str = "%out = ge %q, %k";
const WINDOW: &str =
    "%a = ge %q, %k\n %d = sub %q, %k\n %w: i32[] = constant 512\n %b2 = le %d, %w\n %out = and %a, %b2";
const DOCUMENTS: &str =
    "%x = gather %doc, %q\n %y = gather %doc, %k\n %e = eq %x, %y\n %a = ge %q, %k\n %out = and %a, %e";
const SOFTCAP: &str =
    "%cap: f32[] = constant 20.0\n %ratio = div %s, %cap\n %bent = tanh %ratio\n %out = mul %bent, %cap";
const ALIBI: &str = "%d = sub %k, %q\n %f: f32[] = cast %d\n %slope = gather %w, %h\n %bias = mul %f, %slope\n %out = add %s, %bias";
const RELATIVE: &str = "%d = sub %q, %k\n %last: i32[] = constant LAST\n %at = add %d, %last\n %x = gather %w, %h, %at\n %out = add %s, %x";
const WINDOW_TABLE: &str = "%d = sub %q, %k\n %reach: i32[] = constant 128\n %moved = add %d, %reach\n \
     %zero: i32[] = constant 0\n %top: i32[] = constant 256\n %above = max %moved, %zero\n %place = min %above, %top\n \
     %x = gather %w, %h, %place\n %out = add %s, %x";

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |name: &str, shape: [usize; 4], captures, score, mask, share| {
        let [_, _, length, size] = shape;
        let name = format!("{name} {length} {size}");
        rows.push(Row {
            name,
            shape,
            queries: length,
            dtype: DType::BF16,
            captures,
            score,
            mask,
            training: false,
            share,
        });
    };
    let identity = "%one: f32[] = constant 1.0\n %out = mul %s, %one";
    let usual = [4, 16, 4096, 128];
    for shape in [
        usual,
        [4, 32, 4096, 64],
        [1, 16, 16384, 128],
        [4, 16, 4096, 96],
        [4, 8, 4096, 192],
        [4, 8, 4096, 256],
    ] {
        row("dense", shape, "", identity, "", 1.0);
        row("causal", shape, "", identity, CAUSAL, 0.5);
    }
    row("softcap causal", usual, "", SOFTCAP, CAUSAL, 0.5);
    row("softcap dense", usual, "", SOFTCAP, "", 1.0);
    row("alibi causal", usual, "w: f32[H]", ALIBI, CAUSAL, 0.5);
    row("documents causal", usual, "doc: i32[Q]", identity, DOCUMENTS, 0.5);
    row("window 512", usual, "", identity, WINDOW, 0.5);
    row("head gain dense", usual, "w: f32[H]", "%x = gather %w, %h\n %out = mul %s, %x", "", 1.0);
    row("query bias dense", usual, "w: f32[Q]", "%x = gather %w, %q\n %out = add %s, %x", "", 1.0);
    row("key bias dense", usual, "w: f32[Q]", "%x = gather %w, %k\n %out = add %s, %x", "", 1.0);
    row("relative dense", usual, "w: f32[H, R]", RELATIVE, "", 1.0);
    row("window table dense", usual, "w: f32[H, 257]", WINDOW_TABLE, "", 1.0);
    row("pair dense", usual, "w: f32[Q, Q]", "%x = gather %w, %q, %k\n %out = add %s, %x", "", 1.0);
    row("training dense", usual, "", identity, "", 1.0);
    row("training causal", usual, "", identity, CAUSAL, 0.5);
    row("f16 dense", usual, "", identity, "", 1.0);
    row("f32 dense", [1, 16, 4096, 64], "", identity, "", 1.0);
    row("decode", [16, 32, 8192, 128], "", identity, "", 1.0);
    for row in &mut rows {
        row.training = row.name.starts_with("training");
        if row.name.starts_with("f16") {
            row.dtype = DType::F16;
        }
        if row.name.starts_with("f32") {
            row.dtype = DType::F32;
        }
        if row.name.starts_with("decode") {
            row.queries = 1;
        }
    }
    rows
}

impl Row {
    fn graph(&self) -> Graph {
        let [batch, heads, keys, size] = self.shape;
        let queries = self.queries;
        let lengths = [("H", heads), ("Q", keys), ("R", 2 * keys - 1)];
        let captures = lengths.iter().fold(self.captures.to_string(), |text, (letter, extent)| {
            text.replace(letter, &extent.to_string())
        });
        let (declared, names) = match captures.split_once(':') {
            Some((name, _)) => (format!(", %{captures}"), format!(", %{name}")),
            None => (String::new(), String::new()),
        };
        let pair = "%b: i32[], %h: i32[], %q: i32[], %k: i32[]";
        let score = self.score.replace("LAST", &(keys - 1).to_string());
        let mask = match self.mask {
            "" => String::new(),
            mask => format!("mask({pair}{declared}) -> (%out) {{\n {mask}\n }}"),
        };
        let dtype = self.dtype;
        let wide = if dtype == DType::F32 {
            String::new()
        } else {
            format!(", %wide: f32[{batch}, {heads}, {queries}, {size}]")
        };
        let results = if self.training { "%output, %lse, %wide" } else { "%output, %lse" };
        let text = format!(
            "graph(%query: {dtype}[{batch}, {heads}, {queries}, {size}], %key: {dtype}[{batch}, {heads}, {keys}, {size}], \
             %value: {dtype}[{batch}, {heads}, {keys}, {size}]{declared}) -> ({results}) {{\n \
             %output: {dtype}[{batch}, {heads}, {queries}, {size}], %lse, %top{wide} = flex_attention %query, %key, \
             %value{names} scale={:?} score(%s: f32[], {pair}{declared}) -> (%out) {{\n {score}\n }} {mask} }}",
            1.0 / (size as f64).sqrt(),
        );
        parse(&text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", self.name))
    }
}

fn main() -> ExitCode {
    let mut parts: Vec<String> = std::env::args().skip(1).collect();
    if parts.first().is_some_and(|first| first == "--compile") && parts.len() > 1 {
        let folder = parts[1].clone();
        parts.drain(..2);
        for row in rows() {
            let wanted = parts.is_empty() || parts.iter().any(|part| row.name.starts_with(part.as_str()));
            if wanted && let Err(error) = write_kernels(&folder, &row) {
                println!("{}: {error}", row.name);
            }
        }
        return ExitCode::SUCCESS;
    }
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", device.name);
    for row in rows() {
        if !parts.is_empty() && !parts.iter().any(|part| row.name.starts_with(part.as_str())) {
            continue;
        }
        match measure(&device, &row) {
            Ok(line) => println!("{line}"),
            Err(error) => println!("{}: {error}", row.name),
        }
    }
    ExitCode::SUCCESS
}

/// Writes the text and the machine code of a row's kernels.
fn write_kernels(folder: &str, row: &Row) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let graph = row.graph();
    let layouts: Vec<Layout> = graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
    let plan = tilewright_schedule::lower(&simplify(&graph)?, &layouts)?;
    for (_, step) in lower(&plan, Target::HOPPER)?.steps {
        let Step::Launch(launch) = step else { continue };
        let name = format!("{folder}/{}-{}", row.name.replace(' ', "-"), launch.source.entry);
        std::fs::write(format!("{name}.cu"), launch.source.text())?;
        let compiled = compiler::compile(&launch.source.text(), &compiler::architecture(90))?;
        std::fs::write(format!("{name}.cubin"), &compiled.cubin)?;
        let lines = compiled
            .log
            .lines()
            .filter(|line| ["Used", "spill", "C75"].iter().any(|word| line.contains(word)));
        println!("{name}: {} bytes of shared memory, {} blocks", launch.shared_bytes, launch.blocks);
        lines.for_each(|line| println!("    {}", line.trim()));
    }
    Ok(())
}

fn measure(device: &Arc<Device>, row: &Row) -> Result<String> {
    let graph = row.graph();
    let layouts: Vec<Layout> = graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
    let plan = tilewright_schedule::lower(&simplify(&graph)?, &layouts)?;
    let executable = Executable::new(device, plan)?;
    let mut seed = 1;
    let inputs: Result<Vec<DeviceMemory>> = graph
        .parameter_types()
        .into_iter()
        .map(|ty| DeviceMemory::of(device, &random(ty, &mut seed)))
        .collect();
    let inputs = inputs?;
    let inputs: Vec<&DeviceMemory> = inputs.iter().collect();
    let mut totals = Vec::new();
    let mut kernels = Vec::new();
    let mut spent = -SPAN / 5.0;
    while spent < SPAN && totals.len() < 1000 {
        let (_, times) = executable.run_timed(&inputs, true)?;
        let total: f32 = times.iter().map(|(_, _, time)| time).sum();
        spent += total.max(0.02);
        if spent > 0.0 {
            totals.push(total);
        }
        kernels = times;
    }
    totals.sort_by(f32::total_cmp);
    let median = totals[totals.len() / 2];
    let [batch, heads, keys, size] = row.shape;
    let flops = 4.0 * row.share * (batch * heads * row.queries * keys * size) as f64;
    let kernels: Vec<String> = kernels.iter().map(|(_, name, time)| format!("{name} {time:.3}")).collect();
    Ok(format!(
        "{:28} {median:8.4} ms {:6.1} TFLOP/s  least {:.4}, {} runs; {}",
        row.name,
        flops / f64::from(median) * 1e-9,
        totals[0],
        totals.len(),
        kernels.join(", ")
    ))
}

/// Floats from a sum of twelve uniform numbers, nearly normal, that repeat after some heads; integers are documents
/// of 700.
fn random(ty: &Type, seed: &mut u64) -> Vec<u8> {
    const PERIOD: usize = 1 << 20;
    let mut bytes = Vec::with_capacity(ty.bytes());
    for i in 0..ty.elements() {
        if i >= PERIOD {
            let first = bytes.len() - PERIOD * ty.dtype.size();
            let more = (ty.bytes() - bytes.len()).min(PERIOD * ty.dtype.size());
            bytes.extend_from_within(first..first + more);
            if bytes.len() == ty.bytes() {
                break;
            }
            continue;
        }
        let scalar = if ty.dtype.is_float() {
            let mut sum = -6.0;
            for _ in 0..3 {
                *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let word = *seed ^ *seed >> 29;
                sum += (0..4).map(|part| (word >> (16 * part) & 0xffff) as f64 / 65536.0).sum::<f64>();
            }
            Scalar::Float(sum)
        } else {
            Scalar::Integer(i as i64 / 700)
        };
        bytes.extend(scalar.to_bytes(ty.dtype));
    }
    bytes
}
