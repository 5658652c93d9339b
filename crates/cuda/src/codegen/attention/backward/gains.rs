//! Gains: score functions that multiply the raw score by a number of the head, or of the query.
//!
//! Let t = g·s with s the raw score, g a number that only the batch element and the head decide, and t̄ the cotangent
//! of t. Then s̄ = g·t̄ for each pair, and ḡ = Σ t̄·s over the head's pairs. As s = c·⟨q, k⟩, the sum is
//! c·Σₖ⟨k, Σ_q t̄·q⟩: the inner product of the keys with what their cotangents are before they are multiplied by c·g. So
//! the pass sums t̄ as if there were no gain, multiplies the queries' and keys' cotangents by g once they are done, and
//! ḡ costs one product for each element of a key. No pair's raw score is kept. What such a term adds of t̄ alone sums to
//! zero over each row where the log-sum-exp has no cotangent, as the softmax does not change with what all of a row get.
//!
//! If g is a number of the query, ḡ_q = Σₖ t̄·s is c·⟨q, Σₖ t̄·k⟩ likewise: the inner product of the query with what its
//! cotangent is before it is multiplied by c·g_q. The products that end at keys take slopes that are multiplied by g_q.

use tilewright_ir::{Binary, Unary};
use tilewright_plan::{Operation, Program, Register};

use super::indices;
use super::{AttentionBackward, CaptureReduction};
use crate::codegen::functions::Functions;

/// The last of a joint program's inputs that a gain depends on none of.
const LAST: usize = 5;
const SCORE: usize = 4;
const COTANGENT: usize = 5;

/// Products of a sum at most.
const MOST: usize = 8;

/// A register as a product.
#[derive(Clone, Debug, Default, PartialEq)]
struct Product {
    scores: usize,
    cotangents: usize,
    negative: bool,
    /// What does not change with the pair, or not with the row's.
    factors: Vec<Register>,
}

impl Product {
    /// Whether it is of the cotangent and so many scores.
    fn is_of(&self, scores: usize) -> bool {
        (self.scores, self.cotangents) == (scores, 1)
    }

    fn times(mut self, other: Product) -> Product {
        self.scores += other.scores;
        self.cotangents += other.cotangents;
        self.negative ^= other.negative;
        self.factors.extend(other.factors);
        self
    }
}

/// What a gain is a number of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Per {
    #[default]
    Head,
    Row,
}

/// The product that a register is of the score and its cotangent, each once at most, and of factors; if it is one.
fn product(program: &Program, register: Register, per: Per) -> Option<Product> {
    // Query, key, score, cotangent.
    let first = match per {
        Per::Head => 2,
        Per::Row => 3,
    };
    if !(first..=LAST).any(|input| indices::read(program, &[register], input)) {
        return Some(Product { factors: vec![register], ..Product::default() });
    }
    let found = match &program.instructions[register.index()].operation {
        Operation::Input(SCORE) => Product { scores: 1, ..Product::default() },
        Operation::Input(COTANGENT) => Product { cotangents: 1, ..Product::default() },
        Operation::Binary(Binary::Mul, x, y) => product(program, *x, per)?.times(product(program, *y, per)?),
        Operation::Unary(Unary::Neg, x) => {
            let of = product(program, *x, per)?;
            Product { negative: !of.negative, ..of }
        }
        Operation::Input(_)
        | Operation::Constant(_)
        | Operation::Unary(..)
        | Operation::Binary(..)
        | Operation::Compare(..)
        | Operation::Select(..)
        | Operation::Cast(_)
        | Operation::Round(..)
        | Operation::Load(..)
        | Operation::RandomBits(..) => return None,
    };
    (found.scores <= 1 && found.cotangents <= 1).then_some(found)
}

/// The products whose sum a register is, if it is one.
fn sum(program: &Program, register: Register, per: Per) -> Option<Vec<Product>> {
    if let Operation::Binary(Binary::Add, x, y) = &program.instructions[register.index()].operation {
        let (x, y) = (sum(program, *x, per)?, sum(program, *y, per)?);
        return (x.len() + y.len() <= MOST).then(|| [x, y].concat());
    }
    Some(vec![product(program, register, per)?])
}

/// The gain of a gradient, and what else its pass has to do with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Gain {
    /// The factor of the raw score's cotangent, and then those of the terms that are sums of score times cotangent; each
    /// a sum of products.
    factors: Vec<Vec<Product>>,
    /// What it is a number of.
    pub per: Per,
    /// Whether the score is the gain times the raw score, and nothing else.
    pub alone: bool,
}

impl Gain {
    /// The gain, where the score function has one. One of the head needs that each head has keys of its own.
    pub fn of(backward: &AttentionBackward) -> Option<Gain> {
        let joint = backward.joint.as_ref()?;
        let shape = &backward.attention.shape;
        let own_keys = shape.heads == shape.key_heads && shape.batch == shape.key_batch;
        let of = |per| {
            let found = product(joint, joint.results[1], per).filter(|found| found.is_of(0))?;
            let score = product(joint, joint.results[0], per);
            let alone = score.is_some_and(|score| (score.scores, score.cotangents) == (1, 0));
            Some(Gain { factors: vec![vec![found]], per, alone })
        };
        match of(Per::Head) {
            Some(gain) => own_keys.then_some(gain),
            None => of(Per::Row),
        }
    }

    /// Takes a term that is summed by head, or by query, as the gain is; if it is one of the gain's.
    pub fn take(&mut self, backward: &AttentionBackward, reduction: &CaptureReduction) -> bool {
        let of_term = |joint: &Program| sum(joint, joint.results[reduction.result], self.per);
        let Some(found) = backward.joint.as_ref().and_then(of_term) else { return false };
        let (with_score, without): (Vec<_>, Vec<_>) = found.into_iter().partition(|of| of.is_of(1));
        let vanishes = backward.log_sum_exp_cotangent.is_none() && without.iter().all(|of| of.is_of(0));
        let taken = !with_score.is_empty() && (without.is_empty() || vanishes);
        if taken {
            self.factors.push(with_score);
        }
        taken
    }

    /// `gain`: the factor of this number.
    pub fn write(&self, joint: &Program, functions: &mut Functions) {
        let products = || self.factors.iter().flatten();
        let wanted: Vec<Register> = products().flat_map(|of| of.factors.iter().copied()).collect();
        let body = functions.body_knowing(joint, &wanted, "true", &[], &[]);
        let mut results = body.results.iter();
        let mut text = format!(
            "// Factors of a head, or of a query: of its raw scores' cotangents, and of the terms of what they are learned\n\
             // by.\nDEVICE float gain(const Parameters& p, int number, int b, int h, int q, Fault& fault) {{\n{}",
            body.statements
        );
        for (number, products) in self.factors.iter().enumerate() {
            let mut sum = String::new();
            for of in products {
                let factors = results.by_ref().take(of.factors.len());
                let factors: String = factors.map(|factor| format!(" * {factor}")).collect();
                sum += &format!(" {} 1.0f{factors}", if of.negative { '-' } else { '+' });
            }
            text += &format!("    if (number == {number}) return{sum};\n");
        }
        functions.text += &(text + "    return 1;\n}\n");
    }
}
