//! The table of masks. Beside the golden rule, each mask is evaluated on its own, as an ordinary array, and what
//! it masks out must add exactly nothing: the gradient of a bias for each pair is zero there, and NaN in a key
//! and its value changes no bit of what does not see that key.

use tilewright::mods;
use tilewright::prelude::*;

use crate::attention::{
    Captured, Inputs, Sizes, check_call, inputs, integers, learned, table, with_gradients,
};
use crate::golden::elements;

const SIZES: Sizes = Sizes {
    batch: 2,
    heads: 4,
    key_batch: 2,
    key_heads: 2,
    queries: 21,
    keys: 18,
    head_size: 4,
    value_size: 3,
};

/// Which pairs a mask admits, as an array over `b h q k`: its function on arrays of positions.
fn admitted(sizes: &Sizes, captured: &[Array], mask: impl Fn(At, &[Tensor]) -> Tensor) -> Vec<bool> {
    let shape = [sizes.batch, sizes.heads, sizes.queries, sizes.keys];
    let dense = compile(|captured: Vec<Tensor>| {
        let [batch, head, query, key] = [0, 1, 2, 3].map(|axis| iota(shape, axis, DType::I32));
        let at = At { batch, head, query, key, heads: shape[1], queries: shape[2], keys: shape[3] };
        mask(at, &captured).broadcast_to(shape)
    });
    dense.call(&captured.to_vec()).unwrap().to_vec().unwrap()
}

/// Checks a mask with the golden rule in every type, and that what it masks out adds nothing.
fn check(captured: &[Captured], mask: impl Fn(At, &[Tensor]) -> Tensor) {
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        check_call(dtype, &SIZES, captured, |q, k, v, c| flex_attention(q, k, v).mask(|at| mask(at, c)));
    }
    adds_nothing(&SIZES, captured, mask);
}

/// Checks what a mask masks out, in a call whose scores have a learned bias for each pair.
fn adds_nothing(sizes: &Sizes, captured: &[Captured], mask: impl Fn(At, &[Tensor]) -> Tensor) {
    let pairs = [sizes.batch, sizes.heads, sizes.queries, sizes.keys];
    let captured = [&[learned(pairs)], captured].concat();
    let inputs = inputs(DType::F32, sizes, &captured, 2);
    let admitted = admitted(sizes, &inputs.0.3[1..], &mask);
    let f = compile(with_gradients(|q, k, v, c| {
        flex_attention(q, k, v)
            .score(|s, at| s + c[0].at([at.batch, at.head, at.query, at.key]))
            .mask(|at| mask(at, &c[1..]))
    }));
    let clean = f.call(&inputs).unwrap();
    let bias = elements(&clean.1.3[0]);
    assert!(bias.iter().zip(&admitted).all(|(&gradient, &admitted)| admitted || gradient == 0.0));

    let poisoned_key = sizes.keys / 3;
    let spoiled = f.call(&with_nan_at(&inputs, poisoned_key, &admitted)).unwrap();
    let sees = |row: usize| admitted[row * sizes.keys + poisoned_key];
    // Rows that do not see the key: output, log-sum-exp, maximum, gradients of query and bias.
    let by_row = [
        (&clean.0.0, &spoiled.0.0),
        (&clean.0.1, &spoiled.0.1),
        (&clean.0.2, &spoiled.0.2),
        (&clean.1.0, &spoiled.1.0),
        (&clean.1.3[0], &spoiled.1.3[0]),
    ];
    for (i, (clean, spoiled)) in by_row.into_iter().enumerate() {
        let (clean, spoiled) = (elements(clean), elements(spoiled));
        let width = clean.len() / (sizes.batch * sizes.heads * sizes.queries);
        for (row, (clean, spoiled)) in clean.chunks(width).zip(spoiled.chunks(width)).enumerate() {
            assert!(sees(row) || same_bits(clean, spoiled), "result {i}, row {row}: {clean:?}, {spoiled:?}");
        }
    }
    // Keys that share no row with it: gradients of key and value. Masked everywhere: exactly zero.
    let group = sizes.heads / sizes.key_heads;
    for (clean, spoiled) in [(&clean.1.1, &spoiled.1.1), (&clean.1.2, &spoiled.1.2)] {
        let width = *clean.shape().last().unwrap();
        let (clean, spoiled) = (elements(clean), elements(spoiled));
        for (place, (clean, spoiled)) in clean.chunks(width).zip(spoiled.chunks(width)).enumerate() {
            let (key, first_head) = (place % sizes.keys, place / sizes.keys * group);
            let rows = first_head * sizes.queries..(first_head + group) * sizes.queries;
            let mut seeing = rows.filter(|row| admitted[row * sizes.keys + key]).peekable();
            if seeing.peek().is_none() {
                assert!(
                    clean.iter().chain(spoiled).all(|&x| x == 0.0),
                    "key {place}: {clean:?}, {spoiled:?}"
                );
            }
            assert!(seeing.any(sees) || same_bits(clean, spoiled), "key {place}: {clean:?}, {spoiled:?}");
        }
    }
}

fn same_bits(x: &[f64], y: &[f64]) -> bool {
    x.iter().zip(y).all(|(x, y)| x.to_bits() == y.to_bits())
}

/// The same inputs with NaN for one key's vector and value, everywhere, and for the bias of masked pairs.
fn with_nan_at(inputs: &Inputs<Array>, key: usize, admitted: &[bool]) -> Inputs<Array> {
    let mut inputs = inputs.clone();
    for array in [&mut inputs.0.1, &mut inputs.0.2] {
        let values: Vec<f32> = array.to_vec().unwrap();
        *array = Array::from_fn(array.shape(), |at| {
            let flat = at.iter().zip(array.shape()).fold(0, |flat, (i, extent)| flat * extent + i);
            if at[2] == key { f32::NAN } else { values[flat] }
        })
        .unwrap();
    }
    let bias = &mut inputs.0.3[0];
    let values: Vec<f32> = bias.to_vec().unwrap();
    let values: Vec<f32> =
        values.iter().zip(admitted).map(|(&x, &on)| if on { x } else { f32::NAN }).collect();
    *bias = Array::new(bias.shape(), &values).unwrap();
    inputs
}

#[test]
fn causal() {
    check(&[], |at, _| mods::causal(at));
}

#[test]
fn sliding_window() {
    check(&[], |at, _| at.query.ge(at.key) & (at.query - at.key).le(4));
    check(&[], |at, _| mods::sliding_window(4)(at));
}

#[test]
fn prefix() {
    check(&[integers([3, 11])], |at, c| mods::prefix(c[0])(at));
}

/// Documents of several lengths; the second row of the batch has one document of a single position.
#[test]
fn document() {
    let numbers = |starts: &[usize]| -> Vec<i32> {
        (0..SIZES.queries).map(|i| starts.iter().filter(|&&start| start <= i).count() as i32).collect()
    };
    let both = [numbers(&[4, 9, 16]), numbers(&[1, 12])].concat();
    let documents = Captured::Integers(Array::new([2, SIZES.queries], &both).unwrap());
    check(&[documents], |at, c| mods::document(c[0])(at) & at.query.ge(at.key));
}

#[test]
fn padding() {
    check(&[integers([7, 18])], |at, c| at.key.lt(c[0].at([at.batch])));
    check(&[integers([7, 0])], |at, c| mods::padding(c[0])(at));
}

#[test]
fn neighbourhood() {
    check(&[], |at, _| mods::neighbourhood(5, 1)(at));
}

#[test]
fn every_second_key() {
    check(&[], |at, _| (at.key % 2).eq(0));
    check(&[], |at, _| mods::dilated(2)(at));
}

#[test]
fn and() {
    check(&[integers([7, 13])], |at, c| mods::and(mods::causal, mods::padding(c[0]))(at));
    check(&[integers([7, 13])], |at, c| mods::and(mods::padding(c[0]), mods::dilated(3))(at));
}

#[test]
fn or() {
    check(&[integers([7, 13])], |at, c| mods::or(mods::sliding_window(2), mods::padding(c[0]))(at));
}

#[test]
fn not() {
    check(&[], |at, _| mods::not(mods::sliding_window(3))(at));
    check(&[integers([7, 13])], |at, c| mods::not(mods::and(mods::causal, mods::padding(c[0])))(at));
}

#[test]
fn per_head() {
    check(&[], |at, _| at.query.ge(at.key) & ((at.query - at.key).le(at.head * 4) | at.head.eq(3)));
    check(&[integers([1, 20, 0, 5])], |at, c| (at.query - at.key).abs().lt(c[0].at([at.head])));
}

#[test]
fn rows_that_see_no_key() {
    check(&[], |at, _| at.query.gt(at.key + 5));
    check(&[], |at, _| at.query.lt(0));
    check(&[table([2, 21], 2)], |at, c| c[0].at([at.batch, at.query]).eq(1));
}

#[test]
fn captured_tables() {
    check(&[table([2, 4, 21, 18], 2)], |at, c| c[0].at([at.batch, at.head, at.query, at.key]).eq(1));
    check(&[table([21], 3), table([18], 3)], |at, c| c[0].at([at.query]).le(c[1].at([at.key])));
}

/// Masks made ahead in blocks of 128, 64, 32 and unequal ones, shared, for each head, and for each batch element and
/// head, alone and cut through by a mask of pairs.
#[test]
fn block_sizes() {
    let sizes = Sizes { queries: 277, keys: 300, ..SIZES };
    for [query_block, key_block] in [[128, 128], [64, 64], [32, 32], [128, 32], [48, 200], [1000, 1]] {
        let extents = [sizes.queries.div_ceil(query_block), sizes.keys.div_ceil(key_block)];
        let [rows, columns] = extents;
        let mask = move |at, c: &[Tensor]| mods::blocks(c[0], [query_block, key_block])(at);
        let blocks =
            [table([rows, columns], 2), table([4, rows, columns], 2), table([2, 1, rows, columns], 2)];
        for live in blocks {
            adds_nothing(&sizes, std::slice::from_ref(&live), mask);
            adds_nothing(&sizes, &[live], move |at, c| mask(at, c) & mods::causal(at));
        }
        let live = Captured::Table(extents.to_vec(), 2);
        check_call(DType::F32, &sizes, &[live], |q, k, v, c| flex_attention(q, k, v).mask(|at| mask(at, c)));
    }
    check(&[table([2, 4, 3, 4], 2)], |at, c| mods::blocks(c[0].ne(0), [8, 5])(at));
}

#[test]
fn several_masks_must_all_hold() {
    let lengths = integers([7, 13]);
    check_call(DType::F32, &SIZES, &[lengths], |q, k, v, c| {
        flex_attention(q, k, v).mask(mods::causal).mask(mods::padding(c[0])).mask(mods::dilated(2))
    });
}

/// Lengths over several blocks and not multiples of one, so that blocks are full, partial and empty.
#[test]
fn many_blocks() {
    let sizes = Sizes { batch: 1, heads: 1, key_batch: 1, key_heads: 1, queries: 300, keys: 290, ..SIZES };
    adds_nothing(&sizes, &[], |at, _| mods::sliding_window(70)(at));
    adds_nothing(&sizes, &[integers([131])], |at, c| mods::prefix(c[0])(at));
    adds_nothing(&sizes, &[integers([33])], |at, c| mods::not(mods::padding(c[0]))(at));
    adds_nothing(&sizes, &[], |at, _| mods::neighbourhood(20, 3)(at));
    adds_nothing(&sizes, &[table([300], 2)], |at, c| c[0].at([at.query]).eq(c[0].at([at.key])));
}
