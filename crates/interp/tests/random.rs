//! Philox4x32-10 against the known answers that its authors publish (Random123, `kat_vectors`).

use tilewright_interp::{Array, Precision, philox, run};
use tilewright_ir::{DType, Type, parse};

#[test]
fn known_answers() {
    assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    assert_eq!(
        philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
    );
}

#[test]
fn bits_are_word_0_of_the_position() {
    let graph = parse("graph(%key: i64[]) -> (%bits) { %bits: i32[2, 2] = random_bits %key }").unwrap();
    let key = 0x299f_31d0_a409_3822_i64;
    let bits = run(&graph, &[Array::from_i64s(Type::scalar(DType::I64), &[key])], Precision::Exact).unwrap();
    let expected: Vec<i64> =
        (0..4).map(|i| philox([i, 0, 0, 0], [0xa4093822, 0x299f31d0])[0] as i32 as i64).collect();
    assert_eq!(bits[0].to_i64s(), expected);
}
