//! Lowered regions against the interpreter, which shares no code with them.

use tilewright_generate::{Config, Random, random_graph, random_inputs};
use tilewright_interp::{Array, Precision};
use tilewright_ir::{Binary, DType, Graph, Op, Origin, Reduction, Scalar, Type};
use tilewright_plan::{Operation, evaluate};

use super::{Argument, lower_region};

/// The results of a lowered region for whole arrays.
fn run(region: &Graph, arguments: &[Argument], arrays: &[Array]) -> Vec<Scalar> {
    let program = lower_region(region, arguments).unwrap();
    let mut inputs = Vec::new();
    for (argument, array) in arguments.iter().zip(arrays) {
        let numbers: &[usize] = match argument {
            Argument::Input(number) => std::slice::from_ref(number),
            Argument::Part { inputs, .. } => inputs,
            Argument::Table(_) => &[],
        };
        for (&number, scalar) in numbers.iter().zip(array.to_literal().elements()) {
            inputs.resize(inputs.len().max(number + 1), Scalar::Integer(0));
            inputs[number] = scalar;
        }
    }
    let load = |table: usize, indices: &[i64]| {
        let which = arguments.iter().position(|argument| *argument == Argument::Table(table));
        let array = &arrays[which.expect("a table among the arguments")];
        let place = indices.iter().zip(&array.ty().shape).fold(0, |place, (&index, &extent)| {
            place * extent + evaluate::position(index, extent).expect("an index in range")
        });
        array.to_literal().element(place)
    };
    let random_bits = |key: i64, counter: i64| {
        let mut graph = Graph::new();
        let key_value = graph.parameter(Type::scalar(DType::I64));
        let op = Op::RandomBits { shape: vec![counter as usize + 1] };
        let bits = graph.add1(op, &[key_value], None).unwrap();
        graph.set_results(vec![bits]);
        let key = Array::from_i64s(Type::scalar(DType::I64), &[key]);
        let bits = tilewright_interp::run(&graph, &[key], Precision::Exact).unwrap();
        bits[0].to_i64s()[counter as usize] as i32
    };
    evaluate::run(&program, &inputs, load, random_bits)
}

/// Each parameter a table or inputs, by chance.
fn arguments(region: &Graph, random: &mut Random) -> Vec<Argument> {
    let mut next = 0;
    let argument = |(number, ty): (usize, &Type)| {
        let inputs: Vec<usize> = (next..next + ty.elements()).collect();
        if ty.rank() > 0 && random.once_in(2) {
            return Argument::Table(number);
        }
        next += inputs.len();
        if ty.rank() == 0 {
            Argument::Input(inputs[0])
        } else {
            Argument::Part { axes: (0..ty.rank()).collect(), inputs }
        }
    };
    region.parameter_types().into_iter().enumerate().map(argument).collect()
}

fn check_random(dtype: DType, precision: Precision, relative: f64) {
    for seed in 0..400 {
        let config = Config { operations: 14, dtype, differentiable: false, extent: 4 };
        let region = random_graph(seed, &config);
        let inputs = random_inputs(&region, seed ^ 0xabc);
        let arguments = arguments(&region, &mut Random::new(seed));
        let expected = tilewright_interp::run(&region, &inputs, precision).unwrap();
        let found = run(&region, &arguments, &inputs);
        let mut rest = &found[..];
        for array in &expected {
            let (mine, after) = rest.split_at(array.ty().elements());
            rest = after;
            let scale = array.to_f64s().iter().fold(1.0f64, |all, x| all.max(x.abs()));
            for (found, expected) in mine.iter().zip(array.to_literal().elements()) {
                let near = (found.to_f64() - expected.to_f64()).abs() <= relative * scale;
                let exact = array.ty().dtype.is_float() && near;
                assert!(exact || *found == expected, "seed {seed}: {found} for {expected} in\n{region}");
            }
        }
        assert!(rest.is_empty());
    }
}

#[test]
fn random_regions_in_double_precision() {
    check_random(DType::F64, Precision::Exact, 1e-12);
}

#[test]
fn random_regions_in_single_precision() {
    check_random(DType::F32, Precision::Typed, 1e-6);
}

#[test]
fn random_regions_in_half_types_round_each_result() {
    check_random(DType::BF16, Precision::Typed, 1.0 / 128.0);
    check_random(DType::F16, Precision::Typed, 1.0 / 1024.0);
}

#[test]
fn a_gather_of_a_gather_of_a_table_is_one_load() {
    let mut region = Graph::new();
    let [table, q, k] =
        [Type::new(DType::F32, [100, 200]), Type::scalar(DType::I32), Type::scalar(DType::I32)]
            .map(|ty| region.parameter(ty));
    let row = region.add1(Op::Gather, &[table, q], None).unwrap();
    let element = region.add1(Op::Gather, &[row, k], None).unwrap();
    region.set_results(vec![element]);
    let arguments = [Argument::Table(0), Argument::Input(0), Argument::Input(1)];
    let program = lower_region(&region, &arguments).unwrap();
    assert_eq!(program.instructions.len(), 3);
    assert!(matches!(&program.instructions[2].operation, Operation::Load(0, indices) if indices.len() == 2));
}

#[test]
fn an_index_of_a_computed_array_counts_from_its_end_and_is_clamped() {
    let mut region = Graph::new();
    let array = region.parameter(Type::new(DType::F64, [3]));
    let index = region.parameter(Type::scalar(DType::I32));
    let doubled = region.add1(Op::Binary(Binary::Add), &[array, array], None).unwrap();
    let element = region.add1(Op::Gather, &[doubled, index], None).unwrap();
    region.set_results(vec![element]);
    let numbers = Array::from_f64s(Type::new(DType::F64, [3]), &[1.0, 2.0, 3.0]);
    for (index, expected) in [(0, 2.0), (2, 6.0), (-1, 6.0), (-3, 2.0), (3, 6.0), (-4, 2.0)] {
        let index = Array::from_i64s(Type::scalar(DType::I32), &[index]);
        let arguments = [Argument::Part { axes: vec![0], inputs: vec![0, 1, 2] }, Argument::Input(3)];
        assert_eq!(run(&region, &arguments, &[numbers.clone(), index]), [Scalar::Float(expected)]);
    }
}

/// Each array has two readers: 2⁶⁰ ways lead to the table, and each array is looked at once.
#[test]
fn an_index_is_followed_through_each_array_once() {
    let mut region = Graph::new();
    let table = region.parameter(Type::new(DType::F32, [20]));
    let index = region.parameter(Type::scalar(DType::I32));
    let mut power = table;
    for _ in 0..60 {
        power = region.add1(Op::Binary(Binary::Mul), &[power, power], None).unwrap();
    }
    let element = region.add1(Op::Gather, &[power, index], None).unwrap();
    region.set_results(vec![element]);
    let program = lower_region(&region, &[Argument::Table(0), Argument::Input(0)]).unwrap();
    // The index, its load, and the squares.
    assert_eq!(program.instructions.len(), 62);
}

#[test]
fn a_sum_too_long_is_refused_at_its_line() {
    let mut region = Graph::new();
    let table = region.parameter(Type::new(DType::F32, [1 << 20]));
    let origin = Origin { file: "model.rs".into(), line: 7, column: 3 };
    let op = Op::Reduce { kind: Reduction::Sum, axes: vec![0] };
    let sum = region.add1(op, &[table], Some(origin.clone())).unwrap();
    region.set_results(vec![sum]);
    let error = lower_region(&region, &[Argument::Table(0)]).unwrap_err();
    assert_eq!((error.code(), error.origin()), ("limit", Some(&origin)));
}

#[test]
fn a_region_of_too_many_operations_is_refused() {
    let mut region = Graph::new();
    let x = region.parameter(Type::scalar(DType::F32));
    let mut sum = x;
    for i in 0..10_000 {
        let number = region.scalar(DType::F32, 1.0 + f64::from(i));
        let product = region.add1(Op::Binary(Binary::Mul), &[sum, number], None).unwrap();
        sum = region.add1(Op::Binary(Binary::Add), &[product, x], None).unwrap();
    }
    region.set_results(vec![sum]);
    let error = lower_region(&region, &[Argument::Input(0)]).unwrap_err();
    assert_eq!(error.code(), "limit");
}
