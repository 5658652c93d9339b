//! Block maps against brute force.

use std::sync::OnceLock;
use std::time::Instant;

use tilewright_ir::{Binary, Compare, DType, Scalar, Unary};
use tilewright_plan::{BlockMap, BufferId, Kind, Operation, Program, Register, Table, View, evaluate};

use super::build::from_tables;
use super::{Blocks, Run};
use crate::memory::Array;
use crate::{Context, Isa};

fn context(threads: usize) -> Context {
    Context { isa: Isa::preferred(), threads, block_maps: Vec::<OnceLock<Blocks>>::new() }
}

fn table(shape: &[usize], dtype: DType) -> Table {
    let strides = vec![0; shape.len()];
    let view = View { buffer: BufferId(0), offset: 0, strides };
    Table { view, dtype, shape: shape.to_vec(), name: "table".into(), origin: None }
}

fn array(data: &mut [i32], shape: &[usize]) -> Array {
    let mut strides = vec![1isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as isize;
    }
    Array { data: data.as_mut_ptr().cast(), dtype: DType::I32, extents: shape.to_vec(), strides }
}

/// A mask program in the making.
#[derive(Default)]
struct Code(Program);

impl Code {
    fn input(&mut self, number: usize) -> Register {
        self.0.push(Operation::Input(number), Kind::I32)
    }
    fn number(&mut self, value: i64) -> Register {
        self.0.push(Operation::Constant(Scalar::Integer(value)), Kind::I32)
    }
    fn integer(&mut self, function: Binary, x: Register, y: Register) -> Register {
        self.0.push(Operation::Binary(function, x, y), Kind::I32)
    }
    fn compare(&mut self, comparison: Compare, x: Register, y: Register) -> Register {
        self.0.push(Operation::Compare(comparison, x, y), Kind::Bool)
    }
    fn logic(&mut self, function: Binary, x: Register, y: Register) -> Register {
        self.0.push(Operation::Binary(function, x, y), Kind::Bool)
    }
    fn load(&mut self, table: usize, indices: &[Register]) -> Register {
        self.0.push(Operation::Load(table, indices.to_vec()), Kind::I32)
    }
    fn result(mut self, register: Register) -> Program {
        self.0.results = vec![register];
        self.0
    }
}

fn causal() -> Program {
    let mut code = Code::default();
    let (q, k) = (code.input(2), code.input(3));
    let result = code.compare(Compare::Ge, q, k);
    code.result(result)
}

/// The same by the difference.
fn causal_by_difference() -> Program {
    let mut code = Code::default();
    let (q, k, zero) = (code.input(2), code.input(3), code.number(0));
    let difference = code.integer(Binary::Sub, q, k);
    let result = code.compare(Compare::Ge, difference, zero);
    code.result(result)
}

/// Causal within documents, whose numbers are in table 0.
fn documents() -> Program {
    let mut code = Code::default();
    let (q, k) = (code.input(2), code.input(3));
    let (left, right) = (code.load(0, &[q]), code.load(0, &[k]));
    let same = code.compare(Compare::Eq, left, right);
    let causal = code.compare(Compare::Ge, q, k);
    let result = code.logic(Binary::And, same, causal);
    code.result(result)
}

fn map(mask: Program, lengths: (usize, usize), blocks: (usize, usize), tables: Vec<Table>) -> BlockMap {
    BlockMap {
        slot: 0,
        batch: 1,
        heads: 1,
        queries: lengths.0,
        keys: lengths.1,
        query_block: blocks.0,
        key_block: blocks.1,
        mask,
        tables,
    }
}

/// The mask at one pair, by the definition of each instruction.
fn at(program: &Program, pair: [usize; 4], tables: &[(&[i32], &[usize])]) -> bool {
    let load = |table: usize, indices: &[i64]| {
        let (data, shape) = tables[table];
        let place = indices.iter().zip(shape).fold(0, |place, (&index, &extent)| {
            place * extent + evaluate::position(index, extent).expect("in range")
        });
        Scalar::Integer(data[place].into())
    };
    let pair = pair.map(|i| Scalar::Integer(i as i64));
    evaluate::run(program, &pair, load, |_, _| unreachable!("no mask is random"))[0].to_bool()
}

/// The blocks of runs, each with whether it is full.
fn blocks_of(runs: &[Run]) -> Vec<(u32, bool)> {
    runs.iter().flat_map(|run| (run.start..run.end).map(|block| (block, run.full))).collect()
}

/// Asserts that a map is what evaluating its mask at every pair says.
fn assert_exact(blocks: &Blocks, kernel: &BlockMap, tables: &[(&[i32], &[usize])]) {
    for b in 0..kernel.batch {
        for h in 0..kernel.heads {
            let mut by_key = vec![Vec::new(); blocks.key_blocks];
            for i in 0..blocks.query_blocks {
                let mut expected = Vec::new();
                for (j, column) in by_key.iter_mut().enumerate() {
                    let queries = i * kernel.query_block..((i + 1) * kernel.query_block).min(kernel.queries);
                    let keys = j * kernel.key_block..((j + 1) * kernel.key_block).min(kernel.keys);
                    let all = queries.len() * keys.len();
                    let live = queries
                        .flat_map(|q| keys.clone().map(move |k| (q, k)))
                        .filter(|&(q, k)| at(&kernel.mask, [b, h, q, k], tables))
                        .count();
                    if live > 0 {
                        expected.push((j as u32, live == all));
                        column.push((i as u32, live == all));
                    }
                }
                assert_eq!(blocks_of(blocks.key_runs(b, h, i)), expected, "{:?}", kernel.mask);
            }
            for (j, expected) in by_key.iter().enumerate() {
                assert_eq!(&blocks_of(blocks.query_runs(b, h, j)), expected);
            }
        }
    }
}

#[test]
fn causal_maps_have_two_runs_a_row() {
    let kernel = map(causal(), (300, 277), (64, 32), vec![]);
    let blocks = from_tables(&kernel, &[], &context(1)).unwrap();
    assert_exact(&blocks, &kernel, &[]);
    assert!((0..blocks.query_blocks).all(|i| blocks.key_runs(0, 0, i).len() <= 2));
    assert_eq!(
        blocks.to_string(),
        "29 of 45 blocks live (20 full, 9 partial), 35.6 % empty\n\
         ▒▒·······\n██▒▒·····\n████▒▒···\n██████▒▒·\n████████▒\n"
    );
    let kernel = map(causal_by_difference(), (300, 277), (64, 32), vec![]);
    assert_eq!(from_tables(&kernel, &[], &context(1)).unwrap(), blocks);
}

/// A small generator of repeatable numbers (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// A random integer expression over b, h, q, k and a table that has 40 elements, each below 40.
fn random_integer(code: &mut Code, random: &mut Random, depth: usize) -> Register {
    if depth == 0 || random.below(5) == 0 {
        return match random.below(6) {
            0 => code.number(random.below(60) as i64 - 20),
            n => code.input(n.min(4) - 1),
        };
    }
    let x = random_integer(code, random, depth - 1);
    let y = random_integer(code, random, depth - 1);
    let small = code.number(random.below(9) as i64 - 2);
    match random.below(14) {
        0 | 1 => code.integer(Binary::Add, x, y),
        2..=4 => code.integer(Binary::Sub, x, y),
        5 => code.integer(Binary::Mul, x, small),
        6 => code.integer(Binary::Div, x, small),
        7 => code.integer(Binary::Rem, x, small),
        8 => code.integer(Binary::Max, x, y),
        9 => code.integer(Binary::Min, x, small),
        10 => code.0.push(Operation::Unary(Unary::Abs, x), Kind::I32),
        11 => code.integer([Binary::And, Binary::Or, Binary::Xor][random.below(3)], x, y),
        _ => {
            let size = code.number(40);
            let inside = code.integer(Binary::Rem, x, size);
            code.load(0, &[inside])
        }
    }
}

fn random_mask(code: &mut Code, random: &mut Random, depth: usize) -> Register {
    if depth > 0 && random.below(2) == 0 {
        let x = random_mask(code, random, depth - 1);
        let y = random_mask(code, random, depth - 1);
        return match random.below(4) {
            0 | 1 => code.logic(Binary::And, x, y),
            2 => code.logic(Binary::Or, x, y),
            _ => code.0.push(Operation::Unary(Unary::Not, x), Kind::Bool),
        };
    }
    let x = random_integer(code, random, 3);
    let y = random_integer(code, random, 2);
    if random.below(4) == 0 {
        let float = |code: &mut Code, x| code.0.push(Operation::Cast(x), Kind::F32);
        let (x, y) = (float(code, x), float(code, y));
        let function = [Unary::Tanh, Unary::Sin, Unary::Sqrt, Unary::Abs, Unary::Exp][random.below(5)];
        let x = code.0.push(Operation::Unary(function, x), Kind::F32);
        let product = code.0.push(Operation::Binary(Binary::Mul, x, y), Kind::F32);
        return code.compare(Compare::ALL[random.below(6)], product, y);
    }
    code.compare(Compare::ALL[random.below(6)], x, y)
}

#[test]
fn random_masks_are_found_exactly() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut partly = 0;
    for _ in 0..300 {
        let mut data: Vec<i32> = (0..40).map(|_| random.below(40) as i32).collect();
        if random.below(2) == 0 {
            data.sort_unstable();
        }
        let mut code = Code::default();
        let result = random_mask(&mut code, &mut random, 2);
        let lengths = (1 + random.below(40), 1 + random.below(40));
        let sizes = (1 + random.below(9), 1 + random.below(9));
        let mut kernel = map(code.result(result), lengths, sizes, vec![table(&[40], DType::I32)]);
        (kernel.batch, kernel.heads) = (1 + random.below(2), 1 + random.below(2));
        let copy = data.clone();
        let blocks = from_tables(&kernel, &[array(&mut data, &[40])], &context(1)).unwrap();
        assert_exact(&blocks, &kernel, &[(&copy, &[40])]);
        let (full, partial) = blocks.counts();
        partly += usize::from(full > 0 && partial > 0);
    }
    assert!(partly > 60, "only {partly} of the masks had both full and partial blocks");
}

#[test]
fn tables_of_two_axes_are_bounded_by_rows() {
    let mut random = Random(77);
    let shape = [70, 90];
    let mut data: Vec<i32> = (0..70 * 90).map(|i| i32::from(i / 90 > 20 || random.below(50) == 0)).collect();
    let copy = data.clone();
    let mut code = Code::default();
    let (q, k, zero) = (code.input(2), code.input(3), code.number(0));
    let element = code.load(0, &[q, k]);
    let result = code.compare(Compare::Ne, element, zero);
    let kernel = map(code.result(result), (70, 90), (16, 8), vec![table(&shape, DType::I32)]);
    let blocks = from_tables(&kernel, &[array(&mut data, &shape)], &context(2)).unwrap();
    assert_exact(&blocks, &kernel, &[(&copy, &shape)]);
}

#[test]
fn masks_that_scramble_their_indices_are_evaluated_pair_by_pair() {
    let mut code = Code::default();
    let (q, k) = (code.input(2), code.input(3));
    let (seven, thirteen, five) = (code.number(7), code.number(13), code.number(5));
    let (left, right) = (code.integer(Binary::Mul, q, seven), code.integer(Binary::Mul, k, thirteen));
    let mixed = code.integer(Binary::Xor, left, right);
    let remainder = code.integer(Binary::Rem, mixed, five);
    let square = code.integer(Binary::Mul, remainder, remainder);
    let result = code.compare(Compare::Le, remainder, square);
    let kernel = map(code.result(result), (100, 130), (32, 64), vec![]);
    let blocks = from_tables(&kernel, &[], &context(1)).unwrap();
    assert_exact(&blocks, &kernel, &[]);
    assert_eq!(blocks.counts(), (12, 0));
}

#[test]
fn an_index_out_of_range_is_an_error_at_a_pair_only() {
    let mut data = vec![0; 50];
    let documents = |length| map(documents(), (length, length), (16, 16), vec![table(&[50], DType::I32)]);
    let array = array(&mut data, &[50]);
    let tables = std::slice::from_ref(&array);
    assert!(from_tables(&documents(50), tables, &context(1)).is_ok());
    let error = from_tables(&documents(51), tables, &context(1)).unwrap_err();
    assert_eq!(error.code(), "index");
    let same = from_tables(&documents(51), tables, &context(2)).unwrap_err();
    assert_eq!(error, same);
}

#[test]
fn documents_of_a_million_positions_take_memory_for_their_live_blocks_only() {
    let length = 1 << 20;
    let mut data: Vec<i32> = (0..length).map(|i| i / 700).collect();
    let shape = [length as usize];
    let kernel =
        map(documents(), (length as usize, length as usize), (64, 128), vec![table(&shape, DType::I32)]);
    let start = Instant::now();
    let blocks = from_tables(&kernel, &[array(&mut data, &shape)], &context(2)).unwrap();
    println!("a million positions: {:?}", start.elapsed());
    let (full, partial) = blocks.counts();
    let live: usize = (0..blocks.query_blocks)
        .map(|i| {
            let (first, last) = (64 * i, 64 * i + 63);
            let start = first / 700 * 700;
            last / 128 + 1 - start / 128
        })
        .sum();
    assert_eq!(full + partial, live);
    assert!(blocks.by_query.runs.len() + blocks.by_key.runs.len() <= 2 * live);
}
