//! Matrix products, scattered sums and faults, through the public entry, against plain loops in `f64`.

use tilewright_cpu::{Isa, run_with};
use tilewright_ir::{DType, Scalar};
use tilewright_plan::{Buffer, BufferId, Kernel, MatMul, Place, Plan, ScatterAdd, View};

fn view(buffer: usize, strides: &[isize]) -> View {
    View { buffer: BufferId(buffer), offset: 0, strides: strides.to_vec() }
}

/// Elements of a type, that repeat from run to run (a linear congruential generator's high bits).
fn elements(dtype: DType, seed: u64, count: usize) -> Vec<Scalar> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 44) as f64 / (1 << 18) as f64 - 2.0
    };
    let scale = if dtype.is_float() { 1.0 } else { 10.0 };
    (0..count).map(|_| Scalar::Float(next() * scale).cast(dtype)).collect()
}

/// Bytes at an address that suits every element.
fn aligned(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(8).map(|chunk| chunk.iter().rev().fold(0, |word, &byte| word << 8 | byte as u64)).collect()
}

fn as_bytes(words: &[u64], count: usize) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).take(count).collect()
}

/// Runs a kernel whose inputs are buffers 0, 1, … and whose output is the buffer after them.
fn run(
    kernel: Kernel,
    inputs: &[(DType, Vec<Scalar>)],
    output: (DType, usize),
    threads: usize,
) -> tilewright_ir::Result<Vec<f64>> {
    let buffer = |dtype, elements, place| Buffer { dtype, elements, place };
    let mut buffers: Vec<Buffer> =
        inputs.iter().enumerate().map(|(i, (dtype, x))| buffer(*dtype, x.len(), Place::Input(i))).collect();
    buffers.push(buffer(output.0, output.1, Place::Output(0)));
    let plan = Plan { buffers, kernels: vec![kernel], block_maps: 0, arena_bytes: 0 };
    let words: Vec<Vec<u64>> = inputs
        .iter()
        .map(|(dtype, x)| aligned(&x.iter().flat_map(|x| x.to_bytes(*dtype)).collect::<Vec<u8>>()))
        .collect();
    let inputs: Vec<&[u8]> = words.iter().map(|words| bytes_of(words)).collect();
    let bytes = output.1 * output.0.size();
    let mut result = vec![0u64; bytes.div_ceil(8)];
    {
        // SAFETY: the numbers' bytes.
        let result = unsafe { std::slice::from_raw_parts_mut(result.as_mut_ptr().cast(), result.len() * 8) };
        run_with(&plan, &inputs, &mut [result], threads, Isa::preferred())?;
    }
    let result = as_bytes(&result, bytes);
    Ok(result.chunks(output.0.size()).map(|x| Scalar::from_bytes(output.0, x).to_f64()).collect())
}

fn bytes_of(words: &[u64]) -> &[u8] {
    // SAFETY: the numbers' bytes.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8) }
}

#[test]
fn products_of_every_type_and_layout() {
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16, DType::I64, DType::I32, DType::U8] {
        // The last two are shared by threads, in stripes of rows and of columns.
        let sizes = [
            (1, 1, 70, 5),
            (3, 17, 33, 9),
            (2, 65, 300, 130),
            (5, 4, 0, 3),
            (1, 270, 40, 33),
            (1, 4, 1030, 260),
        ];
        for (batch, rows, depth, columns) in sizes {
            for (shared, turned) in [(false, false), (true, false), (false, true)] {
                let left = elements(dtype, 1, batch * rows * depth);
                let right = elements(dtype, 2, batch * depth * columns);
                let (r, d, c) = (rows as isize, depth as isize, columns as isize);
                let right_strides = match (shared, turned) {
                    (true, _) => [0, c, 1],
                    (false, true) => [d * c, 1, d],
                    (false, false) => [d * c, c, 1],
                };
                let kernel = Kernel::MatMul(MatMul {
                    batch: vec![batch],
                    rows,
                    columns,
                    depth,
                    dtype,
                    left: view(0, &[r * d, d, 1]),
                    right: view(1, &right_strides),
                    output: view(2, &[r * c, c, 1]),
                });
                let inputs = [(dtype, left.clone()), (dtype, right.clone())];
                let output = (dtype, batch * rows * columns);
                let found = run(kernel.clone(), &inputs, output, 1).unwrap();
                assert_eq!(found, run(kernel, &inputs, output, 3).unwrap(), "threads differ, {dtype}");
                for (i, &found) in found.iter().enumerate() {
                    let (b, row, column) = (i / columns / rows, i / columns % rows, i % columns);
                    let (mut sum, mut magnitude) = (0.0, 0.0);
                    for k in 0..depth {
                        let x = left[(b * rows + row) * depth + k].to_f64();
                        let place =
                            [b, k, column].into_iter().zip(right_strides).map(|(i, s)| i as isize * s);
                        let term = x * right[place.sum::<isize>() as usize].to_f64();
                        (sum, magnitude) = (sum + term, magnitude + term.abs());
                    }
                    let (expected, tolerance) = match dtype {
                        DType::U8 => (Scalar::Integer(sum as i64).cast(dtype).to_f64(), 0.0),
                        DType::BF16 => (sum, 1e-5 * magnitude + sum.abs() / 256.0),
                        DType::F16 => (sum, 1e-5 * magnitude + sum.abs() / 2048.0),
                        _ => (sum, 1e-5 * magnitude),
                    };
                    assert!((found - expected).abs() <= tolerance, "{dtype}, {i}: {expected}, {found}");
                }
            }
        }
    }
}

fn scatter(dtype: DType, updates: usize, rows: usize, tail: usize) -> Kernel {
    Kernel::ScatterAdd(ScatterAdd {
        space: vec![updates],
        indexed: vec![rows],
        tail: vec![tail],
        indices: vec![(view(1, &[1]), DType::I64)],
        dtype,
        updates: view(0, &[tail as isize, 1]),
        output: view(2, &[tail as isize, 1]),
        origin: None,
    })
}

#[test]
fn scattered_sums_add_in_order() {
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::I32] {
        for (count, rows, tail) in [(50, 7, 3), (3000, 100, 17), (3000, 3, 64), (5, 4, 0), (0, 4, 3)] {
            let updates = elements(dtype, 3, count * tail);
            let indices: Vec<i64> =
                (0..count as i64).map(|i| i * i % rows as i64 - (i % 2) * rows as i64).collect();
            let inputs = [
                (dtype, updates.clone()),
                (DType::I64, indices.iter().map(|&i| Scalar::Integer(i)).collect()),
            ];
            let mut expected = vec![0.0f64; rows * tail];
            let mut magnitude = vec![0.0f64; rows * tail];
            for (i, &index) in indices.iter().enumerate() {
                let row = index.rem_euclid(rows as i64) as usize;
                for j in 0..tail {
                    expected[row * tail + j] += updates[i * tail + j].to_f64();
                    magnitude[row * tail + j] += updates[i * tail + j].to_f64().abs();
                }
            }
            let output = (dtype, rows * tail);
            let found = run(scatter(dtype, count, rows, tail), &inputs, output, 1).unwrap();
            assert_eq!(found, run(scatter(dtype, count, rows, tail), &inputs, output, 3).unwrap());
            for ((found, expected), magnitude) in found.iter().zip(&expected).zip(magnitude) {
                let narrow = if dtype == DType::BF16 { expected.abs() / 256.0 } else { 0.0 };
                assert!((found - expected).abs() <= 1e-5 * magnitude + narrow, "{dtype}: {expected} {found}");
            }
        }
    }
}

#[test]
fn an_index_out_of_range_is_an_error() {
    let inputs = [
        (DType::F32, elements(DType::F32, 1, 2)),
        (DType::I64, vec![Scalar::Integer(1), Scalar::Integer(-5)]),
    ];
    let error = run(scatter(DType::F32, 2, 4, 1), &inputs, (DType::F32, 4), 1).unwrap_err();
    assert_eq!(error.code(), "index");
    assert!(error.to_string().contains("index -5 is out of range for axis 0"), "{error}");
}

#[test]
fn faults_are_errors() {
    let empty = Plan { buffers: vec![], kernels: vec![], block_maps: 0, arena_bytes: usize::MAX / 2 };
    let error = run_with(&empty, &[], &mut [], 1, Isa::preferred()).unwrap_err();
    assert_eq!(error.code(), "out_of_memory");
    let short = Plan {
        buffers: vec![Buffer { dtype: DType::F32, elements: 4, place: Place::Input(0) }],
        arena_bytes: 0,
        ..empty
    };
    assert_eq!(run_with(&short, &[&[0; 8]], &mut [], 1, Isa::preferred()).unwrap_err().code(), "shape");
    assert_eq!(run_with(&short, &[], &mut [], 1, Isa::preferred()).unwrap_err().code(), "shape");
    let words = [0u64; 3];
    let misplaced = &bytes_of(&words)[1..17];
    assert_eq!(run_with(&short, &[misplaced], &mut [], 1, Isa::preferred()).unwrap_err().code(), "layout");
}
