//! One check for all scans: compiled against interpreted, and derivatives against central differences.

use tilewright::prelude::*;

use crate::common::{agrees, random, random_f32, to_f64s};

type Inputs = (Vec<Array>, Array, Vec<Array>);

/// Half the distance of the central differences.
const STEP: f64 = 1e-5;

/// The lengths that each combine function of the table is tried at.
pub const LENGTHS: [usize; 8] = [1, 2, 3, 5, 17, 128, 1000, 4097];

/// [`check`] for each of [`LENGTHS`], which is an extent of the shapes, and each of the leaves by itself.
pub fn check_lengths(
    name: &str,
    shapes: fn(usize) -> Vec<Vec<usize>>,
    f: fn(&[Tensor]) -> Vec<Tensor>,
    leaves: &[usize],
) {
    for length in LENGTHS {
        let shapes = shapes(length);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        for &leaf in leaves {
            check(&format!("{name}, length {length}, leaf {leaf}"), &shapes, f, leaf);
        }
    }
}

/// For arrays of the given shapes and the leaf `leaf` of what `f` makes of them: the leaf, its derivative along a
/// random direction in forward mode, the gradient for a random cotangent, and the derivative of that along the
/// direction in reverse mode; beside these, all that `f` makes. All are compared with the interpreter, in `f64` and
/// `f32`; in `f64` the derivatives are compared with central differences too.
pub fn check(name: &str, shapes: &[&[usize]], f: fn(&[Tensor]) -> Vec<Tensor>, leaf: usize) {
    println!("{name}");
    let function = compile(move |(x, c, t): (Vec<Tensor>, Tensor, Vec<Tensor>)| {
        let loss = |x: &Vec<Tensor>| (f(x)[leaf] * c).sum(..);
        let along =
            |x: &Vec<Tensor>| grad(loss)(x).iter().zip(&t).map(|(g, t)| (g * t).sum(..)).sum::<Tensor>();
        let (value, forward) = jvp(|x: &Vec<Tensor>| f(x)[leaf], &x, &t);
        (value, grad(loss)(&x), grad(along)(&x), forward)
    });
    let whole = compile(move |x: Vec<Tensor>| f(&x));

    let x: Vec<Array> = shapes.iter().zip(1..).map(|(shape, seed)| random(shape, seed)).collect();
    let t: Vec<Array> = shapes.iter().zip(101..).map(|(shape, seed)| random(shape, seed)).collect();
    agrees(&whole, &x, 1e-9);
    let shape = whole.call(&x).unwrap()[leaf].shape().to_vec();
    let inputs: Inputs = (x, random(&shape, 201), t);
    agrees(&function, &inputs, 1e-9);
    slopes(name, &inputs, |inputs| {
        let (value, gradient, second, forward) = function.call(inputs).unwrap();
        let contracted =
            |x: Array| to_f64s(&x).iter().zip(to_f64s(&inputs.1)).map(|(x, c)| x * c).sum::<f64>();
        (contracted(value), flat(&gradient), flat(&second), contracted(forward))
    });

    let narrow = |seed: u64| shapes.iter().zip(seed..).map(|(shape, seed)| random_f32(shape, seed)).collect();
    let inputs: Inputs = (narrow(1), random_f32(&shape, 201), narrow(101));
    agrees(&whole, &inputs.0, 2e-4);
    agrees(&function, &inputs, 2e-4);
}

/// Compares what `all` says of the derivatives with differences of what it says of the values.
fn slopes(name: &str, (x, c, t): &Inputs, all: impl Fn(&Inputs) -> (f64, Vec<f64>, Vec<f64>, f64)) {
    let at = |step: f64| {
        let moved = x.iter().zip(t).map(|(x, t)| {
            let sums: Vec<f64> = to_f64s(x).iter().zip(to_f64s(t)).map(|(x, t)| x + step * t).collect();
            Array::new(x.shape(), &sums).unwrap()
        });
        all(&(moved.collect(), c.clone(), t.clone()))
    };
    let ((_, gradient, second, forward), before, after) = (at(0.0), at(-STEP), at(STEP));
    let close = |what: &str, found: &[f64], expected: &[f64]| {
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        let scale = norm(&mut expected.iter().copied()) + 1.0;
        assert!(error <= 1e-6 * scale, "{name}: {what}: error {error:e}, norm {scale:e}");
    };
    let slope = (after.0 - before.0) / (2.0 * STEP);
    let product: f64 = gradient.iter().zip(flat(t)).map(|(g, t)| g * t).sum();
    close("gradient", &[product], &[slope]);
    close("forward mode", &[forward], &[slope]);
    let moved: Vec<f64> = after.1.iter().zip(&before.1).map(|(a, b)| (a - b) / (2.0 * STEP)).collect();
    close("second derivative", &second, &moved);
}

fn flat(arrays: &[Array]) -> Vec<f64> {
    arrays.iter().flat_map(to_f64s).collect()
}
