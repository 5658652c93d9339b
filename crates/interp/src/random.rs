//! Counter-based random numbers: Philox4x32-10, of Salmon, Moraes, Dror and Shaw, "Parallel random
//! numbers: as easy as 1, 2, 3" (SC 2011).

use crate::array::Array;

/// Ten rounds of Philox: the four words that belong to a counter and a key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let low = 0xd251_1f53_u64 * counter[0] as u64;
        let high = 0xcd9e_8d57_u64 * counter[2] as u64;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

pub(crate) fn random_bits(key: &Array, result: &mut Array) {
    let key = key.integers()[0] as u64;
    let key = [key as u32, (key >> 32) as u32];
    let word = |position: u64| philox([position as u32, (position >> 32) as u32, 0, 0], key)[0];
    result.fill_integers((0..result.ty.elements() as u64).map(|position| word(position) as i32 as i64));
}
