//! First calls, and masks of long sequences.
//!
//! A first call traces, plans, compiles and runs. Run twice with one folder for `TILEWRIGHT_CACHE`, empty at first: the
//! second time kernels come from the disk.

use std::time::Instant;

use tilewright::prelude::*;

use crate::{DEVICE, random, time};

/// Attention whose score function and mask were never seen.
pub fn calls() -> Result<()> {
    // Pays for the device and the compiler's library.
    let warm = compile(|x: Tensor| x + 1.0).on(DEVICE);
    warm.call(&Array::scalar(1f32))?.item::<f32>()?;
    let (heads, length, size) = (8, 1024, 64);
    let split = compile(|x: Tensor| x.reshape([1, heads, length, size]).cast(DType::BF16));
    let [query, key, value] =
        [1, 2, 3].map(|seed| split.call(&random([heads * length, size], -1.0, 1.0, seed)?));
    let (query, key, value) = (query?, key?, value?);
    let bias = random([heads, 2 * length - 1], -1.0, 1.0, 4)?;
    let attend = |(q, k, v, bias): &(Tensor, Tensor, Tensor, Tensor)| {
        flex_attention(q, k, v).mask(mods::causal).score(mods::relative(*bias)).call()
    };
    let inputs = (&query, &key, &value, &bias);
    let forward = compile(|inputs: (Tensor, Tensor, Tensor, Tensor)| attend(&inputs));
    let start = Instant::now();
    forward.call(inputs)?;
    DEVICE.synchronize()?;
    println!(r#"{{"case": "first call, forward", "ms": {:.1}}}"#, start.elapsed().as_secs_f64() * 1e3);
    let gradient = compile(|inputs: (Tensor, Tensor, Tensor, Tensor)| {
        grad(|inputs: &(Tensor, Tensor, Tensor, Tensor)| attend(inputs).cast(DType::F32).sum(..))(&inputs)
    });
    let start = Instant::now();
    gradient.call(inputs)?;
    DEVICE.synchronize()?;
    println!(r#"{{"case": "first call, gradient", "ms": {:.1}}}"#, start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Documents of 700 positions in a sequence of 65,536: what the block map takes.
pub fn documents() -> Result<()> {
    let (length, size) = (1 << 16, 128);
    let split = compile(|x: Tensor| x.reshape([1, 1, length, size]).cast(DType::BF16));
    let [query, key, value] = [1, 2, 3].map(|seed| split.call(&random([length, size], -1.0, 1.0, seed)?));
    let (query, key, value) = (query?, key?, value?);
    let numbers = Array::from_fn([1, length], |i| (i[1] / 700) as i32)?.to_device(DEVICE)?;
    let attend = compile(|(q, k, v, numbers): (Tensor, Tensor, Tensor, Tensor)| {
        flex_attention(&q, &k, &v).mask(mods::document(numbers)).call()
    });
    let inputs = (&query, &key, &value, &numbers);
    let taken = time(20, || attend.call(inputs).map(drop))?;
    println!(r#"{{"case": "documents of 700", "S": {length}, "ms": {:.4}}}"#, taken.as_secs_f64() * 1e3);
    let explained = attend.explain();
    println!("{}", explained.lines().filter(|line| line.contains("memory")).collect::<Vec<_>>().join("\n"));
    println!("{}", attend.profile(inputs)?);
    Ok(())
}
