//! What a traced function becomes, in the text form.

use tilewright_ir::{DType, Type, verify};
use tilewright_trace::{Tensor, flex_attention, trace};

fn inputs(types: &[(&str, DType, &[usize])]) -> Vec<(String, Type)> {
    types.iter().map(|(name, dtype, shape)| (name.to_string(), Type::new(*dtype, *shape))).collect()
}

fn text(types: &[(&str, DType, &[usize])], f: impl Fn(&[Tensor]) -> Tensor) -> String {
    let graph = trace(&inputs(types), f, |&output| vec![output]).unwrap().graph;
    verify(&graph).unwrap();
    graph.to_string()
}

#[test]
fn attention_captures_by_use() {
    let types: &[(&str, DType, &[usize])] = &[
        ("q", DType::F32, &[1, 4, 8, 16]),
        ("k", DType::F32, &[1, 2, 8, 16]),
        ("bias", DType::F32, &[4, 15]),
        ("unused", DType::F32, &[3]),
    ];
    println!("{}", text(types, |x| {
        let last = x[1].dim(2) as i64 - 1;
        flex_attention(&x[0], &x[1], &x[1])
            .score(|s, at| s + x[2].at([at.head, at.query - at.key + last]))
            .mask(|at| at.query.ge(at.key))
            .call()
    }));
}
