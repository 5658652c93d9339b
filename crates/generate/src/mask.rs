//! Random masks.

use tilewright_ir::{Binary, Compare, DType, Graph, Op, Type, Unary, Value};

use crate::Random;
use crate::attention::{Captures, Region, Sizes};

/// A mask: one that models use, or two of those under `and`, `or`, or one under `not`.
pub(crate) fn random_mask(random: &mut Random, sizes: &Sizes, captures: &mut Captures) -> Graph {
    let mut graph = Graph::new();
    let pair = [(); 4].map(|()| graph.parameter(Type::scalar(DType::I32)));
    for array in &captures.arrays {
        graph.parameter(array.ty().clone());
    }
    let mut region = Region { graph, pair, random, sizes, captures };
    let first = leaf(&mut region);
    let mask = match region.random.below(6) {
        0 => {
            let second = leaf(&mut region);
            region.binary(Binary::And, first, second)
        }
        1 => {
            let second = leaf(&mut region);
            region.binary(Binary::Or, first, second)
        }
        2 => region.add(Op::Unary(Unary::Not), &[first]),
        _ => first,
    };
    let mut graph = region.graph;
    graph.set_results(vec![mask]);
    graph
}

fn leaf(region: &mut Region<'_>) -> Value {
    let Sizes { batch, heads, queries, keys, .. } = *region.sizes;
    let [b, h, q, k] = region.pair;
    match region.random.below(9) {
        0 | 1 => region.compare(Compare::Ge, q, k),
        2 => {
            // A causal window.
            let causal = region.compare(Compare::Ge, q, k);
            let distance = region.binary(Binary::Sub, q, k);
            let width = region.integer(3);
            let near = region.compare(Compare::Le, distance, width);
            region.binary(Binary::And, causal, near)
        }
        3 => {
            // A prefix that all see, then causal.
            let prefix = region.table(&[batch], keys + 1, &[b]);
            let inside = region.compare(Compare::Lt, k, prefix);
            let causal = region.compare(Compare::Ge, q, k);
            region.binary(Binary::Or, inside, causal)
        }
        4 => {
            // Documents.
            let (query, key) = (region.table(&[queries], 3, &[q]), region.table(&[batch, keys], 3, &[b, k]));
            region.compare(Compare::Eq, query, key)
        }
        5 => {
            // Padding; a length may be 0.
            let length = region.table(&[batch], keys + 1, &[b]);
            region.compare(Compare::Lt, k, length)
        }
        6 => {
            // Every second key, which ones depending on the head.
            let sum = region.binary(Binary::Add, k, h);
            let two = region.integer(2);
            let parity = region.binary(Binary::Rem, sum, two);
            let zero = region.integer(0);
            region.compare(Compare::Eq, parity, zero)
        }
        7 => {
            // A window whose width the head chooses.
            let distance = region.binary(Binary::Sub, q, k);
            let distance = region.add(Op::Unary(Unary::Abs), &[distance]);
            let width = region.table(&[heads], 6, &[h]);
            region.compare(Compare::Le, distance, width)
        }
        _ => {
            // One query sees nothing.
            let blind = region.integer(queries / 2);
            region.compare(Compare::Ne, q, blind)
        }
    }
}
