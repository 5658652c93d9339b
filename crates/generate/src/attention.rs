//! Random attention programs.

use tilewright_interp::Array;
use tilewright_ir::{DType, FlexAttention, Graph, Op, Type, Unary, Value};

use crate::mask::random_mask;
use crate::score::random_score;
use crate::{Random, random_array};

/// [`random_attention_of`] a float type that the seed chooses: `f32` half of the time, `f64`, or a narrow one.
pub fn random_attention(seed: u64) -> (Graph, Vec<Array>) {
    let mut random = Random::new(seed ^ 0xd7);
    let dtype =
        random.pick(&[DType::F32, DType::F32, DType::F32, DType::F64, DType::F64, DType::BF16, DType::F16]);
    random_attention_of(dtype, seed)
}

/// A program of one `flex_attention` with its inputs: a random score function that captures learned arrays and
/// integer tables through random index maps, a random mask or none, grouped heads, odd lengths.
///
/// Its results are the output and the log-sum-exp, which is −∞ in rows that see no key; the maximum is the
/// third result of its node. Query, key and value are the first three parameters. Some captures are
/// computed in the program. Every index is in range, and the gradient has no kink near the inputs.
pub fn random_attention_of(dtype: DType, seed: u64) -> (Graph, Vec<Array>) {
    let mut random = Random::new(seed);
    let sizes = Sizes::random(&mut random);
    let Sizes { batch, heads, queries, keys, .. } = sizes;
    let mut graph = Graph::new();
    let mut inputs = Vec::new();
    let mut input = |graph: &mut Graph, array: Array| {
        let value = graph.parameter(array.ty().clone());
        inputs.push(array);
        value
    };
    let key_batch = if random.once_in(4) { 1 } else { batch };
    let mut operands: Vec<Value> = [
        [batch, heads, queries, sizes.head_size],
        [key_batch, sizes.key_heads, keys, sizes.head_size],
        [key_batch, sizes.key_heads, keys, sizes.value_size],
    ]
    .into_iter()
    .map(|shape| {
        let array = random_array(&mut random, Type::new(dtype, shape));
        input(&mut graph, array)
    })
    .collect();

    let score_type = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let mut captures = Captures { arrays: Vec::new() };
    let mut score = random_score(&mut random, &sizes, &mut captures, dtype, score_type);
    let in_score = captures.arrays.len();
    let mask = (!random.once_in(4)).then(|| random_mask(&mut random, &sizes, &mut captures));
    // Both regions have a parameter for every capture.
    for array in &captures.arrays[in_score..] {
        score.parameter(array.ty().clone());
    }
    for array in captures.arrays {
        let is_float = array.ty().dtype.is_float();
        let mut value = input(&mut graph, array);
        if is_float && random.once_in(5) {
            value = graph.add1(Op::Unary(Unary::Sin), &[value], None).expect("sine takes floats");
        }
        operands.push(value);
    }
    let scale = 1.0 / (sizes.head_size as f64).sqrt();
    let op = Op::FlexAttention(Box::new(FlexAttention { scale, score, mask }));
    let results = graph.add(op, &operands, None).expect("the generator keeps to the typing rules");
    graph.set_results(results[..2].to_vec());
    (graph, inputs)
}

/// The sizes of the attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head_size: usize,
    pub(crate) value_size: usize,
}

impl Sizes {
    fn random(random: &mut Random) -> Sizes {
        let key_heads = random.pick(&[1, 1, 2]);
        let small = [1, 2, 5, 8, 13, 17];
        let large = [33, 65, 70, 129];
        let (queries, keys) = match random.below(8) {
            0 => (random.pick(&large), random.pick(&small)),
            1 => (random.pick(&small), random.pick(&large)),
            _ => (random.pick(&small), random.pick(&small)),
        };
        Sizes {
            batch: random.pick(&[1, 2, 2, 3]),
            heads: key_heads * random.pick(&[1, 2, 3]),
            key_heads,
            queries,
            keys,
            head_size: random.pick(&[1, 3, 4, 8]),
            value_size: random.pick(&[1, 2, 5, 8]),
        }
    }
}

/// The arrays that the regions capture, in the order of their parameters.
pub(crate) struct Captures {
    pub(crate) arrays: Vec<Array>,
}

impl Captures {
    /// Captures one more array, in `region`.
    pub(crate) fn add(&mut self, region: &mut Graph, array: Array) -> Value {
        let value = region.parameter(array.ty().clone());
        self.arrays.push(array);
        value
    }
}

/// What a region is made of, while it is written: its graph and the pair `b h q k`.
pub(crate) struct Region<'a> {
    pub(crate) graph: Graph,
    pub(crate) pair: [Value; 4],
    pub(crate) random: &'a mut Random,
    pub(crate) sizes: &'a Sizes,
    pub(crate) captures: &'a mut Captures,
}

impl Region<'_> {
    pub(crate) fn add(&mut self, op: Op, operands: &[Value]) -> Value {
        self.graph.add1(op, operands, None).expect("the generator keeps to the typing rules")
    }

    pub(crate) fn binary(&mut self, binary: tilewright_ir::Binary, x: Value, y: Value) -> Value {
        self.add(Op::Binary(binary), &[x, y])
    }

    pub(crate) fn compare(&mut self, compare: tilewright_ir::Compare, x: Value, y: Value) -> Value {
        self.add(Op::Compare(compare), &[x, y])
    }

    pub(crate) fn integer(&mut self, x: usize) -> Value {
        self.graph.scalar(DType::I32, x as i64)
    }

    /// Reads a new integer table with elements below `limit`, as an `i32`.
    pub(crate) fn table(&mut self, shape: &[usize], limit: usize, indices: &[Value]) -> Value {
        let dtype = self.random.pick(&[DType::I32, DType::I64]);
        let ty = Type::new(dtype, shape);
        let elements: Vec<i64> = (0..ty.elements()).map(|_| self.random.integer(0, limit as i64)).collect();
        let table = self.captures.add(&mut self.graph, Array::from_i64s(ty, &elements));
        let read = self.add(Op::Gather, &[&[table], indices].concat());
        if dtype == DType::I32 { read } else { self.add(Op::Cast(DType::I32), &[read]) }
    }
}
