//! Programs of one attention and its gradient, with their inputs and plans.

use tilewright_autodiff::reverse;
use tilewright_cuda::codegen::{Program, Target, lower};
use tilewright_generate::Random;
use tilewright_interp::{Array, Precision};
use tilewright_ir::{DType, Graph, Type, parse};
use tilewright_plan::Plan;
use tilewright_schedule::{Layout, simplify};

use crate::table::{Mask, Score};

/// A program, its inputs, and what it is lowered to.
pub struct Case {
    pub label: String,
    pub graph: Graph,
    pub inputs: Vec<Array>,
    pub plan: Plan,
    pub program: Program,
}

/// The sizes of a call.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub key_batch: usize,
    pub key_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub head_size: usize,
    pub value_size: usize,
}

/// A few heads, and lengths that no tile divides.
pub const SMALL: Sizes = Sizes {
    batch: 2,
    heads: 2,
    key_batch: 2,
    key_heads: 1,
    queries: 37,
    keys: 70,
    head_size: 8,
    value_size: 5,
};

/// A graph of one attention, whose results are output and log-sum-exp, and its captures' limits.
pub fn attention(dtype: DType, sizes: Sizes, score: &Score, mask: Option<&Mask>) -> (Graph, Vec<i64>) {
    let Sizes { batch, heads, key_batch, key_heads, queries, keys, head_size, value_size } = sizes;
    let ty = |text: &str| {
        let [name, shape] = text.split('[').collect::<Vec<_>>().try_into().unwrap();
        // 256 stands for an extent that has an element for each q − k and each q + k.
        let positions = (queries + keys).max(256);
        let extents = [("B", batch), ("H", heads), ("Q", queries), ("K", keys), ("256", positions)];
        let shape = extents
            .iter()
            .fold(shape.to_string(), |shape, (letter, extent)| shape.replace(letter, &extent.to_string()));
        format!("{name}[{shape}")
    };
    let captured: Vec<_> = score.captures.iter().chain(mask.map_or(&[][..], |mask| mask.captures)).collect();
    let declared: String =
        captured.iter().map(|(name, text, _)| format!(", %{name}: {}", ty(text))).collect();
    let names: String = captured.iter().map(|(name, ..)| format!(", %{name}")).collect();
    let pair = "%b: i32[], %h: i32[], %q: i32[], %k: i32[]";
    let mask = mask
        .map_or(String::new(), |mask| format!("mask({pair}{declared}) -> (%out) {{\n {}\n }}", mask.body));
    let unrounded = format!(", %wide: f32[{batch}, {heads}, {queries}, {value_size}]");
    let text = format!(
        "graph(%query: {dtype}[{batch}, {heads}, {queries}, {head_size}], \
         %key: {dtype}[{key_batch}, {key_heads}, {keys}, {head_size}], \
         %value: {dtype}[{key_batch}, {key_heads}, {keys}, {value_size}]{declared}) -> (%output, %lse) {{\n \
         %output: {dtype}[{batch}, {heads}, {queries}, {value_size}], %lse, %top{} = flex_attention %query, %key, \
         %value{names} scale={:?} score(%s: f32[], {pair}{declared}) -> (%out) {{\n {}\n }} {mask} }}",
        if dtype.size() == 2 { &unrounded } else { "" },
        1.0 / (head_size as f64).sqrt(),
        score.body
    );
    let graph = parse(&text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", score.name));
    (graph, captured.iter().map(|(_, _, limit)| *limit).collect())
}

/// Inputs of a graph that [`attention`] made: floats from −1 to 1.
pub fn inputs(graph: &Graph, limits: &[i64], random: &mut Random) -> Vec<Array> {
    let limits = [&[0, 0, 0], limits].concat();
    let input = |(ty, limit): (&Type, i64)| {
        if ty.dtype.is_float() {
            let elements: Vec<f64> = (0..ty.elements()).map(|_| random.float(-1.0, 1.0)).collect();
            Array::from_f64s(ty.clone(), &elements)
        } else {
            let elements: Vec<i64> = (0..ty.elements()).map(|_| random.integer(0, limit)).collect();
            Array::from_i64s(ty.clone(), &elements)
        }
    };
    graph.parameter_types().into_iter().zip(limits).map(input).collect()
}

impl Case {
    /// A case of a graph whose gradients are part of it, for inputs that lie as `layouts` says.
    pub fn laid_out(label: String, graph: Graph, inputs: Vec<Array>, layouts: &[Layout]) -> Case {
        let plan = tilewright_schedule::lower(&simplify(&graph).unwrap(), layouts).unwrap();
        let program = lower(&plan, Target::HOPPER).unwrap();
        Case { label, graph, inputs, plan, program }
    }

    /// [`Case::laid_out`] for packed inputs.
    pub fn new(label: String, graph: Graph, inputs: Vec<Array>) -> Case {
        let layouts: Vec<Layout> =
            graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
        Case::laid_out(label, graph, inputs, &layouts)
    }

    /// An attention and its gradients.
    pub fn of(dtype: DType, sizes: Sizes, score: &Score, mask: Option<&Mask>) -> Case {
        let label =
            format!("{} and {} in {dtype} of {sizes:?}", score.name, mask.map_or("no mask", |m| m.name));
        let mut random = Random::new(label.bytes().map(u64::from).sum());
        let (graph, limits) = attention(dtype, sizes, score, mask);
        let inputs = inputs(&graph, &limits, &mut random);
        let (graph, inputs) = with_gradients(graph, inputs, &mut random);
        Case::new(label, graph, inputs)
    }

    /// The golden rule: the error of each result, relative to that of a plain evaluation in its type.
    pub fn check(&self, found: &[Vec<u8>]) {
        let golden = tilewright_interp::run(&self.graph, &self.inputs, Precision::Exact).unwrap();
        let plain = tilewright_interp::run(&self.graph, &self.inputs, Precision::Typed).unwrap();
        let narrow = self.inputs[0].ty().dtype.size() == 2;
        // The least is for results with few elements, whose plain error may be small by chance.
        let (factor, least) = if narrow { (1.35, 1e-3) } else { (4.0, 1e-6) };
        for (i, (golden, plain)) in golden.iter().zip(&plain).enumerate() {
            let ty: Type = golden.ty().clone();
            let found = Array::from_bytes(ty, &found[i]).to_f64s();
            let (golden, plain) = (golden.to_f64s(), plain.to_f64s());
            let finite: Vec<f64> = golden.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
            let size = root_mean_square(&finite, &vec![0.0; finite.len()]).max(1.0);
            let error = root_mean_square(&found, &golden);
            let allowed = factor * root_mean_square(&plain, &golden) + least * size;
            assert!(
                error <= allowed,
                "{}, result {i}: error {error:e}, allowed {allowed:e}\n{}",
                self.label,
                self.graph
            );
        }
    }
}

fn root_mean_square(x: &[f64], y: &[f64]) -> f64 {
    // Equal infinities have no difference.
    let square = |(x, y): (&f64, &f64)| if x == y { 0.0 } else { (x - y) * (x - y) };
    (x.iter().zip(y).map(square).sum::<f64>() / x.len().max(1) as f64).sqrt()
}

/// Appends the gradients of all floating inputs, for random cotangents, which become further inputs.
pub fn with_gradients(mut graph: Graph, mut inputs: Vec<Array>, random: &mut Random) -> (Graph, Vec<Array>) {
    let mut results = graph.results().to_vec();
    let wanted: Vec<_> =
        graph.parameters().iter().copied().filter(|&value| graph.ty(value).dtype.is_float()).collect();
    let mut cotangents = Vec::new();
    for &result in &results {
        let ty = graph.ty(result).clone();
        let elements: Vec<f64> = (0..ty.elements()).map(|_| random.float(-1.0, 1.0)).collect();
        inputs.push(Array::from_f64s(ty.clone(), &elements));
        cotangents.push((result, graph.parameter(ty)));
    }
    results.extend(reverse(&mut graph, &cotangents, &wanted).unwrap().into_iter().flatten());
    graph.set_results(results);
    (graph, inputs)
}
