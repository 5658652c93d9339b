//! The closed set of operations. Every `match` on [`Op`] in the project is exhaustive, so a new
//! operation does not compile until each stage has an arm for it; `docs/add-an-op.md` walks through.
//!
//! Element-wise operations take operands of one shape: broadcasting is an operation of its own.

use crate::{DType, Graph, Literal};

/// An operation. Operands are listed in the order that a [`crate::Node`] holds them.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `()`: a constant.
    Constant(Literal),
    /// `()`: the position along `axis`, at every element of `shape`; an integer or float type.
    Iota {
        /// Element type of the result.
        dtype: DType,
        /// Shape of the result.
        shape: Vec<usize>,
        /// The axis that is counted.
        axis: usize,
    },
    /// `(x)`: a function of each element.
    Unary(Unary),
    /// `(x, y)`: a function of two elements of one type.
    Binary(Binary),
    /// `(x, y)`: a comparison, `bool`. A comparison with NaN is false but for `Ne`.
    Compare(Compare),
    /// `(condition: bool, x, y)`: x where the condition holds, else y. The other side never shows.
    Select,
    /// `(x)`: conversion. Float to integer truncates and saturates, NaN gives 0; to `bool` tests ≠ 0.
    Cast(DType),
    /// `(x)`: x itself, through which no gradient passes.
    StopGradient,
    /// `(x)`: operand axis i becomes result axis `axes[i]` (ascending); an operand axis of extent 1
    /// is repeated, as are the result's other axes.
    Broadcast {
        /// Shape of the result.
        shape: Vec<usize>,
        /// The result axis of each operand axis, strictly ascending.
        axes: Vec<usize>,
    },
    /// `(x)`: the same elements in row-major order under another shape.
    Reshape {
        /// Shape of the result.
        shape: Vec<usize>,
    },
    /// `(x)`: result axis i is operand axis `permutation[i]`.
    Transpose {
        /// The operand axis of each result axis.
        permutation: Vec<usize>,
    },
    /// `(x)`: positions `start, start + step, …` below `limit`, for each axis.
    Slice {
        /// First position of each axis.
        start: Vec<usize>,
        /// Position that each axis stops before.
        limit: Vec<usize>,
        /// Distance between positions of each axis, at least 1.
        step: Vec<usize>,
    },
    /// `(x, value: rank 0)`: x with `value` before, after and between the positions of each axis.
    Pad {
        /// Elements added before each axis.
        low: Vec<usize>,
        /// Elements added after each axis.
        high: Vec<usize>,
        /// Elements added between two neighbours of each axis.
        interior: Vec<usize>,
    },
    /// `(x)`: the named axes in reverse order.
    Reverse {
        /// The axes, ascending.
        axes: Vec<usize>,
    },
    /// `(x…)`: the operands one after the other along `axis`.
    Concatenate {
        /// The axis that they are joined along.
        axis: usize,
    },
    /// `(x)`: the named axes reduced away. Narrow floats accumulate in `f32`.
    Reduce {
        /// How elements are combined.
        kind: Reduction,
        /// The axes that go, ascending.
        axes: Vec<usize>,
    },
    /// `(x)`: position of the first greatest element along `axis`, `i64`; NaN counts as greatest.
    ArgMax {
        /// The axis that goes.
        axis: usize,
    },
    /// `(x, y)`: sum of products over the contracted axes; result axes are batch, free axes of x, free
    /// axes of y. Narrow floats accumulate in `f32`.
    Dot(DotAxes),
    /// `(array, index…)`: one integer index array per leading axis of `array`, all of one shape and
    /// type; result shape is that shape, then the array's remaining axes. A negative index counts from
    /// the end; any other outside the axis is an error of the run.
    Gather,
    /// `(updates, index…)`: the adjoint of [`Op::Gather`]: zeros of `shape` with each update added in
    /// row-major order of the updates.
    ScatterAdd {
        /// Shape of the result.
        shape: Vec<usize>,
    },
    /// `(key: i64 rank 0)`: 32 random bits for each element as `i32`: word 0 of Philox4x32-10 with the
    /// key's two halves, low first, and the element's row-major position as counter (Salmon et al. 2011).
    RandomBits {
        /// Shape of the result.
        shape: Vec<usize>,
    },
    /// Attention with a score function and a mask: see [`FlexAttention`].
    FlexAttention(Box<FlexAttention>),
    /// The gradient of the former: see [`FlexAttentionBackward`].
    FlexAttentionBackward(Box<FlexAttentionBackward>),
    /// A scan: see [`AssociativeScan`].
    AssociativeScan(Box<AssociativeScan>),
}

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// −x; for `u8` wrapping.
    Neg,
    /// |x|.
    Abs,
    /// −1, 0 or 1; NaN stays.
    Sign,
    /// eˣ.
    Exp,
    /// eˣ − 1, exact near 0.
    Expm1,
    /// Natural logarithm.
    Log,
    /// log(1 + x), exact near 0.
    Log1p,
    /// Square root.
    Sqrt,
    /// 1 / √x.
    Rsqrt,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Tangent.
    Tan,
    /// Hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// The error function.
    Erf,
    /// Greatest integer not above.
    Floor,
    /// Least integer not below.
    Ceil,
    /// Nearest integer, ties to even.
    Round,
    /// Logical not of `bool`, bitwise not of integers.
    Not,
}

impl Unary {
    /// Every unary function.
    pub const ALL: [Unary; 19] = [
        Unary::Neg,
        Unary::Abs,
        Unary::Sign,
        Unary::Exp,
        Unary::Expm1,
        Unary::Log,
        Unary::Log1p,
        Unary::Sqrt,
        Unary::Rsqrt,
        Unary::Sin,
        Unary::Cos,
        Unary::Tan,
        Unary::Tanh,
        Unary::Sigmoid,
        Unary::Erf,
        Unary::Floor,
        Unary::Ceil,
        Unary::Round,
        Unary::Not,
    ];

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Unary::Neg => "neg",
            Unary::Abs => "abs",
            Unary::Sign => "sign",
            Unary::Exp => "exp",
            Unary::Expm1 => "expm1",
            Unary::Log => "log",
            Unary::Log1p => "log1p",
            Unary::Sqrt => "sqrt",
            Unary::Rsqrt => "rsqrt",
            Unary::Sin => "sin",
            Unary::Cos => "cos",
            Unary::Tan => "tan",
            Unary::Tanh => "tanh",
            Unary::Sigmoid => "sigmoid",
            Unary::Erf => "erf",
            Unary::Floor => "floor",
            Unary::Ceil => "ceil",
            Unary::Round => "round",
            Unary::Not => "not",
        }
    }
}

/// A function of two elements of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// x + y; integers wrap.
    Add,
    /// x − y; integers wrap.
    Sub,
    /// x · y; integers wrap.
    Mul,
    /// x / y; integers round towards −∞, and anything / 0 is 0.
    Div,
    /// x − y·⌊x / y⌋, with the sign of y; integer x rem 0 is 0.
    Rem,
    /// xʸ; floats only.
    Pow,
    /// The greater; NaN if either is.
    Max,
    /// The lesser; NaN if either is.
    Min,
    /// Angle of the point (y, x); floats only.
    Atan2,
    /// Logical or bitwise and.
    And,
    /// Logical or bitwise or.
    Or,
    /// Logical or bitwise exclusive or.
    Xor,
}

impl Binary {
    /// Every binary function.
    pub const ALL: [Binary; 12] = [
        Binary::Add,
        Binary::Sub,
        Binary::Mul,
        Binary::Div,
        Binary::Rem,
        Binary::Pow,
        Binary::Max,
        Binary::Min,
        Binary::Atan2,
        Binary::And,
        Binary::Or,
        Binary::Xor,
    ];

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
            Binary::Div => "div",
            Binary::Rem => "rem",
            Binary::Pow => "pow",
            Binary::Max => "max",
            Binary::Min => "min",
            Binary::Atan2 => "atan2",
            Binary::And => "and",
            Binary::Or => "or",
            Binary::Xor => "xor",
        }
    }
}

/// A comparison of two elements of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compare {
    /// x = y
    Eq,
    /// x ≠ y
    Ne,
    /// x < y
    Lt,
    /// x ≤ y
    Le,
    /// x > y
    Gt,
    /// x ≥ y
    Ge,
}

impl Compare {
    /// Every comparison.
    pub const ALL: [Compare; 6] =
        [Compare::Eq, Compare::Ne, Compare::Lt, Compare::Le, Compare::Gt, Compare::Ge];

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Compare::Eq => "eq",
            Compare::Ne => "ne",
            Compare::Lt => "lt",
            Compare::Le => "le",
            Compare::Gt => "gt",
            Compare::Ge => "ge",
        }
    }
}

/// How a reduction combines elements. Over no elements: 0, 1, least value, greatest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Sum; not of `bool`.
    Sum,
    /// Product; not of `bool`.
    Prod,
    /// Greatest, NaN if any is; of `bool`: any.
    Max,
    /// Least, NaN if any is; of `bool`: all.
    Min,
}

impl Reduction {
    /// Every reduction.
    pub const ALL: [Reduction; 4] = [Reduction::Sum, Reduction::Prod, Reduction::Max, Reduction::Min];

    /// The name in the text form, after `reduce_`.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Sum => "sum",
            Reduction::Prod => "prod",
            Reduction::Max => "max",
            Reduction::Min => "min",
        }
    }
}

/// The axes of a [`Op::Dot`]. Paired lists have equal lengths; axes in none of them are free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DotAxes {
    /// Batch axes of the left operand.
    pub left_batch: Vec<usize>,
    /// Batch axes of the right operand, in the same order.
    pub right_batch: Vec<usize>,
    /// Contracted axes of the left operand.
    pub left_contract: Vec<usize>,
    /// Contracted axes of the right operand, in the same order.
    pub right_contract: Vec<usize>,
}

impl DotAxes {
    /// The axes of the left operand (of `rank`) that are free, ascending.
    pub fn left_free(&self, rank: usize) -> Vec<usize> {
        free(rank, &self.left_batch, &self.left_contract)
    }

    /// The axes of the right operand (of `rank`) that are free, ascending.
    pub fn right_free(&self, rank: usize) -> Vec<usize> {
        free(rank, &self.right_batch, &self.right_contract)
    }
}

fn free(rank: usize, batch: &[usize], contract: &[usize]) -> Vec<usize> {
    (0..rank).filter(|axis| !batch.contains(axis) && !contract.contains(axis)).collect()
}

/// Attention with a score function and a mask.
///
/// Operands `(query [B, H, Q, D], key [Bk, Hk, K, D], value [Bk, Hk, K, V], capture…)`, the first three
/// of one float type, Bk ∈ {1, B}, H a multiple of Hk: query head h reads key head h / (H / Hk).
/// Results `(output [B, H, Q, V], log_sum_exp [B, H, Q], maximum [B, H, Q])`, the last two of the
/// score type: `f64` for `f64` inputs, else `f32`. Inputs of a half type give a fourth result, the output in
/// the score type: the gradient takes differences in which its rounding would show.
///
/// With `s = score(scale · q·k, b, h, q, k, captures)` over the pairs that the mask admits:
/// `maximum = max s`, `log_sum_exp = log Σ exp s`, `output = Σ exp(s − log_sum_exp) · value`. Where no pair
/// is admitted, or every admitted score is −∞, the output is 0 and the other two are −∞. A pair that is
/// masked out contributes nothing, whatever its operands hold, and evaluates no gather.
#[derive(Clone, Debug, PartialEq)]
pub struct FlexAttention {
    /// Factor of the dot products.
    pub scale: f64,
    /// `(score, b, h, q, k, capture…) -> score`: rank-0 score type, four rank-0 `i32`, then one
    /// parameter of each capture's type.
    pub score: Graph,
    /// `(b, h, q, k, capture…) -> bool`; absent where every pair is admitted.
    pub mask: Option<Graph>,
}

/// The gradient of [`FlexAttention`].
///
/// Operands `(query, key, value, output, log_sum_exp, output cotangent, [log_sum_exp cotangent,] capture…)`,
/// the output of the score type;
/// results `(query, key, value cotangents, learned capture cotangents…)`, each of its primal's type.
///
/// With `p = exp(s − log_sum_exp)` and `g = p · (output cotangent · value − output cotangent · output +
/// log_sum_exp cotangent)` over the admitted pairs (a pair in a row whose log_sum_exp is −∞ has
/// `p = g = 0`), the region `joint` turns `g` into the cotangent of the raw score and into contributions,
/// and each contribution's value is added, in f32 or wider, at its indices of its capture's cotangent.
#[derive(Clone, Debug, PartialEq)]
pub struct FlexAttentionBackward {
    /// Factor of the dot products.
    pub scale: f64,
    /// `(score, b, h, q, k, cotangent, capture…) -> (score', d_score, (index…, value)…)`: the score
    /// function, its derivative times `cotangent`, then each contribution's indices and value. `score'`
    /// does not depend on `cotangent`.
    pub joint: Graph,
    /// The mask of the forward.
    pub mask: Option<Graph>,
    /// One for each contribution of `joint`, in the order of its results.
    pub contributions: Vec<Contribution>,
    /// The captures whose cotangents are results, ascending.
    pub learned: Vec<usize>,
    /// Whether the log-sum-exp's cotangent is an operand.
    pub log_sum_exp_cotangent: bool,
}

/// One read of a learned capture: a value added to its cotangent at `indices` leading indices (the
/// value has the shape of the capture's remaining axes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contribution {
    /// Which capture, counted among the captures.
    pub capture: usize,
    /// How many leading axes are indexed.
    pub indices: usize,
}

/// A scan along one axis with an associative combine function.
///
/// Operands `(leaf…, capture…)`; results one array of each leaf's type. Leaves may differ in type and
/// shape but have one extent along `axis`. With y₀ = x₀, yₜ = combine(yₜ₋₁, xₜ) on slices without
/// `axis`; where `reverse`, from the last position to the first, with the later one as left argument.
#[derive(Clone, Debug, PartialEq)]
pub struct AssociativeScan {
    /// `(left…, right…, capture…) -> leaf…` on slices of the leaves with `axis` removed.
    pub combine: Graph,
    /// How many leaves there are.
    pub leaves: usize,
    /// The axis, the same for every leaf.
    pub axis: usize,
    /// Whether it runs from the end.
    pub reverse: bool,
}

impl Op {
    /// The name in the text form.
    pub fn name(&self) -> String {
        match self {
            Op::Constant(_) => "constant".into(),
            Op::Iota { .. } => "iota".into(),
            Op::Unary(unary) => unary.name().into(),
            Op::Binary(binary) => binary.name().into(),
            Op::Compare(compare) => compare.name().into(),
            Op::Select => "select".into(),
            Op::Cast(_) => "cast".into(),
            Op::StopGradient => "stop_gradient".into(),
            Op::Broadcast { .. } => "broadcast".into(),
            Op::Reshape { .. } => "reshape".into(),
            Op::Transpose { .. } => "transpose".into(),
            Op::Slice { .. } => "slice".into(),
            Op::Pad { .. } => "pad".into(),
            Op::Reverse { .. } => "reverse".into(),
            Op::Concatenate { .. } => "concatenate".into(),
            Op::Reduce { kind, .. } => format!("reduce_{}", kind.name()),
            Op::ArgMax { .. } => "argmax".into(),
            Op::Dot(_) => "dot".into(),
            Op::Gather => "gather".into(),
            Op::ScatterAdd { .. } => "scatter_add".into(),
            Op::RandomBits { .. } => "random_bits".into(),
            Op::FlexAttention(_) => "flex_attention".into(),
            Op::FlexAttentionBackward(_) => "flex_attention_backward".into(),
            Op::AssociativeScan(_) => "associative_scan".into(),
        }
    }

    /// The regions that the operation holds, with the label of each in the text form.
    pub fn regions(&self) -> Vec<(&'static str, &Graph)> {
        match self {
            Op::FlexAttention(attention) => {
                let mask = attention.mask.iter().map(|mask| ("mask", mask));
                std::iter::once(("score", &attention.score)).chain(mask).collect()
            }
            Op::FlexAttentionBackward(attention) => {
                let mask = attention.mask.iter().map(|mask| ("mask", mask));
                std::iter::once(("joint", &attention.joint)).chain(mask).collect()
            }
            Op::AssociativeScan(scan) => vec![("combine", &scan.combine)],
            Op::Constant(_)
            | Op::Iota { .. }
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast(_)
            | Op::StopGradient
            | Op::Broadcast { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Reverse { .. }
            | Op::Concatenate { .. }
            | Op::Reduce { .. }
            | Op::ArgMax { .. }
            | Op::Dot(_)
            | Op::Gather
            | Op::ScatterAdd { .. }
            | Op::RandomBits { .. } => Vec::new(),
        }
    }
}
