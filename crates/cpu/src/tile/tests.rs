//! Random programs on random tiles against the scalar definition of `tilewright_plan::evaluate`.

use tilewright_ir::{Binary, Compare, DType, ErrorKind, Scalar, Unary};
use tilewright_plan::{BufferId, Instruction, Kind, Operation, Program, Register, Table, View, evaluate};

use super::*;
use crate::Isa;
use crate::math::philox;

/// A small generator of numbers (Steele, Lea and Flood 2014: SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    fn scalar(&mut self, dtype: DType) -> Scalar {
        let x = match dtype {
            DType::Bool => Scalar::Bool(self.below(2) == 0),
            DType::U8 => Scalar::Integer(self.below(256) as i64),
            DType::I64 | DType::I32 => Scalar::Integer(self.below(40) as i64 - 20),
            _ => Scalar::Float((self.below(4001) as f64 - 2000.0) / 64.0),
        };
        x.cast(dtype)
    }
}

/// An input or table with its elements, and where (row 0, column 0) lies among them.
struct Elements {
    dtype: DType,
    bytes: Vec<u64>,
    origin: isize,
    strides: [isize; 2],
}

impl Elements {
    fn new(random: &mut Random, dtype: DType, extents: [usize; 2]) -> Elements {
        let mut column = random.pick(&[1isize, 1, 1, -1, 2, 3]);
        let mut row =
            random.pick(&[1isize, 1, -1, 2]) * (extents[1] as isize * column.abs() + random.pick(&[0, 5]));
        if random.below(4) == 0 {
            (row, column) = (1, extents[0] as isize + 1);
        }
        Elements::strided(random, dtype, extents, [row, column])
    }

    fn strided(
        random: &mut Random,
        dtype: DType,
        extents: [usize; 2],
        [row, column]: [isize; 2],
    ) -> Elements {
        let reach = |extent: usize, stride: isize| (extent as isize - 1) * stride;
        let (along_rows, along_columns) = (reach(extents[0], row), reach(extents[1], column));
        let origin = -along_rows.min(0) - along_columns.min(0);
        let count = (along_rows.abs() + along_columns.abs() + 1) as usize;
        let bytes: Vec<u8> = (0..count).flat_map(|_| random.scalar(dtype).to_bytes(dtype)).collect();
        Elements { dtype, bytes: pack(&bytes), origin, strides: [row, column] }
    }

    fn at(&self, row: usize, column: usize) -> Scalar {
        let offset = self.origin + row as isize * self.strides[0] + column as isize * self.strides[1];
        element(&self.bytes, self.dtype, offset as usize)
    }

    fn data(&self) -> *const u8 {
        self.bytes.as_ptr().cast::<u8>().wrapping_offset(self.origin * self.dtype.size() as isize)
    }
}

fn pack(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_ne_bytes(word)
    };
    bytes.chunks(8).map(word).collect()
}

fn element(words: &[u64], dtype: DType, index: usize) -> Scalar {
    let byte = index * dtype.size();
    Scalar::from_bytes(dtype, &words[byte / 8].to_ne_bytes()[byte % 8..byte % 8 + dtype.size()])
}

/// Functions whose `F32` results are the correctly rounded ones, so that they can be compared bit by bit.
const EXACT: [Unary; 8] =
    [Unary::Neg, Unary::Abs, Unary::Sign, Unary::Sqrt, Unary::Floor, Unary::Ceil, Unary::Round, Unary::Not];

fn random_program(random: &mut Random, feeds: &[Feed], tables: &[Table]) -> Program {
    let mut program = Program::default();
    for (i, feed) in feeds.iter().enumerate() {
        let kind = match feed {
            Feed::Array(_, dtype) => Kind::of(*dtype),
            Feed::Uniform => random.pick(&[Kind::F32, Kind::I32, Kind::I64, Kind::F64]),
            Feed::RowPosition | Feed::ColumnPosition => random.pick(&[Kind::I32, Kind::I64]),
        };
        program.push(Operation::Input(i), kind);
    }
    for value in [3, -1, 2] {
        program.push(Operation::Constant(Scalar::Integer(value)), Kind::I32);
        program.push(Operation::Constant(Scalar::Integer(value)), Kind::I64);
        program.push(Operation::Constant(Scalar::Float(value as f64 / 4.0)), Kind::F32);
    }
    // Values that change along diagonals only are rare by chance.
    let (row, column) = (Register(0), Register(1));
    let kind = program.kind(row);
    if kind == program.kind(column) {
        let operands = random.pick(&[(row, column), (column, row)]);
        program.push(Operation::Binary(Binary::Sub, operands.0, operands.1), kind);
        program.push(Operation::Compare(random.pick(&Compare::ALL), operands.0, operands.1), Kind::Bool);
    }
    for _ in 0..random.below(40) {
        let count = program.instructions.len();
        let a = Register(random.below(count) as u32);
        let kind = program.kind(a);
        let alike: Vec<Register> =
            (0..count as u32).map(Register).filter(|&register| program.kind(register) == kind).collect();
        let (b, integer, float) = (
            random.pick(&alike),
            matches!(kind, Kind::I32 | Kind::I64),
            matches!(kind, Kind::F32 | Kind::F64),
        );
        match random.below(9) {
            0 => {
                let function = random.pick(&EXACT);
                let has = match function {
                    Unary::Not => !float,
                    Unary::Neg | Unary::Abs | Unary::Sign => kind != Kind::Bool,
                    _ => float,
                };
                if has {
                    program.push(Operation::Unary(function, a), kind);
                }
            }
            1..=3 => {
                let function = random.pick(&Binary::ALL);
                let has = match function {
                    Binary::And | Binary::Or | Binary::Xor => !float,
                    Binary::Pow | Binary::Atan2 => false,
                    _ => kind != Kind::Bool,
                };
                if has {
                    program.push(Operation::Binary(function, a, b), kind);
                }
            }
            4 => {
                program.push(Operation::Compare(random.pick(&Compare::ALL), a, b), Kind::Bool);
            }
            5 => {
                let conditions: Vec<Register> =
                    (0..count as u32).map(Register).filter(|&r| program.kind(r) == Kind::Bool).collect();
                if !conditions.is_empty() {
                    let condition = random.pick(&conditions);
                    program.push(Operation::Select(condition, a, b), kind);
                }
            }
            6 => {
                let to = random.pick(&[Kind::F64, Kind::F32, Kind::I64, Kind::I32, Kind::Bool]);
                program.push(Operation::Cast(a), to);
            }
            7 if kind == Kind::F32 => {
                program.push(Operation::Round(random.pick(&[DType::BF16, DType::F16]), a), kind);
            }
            7 if kind == Kind::I32 => {
                program.push(Operation::Round(DType::U8, a), kind);
            }
            7 if kind == Kind::I64 => {
                program.push(Operation::RandomBits(a, b), Kind::I32);
            }
            _ if integer && !tables.is_empty() => {
                let table = random.below(tables.len());
                let kind = Kind::of(tables[table].dtype);
                program.push(Operation::Load(table, vec![a, b]), kind);
            }
            _ => {}
        }
    }
    let count = program.instructions.len();
    program.results = (0..1 + random.below(3)).map(|_| Register(random.below(count) as u32)).collect();
    program
}

/// The registers' values for one element; an index out of range gives 0.
fn evaluate_at(
    program: &Program,
    inputs: impl Fn(usize) -> Scalar,
    load: impl Fn(usize, &[i64]) -> Scalar,
) -> Vec<Scalar> {
    let mut values: Vec<Scalar> = Vec::new();
    for Instruction { operation, kind } in &program.instructions {
        let at = |register: &Register| values[register.index()];
        let value = match operation {
            Operation::Input(input) => evaluate::hold(inputs(*input), *kind),
            Operation::Constant(value) => evaluate::hold(*value, *kind),
            Operation::Unary(function, a) => evaluate::unary(*function, *kind, at(a)),
            Operation::Binary(function, a, b) => evaluate::binary(*function, *kind, at(a), at(b)),
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
            Operation::Cast(a) => match (at(a), kind) {
                // `hold` goes through f64 and rounds twice.
                (Scalar::Integer(x), Kind::F32) => Scalar::Float(x as f32 as f64),
                (x, kind) => evaluate::hold(x, *kind),
            },
            Operation::Round(dtype, a) => evaluate::round(*dtype, at(a)),
            Operation::Load(table, indices) => {
                load(*table, &indices.iter().map(|index| at(index).to_i64()).collect::<Vec<_>>())
            }
            Operation::RandomBits(a, b) => Scalar::Integer(philox(at(a).to_i64(), at(b).to_i64()) as i64),
        };
        values.push(value);
    }
    values
}

fn listing(program: &Program) -> String {
    let lines = program.instructions.iter().enumerate();
    lines.map(|(i, Instruction { operation, kind })| format!("r{i} = {operation:?}: {kind:?}\n")).collect()
}

fn same(x: Scalar, y: Scalar) -> bool {
    match (x, y) {
        (Scalar::Float(x), Scalar::Float(y)) => x == y || (x.is_nan() && y.is_nan()),
        (x, y) => x == y,
    }
}

fn table(dtype: DType, shape: [usize; 2]) -> Table {
    let view = View { buffer: BufferId(0), offset: 0, strides: vec![shape[1] as isize, 1] };
    Table { view, dtype, shape: shape.to_vec(), name: "table".into(), origin: None }
}

fn array_of(elements: &Elements, shape: [usize; 2]) -> Array {
    Array {
        data: elements.data().cast_mut(),
        dtype: elements.dtype,
        extents: shape.to_vec(),
        strides: elements.strides.to_vec(),
    }
}

/// One random case: `Ok(false)` where an index was out of range, as the definition says too.
fn check(seed: u64, isa: Isa) -> bool {
    let random = &mut Random(seed);
    let rows = random.pick(&[1, 2, 3, 7, 64, 65]);
    let columns = random.pick(&[1, 2, 5, 16, 63, 200, 1500]);
    let shapes: Vec<[usize; 2]> = (0..3).map(|_| [1 + random.below(70), 1 + random.below(70)]).collect();
    let dtypes: Vec<DType> = (0..3).map(|_| random.pick(&DType::ALL)).collect();
    let contents: Vec<Elements> =
        shapes.iter().zip(&dtypes).map(|(&shape, &dtype)| Elements::new(random, dtype, shape)).collect();
    let tables: Vec<Table> = shapes.iter().zip(&dtypes).map(|(&shape, &dtype)| table(dtype, shape)).collect();
    let arrays: Vec<Array> = contents.iter().zip(&shapes).map(|(e, &shape)| array_of(e, shape)).collect();

    let mut feeds = vec![Feed::RowPosition, Feed::ColumnPosition, Feed::Uniform];
    for _ in 0..random.below(4) {
        let variance = random.pick(&[
            Variance::Uniform,
            Variance::Row,
            Variance::Column,
            Variance::Diagonal,
            Variance::Full,
            Variance::Full,
        ]);
        feeds.push(Feed::Array(variance, random.pick(&DType::ALL)));
    }
    let program = random_program(random, &feeds, &tables);
    let bases: Vec<i64> = (0..3).map(|_| random.below(60) as i64 - 30).collect();
    let inputs: Vec<Option<Elements>> = feeds
        .iter()
        .map(|feed| match feed {
            Feed::Array(Variance::Diagonal, dtype) => {
                let step = random.pick(&[1, -1, 2]);
                Some(Elements::strided(random, *dtype, [rows, columns], [-step, step]))
            }
            Feed::Array(_, dtype) => Some(Elements::new(random, *dtype, [rows, columns])),
            _ => None,
        })
        .collect();
    let input = |number: usize, row: usize, column: usize| match feeds[number] {
        Feed::Uniform => Scalar::Integer(bases[number]),
        Feed::RowPosition => Scalar::Integer(bases[number].wrapping_add(row as i64)),
        Feed::ColumnPosition => Scalar::Integer(bases[number].wrapping_add(column as i64)),
        Feed::Array(variance, _) => {
            let elements = inputs[number].as_ref().expect("made above");
            elements.at(if variance.rows() { row } else { 0 }, if variance.columns() { column } else { 0 })
        }
    };
    let arguments: Vec<Argument> = inputs
        .iter()
        .zip(&bases.iter().copied().chain(std::iter::repeat(0)).take(feeds.len()).collect::<Vec<_>>())
        .map(|(elements, &base)| match elements {
            None => Argument::Scalar(Scalar::Integer(base)),
            Some(e) => {
                Argument::Array { data: e.data(), row_stride: e.strides[0], column_stride: e.strides[1] }
            }
        })
        .collect();

    let partly = random.below(2) == 0;
    let live: Vec<u8> = (0..rows * columns).map(|_| (!partly || random.below(3) > 0) as u8).collect();
    let mut outputs: Vec<Elements> = program
        .results
        .iter()
        .map(|&result| {
            let dtype = match program.kind(result) {
                Kind::F64 => DType::F64,
                Kind::F32 => random.pick(&[DType::F32, DType::BF16, DType::F16]),
                Kind::I64 => DType::I64,
                Kind::I32 => random.pick(&[DType::I32, DType::U8]),
                Kind::Bool => DType::Bool,
            };
            Elements::new(random, dtype, [rows, columns])
        })
        .collect();
    let targets: Vec<Target> = outputs
        .iter_mut()
        .map(|output| {
            let [row_stride, column_stride] = output.strides;
            let start = output.bytes.as_mut_ptr().cast::<u8>();
            let data = start.wrapping_offset(output.origin * output.dtype.size() as isize);
            Target::Array { data, dtype: output.dtype, row_stride, column_stride }
        })
        .collect();

    // The second stage knows the arrays only if it is to have late inputs at all.
    let late: Vec<usize> = if random.below(2) == 0 { (3..feeds.len()).collect() } else { vec![] };
    let depends = {
        let mut depends: Vec<bool> = Vec::new();
        for instruction in &program.instructions {
            let own = matches!(instruction.operation, Operation::Input(i) if late.contains(&i));
            depends.push(own || instruction.operation.operands().iter().any(|r| depends[r.index()]));
        }
        depends
    };
    let early = program.results.iter().take_while(|result| !depends[result.index()]).count();
    let compiled = TileProgram::compile_staged(&program, &feeds, &tables, isa, &late, early).unwrap();
    let mut scratch = Scratch::new();
    let live_panel = partly.then_some(Live { data: live.as_ptr(), row_stride: columns as isize });
    let tile =
        Tile { rows, columns, arguments: &arguments, targets: &targets, tables: &arrays, live: live_panel };
    let first: Vec<Argument> =
        (0..feeds.len()).map(|i| if late.contains(&i) { Argument::Absent } else { arguments[i] }).collect();
    // SAFETY: the arrays are as large as their strides ask for, and the targets distinct.
    let ran = unsafe {
        let early = Tile { arguments: &first, ..tile };
        compiled
            .run(Stage::Early, &early, &mut scratch)
            .and_then(|()| compiled.run(Stage::Late, &tile, &mut scratch))
    };

    // Which loads are needed at all: an unused one is not run.
    let mut used = vec![false; program.instructions.len()];
    program.results.iter().for_each(|result| used[result.index()] = true);
    for i in (0..used.len()).rev() {
        if used[i] {
            program.instructions[i].operation.operands().iter().for_each(|r| used[r.index()] = true);
        }
    }
    let mut out_of_range = false;
    for row in 0..rows {
        for column in 0..columns {
            let faults = std::cell::Cell::new(false);
            let values = evaluate_at(
                &program,
                |number| input(number, row, column),
                |table, indices| {
                    let place: Option<Vec<usize>> = indices
                        .iter()
                        .zip(shapes[table])
                        .map(|(&i, size)| evaluate::position(i, size))
                        .collect();
                    match place {
                        Some(place) => contents[table].at(place[0], place[1]),
                        None => {
                            faults.set(true);
                            Scalar::Integer(0)
                        }
                    }
                },
            );
            if live[row * columns + column] == 0 {
                continue;
            }
            if faults.get() {
                let really = program.instructions.iter().enumerate().any(|(i, instruction)| {
                    used[i]
                        && matches!(&instruction.operation, Operation::Load(table, indices)
                        if indices.iter().zip(shapes[*table]).any(|(index, size)| {
                            evaluate::position(values[index.index()].to_i64(), size).is_none()
                        }))
                });
                out_of_range |= really;
                if really {
                    continue;
                }
            }
            if ran.is_ok() {
                for (output, &result) in outputs.iter().zip(&program.results) {
                    let expected = values[result.index()].cast(output.dtype);
                    let found = output.at(row, column);
                    assert!(
                        same(expected, found),
                        "seed {seed}, ({row}, {column}): {expected} expected, {found} found for {result} of\n{}",
                        listing(&program)
                    );
                }
            }
        }
    }
    match &ran {
        Ok(()) => assert!(!out_of_range, "seed {seed}: an index out of range went unseen"),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Index { .. }), "seed {seed}: {error}");
            assert!(out_of_range, "seed {seed}: {error}");
        }
    }
    ran.is_ok()
}

#[test]
fn random_programs_agree_with_their_scalar_definition() {
    for isa in Isa::available() {
        let finished = (0..150).filter(|&seed| check(seed, isa)).count();
        assert!(finished > 75, "{finished} cases only ran to their end");
    }
}
