//! Products of `bf16` matrices with sums in `f32`, by tiles (AMX) or by dot products of pairs (`vdpbf16ps`).
//!
//! Both want the same order in memory. The left operand lies in rows along the depth. Of the right one, two rows
//! that are neighbours along the depth are one row of *couples*, 32-bit words of an element of each.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::Isa;
use crate::attention::product::{Panels, Target};

/// Rows and columns of a block of the product, and the depth of a step: extents are padded to multiples of it.
pub(super) const BLOCK: usize = 32;

/// Rows of the matrices that one instruction multiplies, and of the couples.
const TILE: usize = 16;

/// The left operand: rows of elements that lie one behind the other.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The element (0, 0).
    pub data: *const u16,
    /// Elements between rows.
    pub row: usize,
}

/// How to multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Multiplier {
    /// `vdpbf16ps`: see [`Isa::Avx512Bf16`].
    Couples,
    /// AMX: see [`Isa::Amx`].
    Tiles,
}

impl Multiplier {
    /// That of an instruction set, if it has any.
    pub(super) fn of(isa: Isa) -> Option<Multiplier> {
        match isa {
            Isa::Portable | Isa::Avx2 | Isa::Avx512 => None,
            Isa::Avx512Bf16 => Some(Multiplier::Couples),
            Isa::Amx => Some(Multiplier::Tiles),
        }
    }
}

/// While it lives, the calling thread's tiles have the shape that [`product`] needs.
pub(super) struct Ready(Multiplier);

impl Ready {
    /// # Safety
    /// The machine has the instructions. The thread runs nothing else that uses tiles until this is dropped.
    pub(super) unsafe fn new(by: Multiplier) -> Ready {
        if by == Multiplier::Tiles {
            // Palette 1; then, from byte 16 on, the bytes of a row of each of the eight tiles, and from byte 48 on
            // its rows.
            let mut shape = [0u8; 64];
            shape[0] = 1;
            for tile in 0..8 {
                shape[16 + 2 * tile] = 64;
                shape[48 + tile] = TILE as u8;
            }
            // SAFETY: the caller vouches for the instruction, which reads the 64 bytes.
            unsafe { asm!("ldtilecfg [{}]", in(reg) shape.as_ptr(), options(nostack, readonly)) };
        }
        Ready(by)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if self.0 == Multiplier::Tiles {
            // SAFETY: `new` has used tiles.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// `target (+)= Σ left [rows × depth] · right [depth × panels·BLOCK]`, for multiples of [`BLOCK`] of rows and depth, over
/// some pairs of operands of equal strides. A row of `right` holds the couples of two steps of the depth.
///
/// # Safety
/// The machine has the instructions, and a [`Ready`] lives in this thread; the operands cover the extents.
pub(super) unsafe fn product<const N: usize>(
    by: Multiplier,
    (rows, depth, panels): (usize, usize, usize),
    operands: [(Rows, Panels<u32>); N],
    target: Target<f32>,
) {
    debug_assert!(rows.is_multiple_of(BLOCK) && depth.is_multiple_of(BLOCK));
    for panel in 0..panels {
        for row in (0..rows).step_by(BLOCK) {
            // SAFETY: within the extents that the caller vouches for.
            unsafe {
                let operands = operands.map(|(left, right)| {
                    let left = Rows { data: left.data.add(row * left.row), ..left };
                    (left, Panels { data: right.data.add(panel * right.stride), ..right })
                });
                let to = target.data.add(row * target.row + panel * BLOCK);
                let target = Target { data: to, ..target };
                match by {
                    Multiplier::Couples => couples(depth, &operands, target),
                    Multiplier::Tiles => tiles(depth, &operands, target),
                }
            }
        }
    }
}

/// A block by tiles: two by two of sums, and for each step two of the left operand and two of the right one.
///
/// The compiler has no use for tiles of its own, so that the sums stay where they are from one piece to the next.
#[inline(always)]
unsafe fn tiles(depth: usize, operands: &[(Rows, Panels<u32>)], target: Target<f32>) {
    // SAFETY: the caller vouches for the instructions, the tiles' shape, and a block of each operand.
    unsafe {
        let (upper, row) = (target.data, 4 * target.row);
        let lower = upper.add(TILE * target.row);
        if target.add {
            asm!(
                "tileloadd tmm0, [{upper} + {row}]",
                "tileloadd tmm1, [{upper} + {row} + 64]",
                "tileloadd tmm2, [{lower} + {row}]",
                "tileloadd tmm3, [{lower} + {row} + 64]",
                upper = in(reg) upper, lower = in(reg) lower, row = in(reg) row,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, readonly),
            );
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem),
            );
        }
        for (left, right) in operands {
            asm!(
                "2:",
                "tileloadd tmm6, [{right} + {right_row}]",
                "tileloadd tmm4, [{left} + {left_row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{left_lower} + {left_row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{right} + {right_row} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 64",
                "add {left_lower}, 64",
                "add {right}, {right_step}",
                "dec {steps}",
                "jnz 2b",
                left = inout(reg) left.data => _,
                left_lower = inout(reg) left.data.add(TILE * left.row) => _,
                left_row = in(reg) 2 * left.row,
                right = inout(reg) right.data => _,
                right_row = in(reg) 4 * right.row,
                right_step = in(reg) 4 * TILE * right.row,
                steps = inout(reg) depth / BLOCK => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
        asm!(
            "tilestored [{upper} + {row}], tmm0",
            "tilestored [{upper} + {row} + 64], tmm1",
            "tilestored [{lower} + {row}], tmm2",
            "tilestored [{lower} + {row} + 64], tmm3",
            upper = in(reg) upper, lower = in(reg) lower, row = in(reg) row,
            options(nostack),
        );
    }
}

/// A block by dot products of couples, eight rows at a time.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn couples(depth: usize, operands: &[(Rows, Panels<u32>)], target: Target<f32>) {
    const ROWS: usize = 8;
    for first in (0..BLOCK).step_by(ROWS) {
        // SAFETY: the caller vouches for a block of each operand.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for (left, right) in operands {
                let from = left.data.add(first * left.row);
                for step in 0..depth / 2 {
                    let at = right.data.add(step * right.row);
                    let columns = [at, at.add(TILE)].map(|at| load(at));
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let couple = from.add(row * left.row + 2 * step).cast::<i32>().read_unaligned();
                        let couple = halves(_mm512_set1_epi32(couple));
                        sum[0] = _mm512_dpbf16_ps(sum[0], couple, columns[0]);
                        sum[1] = _mm512_dpbf16_ps(sum[1], couple, columns[1]);
                    }
                }
            }
            for (row, sum) in sums.iter().enumerate() {
                for (i, &sum) in sum.iter().enumerate() {
                    let to = target.data.add((first + row) * target.row + i * TILE);
                    let sum = if target.add { _mm512_add_ps(_mm512_loadu_ps(to), sum) } else { sum };
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load(from: *const u32) -> __m512bh {
    // SAFETY: the caller vouches for 16 words.
    halves(unsafe { _mm512_loadu_si512(from.cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn halves(words: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of any value.
    unsafe { std::mem::transmute(words) }
}
