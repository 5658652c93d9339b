//! A layer of a gated linear recurrence, whose gates are half as wide as its states.

use tilewright_ir::{Graph, parse};

/// Of gates `[batch, length, 3 · width]` in `bf16`: y = keep · y + (1 − keep) · in, let out through silu.
pub fn gated_recurrence([batch, length, width]: [usize; 3], reverse: bool) -> Graph {
    let gates = format!("[{batch}, {length}, {}]", 3 * width);
    let (ty, element) = (format!("f32[{batch}, {length}, {width}]"), format!("f32[{batch}, {width}]"));
    let part = |i: usize| {
        let (low, high) = (i * width, (i + 1) * width);
        format!("{ty} = slice %wide start=[0, 0, {low}] limit=[{batch}, {length}, {high}] step=[1, 1, 1]")
    };
    let text = format!(
        "graph(%gates: bf16{gates}) -> (%shown) {{
  %wide: f32{gates} = cast %gates
  %k: {}
  %in: {}
  %out: {}
  %keep = sigmoid %k
  %one: f32[] = constant 1.0
  %ones: {ty} = broadcast %one axes=[]
  %rest = sub %ones, %keep
  %taken = mul %rest, %in
  %p, %y = associative_scan %keep, %taken leaves=2 axis=1 reverse={reverse} combine\
         (%l: {element}, %m: {element}, %r: {element}, %s: {element}) -> (%both, %next) {{
    %both = mul %l, %r
    %carried = mul %r, %m
    %next = add %carried, %s
  }}
  %open = sigmoid %out
  %silu = mul %out, %open
  %let = mul %y, %silu
  %shown: bf16[{batch}, {length}, {width}] = cast %let
}}",
        part(0),
        part(1),
        part(2),
    );
    parse(&text).expect("a well-formed text")
}
