//! What becomes one kernel with a scan, and results that are too large for the caches.

use tilewright::pipeline::Program;
use tilewright::prelude::*;

use crate::common::{agrees, random, random_f32};

type Pair<T> = (T, T);

/// The gradients of the linear recurrence along `axis` for a cotangent.
fn pull(axis: isize) -> impl Fn((Pair<Tensor>, Tensor)) -> Pair<Tensor> {
    move |(x, cotangent)| vjp(|(a, b): &Pair<Tensor>| linear_recurrence(a, b, axis), &x).1(&cotangent)
}

fn kernels(program: &Program) -> Vec<String> {
    program
        .plan
        .kernels
        .iter()
        .map(|kernel| kernel.to_string().lines().next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn producers_and_consumers_are_part_of_the_scan() {
    let shape = [80, 33];
    let x = || (random(&shape, 1), random(&shape, 2));
    let gated = compile(|(a, b): Pair<Tensor>| linear_recurrence(a.sigmoid(), b * 2.0, 1).tanh() + b);
    agrees(&gated, &x(), 1e-12);
    assert_eq!(kernels(&gated.program(&x()).unwrap()).len(), 1);

    let exclusive =
        compile(|(x, init): Pair<Tensor>| associative_scan(x, 1, |l, r| l + r).init(init).exclusive().call());
    let inputs = (random(&shape, 1), random(&shape[..1], 2));
    agrees(&exclusive, &inputs, 1e-12);
    assert_eq!(kernels(&exclusive.program(&inputs).unwrap()).len(), 1);

    // What others read as well stays where it is.
    let shared = compile(|(a, b): Pair<Tensor>| {
        let gate = a.sigmoid();
        (linear_recurrence(gate, b, 1), gate, gate.matmul(b.transpose()))
    });
    agrees(&shared, &x(), 1e-12);

    // Narrow results are rounded before what consumes them.
    let narrow = compile(|x: Tensor| {
        let sums = x.cast(DType::BF16).cumsum(1).cast(DType::F32);
        (sums, sums * 3.0)
    });
    let (sums, tripled) = narrow.call(&random_f32(&shape, 1)).unwrap();
    let tripled_later: Vec<f32> = sums.to_vec::<f32>().unwrap().iter().map(|x| x * 3.0).collect();
    assert_eq!(tripled.to_vec::<f32>().unwrap(), tripled_later);
}

/// The gradients of a recurrence take no more than its states beside what comes in and goes out.
#[test]
fn gradients_are_two_kernels() {
    for axis in [0, 1] {
        let inputs = ((random(&[70, 90], 1), random(&[70, 90], 2)), random(&[70, 90], 3));
        let f = compile(pull(axis));
        agrees(&f, &inputs, 1e-9);
        let program = f.program(&inputs).unwrap();
        assert_eq!(kernels(&program).len(), 2, "{:?}", kernels(&program));
        assert!(program.plan.arena_bytes <= 70 * 90 * 8 + 64);
    }
}

/// Backwards, along any axis and for inputs of any strides: nothing is copied first. A leaf that nobody asks for is
/// neither written nor, where the others do not need it, read.
#[test]
fn nothing_is_moved_and_dead_leaves_are_left_alone() {
    for (axis, reverse) in [(0, false), (0, true), (1, false), (-1, true)] {
        let states = compile(move |(a, b): Pair<Tensor>| {
            let scan = associative_scan((a, b), axis, |l, r| (l.0 * r.0, r.0 * l.1 + r.1));
            if reverse { scan.reverse().call().1 } else { scan.call().1 }
        });
        let sums = compile(move |(a, b): Pair<Tensor>| {
            let scan = associative_scan((a, b), axis, |l, r| (l.0 * r.0, l.1 + r.1));
            if reverse { scan.reverse().call().1 } else { scan.call().1 }
        });
        let b = random(&[33, 80], 2).transpose().flip(0).unwrap();
        let inputs = (random(&[80, 33], 1), b);
        agrees(&states, &inputs, 1e-12);
        agrees(&sums, &inputs, 1e-12);
        for (program, read) in [(states.program(&inputs).unwrap(), 2), (sums.program(&inputs).unwrap(), 1)] {
            let [kernel] = &program.plan.kernels[..] else { panic!("{:?}", kernels(&program)) };
            let mut buffers: Vec<_> = kernel.reads().into_iter().map(|view| view.buffer).collect();
            buffers.sort();
            buffers.dedup();
            assert_eq!((buffers.len(), kernel.writes().len()), (read, 1), "{kernel}");
            assert_eq!(program.plan.arena_bytes, 0);
        }
    }
}

/// Of a recurrence's states and gradients, and of the gradients alone: results and what lies between kernels.
#[test]
fn forward_and_backward_take_less_than_four_arrays() {
    for (shape, axis) in [([512, 512], 1), ([8, 32_768], 1), ([1, 262_144], 1), ([512, 512], 0)] {
        let inputs = ((random_f32(&shape, 1), random_f32(&shape, 2)), random_f32(&shape, 3));
        let both = compile(move |(x, cotangent): (Pair<Tensor>, Tensor)| {
            let (states, pull) = vjp(|(a, b): &Pair<Tensor>| linear_recurrence(a, b, axis), &x);
            (states, pull(&cotangent))
        });
        let array = 4 * shape[0] * shape[1];
        for (program, results) in [
            (both.program(&inputs).unwrap(), 3 * array),
            (compile(pull(axis)).program(&inputs).unwrap(), 2 * array),
        ] {
            assert_eq!(program.outputs().iter().map(|ty| ty.bytes()).sum::<usize>(), results);
            assert!(program.plan.arena_bytes + results < 4 * array, "{}", program.plan.arena_bytes);
        }
    }
}

/// Of 8 MB and more, results go past the caches, wherever they start.
#[test]
fn large_results() {
    for (shape, axis) in [([3, 700_003], 1), ([2050, 1027], 1), ([2050, 1027], 0), ([700_003, 3], 0)] {
        let [a, b, cotangent] = [1, 2, 3].map(|seed| random_f32(&shape, seed).to_vec::<f32>().unwrap());
        let a: Vec<f32> = a.iter().map(|a| 0.9 * a.tanh()).collect();
        let arrays = [&a, &b, &cotangent].map(|x| Array::new(shape, x).unwrap());
        let [aa, bb, cc] = &arrays;
        let forward = compile(move |(a, b): Pair<Tensor>| linear_recurrence(a, b, axis as isize));
        let programs = [
            (forward.program((aa, bb)).unwrap(), vec![aa, bb]),
            (compile(pull(axis as isize)).program(((aa, bb), cc)).unwrap(), vec![aa, bb, cc]),
        ];
        let expected = plainly(shape, axis, [&a, &b, &cotangent]);
        let mut found = Vec::new();
        for (program, inputs) in programs {
            let inputs: Vec<Vec<u8>> = inputs.iter().map(|x| x.to_bytes().unwrap()).collect();
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            // Each output starts one element further from a multiple of a vector.
            let bytes = 4 * shape[0] * shape[1];
            let mut outputs: Vec<Vec<u8>> =
                program.outputs().iter().map(|_| vec![0xFF; bytes + 96]).collect();
            let place = |(i, output): (usize, &mut Vec<u8>)| output.as_ptr().align_offset(64) + 4 * (i + 1);
            let starts: Vec<usize> = outputs.iter_mut().enumerate().map(place).collect();
            let mut slices: Vec<&mut [u8]> = Vec::new();
            for (output, start) in outputs.iter_mut().zip(starts) {
                slices.push(&mut output[start..start + bytes]);
            }
            program.run(&inputs, &mut slices, 2).unwrap();
            let bits: Vec<Vec<u8>> = slices.iter().map(|slice| slice.to_vec()).collect();
            // Which chunks are folded before they are scanned, and which in one pass, is up to the threads.
            for threads in [1, 3, 8] {
                slices.iter_mut().for_each(|slice| slice.fill(0xFF));
                program.run(&inputs, &mut slices, threads).unwrap();
                assert!(slices.iter().zip(&bits).all(|(x, y)| **x == y[..]), "{shape:?}, {threads} threads");
            }
            for slice in slices {
                let element = |x: &[u8]| f32::from_ne_bytes([x[0], x[1], x[2], x[3]]);
                found.push(slice.chunks_exact(4).map(element).collect::<Vec<f32>>());
            }
        }
        for (name, (found, expected)) in ["states", "da", "db"].iter().zip(found.iter().zip(&expected)) {
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let error = (f64::from(*found) - expected).abs();
                assert!(
                    error <= 2e-5 * (1.0 + expected.abs()),
                    "{shape:?} axis {axis} {name} {i}: {found}, {expected} expected"
                );
            }
        }
    }
}

/// The states, and the gradients of the coefficients and of the terms, by one loop there and one back.
fn plainly(shape: [usize; 2], axis: usize, [a, b, cotangent]: [&[f32]; 3]) -> [Vec<f64>; 3] {
    let [mut states, mut of_a, mut of_b] = [(); 3].map(|()| vec![0.0; shape[0] * shape[1]]);
    for row in 0..shape[1 - axis] {
        let at = |t: usize| if axis == 1 { row * shape[1] + t } else { t * shape[1] + row };
        let mut state = 0.0;
        for t in 0..shape[axis] {
            state = f64::from(a[at(t)]) * state + f64::from(b[at(t)]);
            states[at(t)] = state;
        }
        let mut adjoint = 0.0;
        for t in (0..shape[axis]).rev() {
            let next = if t + 1 < shape[axis] { f64::from(a[at(t + 1)]) } else { 0.0 };
            adjoint = f64::from(cotangent[at(t)]) + next * adjoint;
            of_b[at(t)] = adjoint;
            of_a[at(t)] = if t > 0 { adjoint * states[at(t - 1)] } else { 0.0 };
        }
    }
    [states, of_a, of_b]
}
