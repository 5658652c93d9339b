//! The text form: what is printed reads back as the same graph, and no text makes the parser panic.

use tilewright_ir::{
    DType, ErrorKind, FlexAttention, Graph, Literal, Op, Origin, Scalar, Type, Unary, parse,
};

const ATTENTION: &str = "\
graph(%query: f32[1, 2, 3, 4], %key: f32[1, 1, 5, 4], %value: f32[1, 1, 5, 6], %bias: f32[2, 7]) -> (%out, %lse) {
  %out, %lse: f32[1, 2, 3], %top = flex_attention %query, %key, %value, %bias scale=0.5
    score(%s: f32[], %b: i32[], %h: i32[], %q: i32[], %k: i32[], %bias: f32[2, 7]) -> (%sum) {
      %distance = sub %q, %k     // from -4 to 2
      %shift: i32[] = constant 4 ; so that it is not negative
      %row = add %distance, %shift
      %read = gather %bias, %h, %row
      %sum = add %s, %read
    }
    mask(%b: i32[], %h: i32[], %q: i32[], %k: i32[], %bias: f32[2, 7]) -> (%causal) {
      %causal = ge %q, %k
    }
}
";

#[track_caller]
fn round_trip(graph: &Graph) {
    let text = graph.to_string();
    match parse(&text) {
        Ok(read) => assert!(read == *graph, "{text}\nreads back as\n{read}"),
        Err(error) => panic!("{text}\n{error}"),
    }
}

#[test]
fn attention_is_read_and_printed_canonically() {
    let graph = parse(ATTENTION).unwrap();
    assert_eq!(graph.ty(graph.results()[0]).to_string(), "f32[1, 2, 3, 6]");
    round_trip(&graph);
    assert_eq!(
        graph.to_string(),
        "\
graph(%0: f32[1, 2, 3, 4], %1: f32[1, 1, 5, 4], %2: f32[1, 1, 5, 6], %3: f32[2, 7]) -> (%4, %5) {
  %4: f32[1, 2, 3, 6], %5: f32[1, 2, 3], %6: f32[1, 2, 3] = flex_attention %0, %1, %2, %3 scale=0.5 \
score(%0: f32[], %1: i32[], %2: i32[], %3: i32[], %4: i32[], %5: f32[2, 7]) -> (%10) {
    %6: i32[] = sub %3, %4
    %7: i32[] = constant 4
    %8: i32[] = add %6, %7
    %9: f32[] = gather %5, %2, %8
    %10: f32[] = add %0, %9
  } mask(%0: i32[], %1: i32[], %2: i32[], %3: i32[], %4: f32[2, 7]) -> (%5) {
    %5: bool[] = ge %2, %3
  }
}"
    );
}

#[test]
fn every_element_keeps_its_bits() {
    let patterns: [u64; 12] = [
        0,
        1,
        u64::MAX,
        0x8000_0000_0000_0000,
        0x7ff0_0000_0000_0000,
        0xfff0_0000_0000_0000,
        0x7ff8_0000_0000_0001,
        0x7f80_7c00_7f80_7c00,
        0xff80_fc00_7fc0_0001,
        0x3fb9_9999_9999_999a,
        0x3dcc_cccd_c000_3dcd,
        0x0010_0000_8000_0001,
    ];
    for dtype in DType::ALL.into_iter().filter(|&dtype| dtype != DType::Bool) {
        let bytes: Vec<u8> = patterns.iter().flat_map(|pattern| pattern.to_le_bytes()).collect();
        let ty = Type::new(dtype, [bytes.len() / dtype.size()]);
        let mut graph = Graph::new();
        let mut results =
            vec![graph.add1(Op::Constant(Literal::array(ty, bytes.clone())), &[], None).unwrap()];
        for element in bytes.chunks(dtype.size()) {
            let literal = Literal::array(Type::new(dtype, [2]), element.repeat(2));
            results.push(graph.add1(Op::Constant(literal), &[], None).unwrap());
        }
        graph.set_results(results);
        round_trip(&graph);
    }
}

#[test]
fn empty_arrays_and_truth_values() {
    let mut graph = Graph::new();
    let literal = Literal::array(Type::new(DType::F32, [0, 3]), vec![]);
    let empty = graph.add1(Op::Constant(literal), &[], None).unwrap();
    let truths =
        Literal::from_scalars(Type::new(DType::Bool, [2]), [Scalar::Bool(true), Scalar::Bool(false)]);
    let truths = graph.add1(Op::Constant(truths), &[], None).unwrap();
    graph.set_results(vec![truths, empty, empty]);
    round_trip(&graph);
}

#[test]
fn parameters_may_come_late() {
    let mut graph = Graph::new();
    let first = graph.parameter(Type::scalar(DType::F64));
    let exp = graph.add1(Op::Unary(Unary::Exp), &[first], None).unwrap();
    let second = graph.parameter(Type::new(DType::U8, [3]));
    let sin = graph.add1(Op::Unary(Unary::Sin), &[exp], None).unwrap();
    let third = graph.parameter(Type::scalar(DType::Bool));
    graph.set_results(vec![third, second, sin]);
    round_trip(&graph);
}

#[test]
fn origins_are_printed_on_request() {
    let origin = Origin { file: "C:\\a \"b\"\n\r.py".into(), line: 7, column: 0 };
    let mut graph = Graph::new();
    let x = graph.parameter(Type::scalar(DType::F32));
    let y = graph.add1(Op::Unary(Unary::Exp), &[x], Some(origin.clone())).unwrap();
    graph.set_results(vec![y]);
    let text = format!("{graph:#}");
    let read = parse(&text).unwrap();
    assert_eq!(read.nodes()[0].origin, Some(origin), "{text}");
    assert!(text.lines().all(|line| !line.contains('\r')), "{text}");
    assert!(!graph.to_string().contains('@'));
}

#[test]
fn scales_keep_their_bits() {
    for scale in [0.1, -0.0, 1e300, 5e-324, f64::INFINITY, f64::NEG_INFINITY, 1.0 / 3.0] {
        let graph = parse(ATTENTION).unwrap();
        let mut scaled = Graph::new();
        let operands: Vec<_> =
            graph.parameter_types().into_iter().cloned().map(|ty| scaled.parameter(ty)).collect();
        let Op::FlexAttention(attention) = graph.nodes()[0].op.clone() else { unreachable!() };
        let op = Op::FlexAttention(Box::new(FlexAttention { scale, ..*attention }));
        scaled.add(op, &operands, None).unwrap();
        let read = parse(&scaled.to_string()).unwrap();
        let Op::FlexAttention(attention) = &read.nodes()[0].op else { unreachable!() };
        assert_eq!(attention.scale.to_bits(), scale.to_bits());
    }
}

#[test]
fn long_programs_read_in_linear_time() {
    let mut graph = Graph::new();
    let mut value = graph.parameter(Type::scalar(DType::F32));
    for _ in 0..100_000 {
        value = graph.add1(Op::Unary(Unary::Sin), &[value], None).unwrap();
    }
    graph.set_results(vec![value]);
    round_trip(&graph);
}

#[test]
fn deep_nesting_is_refused() {
    let level = "graph(%a: f32[1]) -> (%b) { %b = associative_scan %a leaves=1 axis=0 reverse=false combine";
    let error = parse(&level.replace("graph", "").repeat(100_000).replacen("(", "graph(", 1)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Limit { limit: 32, .. }), "{error}");
}

#[test]
fn damaged_texts_are_errors_or_graphs_but_never_panics() {
    let texts = [ATTENTION.to_string(), parse(ATTENTION).unwrap().to_string()];
    let pieces = [
        "%",
        "(",
        ")",
        "]",
        "{",
        "}",
        ",",
        ":",
        "=",
        "@",
        "\"",
        "->",
        "-",
        "0x",
        "é",
        "99999999999999999999",
    ];
    for text in texts {
        for (position, _) in text.char_indices() {
            let _ = parse(&text[..position]);
            let _ = parse(&text[position..]);
            for piece in pieces {
                let _ = parse(&format!("{}{piece}{}", &text[..position], &text[position..]));
                let rest = text[position..].chars().skip(1).collect::<String>();
                let _ = parse(&format!("{}{piece}{rest}", &text[..position]));
            }
        }
    }
}

#[test]
fn huge_types_and_constants_are_refused() {
    let error = parse("graph(%a: f32[4294967296, 4294967296]) -> () {}").unwrap_err();
    assert_eq!(error.code(), "too_large");
    let error = parse("graph() -> (%a) { %a: f32[99999999999] = constant 0 }").unwrap_err();
    assert_eq!(error.code(), "limit");
    let error = parse("graph() -> (%a) { %a: f32[3, 99999999999999999999] = constant 0 }").unwrap_err();
    assert_eq!(error.code(), "parse");
}
