//! The gradient of attention against central differences of its forward: grouped heads, keys shared by the
//! batch, two reads of learned captures, a mask, random cotangents of the output and of the log-sum-exp.

use tilewright_interp::{Array, Precision, run};
use tilewright_ir::{DType, Graph, Type, parse};

const SHAPES: [(&str, &[usize]); 5] = [
    ("query", &[2, 4, 5, 3]),
    ("key", &[1, 2, 6, 3]),
    ("value", &[1, 2, 6, 2]),
    ("gate", &[4]),
    ("bias", &[4, 10]),
];

/// `score = s · sigmoid(gate[h]) + bias[h, q − k + 5]`, or the region that also has its derivative.
fn region(with_gradient: bool) -> String {
    let (parameter, results, derivative) = if with_gradient {
        (
            "%g: f64[], ",
            "%score, %ds, %h, %dgate, %h, %column, %g",
            "%one: f64[] = constant 1.0
             %rest = sub %one, %open
             %slope = mul %open, %rest
             %ds = mul %g, %open
             %gs = mul %g, %s
             %dgate = mul %gs, %slope",
        )
    } else {
        ("", "%score", "")
    };
    format!(
        "(%s: f64[], %b: i32[], %h: i32[], %q: i32[], %k: i32[], {parameter}%gate: f64[4], %bias: f64[4, 10])
           -> ({results}) {{
           %closed = gather %gate, %h
           %open = sigmoid %closed
           %gated = mul %s, %open
           %distance = sub %q, %k
           %five: i32[] = constant 5
           %column = add %distance, %five
           %read = gather %bias, %h, %column
           %score = add %gated, %read
           {derivative}
         }}"
    )
}

/// Query 1 sees no key; key 4 is seen by nobody.
const MASK: &str =
    "mask(%b: i32[], %h: i32[], %q: i32[], %k: i32[], %gate: f64[4], %bias: f64[4, 10]) -> (%admit) {
  %one: i32[] = constant 1
  %four: i32[] = constant 4
  %sees = ne %q, %one
  %seen = ne %k, %four
  %admit = and %sees, %seen
}";

const PARAMETERS: &str = "%query: f64[2, 4, 5, 3], %key: f64[1, 2, 6, 3], %value: f64[1, 2, 6, 2]";
const CAPTURES: &str = "%gate: f64[4], %bias: f64[4, 10]";

fn forward() -> Graph {
    let text = format!(
        "graph({PARAMETERS}, {CAPTURES}) -> (%out, %lse) {{
           %out, %lse, %top = flex_attention %query, %key, %value, %gate, %bias scale=0.7 score{} {MASK}
         }}",
        region(false)
    );
    parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

fn backward() -> Graph {
    let text = format!(
        "graph({PARAMETERS}, %out: f64[2, 4, 5, 2], %lse: f64[2, 4, 5], %dout: f64[2, 4, 5, 2], %dlse: f64[2, 4, 5],
               {CAPTURES}) -> (%dq, %dk, %dv, %dgate, %dbias) {{
           %dq, %dk, %dv, %dgate, %dbias =
             flex_attention_backward %query, %key, %value, %out, %lse, %dout, %dlse, %gate, %bias
             scale=0.7 contributions=[0:1, 1:2] learned=[0, 1] log_sum_exp_cotangent=true joint{} {MASK}
         }}",
        region(true)
    );
    parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

fn numbers(shape: &[usize], seed: usize) -> Array {
    let count = shape.iter().product::<usize>();
    let elements: Vec<f64> = (0..count).map(|i| ((i * 17 + seed * 29) as f64 * 0.61).sin()).collect();
    Array::from_f64s(Type::new(DType::F64, shape), &elements)
}

#[test]
fn equals_central_differences() {
    let inputs: Vec<Array> = SHAPES.iter().enumerate().map(|(i, (_, shape))| numbers(shape, i)).collect();
    let forward = forward();
    let results = run(&forward, &inputs, Precision::Exact).unwrap();
    let cotangents = [numbers(&[2, 4, 5, 2], 11), numbers(&[2, 4, 5], 12)];
    let operands = [&inputs[..3], &results, &cotangents, &inputs[3..]].concat();
    let gradients = run(&backward(), &operands, Precision::Exact).unwrap();

    let loss = |inputs: &[Array]| -> f64 {
        let results = run(&forward, inputs, Precision::Exact).unwrap();
        let terms = results.iter().zip(&cotangents).flat_map(|(result, cotangent)| {
            let pairs = result.to_f64s().into_iter().zip(cotangent.to_f64s());
            pairs.map(|(x, weight)| if x == f64::NEG_INFINITY { 0.0 } else { x * weight })
        });
        terms.sum()
    };
    for (number, (name, _)) in SHAPES.iter().enumerate() {
        let elements = inputs[number].to_f64s();
        let gradient = gradients[number].to_f64s();
        for i in 0..elements.len() {
            let moved = |step: f64| {
                let mut moved = elements.clone();
                moved[i] += step;
                let mut inputs = inputs.clone();
                inputs[number] = Array::from_f64s(inputs[number].ty().clone(), &moved);
                loss(&inputs)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!(
                (slope - gradient[i]).abs() < 1e-8,
                "{name}[{i}]: {slope} by differences, {}",
                gradient[i]
            );
        }
    }
    let query_gradient = gradients[0].to_f64s();
    assert!(query_gradient[3..6].iter().all(|&x| x == 0.0), "a row without keys has gradient 0");
}
