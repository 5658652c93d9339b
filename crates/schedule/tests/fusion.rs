//! How many kernels the programs that matter become.

use tilewright_ir::{Graph, Op, Value, parse};
use tilewright_plan::{Buffer, Kernel, Place, Plan, verify};
use tilewright_schedule::{Layout, lower, simplify};

fn plan(graph: &Graph) -> Plan {
    let graph = simplify(graph).expect("a sound program");
    let layouts: Vec<Layout> = graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
    let plan = lower(&graph, &layouts).expect("a sound program");
    verify(&plan).unwrap_or_else(|error| panic!("{error}\n{plan}"));
    plan
}

/// Loop nests, then everything else.
fn kernels(plan: &Plan) -> (usize, usize) {
    let loops = plan.kernels.iter().filter(|kernel| matches!(kernel, Kernel::Loops(_))).count();
    (loops, plan.kernels.len() - loops)
}

#[track_caller]
fn expect(graph: &Graph, loops: usize, others: usize) {
    let plan = plan(graph);
    assert_eq!(kernels(&plan), (loops, others), "\n{graph}\n{plan}");
}

#[track_caller]
fn read(text: &str) -> Graph {
    parse(text).unwrap_or_else(|error| panic!("{error}"))
}

/// The program with its first result's gradient, for a cotangent that is a further parameter, with
/// respect to every parameter in place of its results.
fn gradient(text: &str) -> Graph {
    gradient_of(read(text))
}

fn gradient_of(mut graph: Graph) -> Graph {
    let output = graph.results()[0];
    let inputs: Vec<Value> = graph.parameters().to_vec();
    let cotangent = graph.parameter(graph.ty(output).clone());
    let gradients =
        tilewright_autodiff::reverse(&mut graph, &[(output, cotangent)], &inputs).expect("a gradient");
    graph.set_results(gradients.into_iter().flatten().collect());
    graph
}

const SOFTMAX: &str = "graph(%x: f32[64, 256]) -> (%y) {
  %m = reduce_max %x axes=[1]
  %mb: f32[64, 256] = broadcast %m axes=[0]
  %c = sub %x, %mb
  %e = exp %c
  %s = reduce_sum %e axes=[1]
  %sb: f32[64, 256] = broadcast %s axes=[0]
  %y = div %e, %sb
}";

const LAYER_NORM: &str = "graph(%x: f32[64, 256], %gain: f32[256], %bias: f32[256]) -> (%y) {
  %n: f32[] = constant 0.00390625
  %nb: f32[64] = broadcast %n axes=[]
  %s = reduce_sum %x axes=[1]
  %mean = mul %s, %nb
  %meanb: f32[64, 256] = broadcast %mean axes=[0]
  %c = sub %x, %meanb
  %q = mul %c, %c
  %v = reduce_sum %q axes=[1]
  %variance = mul %v, %nb
  %small: f32[] = constant 0.00001
  %smallb: f32[64] = broadcast %small axes=[]
  %shifted = add %variance, %smallb
  %r = rsqrt %shifted
  %rb: f32[64, 256] = broadcast %r axes=[0]
  %normal = mul %c, %rb
  %gainb: f32[64, 256] = broadcast %gain axes=[1]
  %biasb: f32[64, 256] = broadcast %bias axes=[1]
  %scaled = mul %normal, %gainb
  %y = add %scaled, %biasb
}";

const CROSS_ENTROPY: &str = "graph(%x: f32[64, 256], %t: i32[64]) -> (%loss) {
  %m = reduce_max %x axes=[1]
  %mb: f32[64, 256] = broadcast %m axes=[0]
  %c = sub %x, %mb
  %e = exp %c
  %s = reduce_sum %e axes=[1]
  %l = log %s
  %lb: f32[64, 256] = broadcast %l axes=[0]
  %p = sub %c, %lb
  %i: i32[64, 256] = iota axis=1
  %tb: i32[64, 256] = broadcast %t axes=[0]
  %hit = eq %i, %tb
  %z: f32[] = constant 0.0
  %zb: f32[64, 256] = broadcast %z axes=[]
  %chosen = select %hit, %p, %zb
  %row = reduce_sum %chosen axes=[1]
  %loss = reduce_sum %row axes=[0]
}";

#[test]
fn softmax_is_one_kernel() {
    expect(&read(SOFTMAX), 1, 0);
}

#[test]
fn softmax_gradient_is_one_kernel() {
    expect(&gradient(SOFTMAX), 1, 0);
}

#[test]
fn layer_norm_is_one_kernel() {
    expect(&read(LAYER_NORM), 1, 0);
}

#[test]
fn layer_norm_gradient_is_one_kernel_and_column_sums() {
    // The sums of gain and bias read the cotangent once, side by side.
    expect(&gradient(LAYER_NORM), 2, 0);
}

#[test]
fn cross_entropy_is_a_kernel_and_the_sum_over_rows() {
    expect(&read(CROSS_ENTROPY), 2, 0);
}

#[test]
fn cross_entropy_gradient_is_one_kernel() {
    expect(&gradient(CROSS_ENTROPY), 1, 0);
}

/// The loss of half-precision logits, each row's picked with a gather, as a model has it.
const PICKED: &str = "graph(%h: bf16[64, 256], %t: i32[64]) -> (%row) {
  %x: f32[64, 256] = cast %h
  %m = reduce_max %x axes=[1]
  %mb: f32[64, 256] = broadcast %m axes=[0]
  %c = sub %x, %mb
  %e = exp %c
  %s = reduce_sum %e axes=[1]
  %l = log %s
  %lse = add %l, %m
  %i: i32[64, 1] = iota axis=0
  %t1: i32[64, 1] = reshape %t
  %p1 = gather %x, %i, %t1
  %p: f32[64] = reshape %p1
  %row = sub %lse, %p
}";

#[test]
fn logits_are_neither_widened_nor_scattered_into() {
    for graph in [read(PICKED), gradient(PICKED)] {
        let plan = plan(&graph);
        let scatters = plan.kernels.iter().any(|kernel| matches!(kernel, Kernel::ScatterAdd(_)));
        let large =
            |buffer: &&Buffer| buffer.elements >= 64 * 256 && !matches!(buffer.place, Place::Input(_));
        let stored = plan.buffers.iter().filter(large).all(|buffer| matches!(buffer.place, Place::Output(_)));
        assert!(!scatters && stored, "{graph}\n{plan}");
    }
}

/// A weight's gradient lies as the weight does, so that the update reads both alike.
#[test]
fn gradients_of_weights_are_not_read_transposed() {
    let graph = gradient(
        "graph(%x: f32[4, 8, 16], %w: f32[16, 32]) -> (%y) {
  %y = dot %x, %w left_batch=[] right_batch=[] left_contract=[2] right_contract=[0]
}",
    );
    expect(&graph, 0, 2);
}

/// What an optimiser makes of its step count does not stand between a small parameter's gradient and its update.
#[test]
fn an_update_by_a_count_is_part_of_the_gradient() {
    let graph = read(
        "graph(%g: f32[64, 32], %w: f32[64, 32], %p: f32[32], %n: f32[]) -> (%u, %q) {
  %u = dot %g, %w left_batch=[] right_batch=[] left_contract=[1] right_contract=[1]
  %d = reduce_sum %g axes=[0]
  %f = exp %n
  %k = rsqrt %f
  %kb: f32[32] = broadcast %k axes=[]
  %s = mul %d, %kb
  %q = sub %p, %s
}",
    );
    let plan = plan(&graph);
    let vectors = plan.kernels.iter().filter(|kernel| match kernel {
        Kernel::Loops(loops) => loops.parallel.contains(&32),
        _ => false,
    });
    assert_eq!(vectors.count(), 1, "{plan}");
}

/// Heads are stored beside each other where a product reads them so.
#[test]
fn heads_are_not_moved_before_a_product() {
    let graph = read(
        "graph(%x: f32[2, 256, 128], %w: f32[64, 16]) -> (%y) {
  %x5: f32[2, 256, 4, 32] = reshape %x
  %t = transpose %x5 permutation=[0, 2, 1, 3]
  %q = slice %t start=[0, 0, 0, 0] limit=[2, 2, 256, 32] step=[1, 1, 1, 1]
  %k = slice %t start=[0, 2, 0, 0] limit=[2, 4, 256, 32] step=[1, 1, 1, 1]
  %out, %lse, %max = flex_attention %q, %k, %k scale=0.5
    score(%s: f32[], %b: i32[], %h: i32[], %i: i32[], %j: i32[]) -> (%s) {
    }
  %o = transpose %out permutation=[0, 2, 1, 3]
  %rows: f32[2, 256, 64] = reshape %o
  %y = dot %rows, %w left_batch=[] right_batch=[] left_contract=[2] right_contract=[0]
}",
    );
    expect(&graph, 0, 2);
}

#[test]
fn an_update_of_one_parameter_is_one_kernel() {
    expect(
        &read(
            "graph(%p: f32[64, 32], %g: f32[64, 32], %m: f32[64, 32], %v: f32[64, 32], %lr: f32[]) -> (%p2, %m2, %v2) {
  %a: f32[] = constant 0.9
  %ab: f32[64, 32] = broadcast %a axes=[]
  %b: f32[] = constant 0.1
  %bb: f32[64, 32] = broadcast %b axes=[]
  %m0 = mul %m, %ab
  %m1 = mul %g, %bb
  %m2 = add %m0, %m1
  %gg = mul %g, %g
  %v0 = mul %v, %ab
  %v1 = mul %gg, %bb
  %v2 = add %v0, %v1
  %root = sqrt %v2
  %small: f32[64, 32] = broadcast %b axes=[]
  %d = add %root, %small
  %step = div %m2, %d
  %lrb: f32[64, 32] = broadcast %lr axes=[]
  %change = mul %step, %lrb
  %p2 = sub %p, %change
}",
        ),
        1,
        0,
    );
}

#[test]
fn transposed_operands_of_products_are_views() {
    let graph = read(
        "graph(%x: f32[4, 8, 16], %w: f32[32, 16]) -> (%y) {
  %wt = transpose %w permutation=[1, 0]
  %y = dot %x, %wt left_batch=[] right_batch=[] left_contract=[2] right_contract=[0]
}",
    );
    expect(&graph, 0, 1);
}

#[test]
fn a_bias_and_an_activation_after_a_product_are_one_kernel() {
    let graph = read(
        "graph(%x: f32[8, 16], %w: f32[16, 32], %b: f32[32]) -> (%z) {
  %y = dot %x, %w left_batch=[] right_batch=[] left_contract=[1] right_contract=[0]
  %bb: f32[8, 32] = broadcast %b axes=[1]
  %s = add %y, %bb
  %z = tanh %s
}",
    );
    expect(&graph, 1, 1);
}

/// A cluster that a copy reads takes in no later step by way of another cluster that it was merged into.
#[test]
fn what_has_been_read_is_computed_before() {
    let graph = read(
        "graph(%a: f32[3], %b: f32[3], %c: f32[3], %i: i32[3]) -> (%both, %last) {
  %first = tanh %a
  %other = tanh %b
  %both: f32[6] = concatenate %first, %first axis=0
  %product = mul %first, %other
  %joined = tanh %product
  %scattered: f32[3] = scatter_add %c, %i
  %last = add %scattered, %joined
}",
    );
    expect(&graph, 4, 1);
}

/// A chain of so many operations is cut into kernels, in time proportional to its length.
#[test]
fn long_chains_compile() {
    let mut graph = Graph::new();
    let ty = tilewright_ir::Type::new(tilewright_ir::DType::F32, [8]);
    let x = graph.parameter(ty);
    let mut y = x;
    for i in 0..100_000 {
        let op = if i % 3 == 0 { tilewright_ir::Unary::Tanh } else { tilewright_ir::Unary::Neg };
        y = graph.add1(Op::Unary(op), &[y], None).expect("a unary function");
        if i % 3 == 1 {
            y = graph.add1(Op::Binary(tilewright_ir::Binary::Add), &[y, x], None).expect("a sum");
        }
    }
    graph.set_results(vec![y]);
    let plan = plan(&graph);
    assert!(plan.kernels.len() < 2_000, "{}", plan.kernels.len());
}

/// The cotangents of an array's parts are stored where they lie in it, by the scan that makes them.
#[test]
fn the_gradient_of_parts_takes_no_copies() {
    let graph = gradient(
        "graph(%x: f32[4, 64, 6]) -> (%y) {
  %k: f32[4, 64, 3] = slice %x start=[0, 0, 0] limit=[4, 64, 3] step=[1, 1, 1]
  %b: f32[4, 64, 3] = slice %x start=[0, 0, 3] limit=[4, 64, 6] step=[1, 1, 1]
  %a = tanh %k
  %p, %y = associative_scan %a, %b leaves=2 axis=1 reverse=false combine(%l: f32[4, 3], %m: f32[4, 3], %r: f32[4, 3], %s: f32[4, 3]) -> (%o, %n) {
    %o = mul %l, %r
    %t = mul %r, %m
    %n = add %t, %s
  }
}",
    );
    // The tangent is computed once, for both scans.
    expect(&graph, 1, 2);
}

/// A layer of a gated recurrence whose gates are narrow: both of its scans make what they need of the gates, and one of
/// them the cotangent of the gate that lets out.
#[test]
fn scans_make_what_they_read_of_narrow_gates() {
    let graph = gradient_of(tilewright_generate::gated_recurrence([2, 64, 40], false));
    let plan = plan(&graph);
    assert_eq!(kernels(&plan), (0, 2), "{plan}");
    // The states and their cotangents, which the first scan makes, as the result's are there.
    assert_eq!(plan.arena_bytes, 2 * 4 * 2 * 64 * 40, "{plan}");
}

/// The gradient of a norm before which another cotangent arrives: a row is read once for its sum and for what is made
/// of it.
#[test]
fn the_gradient_of_a_norm_within_a_sum_is_one_kernel() {
    let graph = gradient(
        "graph(%x: f32[64, 256]) -> (%y) {
  %q = mul %x, %x
  %s = reduce_sum %q axes=[1]
  %r = rsqrt %s
  %rb: f32[64, 256] = broadcast %r axes=[0]
  %normal = mul %x, %rb
  %z = tanh %normal
  %y = add %x, %z
}",
    );
    expect(&graph, 1, 0);
}
