//! Scans more positions than 31 bits can count, and looks at every one. A row of bytes, so that it takes 6 GiB and some
//! minutes: no test, for that.
//!
//! `cargo run --release -p tilewright --example long_scan`

use tilewright::prelude::*;

fn main() -> Result<()> {
    let length = (1usize << 31) + 77_777;
    let byte = |i: usize| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8;
    let x = Array::from_fn([length], |i| byte(i[0]))?;
    let folded = compile(|x: Tensor| associative_scan(x, 0, |l, r| l ^ r).call()).call(&x)?;
    drop(x);
    let mut fold = 0;
    for (i, &found) in folded.to_bytes()?.iter().enumerate() {
        fold ^= byte(i);
        assert_eq!(found, fold, "position {i}");
    }
    println!("{length} positions are right");
    Ok(())
}
