//! Scans: sums and linear recurrences over many short rows, few long ones, one, and an outer axis.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use tilewright::pipeline::Program;
use tilewright::prelude::*;

use crate::Arguments;
use crate::peer::Peers;
use crate::report::{Limit, Report, Row, median};

/// Shapes of 16.8 million elements, and the axis that is scanned.
const SHAPES: [([usize; 2], usize); 4] =
    [([4096, 4096], 1), ([64, 262_144], 1), ([1, 16_777_216], 1), ([4096, 4096], 0)];

/// Measures every case; prints one row each.
pub fn measure(
    arguments: &Arguments,
    peers: &mut Peers,
    report: &mut Report,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    for (shape, axis) in SHAPES {
        for (scan, direction) in [("sum", "forward"), ("linear", "forward"), ("linear", "both")] {
            let name = format!("{scan} {}x{} axis {axis}", shape[0], shape[1]);
            if !format!("{name} {direction}").contains(&arguments.filter) {
                continue;
            }
            let elements = (shape[0] * shape[1]) as f64;
            // What must be read and written at the least: x and y; a, b and both results; a, b, a cotangent, two gradients.
            let arrays = match (scan, direction) {
                ("sum", _) => 2.0,
                (_, "forward") => 3.0,
                _ => 5.0,
            };
            let (times, copies) = time(scan, direction, shape, axis, arrays, arguments)?;
            let question = json!({
                "kind": "scan", "scan": scan, "direction": direction, "shape": shape, "axis": axis,
                "repeats": arguments.repeats.min(3), "threads": arguments.threads,
            });
            let implementations =
                [("torch", "cumsum"), ("torch", "associative_scan"), ("jax", "associative_scan")];
            report.add(
                Limit::Memory,
                Row {
                    chart: format!("scan {direction}"),
                    case: name,
                    dtype: "f32",
                    direction: if direction == "forward" { "forward" } else { "both" },
                    work: 4.0 * elements * arrays,
                    times,
                    baseline: Some(median(&copies)),
                    peers: peers.ask(&implementations, &question),
                },
            );
        }
    }
    Ok(())
}

/// Seconds of each run, and of a copy that reads and writes as much as `arrays` arrays hold, in turn. Neither
/// pays for new memory.
fn time(
    scan: &str,
    direction: &str,
    shape: [usize; 2],
    axis: usize,
    arrays: f64,
    arguments: &Arguments,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let wave = |offset: f32, scale: f32| {
        Array::from_fn(shape.to_vec(), move |i| offset + scale * ((i[0] * 31 + i[1] * 7) as f32 * 0.01).sin())
    };
    let (a, b) = (wave(0.95, 0.05)?, wave(0.0, 1.0)?);
    let (program, inputs) = program(scan, direction, axis as isize, &a, &b)?;
    let inputs = inputs.into_iter().map(Array::to_bytes).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut outputs: Vec<Vec<u8>> = program.outputs().iter().map(|ty| vec![1; ty.bytes()]).collect();
    let bytes = (arrays * 2.0) as usize * shape[0] * shape[1];
    let (source, mut target) = (vec![1u8; bytes], vec![2u8; bytes]);
    let (mut times, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..=arguments.repeats {
        let start = Instant::now();
        copy(&source, &mut target, arguments.threads);
        copies.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
        program.run(&inputs, &mut outputs, arguments.threads)?;
        times.push(start.elapsed().as_secs_f64());
    }
    // The first of each is not counted.
    Ok((times.split_off(1), copies.split_off(1)))
}

/// A case's program, and its inputs.
fn program<'a>(
    scan: &str,
    direction: &str,
    axis: isize,
    a: &'a Array,
    b: &'a Array,
) -> Result<(Arc<Program>, Vec<&'a Array>)> {
    let recurrence = |(a, b): &(Tensor, Tensor)| linear_recurrence(a, b, axis);
    match (scan, direction) {
        ("sum", _) => Ok((compile(|x: Tensor| x.cumsum(axis)).program(b)?, vec![b])),
        (_, "forward") => Ok((compile(|x: (Tensor, Tensor)| recurrence(&x)).program((a, b))?, vec![a, b])),
        _ => {
            let both =
                compile(|(x, cotangent): ((Tensor, Tensor), Tensor)| vjp(recurrence, &x).1(&cotangent));
            Ok((both.program(((a, b), b))?, vec![a, b, b]))
        }
    }
}

fn copy(source: &[u8], target: &mut [u8], threads: usize) {
    let share = source.len().div_ceil(threads.max(1));
    std::thread::scope(|scope| {
        for (to, from) in target.chunks_mut(share).zip(source.chunks(share)) {
            scope.spawn(move || to.copy_from_slice(from));
        }
    });
}
