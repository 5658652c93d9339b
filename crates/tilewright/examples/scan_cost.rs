//! What a scan costs beside its run: the time of a first call, and the peak memory of a linear recurrence of
//! 16.8 million elements forward and backward: `cargo run --release -p tilewright --example scan_cost` (Linux).

use std::time::Instant;

use tilewright::prelude::*;

type Pair<T> = (T, T);

/// A size from the kernel's account of this process, in bytes.
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux system");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a size in kB");
    kilobytes.parse::<usize>().expect("a number") * 1024
}

fn recurrence((a, b): &Pair<Tensor>) -> Tensor {
    linear_recurrence(a, b, -1)
}

/// The recurrence, and its gradients for a loss that is the mean of squares.
fn step(x: Pair<Tensor>) -> (Tensor, Pair<Tensor>) {
    value_and_grad(|x: &Pair<Tensor>| recurrence(x).square().mean(..))(&x)
}

/// The gradients for a given cotangent.
fn pull((x, cotangent): (Pair<Tensor>, Tensor)) -> Pair<Tensor> {
    vjp(recurrence, &x).1(&cotangent)
}

fn waves(shape: [usize; 2]) -> Result<[Array; 3]> {
    let wave = |offset: f32, scale: f32, phase: f32| {
        Array::from_fn(shape, move |i| offset + scale * ((i[0] * 31 + i[1] * 7) as f32 * 0.01 + phase).sin())
    };
    Ok([wave(0.95, 0.05, 0.0)?, wave(0.0, 1.0, 0.0)?, wave(0.0, 1.0, 1.0)?])
}

fn main() -> Result<()> {
    let small = waves([8, 1024])?;
    let [a, b, cotangent] = &small;
    // The threads are started by the first call of all.
    compile(|x: Tensor| x + 1.0).call(a)?;
    let milliseconds = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
    let start = Instant::now();
    compile(|x: Tensor| x.cumsum(-1)).call(a)?;
    println!("first call, sum: {:.2} ms", milliseconds(start));
    let start = Instant::now();
    compile(|x: Pair<Tensor>| recurrence(&x)).call((a, b))?;
    println!("first call, linear recurrence: {:.2} ms", milliseconds(start));
    let start = Instant::now();
    compile(step).call((a, b))?;
    println!("first call, a loss and its gradients: {:.2} ms", milliseconds(start));
    let start = Instant::now();
    compile(pull).call(((a, b), cotangent))?;
    println!("first call, gradients for a cotangent: {:.2} ms", milliseconds(start));

    let large = waves([4096, 4096])?;
    let [a, b, cotangent] = &large;
    let array = a.to_bytes()?.len() as f64;
    let before = status("VmRSS");
    let gradients = compile(pull).call(((a, b), cotangent))?;
    let peak = status("VmHWM") - before;
    println!("gradients for a cotangent: {:.2} arrays above the inputs, at the peak", peak as f64 / array);
    drop(gradients);
    Ok(())
}
