//! Scans and a language model's training step on a GPU, through the public functions; `bench/peers/device_peer.py`
//! measures the same with PyTorch and JAX. Both print a line of JSON a case.
//!
//! `device scans|gpt2|recurrence|copy|first|documents [--layers N] [--profile]`

mod first;
mod gpt2;
mod recurrence;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use tilewright::prelude::*;

/// Calls in a measurement, after as many to warm up.
const CALLS: usize = 20;

/// Measurements; the median counts.
const MEASUREMENTS: usize = 5;

const DEVICE: Device = Device::Cuda(0);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ran = match arguments.first().map(String::as_str) {
        Some("scans") => scans(&arguments),
        Some("gpt2") => gpt2::run(&arguments),
        Some("recurrence") => recurrence::run(&arguments),
        Some("copy") => copy(),
        Some("first") => first::calls(),
        Some("documents") => first::documents(),
        _ => {
            eprintln!("usage: device scans|gpt2|recurrence|copy|first|documents");
            return ExitCode::FAILURE;
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The median time of a call, of some that are asked for one after the other and waited for together.
fn time(calls: usize, mut call: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..=MEASUREMENTS {
        DEVICE.synchronize()?;
        let start = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        DEVICE.synchronize()?;
        times.push(start.elapsed() / calls as u32);
    }
    // The first pays for memory and graphs.
    times.remove(0);
    times.sort_unstable();
    Ok(times[MEASUREMENTS / 2])
}

fn print(case: &str, rows: usize, length: usize, bytes: usize, time: Duration) {
    let milliseconds = time.as_secs_f64() * 1e3;
    let rate = bytes as f64 / time.as_secs_f64() * 1e-9;
    println!(
        r#"{{"case": "{case}", "R": {rows}, "T": {length}, "ms": {milliseconds:.4}, "gbps": {rate:.0}}}"#
    );
}

/// Random elements that are made on the device.
fn random(shape: [usize; 2], low: f64, high: f64, seed: i64) -> Result<Array> {
    let draw = compile(|seed: Tensor| Key::new(seed).uniform(shape, DType::F32) * (high - low) + low);
    draw.on(DEVICE).call(&Array::scalar(seed))
}

fn copy() -> Result<()> {
    let x = random([1 << 14, 1 << 14], -1.0, 1.0, 1)?;
    let bytes = 8 << 28;
    for (name, add) in [("scaled copy", 0.0), ("scaled and shifted copy", 1.0)] {
        let f = compile(|x: Tensor| x * 2.0 + add);
        print(name, 1 << 14, 1 << 14, bytes, time(CALLS, || f.call(&x).map(drop))?);
    }
    let f = compile(|x: Tensor| x.sum(..));
    print("sum of all", 1 << 14, 1 << 14, bytes / 2, time(CALLS, || f.call(&x).map(drop))?);
    let f = compile(|x: Tensor| x.sum(0));
    print("sum of rows", 1 << 14, 1 << 14, bytes / 2, time(CALLS, || f.call(&x).map(drop))?);
    let f = compile(|x: Tensor| x.sum(1));
    print("sum of columns", 1 << 14, 1 << 14, bytes / 2, time(CALLS, || f.call(&x).map(drop))?);
    let x = random([1 << 16, 1 << 10], -1.0, 1.0, 1)?;
    let f = compile(|x: Tensor| x.softmax(-1));
    print("softmax", 1 << 16, 1 << 10, 8 << 26, time(CALLS, || f.call(&x).map(drop))?);
    let f =
        compile(|x: Tensor| x.layer_norm(ones([1 << 10], DType::F32), zeros([1 << 10], DType::F32), 1e-5));
    print("layer norm", 1 << 16, 1 << 10, 8 << 26, time(CALLS, || f.call(&x).map(drop))?);
    Ok(())
}

fn scans(arguments: &[String]) -> Result<()> {
    let profile = arguments.iter().any(|argument| argument == "--profile");
    for (rows, length) in [(4096, 16384), (64, 1 << 20), (1, 1 << 26)] {
        let a = random([rows, length], 0.9, 1.0, 1)?;
        let b = random([rows, length], -1.0, 1.0, 2)?;
        let n = rows * length;
        let sum = compile(|b: Tensor| b.cumsum(1));
        print("sum", rows, length, 8 * n, time(CALLS, || sum.call(&b).map(drop))?);
        let recurrence = |a: Tensor, b: Tensor| {
            let combine = |l: (Tensor, Tensor), r: (Tensor, Tensor)| (l.0 * r.0, r.0 * l.1 + r.1);
            associative_scan((a, b), 1, combine).call()
        };
        let both = compile(|(a, b): (Tensor, Tensor)| recurrence(a, b));
        print("linear recurrence", rows, length, 16 * n, time(CALLS, || both.call((&a, &b)).map(drop))?);
        let gradient = compile(|(a, b): (Tensor, Tensor)| {
            grad(|(a, b): &(Tensor, Tensor)| recurrence(*a, *b).1.sum(..))(&(a, b))
        });
        let name = "linear recurrence forward+backward";
        // At least: read both, write the states and read them, read a again, write both gradients.
        print(name, rows, length, 28 * n, time(CALLS, || gradient.call((&a, &b)).map(drop))?);
        if profile {
            println!("{}\n{}", gradient.explain(), gradient.profile((&a, &b))?);
        }
    }
    Ok(())
}
