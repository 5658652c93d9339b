//! Attention of long sequences under sparse masks, whose time should go with the live blocks, and of few queries,
//! whose time should be that of reading the keys and values.

use tilewright::prelude::*;
use tilewright::{At, vjp};

use crate::attention::random;
use crate::report::{Limit, Report, Row, median};
use crate::{Arguments, timed};

const LENGTH: usize = 16_384;
const HEADS: usize = 2;
const SIZE: usize = 64;
/// Queries and keys of a block of the CPU's block maps.
const BLOCK: (usize, usize) = (64, 128);
const WINDOW: usize = 512;
const DOCUMENT: usize = 700;

/// Measures every case; prints one row each. Arithmetic counts the pairs of live blocks.
pub fn measure(
    arguments: &Arguments,
    report: &mut Report,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    for name in ["dense", "window", "documents"] {
        // As long as all pairs are live, a shorter sequence shows the same rate.
        let length = if name == "dense" { 2048 } else { LENGTH };
        for direction in ["forward", "backward"] {
            if format!("long {name} {direction}").contains(&arguments.filter) {
                let times = time(name, length, direction, arguments)?;
                let work = 4.0 * live_pairs(name, length) * (HEADS * SIZE) as f64;
                let work = if direction == "forward" { work } else { 2.5 * work };
                report.add(Limit::Arithmetic, row(format!("long {name}, {length}"), direction, work, times));
            }
        }
    }
    for queries in [1, 4, 16] {
        let (heads, keys) = (8, 32_768);
        let name = format!("decode, {queries} of {keys}");
        if name.contains(&arguments.filter) {
            let keyed = vec![1, heads, keys, SIZE];
            let query = random(DType::F32, vec![1, heads, queries, SIZE], 1)?;
            let (key, value) = (random(DType::F32, keyed.clone(), 2)?, random(DType::F32, keyed, 3)?);
            let forward = compile(|(q, k, v): (Tensor, Tensor, Tensor)| flex_attention(&q, &k, &v).call())
                .threads(arguments.threads);
            let times = timed(arguments.repeats, || forward.call((&query, &key, &value)).map(drop))?;
            let bytes = (2 * heads * keys * SIZE * 4) as f64;
            report.add(Limit::Memory, row(name, "forward", bytes, times));
        }
    }
    Ok(())
}

fn row(case: String, direction: &'static str, work: f64, times: Vec<f64>) -> Row {
    let chart = case.split(',').next().unwrap_or_default().to_owned();
    Row { chart, case, dtype: "f32", direction, work, times, baseline: None, peers: Vec::new() }
}

fn mask(name: &str, at: At) -> Tensor {
    match name {
        "window" => mods::sliding_window(WINDOW)(at),
        _ => (at.query / DOCUMENT as i64).eq(at.key / DOCUMENT as i64),
    }
}

/// How many pairs the live blocks have.
fn live_pairs(name: &str, length: usize) -> f64 {
    let live = |query: usize, key: usize| {
        let (last_query, last_key) = (query + BLOCK.0 - 1, key + BLOCK.1 - 1);
        match name {
            "dense" => true,
            "window" => last_query >= key && query <= last_key + WINDOW,
            _ => query / DOCUMENT <= last_key / DOCUMENT && key / DOCUMENT <= last_query / DOCUMENT,
        }
    };
    let blocks = (0..length).step_by(BLOCK.0).flat_map(|q| (0..length).step_by(BLOCK.1).map(move |k| (q, k)));
    (blocks.filter(|&(q, k)| live(q, k)).count() * BLOCK.0 * BLOCK.1) as f64
}

/// Seconds of each call; the backward's as [`crate::attention`] takes them.
fn time(name: &str, length: usize, direction: &str, arguments: &Arguments) -> Result<Vec<f64>> {
    let shape = vec![1, HEADS, length, SIZE];
    let [query, key, value, cotangent] = [1, 2, 3, 4].map(|seed| random(DType::F32, shape.clone(), seed));
    let inputs = (&query?, &key?, &value?);
    let attend = |(q, k, v): &(Tensor, Tensor, Tensor)| {
        let attention = flex_attention(q, k, v);
        if name == "dense" { attention.call() } else { attention.mask(|at| mask(name, at)).call() }
    };
    let forward = compile(|inputs: (Tensor, Tensor, Tensor)| attend(&inputs)).threads(arguments.threads);
    let forward_times = timed(arguments.repeats, || forward.call(inputs).map(drop))?;
    if direction == "forward" {
        return Ok(forward_times);
    }
    let both = compile(|(inputs, cotangent): ((Tensor, Tensor, Tensor), Tensor)| {
        let (out, pull) = vjp(attend, &inputs);
        (out, pull(&cotangent))
    })
    .threads(arguments.threads);
    let cotangent = cotangent?;
    let both_times = timed(arguments.repeats, || both.call((inputs, &cotangent)).map(drop))?;
    let without = median(&forward_times);
    Ok(both_times.into_iter().map(|time| (time - without).max(1e-9)).collect())
}
