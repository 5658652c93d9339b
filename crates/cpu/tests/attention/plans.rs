//! Plans of one attention call, forward or backward, and their runs.

use half::{bf16, f16};
use tilewright_cpu::{Isa, run_with};
use tilewright_ir::{DType, Result};
use tilewright_plan::attention::*;
use tilewright_plan::*;

use crate::functions::{Function, Mask};
use crate::reference::{Inputs, Results};

/// How inputs and outputs lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// Packed, row-major.
    Packed,
    /// `[…, length, heads, size]`, every axis reversed in memory.
    Reversed,
}

/// One call.
pub struct Call<'a> {
    pub shape: AttentionShape,
    pub dtype: DType,
    pub scale: f64,
    pub function: &'a Function,
    pub mask: &'a Mask,
    pub order: Order,
    /// Of the block map.
    pub blocks: (usize, usize),
    pub threads: usize,
    pub isa: Isa,
}

/// The bytes of numbers in a type.
pub fn bytes(dtype: DType, numbers: &[f64]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|&x| match dtype {
            DType::F64 => x.to_le_bytes().to_vec(),
            DType::F32 => (x as f32).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f64(x).to_le_bytes().to_vec(),
            DType::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
            _ => panic!("not a float"),
        })
        .collect()
}

/// The inverse of [`bytes`].
pub fn numbers(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(dtype.size())
        .map(|chunk| match dtype {
            DType::F64 => f64::from_le_bytes(chunk.try_into().unwrap()),
            DType::F32 => f32::from_le_bytes(chunk.try_into().unwrap()).into(),
            DType::BF16 => bf16::from_le_bytes(chunk.try_into().unwrap()).into(),
            DType::F16 => f16::from_le_bytes(chunk.try_into().unwrap()).into(),
            _ => panic!("not a float"),
        })
        .collect()
}

/// The element types' rounding.
pub fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F32 => x as f32 as f64,
        // `from_f64` does not look at the last bits of an `f32`.
        DType::BF16 => bf16::from_f32(x as f32).to_f64(),
        DType::F16 => f16::from_f64(x).to_f64(),
        _ => x,
    }
}

struct Builder {
    plan: Plan,
    inputs: Vec<Vec<u64>>,
    outputs: Vec<(Vec<u64>, DType, Vec<usize>, Order)>,
    order: Order,
}

/// Offset and strides of an array.
fn layout(extents: &[usize], order: Order) -> (isize, Vec<isize>) {
    let mut axes: Vec<usize> = (0..extents.len()).collect();
    if order == Order::Reversed && extents.len() == 4 {
        axes.swap(1, 2);
    }
    let (mut strides, mut step) = (vec![0; extents.len()], 1);
    for &axis in axes.iter().rev() {
        strides[axis] = step;
        step *= extents[axis].max(1) as isize;
    }
    if order == Order::Packed {
        return (0, strides);
    }
    let offset = extents.iter().zip(&strides).map(|(&n, s)| (n as isize - 1).max(0) * s).sum();
    (offset, strides.iter().map(|s| -s).collect())
}

/// Moves numbers from row-major order to a layout, or back.
fn permute(numbers: &[f64], extents: &[usize], order: Order, back: bool) -> Vec<f64> {
    let (offset, strides) = layout(extents, order);
    let mut moved = vec![0.0; numbers.len()];
    for flat in 0..numbers.len() {
        let (mut rest, mut place) = (flat, offset);
        for axis in (0..extents.len()).rev() {
            place += (rest % extents[axis]) as isize * strides[axis];
            rest /= extents[axis];
        }
        let (to, from) = if back { (flat, place as usize) } else { (place as usize, flat) };
        moved[to] = numbers[from];
    }
    moved
}

/// Bytes in words, so that they are aligned to any element.
fn words(bytes: &[u8]) -> Vec<u64> {
    let chunk = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_ne_bytes(word)
    };
    bytes.chunks(8).map(chunk).collect()
}

fn unwords(words: &[u64], length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.truncate(length);
    bytes
}

impl Builder {
    fn new(order: Order) -> Builder {
        let plan = Plan { buffers: vec![], kernels: vec![], block_maps: 0, arena_bytes: 0 };
        Builder { plan, inputs: vec![], outputs: vec![], order }
    }

    fn buffer(&mut self, dtype: DType, extents: &[usize], order: Order, place: Place) -> View {
        let elements = extents.iter().product();
        let (offset, strides) = layout(extents, order);
        self.plan.buffers.push(Buffer { dtype, elements, place });
        View { buffer: BufferId(self.plan.buffers.len() - 1), offset, strides }
    }

    fn input(&mut self, dtype: DType, extents: &[usize], numbers: &[f64]) -> View {
        let order = if extents.len() == 4 { self.order } else { Order::Packed };
        self.inputs.push(words(&bytes(dtype, &permute(numbers, extents, order, false))));
        self.buffer(dtype, extents, order, Place::Input(self.inputs.len() - 1))
    }

    fn output(&mut self, dtype: DType, extents: &[usize], order: Order) -> View {
        let length = extents.iter().product::<usize>() * dtype.size();
        // Garbage, which must not survive.
        self.outputs.push((words(&vec![0xff; length]), dtype, extents.to_vec(), order));
        self.buffer(dtype, extents, order, Place::Output(self.outputs.len() - 1))
    }

    fn run(mut self, threads: usize, isa: Isa) -> Result<Vec<Vec<f64>>> {
        let sizes: Vec<usize> = self
            .outputs
            .iter()
            .map(|(_, dtype, extents, _)| extents.iter().product::<usize>() * dtype.size())
            .collect();
        let inputs: Vec<&[u8]> = self.inputs.iter().map(|words| as_bytes(words)).collect();
        let mut outputs: Vec<&mut [u8]> =
            self.outputs.iter_mut().map(|(words, ..)| as_bytes_mut(words)).collect();
        run_with(&self.plan, &inputs, &mut outputs, threads, isa)?;
        let results = self.outputs.iter().zip(sizes).map(|((words, dtype, extents, order), size)| {
            permute(&numbers(*dtype, &unwords(words, size)), extents, *order, true)
        });
        Ok(results.collect())
    }
}

fn as_bytes(words: &[u64]) -> &[u8] {
    // SAFETY: any words are bytes.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8) }
}

fn as_bytes_mut(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: any bytes are words.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 8) }
}

impl Call<'_> {
    /// The score type.
    pub fn score_dtype(&self) -> DType {
        if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    fn attention(&self, builder: &mut Builder, inputs: &Inputs) -> Attention {
        let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, head_size, value_size } =
            self.shape;
        let dtype = self.dtype;
        let query = builder.input(dtype, &[batch, heads, queries, head_size], &inputs.query);
        let key = builder.input(dtype, &[key_batch, key_heads, keys, head_size], &inputs.key);
        let value = builder.input(dtype, &[key_batch, key_heads, keys, value_size], &inputs.value);
        let table = Table {
            view: builder.input(self.score_dtype(), &self.function.table, &inputs.table),
            dtype: self.score_dtype(),
            shape: self.function.table.clone(),
            name: "table".into(),
            origin: None,
        };
        if let Some(mask) = &self.mask.program {
            builder.plan.block_maps = 1;
            builder.plan.kernels.push(Kernel::BlockMap(BlockMap {
                slot: 0,
                batch,
                heads,
                queries,
                keys,
                query_block: self.blocks.0,
                key_block: self.blocks.1,
                mask: mask.clone(),
                tables: vec![table.clone()],
            }));
        }
        Attention {
            shape: self.shape,
            dtype,
            scale: self.scale,
            query,
            key,
            value,
            mask: self.mask.program.clone(),
            tables: vec![table],
            block_map: self.mask.program.as_ref().map(|_| 0),
            origin: None,
        }
    }

    /// Runs forward, then backward with what forward gave.
    pub fn run(&self, inputs: &Inputs) -> Result<Results> {
        let [output, log_sum_exp, maximum, unrounded] = self.forward(inputs)?;
        let rounded: Vec<f64> = unrounded.iter().map(|&x| round(self.dtype, x)).collect();
        let same = |(x, y): (&f64, &f64)| x == y || x.is_nan() && y.is_nan();
        assert!(output.iter().zip(&rounded).all(same), "the output is the unrounded one, rounded");
        let [query, key, value, table] = self.backward(inputs, &unrounded, &log_sum_exp)?;
        Ok(Results { output, log_sum_exp, maximum, query, key, value, table })
    }

    /// Output, log-sum-exp, maximum and unrounded output.
    pub fn forward(&self, inputs: &Inputs) -> Result<[Vec<f64>; 4]> {
        Ok(self.forward_with(inputs, true)?.try_into().expect("four outputs"))
    }

    /// The output, where nothing else is wanted.
    pub fn output(&self, inputs: &Inputs) -> Result<Vec<f64>> {
        Ok(self.forward_with(inputs, false)?.swap_remove(0))
    }

    fn forward_with(&self, inputs: &Inputs, all: bool) -> Result<Vec<Vec<f64>>> {
        let AttentionShape { batch, heads, queries, value_size, .. } = self.shape;
        let kind = Kind::of(self.score_dtype());
        let mut builder = Builder::new(self.order);
        let attention = self.attention(&mut builder, inputs);
        let (rows, outputs) = ([batch, heads, queries], [batch, heads, queries, value_size]);
        let output = builder.output(self.dtype, &outputs, self.order);
        let mut further =
            |shape: &[usize], order| all.then(|| builder.output(self.score_dtype(), shape, order));
        let kernel = AttentionForward {
            attention,
            score: self.function.programs.as_ref().map(|programs| (programs.build)(kind).0),
            output,
            log_sum_exp: further(&rows, Order::Packed),
            maximum: further(&rows, Order::Reversed),
            unrounded: further(&outputs, self.order),
        };
        builder.plan.kernels.push(Kernel::AttentionForward(kernel));
        builder.run(self.threads, self.isa)
    }

    /// The cotangents of query, key, value and table, from the unrounded output.
    pub fn backward(&self, inputs: &Inputs, output: &[f64], log_sum_exp: &[f64]) -> Result<[Vec<f64>; 4]> {
        let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, head_size, value_size } =
            self.shape;
        let (dtype, score_dtype) = (self.dtype, self.score_dtype());
        let kind = Kind::of(score_dtype);
        let mut builder = Builder::new(self.order);
        let attention = self.attention(&mut builder, inputs);
        let rows = [batch, heads, queries];
        let outputs = [batch, heads, queries, value_size];
        let programs = self.function.programs.as_ref();
        let reductions = programs.map(|programs| &programs.reductions[..]).unwrap_or_default();
        let kernel = AttentionBackward {
            attention,
            joint: programs.map(|programs| (programs.build)(kind).1),
            output: builder.input(score_dtype, &outputs, output),
            log_sum_exp: builder.input(score_dtype, &rows, log_sum_exp),
            output_cotangent: builder.input(dtype, &outputs, &inputs.output_cotangent),
            log_sum_exp_cotangent: Some(builder.input(score_dtype, &rows, &inputs.log_sum_exp_cotangent)),
            query_cotangent: Some(builder.output(dtype, &[batch, heads, queries, head_size], self.order)),
            key_cotangent: Some(builder.output(dtype, &[key_batch, key_heads, keys, head_size], self.order)),
            value_cotangent: Some(builder.output(
                dtype,
                &[key_batch, key_heads, keys, value_size],
                self.order,
            )),
            captures: vec![CaptureCotangent {
                view: builder.output(score_dtype, &self.function.table, Order::Packed),
                dtype: score_dtype,
                shape: self.function.table.clone(),
            }],
            reductions: reductions
                .iter()
                .map(|(key, indices)| CaptureReduction {
                    key: *key,
                    result: 2,
                    capture: 0,
                    indices: indices.clone(),
                    reason: String::new(),
                    origin: None,
                })
                .collect(),
            zero_terms: vec![],
        };
        builder.plan.kernels.push(Kernel::AttentionBackward(Box::new(kernel)));
        Ok(builder.run(self.threads, self.isa)?.try_into().expect("four outputs"))
    }
}
