//! Loop nests through [`crate::run_with`], against a literal reading of what `tilewright_plan::loops` says.

use tilewright_ir::{Binary, Compare, DType, Error, Scalar, Unary};
use tilewright_plan::loops::{Lanes, Loops, Phase, RowReduction, Sink, Source};
use tilewright_plan::{
    Buffer, BufferId, Kernel, Kind, Operation, Place, Plan, Program, Register, View, evaluate,
};

use crate::{Isa, run_with};

/// Numbers that repeat from run to run (SplitMix64).
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..count).map(|_| (next() >> 40) as f64 / (1u64 << 22) as f64 - 2.0).collect()
}

/// One array of a plan: its type and its elements.
type Contents = (DType, Vec<Scalar>);

fn floats(dtype: DType, seed: u64, count: usize) -> Contents {
    (dtype, numbers(seed, count).into_iter().map(|x| Scalar::Float(x).cast(dtype)).collect())
}

fn bytes((dtype, elements): &Contents) -> Vec<u64> {
    let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_bytes(*dtype)).collect();
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_ne_bytes(word)
    };
    bytes.chunks(8).map(word).collect()
}

/// Runs one kernel over inputs (buffers 0, 1, …) to zeroed outputs (the buffers after them).
fn run_kernel(
    kernel: Kernel,
    inputs: &[Contents],
    outputs: &[(DType, usize)],
    threads: usize,
    isa: Isa,
) -> Result<Vec<Vec<Scalar>>, Error> {
    let input_buffers = inputs.iter().enumerate().map(|(i, (dtype, elements))| Buffer {
        dtype: *dtype,
        elements: elements.len(),
        place: Place::Input(i),
    });
    let output_buffers = outputs.iter().enumerate().map(|(i, &(dtype, elements))| Buffer {
        dtype,
        elements,
        place: Place::Output(i),
    });
    let buffers = input_buffers.chain(output_buffers).collect();
    let plan = Plan { buffers, kernels: vec![kernel], block_maps: 0, arena_bytes: 0 };
    let words: Vec<Vec<u64>> = inputs.iter().map(bytes).collect();
    let inputs: Vec<&[u8]> = words
        .iter()
        .zip(inputs)
        // SAFETY: the words' bytes.
        .map(|(words, (dtype, elements))| unsafe {
            std::slice::from_raw_parts(words.as_ptr().cast(), elements.len() * dtype.size())
        })
        .collect();
    let mut results: Vec<Vec<u64>> =
        outputs.iter().map(|(dtype, count)| vec![0; (count * dtype.size()).div_ceil(8)]).collect();
    {
        let mut outputs: Vec<&mut [u8]> = results
            .iter_mut()
            .zip(outputs)
            // SAFETY: the words' bytes.
            .map(|(words, (dtype, count))| unsafe {
                std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), count * dtype.size())
            })
            .collect();
        run_with(&plan, &inputs, &mut outputs, threads, isa)?;
    }
    let elements = |(words, &(dtype, count)): (&Vec<u64>, &(DType, usize))| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.chunks(dtype.size()).take(count).map(|x| Scalar::from_bytes(dtype, x)).collect()
    };
    Ok(results.iter().zip(outputs).map(elements).collect())
}

/// The meaning of a loop nest, element by element, with sums in `f64`.
fn reference(kernel: &Loops, inputs: &[Contents], outputs: &[(DType, usize)]) -> Vec<Vec<Scalar>> {
    let mut buffers: Vec<Contents> = inputs.to_vec();
    buffers
        .extend(outputs.iter().map(|&(dtype, count)| (dtype, vec![Scalar::Integer(0).cast(dtype); count])));
    let place = |view: &View, at: &[usize]| {
        let along: isize = at.iter().zip(&view.strides).map(|(&i, &stride)| i as isize * stride).sum();
        (view.offset + along) as usize
    };
    let row_elements: usize = kernel.row.iter().product();
    for line in 0..kernel.parallel.iter().product() {
        let mut scalars = vec![Scalar::Integer(0); kernel.row_scalars];
        let mut values = vec![vec![Scalar::Integer(0); row_elements]; kernel.row_values];
        for phase in &kernel.phases {
            let mut reduced: Vec<Option<(Scalar, Scalar)>> = vec![None; phase.sinks.len()];
            let elements = if phase.once { 1 } else { row_elements };
            (0..elements).for_each(|element| {
                let mut at = unravel(line, &kernel.parallel);
                at.extend(unravel(element, &kernel.row));
                let input = |number: usize| match &phase.sources[number] {
                    Source::Load { view, valid, .. } => {
                        let outside = |(ranges, _): &&(Vec<(usize, usize)>, Scalar)| {
                            ranges.iter().zip(&at).any(|(&(low, high), i)| !(low..high).contains(i))
                        };
                        match valid.as_ref().filter(outside) {
                            Some(&(_, value)) => value,
                            None => buffers[view.buffer.0].1[place(view, &at)],
                        }
                    }
                    Source::Index(axis) => Scalar::Integer(at[*axis] as i64),
                    Source::RowScalar(scalar) => scalars[*scalar],
                    Source::RowValue(value) => values[*value][element],
                };
                let results = evaluate_program(&phase.program, input);
                for ((sink, result), reduced) in phase.sinks.iter().zip(results).zip(&mut reduced) {
                    match sink {
                        Sink::Store { view, dtype } => {
                            let place = place(view, &at);
                            buffers[view.buffer.0].1[place] = result.cast(*dtype);
                        }
                        Sink::RowScalar(scalar) => scalars[*scalar] = result,
                        Sink::RowValue(value) => values[*value][element] = result,
                        Sink::Reduce { kind, .. } => {
                            let position = Scalar::Integer(element as i64);
                            *reduced = Some(match *reduced {
                                None => (result, position),
                                Some(so_far) => combine(*kind, so_far, (result, position)),
                            });
                        }
                    }
                }
            });
            for (sink, reduced) in phase.sinks.iter().zip(reduced) {
                if let Sink::Reduce { kind, scalar } = sink {
                    let (value, position) = reduced.expect("rows of these tests have elements");
                    scalars[*scalar] = if *kind == RowReduction::ArgMax { position } else { value };
                }
            }
        }
    }
    buffers.split_off(inputs.len()).into_iter().map(|(_, elements)| elements).collect()
}

fn combine(kind: RowReduction, (x, i): (Scalar, Scalar), (y, j): (Scalar, Scalar)) -> (Scalar, Scalar) {
    let wide = match x {
        Scalar::Float(_) => Kind::F64,
        Scalar::Integer(_) => Kind::I64,
        Scalar::Bool(_) => Kind::Bool,
    };
    let join = |function| evaluate::binary(function, wide, x, y);
    match kind {
        RowReduction::Sum => (join(Binary::Add), i),
        RowReduction::Prod => (join(Binary::Mul), i),
        RowReduction::Max => (join(Binary::Max), i),
        RowReduction::Min => (join(Binary::Min), i),
        RowReduction::ArgMax if evaluate::compare(Compare::Gt, y, x) => (y, j),
        RowReduction::ArgMax => (x, i),
    }
}

fn unravel(mut number: usize, extents: &[usize]) -> Vec<usize> {
    let mut at = vec![0; extents.len()];
    for (slot, extent) in at.iter_mut().zip(extents).rev() {
        *slot = number % extent;
        number /= extent;
    }
    at
}

fn evaluate_program(program: &Program, input: impl Fn(usize) -> Scalar) -> Vec<Scalar> {
    let mut values: Vec<Scalar> = Vec::new();
    for instruction in &program.instructions {
        let (at, kind) = (|register: &Register| values[register.index()], instruction.kind);
        let value = match &instruction.operation {
            Operation::Input(number) => evaluate::hold(input(*number), kind),
            Operation::Constant(value) => evaluate::hold(*value, kind),
            Operation::Unary(function, a) => evaluate::unary(*function, kind, at(a)),
            Operation::Binary(function, a, b) => evaluate::binary(*function, kind, at(a), at(b)),
            Operation::Compare(comparison, a, b) => {
                Scalar::Bool(evaluate::compare(*comparison, at(a), at(b)))
            }
            Operation::Select(c, a, b) => {
                if at(c).to_bool() {
                    at(a)
                } else {
                    at(b)
                }
            }
            Operation::Cast(a) => evaluate::hold(at(a), kind),
            Operation::Round(dtype, a) => evaluate::round(*dtype, at(a)),
            Operation::Load(..) | Operation::RandomBits(..) => unreachable!("not in these tests"),
        };
        values.push(value);
    }
    program.results.iter().map(|result| values[result.index()]).collect()
}

fn view(buffer: usize, offset: isize, strides: &[isize]) -> View {
    View { buffer: BufferId(buffer), offset, strides: strides.to_vec() }
}

fn load(buffer: usize, strides: &[isize]) -> Source {
    Source::Load { view: view(buffer, 0, strides), dtype: DType::F32, valid: None }
}

fn store(buffer: usize, strides: &[isize]) -> Sink {
    Sink::Store { view: view(buffer, 0, strides), dtype: DType::F32 }
}

/// A program of `F32` operations: each is a function from the registers so far to the next one.
fn program(inputs: usize, operations: &[Operation], results: &[u32]) -> Program {
    let mut program = Program::default();
    for input in 0..inputs {
        program.push(Operation::Input(input), Kind::F32);
    }
    for operation in operations {
        program.push(operation.clone(), Kind::F32);
    }
    program.results = results.iter().map(|&result| Register(result)).collect();
    program
}

fn binary(function: Binary, a: u32, b: u32) -> Operation {
    Operation::Binary(function, Register(a), Register(b))
}

fn unary(function: Unary, a: u32) -> Operation {
    Operation::Unary(function, Register(a))
}

/// Runs a nest on every instruction set with 1, 2 and 3 threads: each is near the reference, relative to
/// the greatest result, and the numbers of threads agree bit by bit.
fn check(kernel: &Loops, inputs: &[Contents], outputs: &[(DType, usize)], tolerance: f64) {
    let expected = reference(kernel, inputs, outputs);
    for isa in Isa::available() {
        let run = |threads| run_kernel(Kernel::Loops(kernel.clone()), inputs, outputs, threads, isa).unwrap();
        let found = run(1);
        for (expected, found) in expected.iter().zip(&found) {
            let scale =
                expected.iter().map(|x| x.to_f64().abs()).filter(|x| x.is_finite()).fold(1.0, f64::max);
            for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
                let (expected, found) = (expected.to_f64(), found.to_f64());
                let near = (expected - found).abs() <= tolerance * scale || expected == found;
                assert!(near, "element {i}, {isa:?}: {expected} expected, {found} found");
            }
        }
        for threads in [2, 3] {
            assert_eq!(run(threads), found, "{threads} threads on {isa:?}");
        }
    }
}

fn elementwise(parallel: &[usize], sources: Vec<Source>, sinks: Vec<Sink>, program: Program) -> Loops {
    let phases = vec![Phase { once: false, program, sources, sinks }];
    Loops {
        parallel: parallel.to_vec(),
        row: vec![],
        phases,
        row_scalars: 0,
        row_values: 0,
        tables: vec![],
        lanes: Lanes::Row,
    }
}

/// x · y + 0.5 for x [37, 5, 70], y broadcast, transposed or reversed.
#[test]
fn element_wise_over_strides() {
    let extents = [37, 5, 70];
    let packed = [350, 70, 1];
    let code = program(
        2,
        &[binary(Binary::Mul, 0, 1), Operation::Constant(Scalar::Float(0.5)), binary(Binary::Add, 2, 3)],
        &[4],
    );
    let inputs = [floats(DType::F32, 1, 37 * 5 * 70), floats(DType::F32, 2, 37 * 5 * 70)];
    let outputs = [(DType::F32, 37 * 5 * 70)];
    for other in [[350, 70, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0], [5, 1, 185], [1, 37, 185]] {
        let kernel = elementwise(
            &extents,
            vec![load(0, &packed), load(1, &other)],
            vec![store(2, &packed)],
            code.clone(),
        );
        check(&kernel, &inputs, &outputs, 1e-6);
        let turned = elementwise(
            &extents,
            vec![load(0, &packed), load(1, &other)],
            vec![store(2, &other)],
            code.clone(),
        );
        if !other.contains(&0) {
            check(&turned, &inputs, &outputs, 1e-6);
        }
    }
    let reversed = Source::Load { view: view(1, 69, &[350, 70, -1]), dtype: DType::F32, valid: None };
    let kernel = elementwise(&extents, vec![load(0, &packed), reversed], vec![store(2, &packed)], code);
    check(&kernel, &inputs, &outputs, 1e-6);
}

/// A pad by 2 and 3 around x [6, 40], with positions added in.
#[test]
fn windows_and_positions() {
    let padded = Source::Load {
        view: view(0, -(2 * 40 + 3), &[40, 1]),
        dtype: DType::BF16,
        valid: Some((vec![(2, 8), (3, 43)], Scalar::Float(-7.0))),
    };
    let mut code = Program::default();
    let x = code.push(Operation::Input(0), Kind::F32);
    let row = code.push(Operation::Input(1), Kind::I64);
    let column = code.push(Operation::Input(2), Kind::I64);
    let sum = code.push(Operation::Binary(Binary::Add, row, column), Kind::I64);
    let sum = code.push(Operation::Cast(sum), Kind::F32);
    code.results = vec![code.push(Operation::Binary(Binary::Add, x, sum), Kind::F32)];
    let sources = vec![padded, Source::Index(0), Source::Index(1)];
    let sink = Sink::Store { view: view(1, 0, &[46, 1]), dtype: DType::F16 };
    let kernel = elementwise(&[10, 46], sources, vec![sink], code);
    check(&kernel, &[floats(DType::BF16, 3, 240)], &[(DType::F16, 460)], 1e-6);
}

fn softmax(parallel: &[usize], row: &[usize], strides: &[isize], lanes: Lanes) -> Loops {
    let maximum = Phase {
        once: false,
        program: program(1, &[], &[0]),
        sources: vec![load(0, strides)],
        sinks: vec![Sink::Reduce { kind: RowReduction::Max, scalar: 0 }],
    };
    let sum = Phase {
        once: false,
        program: program(2, &[binary(Binary::Sub, 0, 1), unary(Unary::Exp, 2)], &[3, 3]),
        sources: vec![load(0, strides), Source::RowScalar(0)],
        sinks: vec![Sink::Reduce { kind: RowReduction::Sum, scalar: 1 }, Sink::RowValue(0)],
    };
    let inverse = Phase {
        once: true,
        program: program(1, &[Operation::Constant(Scalar::Float(1.0)), binary(Binary::Div, 1, 0)], &[2]),
        sources: vec![Source::RowScalar(1)],
        sinks: vec![Sink::RowScalar(2)],
    };
    let product = Phase {
        once: false,
        program: program(2, &[binary(Binary::Mul, 0, 1)], &[2]),
        sources: vec![Source::RowValue(0), Source::RowScalar(2)],
        sinks: vec![store(1, strides)],
    };
    Loops {
        parallel: parallel.to_vec(),
        row: row.to_vec(),
        phases: vec![maximum, sum, inverse, product],
        row_scalars: 3,
        row_values: 1,
        tables: vec![],
        lanes,
    }
}

#[test]
fn softmax_along_either_lanes() {
    for (parallel, row) in [
        (vec![7, 50], vec![33]),
        (vec![3], vec![5000]),
        (vec![2], vec![150_000]),
        (vec![], vec![20, 50]),
        (vec![300], vec![1]),
        (vec![2, 3], vec![4, 5]),
    ] {
        let extents: Vec<usize> = parallel.iter().chain(&row).copied().collect();
        let count = extents.iter().product();
        let mut strides = vec![1isize; extents.len()];
        for axis in (1..extents.len()).rev() {
            strides[axis - 1] = strides[axis] * extents[axis] as isize;
        }
        let inputs = [floats(DType::F32, 5, count)];
        check(&softmax(&parallel, &row, &strides, Lanes::Row), &inputs, &[(DType::F32, count)], 1e-6);
        // The same in the other order of axes: rows outermost.
        let (own, rows) = strides.split_at(parallel.len());
        let own: Vec<isize> =
            own.iter().map(|&stride| stride / row.iter().product::<usize>() as isize).collect();
        let rows: Vec<isize> =
            rows.iter().map(|&stride| stride * parallel.iter().product::<usize>() as isize).collect();
        let strides = [own, rows].concat();
        check(&softmax(&parallel, &row, &strides, Lanes::Parallel), &inputs, &[(DType::F32, count)], 1e-6);
    }
}

/// Each reduction of each kind of number, over rows that fit one tile, many, and many chunks.
#[test]
fn reductions_of_every_kind() {
    let reductions =
        [RowReduction::Sum, RowReduction::Prod, RowReduction::Max, RowReduction::Min, RowReduction::ArgMax];
    for dtype in [DType::F64, DType::F32, DType::I64, DType::I32, DType::Bool] {
        for (lines, length) in [(5usize, 100usize), (3, 9000), (1, 140_000)] {
            for lanes in [Lanes::Row, Lanes::Parallel] {
                for reduction in reductions {
                    let arithmetic = matches!(reduction, RowReduction::Sum | RowReduction::Prod);
                    if dtype == DType::Bool && arithmetic {
                        continue;
                    }
                    let kind = Kind::of(dtype);
                    let result = if reduction == RowReduction::ArgMax { DType::I64 } else { dtype };
                    let mut first = Program::default();
                    first.results = vec![first.push(Operation::Input(0), kind)];
                    let mut second = Program::default();
                    second.results = vec![second.push(Operation::Input(0), Kind::of(result))];
                    let strides: [isize; 2] =
                        if lanes == Lanes::Row { [length as isize, 1] } else { [1, lines as isize] };
                    let source = Source::Load { view: view(0, 0, &strides), dtype, valid: None };
                    let sink = Sink::Store { view: view(1, 0, &[1, 0]), dtype: result };
                    let phases = vec![
                        Phase {
                            once: false,
                            program: first,
                            sources: vec![source],
                            sinks: vec![Sink::Reduce { kind: reduction, scalar: 0 }],
                        },
                        Phase {
                            once: true,
                            program: second,
                            sources: vec![Source::RowScalar(0)],
                            sinks: vec![sink],
                        },
                    ];
                    let kernel = Loops {
                        parallel: vec![lines],
                        row: vec![length],
                        phases,
                        row_scalars: 1,
                        row_values: 0,
                        tables: vec![],
                        lanes,
                    };
                    let mut input = floats(dtype, 9, lines * length);
                    if reduction == RowReduction::Prod && dtype.is_float() {
                        // Near 1, so that the product neither vanishes nor overflows.
                        for x in &mut input.1 {
                            *x = Scalar::Float(1.0 + x.to_f64() * 1e-3).cast(dtype);
                        }
                    }
                    let tolerance = match (dtype, reduction) {
                        (DType::F32, RowReduction::Prod) => 2e-4,
                        // Terms cancel: rounding is relative to the sum of their magnitudes.
                        (DType::F32, RowReduction::Sum) => 2e-8 * length as f64,
                        (DType::F32, _) => 2e-6,
                        _ => 1e-11,
                    };
                    check(&kernel, &[input], &[(result, lines)], tolerance);
                }
            }
        }
    }
}

/// A view that leaves its buffer is an error, not an access.
#[test]
fn views_are_checked() {
    let kernel = elementwise(&[10], vec![load(0, &[2])], vec![store(1, &[1])], program(1, &[], &[0]));
    let ran = run_kernel(
        Kernel::Loops(kernel),
        &[floats(DType::F32, 1, 10)],
        &[(DType::F32, 10)],
        1,
        Isa::preferred(),
    );
    assert_eq!(ran.unwrap_err().code(), "invariant");
}
