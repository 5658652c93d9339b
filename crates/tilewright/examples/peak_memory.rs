//! Peak memory of attention forward and backward at a length of 16384, with a learned bias of relative positions:
//! `cargo run --release -p tilewright --example peak_memory` (Linux).

use tilewright::prelude::*;

const HEADS: usize = 4;
const LENGTH: usize = 16384;
const SIZE: usize = 64;

/// A size from the kernel's account of this process, in bytes.
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux system");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a size in kB");
    kilobytes.parse::<usize>().expect("a number") * 1024
}

fn main() -> Result<()> {
    let wave = |seed: usize| {
        Array::from_fn([1, HEADS, LENGTH, SIZE], |i| ((seed + 7 * i[1] + 3 * i[2] + 5 * i[3]) as f32).sin())
    };
    let inputs =
        (wave(0)?, wave(1)?, wave(2)?, Array::from_fn([HEADS, 2 * LENGTH - 1], |i| (i[1] as f32).cos())?);
    let cotangent = wave(3)?;
    let step = compile(|(inputs, cotangent): ((Tensor, Tensor, Tensor, Tensor), Tensor)| {
        let attend = |(q, k, v, bias): &(Tensor, Tensor, Tensor, Tensor)| {
            flex_attention(q, k, v).score(mods::relative(*bias)).call()
        };
        let (output, pull) = vjp(attend, &inputs);
        (output, pull(&cotangent))
    });
    let before = status("VmRSS");
    let peak_before = status("VmHWM");
    let (output, _) = step.call((&inputs, &cotangent))?;
    let peak = status("VmHWM");
    assert!(peak > peak_before, "the peak was before the call");
    println!("{}", step.explain());
    println!("first output {:?}", output.slice(2, 0..1)?.slice(3, 0..1)?.to_vec::<f32>()?);
    println!("peak {:.1} MB above the inputs", (peak - before) as f64 / 1e6);
    Ok(())
}
