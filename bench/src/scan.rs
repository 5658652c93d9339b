//! Scans: sums and linear recurrences over many short rows, few long ones, one, and an outer axis.

use serde_json::json;
use tilewright::prelude::*;
use tilewright::vjp;

use crate::peer::Peers;
use crate::report::{Limit, Report, Row};
use crate::{Arguments, timed};

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
            let times = time(scan, direction, shape, axis, arguments)?;
            let elements = (shape[0] * shape[1]) as f64;
            // What must be read and written at the least: x and y; a, b and both results; a, b, a cotangent, two gradients.
            let arrays = match (scan, direction) {
                ("sum", _) => 2.0,
                (_, "forward") => 3.0,
                _ => 5.0,
            };
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
                    baseline: None,
                    peers: peers.ask(&implementations, &question),
                },
            );
        }
    }
    Ok(())
}

fn time(
    scan: &str,
    direction: &str,
    shape: [usize; 2],
    axis: usize,
    arguments: &Arguments,
) -> Result<Vec<f64>> {
    let wave = |offset: f32, scale: f32| {
        Array::from_fn(shape.to_vec(), move |i| offset + scale * ((i[0] * 31 + i[1] * 7) as f32 * 0.01).sin())
    };
    let (a, b) = (wave(0.95, 0.05)?, wave(0.0, 1.0)?);
    let recurrence = |(a, b): &(Tensor, Tensor)| {
        associative_scan((*a, *b), axis as isize, |l: (Tensor, Tensor), r| (l.0 * r.0, r.0 * l.1 + r.1))
            .call()
            .1
    };
    match (scan, direction) {
        ("sum", _) => {
            let f = compile(|x: Tensor| x.cumsum(axis as isize)).threads(arguments.threads);
            timed(arguments.repeats, || f.call(&b).map(drop))
        }
        (_, "forward") => {
            let f = compile(|inputs: (Tensor, Tensor)| recurrence(&inputs)).threads(arguments.threads);
            timed(arguments.repeats, || f.call((&a, &b)).map(drop))
        }
        _ => {
            let f = compile(|(inputs, cotangent): ((Tensor, Tensor), Tensor)| {
                let (_, pull) = vjp(recurrence, &inputs);
                pull(&cotangent)
            })
            .threads(arguments.threads);
            timed(arguments.repeats, || f.call(((&a, &b), &b)).map(drop))
        }
    }
}
