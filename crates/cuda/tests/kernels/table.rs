//! Score functions and masks, in the text form of regions.

/// A score function.
pub struct Score {
    pub name: &'static str,
    /// Names and types of captured arrays; `B`, `H`, `Q`, `K` stand for the call's sizes. Floating ones are
    /// learned; integers are drawn from 0 to the number given.
    pub captures: &'static [(&'static str, &'static str, i64)],
    /// What defines `%out` from `%s`, `%b`, `%h`, `%q`, `%k` and the captures.
    pub body: &'static str,
}

/// One of each class of captured read, and what else the engine treats apart.
pub const SCORES: &[Score] = &[
    Score { name: "identity", captures: &[], body: "%one: f32[] = constant 1.0\n %out = mul %s, %one" },
    Score { name: "squared", captures: &[], body: "%out = mul %s, %s" },
    Score {
        name: "softcap",
        captures: &[],
        body: "%cap: f32[] = constant 1.5\n %ratio = div %s, %cap\n %bent = tanh %ratio\n %out = mul %bent, %cap",
    },
    Score {
        name: "alibi",
        captures: &[],
        body: "%d = sub %k, %q\n %f: f32[] = cast %d\n %hf: f32[] = cast %h\n %slope: f32[] = constant -0.7\n \
               %e = mul %hf, %slope\n %factor = exp %e\n %bias = mul %f, %factor\n %out = add %s, %bias",
    },
    Score {
        name: "head gain",
        captures: &[("w", "f32[H]", 0)],
        body: "%x = gather %w, %h\n %out = mul %s, %x",
    },
    Score {
        name: "head gate",
        captures: &[("w", "f32[H]", 0)],
        body: "%x = gather %w, %h\n %gate = sigmoid %x\n %out = mul %s, %gate",
    },
    Score { name: "scalar", captures: &[("w", "f32[]", 0)], body: "%x = mul %s, %w\n %out = add %x, %w" },
    Score {
        name: "query gain",
        captures: &[("w", "f32[Q]", 0)],
        body: "%x = gather %w, %q\n %out = mul %s, %x",
    },
    Score {
        name: "key bias",
        captures: &[("w", "f32[K]", 0)],
        body: "%x = gather %w, %k\n %out = add %s, %x",
    },
    Score {
        name: "indirect",
        captures: &[("w", "f32[9]", 0), ("off", "i32[Q]", 9)],
        body: "%o = gather %off, %q\n %x = gather %w, %o\n %out = mul %s, %x",
    },
    Score {
        name: "relative",
        captures: &[("w", "f32[H, 256]", 0)],
        body: "%d = sub %q, %k\n %x = gather %w, %h, %d\n %out = add %s, %x",
    },
    Score {
        name: "sum",
        captures: &[("w", "f32[256]", 0)],
        body: "%d = add %q, %k\n %x = gather %w, %d\n %out = add %s, %x",
    },
    Score {
        name: "relative and sum",
        captures: &[("w", "f32[256]", 0), ("v", "f32[256]", 0)],
        body: "%d = sub %q, %k\n %x = gather %w, %d\n %e = add %q, %k\n %y = gather %v, %e\n %z = mul %x, %s\n \
               %out = add %z, %y",
    },
    Score {
        name: "window table",
        captures: &[("w", "f32[H, 17]", 0)],
        body: "%d = sub %q, %k\n %eight: i32[] = constant 8\n %moved = add %d, %eight\n %zero: i32[] = constant 0\n \
               %top: i32[] = constant 16\n %above = max %moved, %zero\n %place = min %above, %top\n \
               %x = gather %w, %h, %place\n %out = add %s, %x",
    },
    Score {
        name: "graph distance",
        captures: &[("w", "f32[H, 20]", 0), ("dist", "i64[B, Q, K]", 20)],
        body: "%d = gather %dist, %b, %q, %k\n %hl: i64[] = cast %h\n %x = gather %w, %hl, %d\n %out = add %s, %x",
    },
    Score {
        name: "large table",
        captures: &[("w", "f32[H, 700]", 0), ("dist", "i64[Q, K]", 700)],
        body: "%d = gather %dist, %q, %k\n %hl: i64[] = cast %h\n %x = gather %w, %hl, %d\n %out = add %s, %x",
    },
    Score {
        name: "pair",
        captures: &[("w", "f32[Q, K]", 0)],
        body: "%x = gather %w, %q, %k\n %out = add %s, %x",
    },
    Score {
        name: "pair, flipped, by batch and head",
        captures: &[("w", "f32[B, H, K, Q]", 0)],
        body: "%x = gather %w, %b, %h, %k, %q\n %out = mul %s, %x",
    },
    Score {
        name: "pair, rows of the batch",
        captures: &[("w", "f32[1, H, Q, K]", 0)],
        body: "%two: i32[] = constant 2\n %row = div %b, %two\n %x = gather %w, %row, %h, %q, %k\n \
               %out = add %s, %x",
    },
    Score {
        name: "by the score",
        captures: &[("w", "f32[7]", 0)],
        body: "%three: f32[] = constant 3.0\n %big = mul %s, %three\n %near = floor %big\n %i: i32[] = cast %near\n \
               %seven: i32[] = constant 7\n %place = rem %i, %seven\n %x = gather %w, %place\n %out = add %s, %x",
    },
    Score {
        name: "query and key",
        captures: &[("w", "f32[256]", 0)],
        body: "%x = gather %w, %q\n %y = gather %w, %k\n %z = mul %s, %x\n %out = add %z, %y",
    },
    Score {
        name: "radial",
        captures: &[("c", "f32[B, 256, 3]", 0), ("w", "f32[H]", 0)],
        body: "%x = gather %c, %b, %q\n %y = gather %c, %b, %k\n %xy = mul %x, %y\n %d = reduce_sum %xy axes=[0]\n \
               %g = gather %w, %h\n %z = mul %d, %g\n %out = add %s, %z",
    },
];

/// A mask: its body defines `%out`.
pub struct Mask {
    pub name: &'static str,
    pub captures: &'static [(&'static str, &'static str, i64)],
    pub body: &'static str,
}

pub const MASKS: &[Mask] = &[
    Mask { name: "causal", captures: &[], body: "%out = ge %q, %k" },
    Mask {
        name: "window by head, from row 5 on",
        captures: &[],
        body: "%five: i32[] = constant 5\n %twenty: i32[] = constant 20\n %reach = mul %h, %twenty\n \
               %wide = add %reach, %five\n %d = sub %q, %k\n %zero: i32[] = constant 0\n %behind = ge %d, %zero\n \
               %near = le %d, %wide\n %late = ge %q, %five\n %both = and %behind, %near\n %out = and %both, %late",
    },
    Mask {
        name: "every third key",
        captures: &[],
        body: "%three: i32[] = constant 3\n %one: i32[] = constant 1\n %rest = rem %k, %three\n %out = eq %rest, %one",
    },
    Mask {
        name: "documents",
        captures: &[("doc", "i32[B, 256]", 3)],
        body: "%x = gather %doc, %b, %q\n %y = gather %doc, %b, %k\n %out = eq %x, %y",
    },
];
