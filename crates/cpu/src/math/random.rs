//! Random bits by counter: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).

/// Word 0 of Philox4x32-10 with the key's two halves, low first, and the counter's two halves followed by
/// zeros.
#[inline(always)]
pub(crate) fn philox(key: i64, counter: i64) -> i32 {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    let (mut c0, mut c1, mut c2, mut c3) = (counter as u32, (counter >> 32) as u32, 0u32, 0u32);
    for _ in 0..10 {
        let first = 0xd251_1f53u64 * c0 as u64;
        let second = 0xcd9e_8d57u64 * c2 as u64;
        (c0, c1, c2, c3) =
            ((second >> 32) as u32 ^ c1 ^ k0, second as u32, (first >> 32) as u32 ^ c3 ^ k1, first as u32);
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    c0 as i32
}

#[cfg(test)]
mod tests {
    use super::philox;

    /// The first known answers of the Random123 library have four-word counters, of which only the all-zero
    /// one can be asked for here.
    #[test]
    fn gives_the_known_answer() {
        assert_eq!(philox(0, 0) as u32, 0x6627_e8d5);
    }
}
