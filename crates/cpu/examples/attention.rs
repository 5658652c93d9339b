//! Measures the attention engine: GFLOP/s forward and backward beside a loop of fused multiply-adds in the
//! same run, and what captured arrays cost beside the identity, medians of rounds of case and identity in turn. One
//! thread is measured by processor time, more by the clock on the wall.
//!
//! `cargo run --release -p tilewright-cpu --example attention [threads [rounds [part of a name]]]`

#[path = "../tests/attention/functions.rs"]
#[allow(dead_code, reason = "the example runs some of the functions that are tested")]
mod functions;

use std::sync::OnceLock;
use std::time::Instant;

use functions::{Function, Mask, captured, identity, masks, softcap};
use tilewright_cpu::clock::{Clock, processor_time};
use tilewright_cpu::run;
use tilewright_ir::DType;
use tilewright_plan::attention::*;
use tilewright_plan::*;

const SHAPE: AttentionShape = AttentionShape {
    batch: 1,
    heads: 8,
    key_batch: 1,
    key_heads: 8,
    queries: 2048,
    keys: 2048,
    head_size: 64,
    value_size: 64,
};

/// Words that hold random normal floats of a type.
fn random(dtype: DType, count: usize, seed: u64) -> Vec<u64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 1.7
    };
    let bytes: Vec<u8> = match dtype {
        DType::BF16 => (0..count).flat_map(|_| half::bf16::from_f32(next()).to_ne_bytes()).collect(),
        _ => (0..count).flat_map(|_| next().to_ne_bytes()).collect(),
    };
    bytes.chunks_exact(8).map(|chunk| u64::from_ne_bytes(chunk.try_into().expect("8 bytes"))).collect()
}

fn bytes(words: &[u64]) -> &[u8] {
    // SAFETY: any words are bytes.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8) }
}

fn bytes_mut(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: any bytes are words.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 8) }
}

/// A plan with its inputs and outputs.
struct Call {
    plan: Plan,
    inputs: Vec<Vec<u64>>,
    outputs: Vec<Vec<u64>>,
}

impl Call {
    fn view(&mut self, dtype: DType, extents: &[usize], output: bool) -> View {
        let elements: usize = extents.iter().product();
        let place = if output {
            self.outputs.push(vec![0; (elements * dtype.size()).div_ceil(8)]);
            Place::Output(self.outputs.len() - 1)
        } else {
            self.inputs.push(random(dtype, elements.next_multiple_of(8), self.inputs.len() as u64 + 1));
            Place::Input(self.inputs.len() - 1)
        };
        self.plan.buffers.push(Buffer { dtype, elements, place });
        let strides = (0..extents.len()).map(|axis| extents[axis + 1..].iter().product::<usize>() as isize);
        View { buffer: BufferId(self.plan.buffers.len() - 1), offset: 0, strides: strides.collect() }
    }

    fn new(dtype: DType, function: &Function, mask: &Mask, backward: bool) -> Call {
        let AttentionShape { batch, heads, queries, keys, head_size, .. } = SHAPE;
        let plan = Plan { buffers: vec![], kernels: vec![], block_maps: 0, arena_bytes: 0 };
        let mut call = Call { plan, inputs: vec![], outputs: vec![] };
        let array = [batch, heads, queries, head_size];
        let attention = Attention {
            shape: SHAPE,
            dtype,
            scale: 0.125,
            query: call.view(dtype, &array, false),
            key: call.view(dtype, &array, false),
            value: call.view(dtype, &array, false),
            mask: mask.program.clone(),
            tables: vec![Table {
                view: call.view(DType::F32, &function.table, false),
                dtype: DType::F32,
                shape: function.table.clone(),
                name: "table".into(),
                origin: None,
            }],
            block_map: mask.program.as_ref().map(|_| 0),
            origin: None,
        };
        if let Some(mask) = &mask.program {
            call.plan.block_maps = 1;
            call.plan.kernels.push(Kernel::BlockMap(BlockMap {
                slot: 0,
                batch: 1,
                heads: 1,
                queries,
                keys,
                query_block: 64,
                key_block: 64,
                mask: mask.clone(),
                tables: vec![attention.tables[0].clone()],
            }));
        }
        let programs = function.programs.as_ref();
        let rows = [batch, heads, queries];
        let kernel = if backward {
            let reductions = programs.map(|programs| &programs.reductions[..]).unwrap_or_default();
            Kernel::AttentionBackward(Box::new(AttentionBackward {
                attention,
                joint: programs.map(|programs| (programs.build)(Kind::F32).1),
                output: call.view(DType::F32, &array, false),
                log_sum_exp: call.view(DType::F32, &rows, false),
                output_cotangent: call.view(dtype, &array, false),
                log_sum_exp_cotangent: None,
                query_cotangent: Some(call.view(dtype, &array, true)),
                key_cotangent: Some(call.view(dtype, &array, true)),
                value_cotangent: Some(call.view(dtype, &array, true)),
                captures: vec![CaptureCotangent {
                    view: call.view(DType::F32, &function.table, true),
                    dtype: DType::F32,
                    shape: function.table.clone(),
                }],
                reductions: reductions
                    .iter()
                    .map(|(key, indices)| CaptureReduction {
                        key: *key,
                        result: 2,
                        capture: 0,
                        indices: indices.clone(),
                        reason: String::new(),
                        origin: None,
                    })
                    .collect(),
                zero_terms: vec![],
            }))
        } else {
            Kernel::AttentionForward(AttentionForward {
                attention,
                score: programs.map(|programs| (programs.build)(Kind::F32).0),
                output: call.view(dtype, &array, true),
                unrounded: None,
                log_sum_exp: Some(call.view(DType::F32, &rows, true)),
                maximum: None,
            })
        };
        call.plan.kernels.push(kernel);
        if backward {
            // Log-sum-exps near those of such inputs, so that weights are ordinary numbers.
            let rows = call.inputs.len() - 2;
            call.inputs[rows]
                .fill(u64::from_ne_bytes([8f32.to_ne_bytes(); 2].concat().try_into().expect("8")));
        }
        call
    }

    fn seconds(&mut self, threads: usize) -> f64 {
        let inputs: Vec<&[u8]> = self.inputs.iter().map(|words| bytes(words)).collect();
        let mut outputs: Vec<&mut [u8]> = self.outputs.iter_mut().map(|words| bytes_mut(words)).collect();
        let start = now(threads);
        run(&self.plan, &inputs, &mut outputs, threads).expect("the plan runs");
        now(threads) - start
    }
}

/// Seconds on a clock: processor time where one thread works, so that a busy machine disturbs less.
fn now(threads: usize) -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let wall = START.get_or_init(Instant::now).elapsed();
    if threads == 1 { processor_time(Clock::Thread).unwrap_or(wall) } else { wall }.as_secs_f64()
}

/// GFLOP/s of one core's multiply-adds.
#[cfg(target_arch = "x86_64")]
fn peak() -> f64 {
    use std::arch::x86_64::*;
    const STEPS: usize = 500_000;
    #[target_feature(enable = "avx512f")]
    unsafe fn wide() -> f32 {
        let mut sums = [_mm512_set1_ps(1.0); 16];
        let (x, y) =
            (_mm512_set1_ps(std::hint::black_box(0.999)), _mm512_set1_ps(std::hint::black_box(0.001)));
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, x, y));
        }
        sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
    }
    #[target_feature(enable = "avx2,fma")]
    unsafe fn narrow() -> f32 {
        let mut sums = [_mm256_set1_ps(1.0); 12];
        let (x, y) =
            (_mm256_set1_ps(std::hint::black_box(0.999)), _mm256_set1_ps(std::hint::black_box(0.001)));
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, x, y));
        }
        sums.iter().map(|&sum| _mm256_cvtss_f32(sum)).sum()
    }
    let start = now(1);
    // SAFETY: the machine has the features.
    let (sum, flops) = unsafe {
        if is_x86_feature_detected!("avx512f") { (wide(), 2 * 16 * 16) } else { (narrow(), 2 * 12 * 8) }
    };
    std::hint::black_box(sum);
    (STEPS * flops) as f64 / (now(1) - start) / 1e9
}

#[cfg(not(target_arch = "x86_64"))]
fn peak() -> f64 {
    f64::NAN
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| arguments.get(i).map(|x| x.parse::<usize>().expect("a number"));
    let (threads, rounds) = (number(0).unwrap_or(1), number(1).unwrap_or(5));
    let (masks, functions) = (masks(), captured(SHAPE));
    let identity = identity();
    let softcap = softcap();
    let mut cases: Vec<(&str, DType, &Function, &Mask)> = vec![
        ("identity", DType::F32, &identity, &masks[0]),
        ("identity causal", DType::F32, &identity, &masks[1]),
        ("identity bf16", DType::BF16, &identity, &masks[0]),
        ("identity bf16 causal", DType::BF16, &identity, &masks[1]),
        ("softcap", DType::F32, &softcap, &masks[0]),
    ];
    cases.extend(functions.iter().map(|function| (function.name, DType::F32, function, &masks[0])));
    let flops = 4.0 * (SHAPE.heads * SHAPE.queries * SHAPE.keys * SHAPE.head_size) as f64;
    println!("{threads} threads; share of {threads} × the peak of one core; overhead against the identity");
    for backward in [false, true] {
        let direction = if backward { "backward" } else { "forward" };
        println!("{direction}");
        for (name, dtype, function, mask) in &cases {
            let named = format!("{direction} {name}");
            if arguments.get(2).is_some_and(|part| !named.contains(part.as_str())) {
                continue;
            }
            let mut call = Call::new(*dtype, function, mask, backward);
            let mut base = Call::new(*dtype, &identity, mask, backward);
            let (mut times, mut ratios, mut best_peak) = (Vec::new(), Vec::new(), 0.0f64);
            for _ in 0..rounds {
                best_peak = best_peak.max(peak());
                let base = base.seconds(threads);
                let seconds = call.seconds(threads);
                times.push(seconds);
                ratios.push(seconds / base);
            }
            let [seconds, ratio] = [median(times), median(ratios)];
            let share = if mask.program.is_some() { 0.5 } else { 1.0 };
            let rate = flops * share * if backward { 2.5 } else { 1.0 } / seconds / 1e9;
            println!(
                "  {name:34} {rate:7.1} GFLOP/s  {:5.1} %  {ratio:5.3} ×",
                100.0 * rate / best_peak / threads as f64,
            );
        }
    }
}
