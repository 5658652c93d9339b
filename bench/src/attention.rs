//! Attention: plain, with score functions, and with learned captures of every class.

use serde_json::json;
use tilewright::prelude::*;
use tilewright::{At, bf16, vjp};

use crate::peer::Peers;
use crate::report::{Limit, Report, Row, median};
use crate::{Arguments, timed};

type Score = Box<dyn Fn(Tensor, At, Tensor) -> Tensor>;

/// A score function with the shape of the array that it captures.
struct Case {
    name: &'static str,
    capture: Vec<usize>,
    score: Score,
}

const HEADS: usize = 8;
const LENGTH: usize = 2048;
const SIZE: usize = 64;

fn case(
    name: &'static str,
    capture: &[usize],
    score: impl Fn(Tensor, At, Tensor) -> Tensor + 'static,
) -> Case {
    Case { name, capture: capture.to_vec(), score: Box::new(score) }
}

/// The classes of the table. Every captured array is learned in the backward.
fn cases() -> Vec<Case> {
    let last = LENGTH as i64 - 1;
    vec![
        case("none", &[1], |s, _, _| s),
        case("softcap", &[1], |s, _, _| 20.0 * (s / 20.0).tanh()),
        case("bias[h]", &[HEADS], |s, at, t| s + t.at([at.head])),
        case("gain[h]", &[HEADS], |s, at, t| s * t.at([at.head])),
        case("gate[h]", &[HEADS], |s, at, t| s * t.at([at.head]).sigmoid()),
        case("bias[q]", &[LENGTH], |s, at, t| s + t.at([at.query])),
        case("gain[q]", &[LENGTH], |s, at, t| s * t.at([at.query])),
        case("bias[k]", &[LENGTH], |s, at, t| s + t.at([at.key])),
        case("indirect[q*7%n]", &[LENGTH], |s, at, t| s + t.at([(at.query * 7i64) % (LENGTH as i64)])),
        case("relative", &[HEADS, 2 * LENGTH - 1], move |s, at, t| {
            s + t.at([at.head, at.query - at.key + last])
        }),
        case("absolute", &[2 * LENGTH], |s, at, t| s + t.at([(at.query - at.key).abs()])),
        case("window table", &[17], |s, at, t| s + t.at([(at.query - at.key + 8i64).clamp(0i64, 16i64)])),
        case("bucketed", &[HEADS, 32], |s, at, t| mods::bucketed(t, true, 128)(s, at)),
        case("dense[q,k]", &[LENGTH, LENGTH], |s, at, t| s + t.at([at.query, at.key])),
        case("dense[h,q,k]", &[HEADS, LENGTH, LENGTH], |s, at, t| s + t.at([at.head, at.query, at.key])),
    ]
}

/// Numbers from −1 to 1.
pub fn random(dtype: DType, shape: Vec<usize>, seed: u64) -> Result<Array> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let count = shape.iter().product();
    let elements: Vec<f32> = (0..count).map(|_| next()).collect();
    match dtype {
        DType::BF16 => Array::new(shape, &elements.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
        _ => Array::new(shape, &elements),
    }
}

/// Measures every case; prints one row each.
pub fn measure(
    arguments: &Arguments,
    peers: &mut Peers,
    report: &mut Report,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    for dtype in [DType::F32, DType::BF16] {
        for causal in [false, true] {
            for direction in ["forward", "backward"] {
                let mut plain = None;
                for case in cases() {
                    let mask = if causal { "causal" } else { "dense" };
                    let name = format!("{mask}, {}", case.name);
                    let wanted = format!("{name} {} {direction}", dtype.name());
                    if case.name != "none" && !wanted.contains(&arguments.filter) {
                        continue;
                    }
                    let times = time(&case, dtype, causal, direction, arguments)?;
                    let pairs = (HEADS * LENGTH * LENGTH) as f64 * if causal { 0.5 } else { 1.0 };
                    let work = 4.0 * pairs * SIZE as f64 * if direction == "forward" { 1.0 } else { 2.5 };
                    let baseline = plain;
                    if case.name == "none" {
                        plain = Some(median(&times));
                    }
                    if !wanted.contains(&arguments.filter) {
                        continue;
                    }
                    let question = json!({
                        "kind": "attention", "dtype": dtype.name(), "batch": 1, "heads": HEADS, "queries": LENGTH,
                        "head_size": SIZE, "mask": mask, "score": case.name, "direction": direction,
                        "repeats": arguments.repeats, "threads": arguments.threads,
                    });
                    let known = ["none", "softcap", "relative"].contains(&case.name);
                    let implementations: &[(&str, &str)] =
                        if known { &[("torch", "fused"), ("torch", "flex")] } else { &[] };
                    report.add(
                        Limit::Arithmetic,
                        Row {
                            chart: format!("attention {direction} {}", dtype.name()),
                            case: name,
                            dtype: dtype.name(),
                            direction: if direction == "forward" { "forward" } else { "backward" },
                            work,
                            times,
                            baseline,
                            peers: peers.ask(implementations, &question),
                        },
                    );
                }
            }
        }
    }
    Ok(())
}

/// Seconds of each call. The backward's are those of forward and backward less the forward's median: what a training
/// step pays for the gradient.
fn time(case: &Case, dtype: DType, causal: bool, direction: &str, arguments: &Arguments) -> Result<Vec<f64>> {
    let shape = vec![1, HEADS, LENGTH, SIZE];
    let (query, key) = (random(dtype, shape.clone(), 1)?, random(dtype, shape.clone(), 2)?);
    let (value, cotangent) = (random(dtype, shape.clone(), 3)?, random(dtype, shape, 4)?);
    let table = random(DType::F32, case.capture.clone(), 5)?;
    let attend = |(q, k, v, t): &(Tensor, Tensor, Tensor, Tensor)| {
        let mut attention = flex_attention(q, k, v);
        if case.name != "none" {
            attention = attention.score(|s, at| (case.score)(s, at, *t));
        }
        if causal { attention.mask(mods::causal).call() } else { attention.call() }
    };
    let forward =
        compile(|inputs: (Tensor, Tensor, Tensor, Tensor)| attend(&inputs)).threads(arguments.threads);
    let inputs = (&query, &key, &value, &table);
    let forward_times = timed(arguments.repeats, || forward.call(inputs).map(drop))?;
    if direction == "forward" {
        return Ok(forward_times);
    }
    let both = compile(|(inputs, cotangent): ((Tensor, Tensor, Tensor, Tensor), Tensor)| {
        let (out, pull) = vjp(attend, &inputs);
        (out, pull(&cotangent))
    })
    .threads(arguments.threads);
    let both_times = timed(arguments.repeats, || both.call((inputs, &cotangent)).map(drop))?;
    let without = median(&forward_times);
    Ok(both_times.into_iter().map(|time| (time - without).max(1e-9)).collect())
}
