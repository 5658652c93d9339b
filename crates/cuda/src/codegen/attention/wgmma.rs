//! The instructions by which a Hopper warpgroup multiplies, as functions of a kernel's text: one for each width,
//! since all registers of the sums are written out in them.

use tilewright_ir::DType;

/// `multiply_shared` (both operands in panels, sums of `columns`) and `multiply_weights` (left operand in registers,
/// sums of `width`, the right operand's rows along the depth).
pub(super) fn instructions(dtype: DType, columns: usize, width: usize) -> String {
    let dtype = dtype.name();
    let names = |count: usize| (0..count).map(|i| format!("%{i}")).collect::<Vec<_>>().join(", ");
    let sums = |count: usize| {
        (0..count).map(|i| format!("\"+f\"(sums[{}][{}])", i / 4, i % 4)).collect::<Vec<_>>().join(", ")
    };
    let count = columns / 2;
    let (left, right, keep) = (count, count + 1, count + 2);
    let few = width / 2;
    format!(
        "// sums[64 × {columns}] = left · rightᵀ, plus the sums where they are kept: 16 deep.\n\
         DEVICE void multiply_shared(float (&sums)[{blocks}][4], unsigned long long left, unsigned long long right, \
         bool keep) {{\n    asm volatile(\n        \"{{ .reg .pred keep; setp.ne.b32 keep, %{keep}, 0;\\n\"\n        \
         \"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{dtype}.{dtype} {{{all}}}, %{left}, %{right}, keep, 1, \
         1, 0, 0; }}\"\n        : {outputs}\n        : \"l\"(left), \"l\"(right), \"r\"((int)keep));\n}}\n\
         // sums[64 × {width}] += left · right: 16 deep.\n\
         DEVICE void multiply_weights(float (&sums)[{few_blocks}][4], const unsigned (&left)[4], \
         unsigned long long right) {{\n    asm volatile(\n        \
         \"{{ .reg .pred keep; setp.eq.b32 keep, 0, 0;\\n\"\n        \
         \"wgmma.mma_async.sync.aligned.m64n{width}k16.f32.{dtype}.{dtype} {{{some}}}, {{%{few}, %{second}, %{third}, \
         %{fourth}}}, %{panel}, keep, 1, 1, 1; }}\"\n        : {few_outputs}\n        : \"r\"(left[0]), \
         \"r\"(left[1]), \"r\"(left[2]), \"r\"(left[3]), \"l\"(right));\n}}\n",
        blocks = columns / 8,
        all = names(count),
        outputs = sums(count),
        few_blocks = width / 8,
        some = names(few),
        second = few + 1,
        third = few + 2,
        fourth = few + 3,
        panel = few + 4,
        few_outputs = sums(few),
    )
}

/// `begin_panels`, `multiply_panels` and `multiply_left`, which the gradient multiplies by, for sums of each of these
/// widths: both operands in panels, or the left one in registers; either operand in panels may be turned, its rows the
/// depth.
pub(super) fn products(dtype: DType, widths: &[usize]) -> String {
    let mut widths = widths.to_vec();
    widths.sort_unstable();
    widths.dedup();
    widths.into_iter().map(|columns| product(dtype.name(), columns)).collect()
}

fn product(dtype: &str, columns: usize) -> String {
    let count = columns / 2;
    let sums = |constraint: &str| {
        let sum = |i: usize| format!("\"{constraint}\"(sums[{}][{}])", i / 4, i % 4);
        (0..count).map(sum).collect::<Vec<_>>().join(", ")
    };
    let names = (0..count).map(|i| format!("%{i}")).collect::<Vec<_>>().join(", ");
    let instruction =
        format!("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{dtype}.{dtype} {{{names}}}");
    let operand = |i: usize| format!("%{}", count + i);
    let (left, right) = (operand(0), operand(1));
    let turned = format!("{}, {}", operand(2), operand(3));
    let blocks = columns / 8;
    let panels = |name: &str, what: &str, keep: &str, constraint: &str| {
        format!(
            "// sums[64 × {columns}] {what} left · right: 16 deep.\n\
             template <bool LEFT_TURNED, bool RIGHT_TURNED, typename E>\n\
             DEVICE void {name}(float (&sums)[{blocks}][4], unsigned long long left, unsigned long long right, E) \
             {{\n    asm volatile(\n        \"{{ .reg .pred keep; setp.{keep}.b32 keep, 0, 0;\\n\"\n        \
             \"{instruction}, {left}, {right}, keep, 1, 1, {turned}; }}\"\n        : {sums}\n        \
             : \"l\"(left), \"l\"(right), \"n\"((int)LEFT_TURNED), \"n\"((int)RIGHT_TURNED));\n}}\n",
            sums = sums(constraint)
        )
    };
    let words = (0..4).map(operand).collect::<Vec<_>>().join(", ");
    let (right, turned) = (operand(4), operand(5));
    panels("begin_panels", "=", "ne", "=f")
        + &panels("multiply_panels", "+=", "eq", "+f")
        + &format!(
            "// sums[64 × {columns}] += left · right: 16 deep.\n\
             template <bool RIGHT_TURNED, typename E>\n\
             DEVICE void multiply_left(float (&sums)[{blocks}][4], const unsigned (&left)[4], unsigned long long right, \
             E) {{\n    asm volatile(\n        \"{{ .reg .pred keep; setp.eq.b32 keep, 0, 0;\\n\"\n        \
             \"{instruction}, {{{words}}}, {right}, keep, 1, 1, {turned}; }}\"\n        : {sums}\n        \
             : \"r\"(left[0]), \"r\"(left[1]), \"r\"(left[2]), \"r\"(left[3]), \"l\"(right), \"n\"((int)RIGHT_TURNED));\n}}\n",
            sums = sums("+f")
        )
}
