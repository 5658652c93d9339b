//! Memory of attention is proportional to its inputs. `examples/peak_memory.rs` measures what a process takes.

use tilewright::mods;
use tilewright::prelude::*;

use crate::attention::{Sizes, inputs, learned, with_gradients};

/// Bytes between kernels, and of the results.
fn planned(length: usize) -> usize {
    let f = compile(with_gradients(|q, k, v, c| flex_attention(q, k, v).score(mods::relative(c[0]))));
    let sizes = Sizes {
        batch: 1,
        heads: 4,
        key_batch: 1,
        key_heads: 4,
        queries: 1,
        keys: 1,
        head_size: 64,
        value_size: 64,
    };
    let ((q, k, v, _), (output, lse)) = inputs(DType::F32, &sizes, &[learned([4, 1])], 1);
    let long = |x: Array| x.broadcast_to([1, 4, length, 64]).unwrap();
    let bias = Array::zeros(DType::F32, [4, 2 * length - 1]).unwrap();
    let lse = lse.broadcast_to([1, 4, length]).unwrap();
    let program = f.program(&((long(q), long(k), long(v), vec![bias]), (long(output), lse))).unwrap();
    program.plan.arena_bytes + program.outputs().iter().map(|ty| ty.bytes()).sum::<usize>()
}

#[test]
fn memory_is_proportional_to_the_length() {
    assert!(planned(16384) < 150_000_000);
    assert!(planned(32768) < 2 * planned(16384) + 100_000);
}
