//! Memory traffic by hand: stores past the caches.
//!
//! A scan's results are read again by nobody soon, and an ordinary store would first read each line that it
//! writes, half as much traffic again. Streamed stores do not. (Loads are left to the machine: fetching a tile or a
//! chunk ahead by hand cost up to a third, see docs/performance.md.)

/// Copies `bytes` bytes; where `stream`, past the caches.
///
/// # Safety
/// Both pointers are good for `bytes` bytes, which do not overlap.
#[inline(always)]
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize, stream: bool) {
    #[cfg(target_arch = "x86_64")]
    if stream {
        // SAFETY: the caller's promise; SSE2 is part of the target.
        unsafe { streamed(to, from, bytes) };
        return;
    }
    let _ = stream;
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) }
}

/// # Safety
/// As [`copy`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn streamed(to: *mut u8, from: *const u8, bytes: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    const WIDTH: usize = size_of::<__m128i>();
    let head = to.align_offset(WIDTH).min(bytes);
    let whole = (bytes - head) / WIDTH * WIDTH;
    // SAFETY: all offsets are below `bytes`; streamed stores are aligned.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        for at in (head..head + whole).step_by(WIDTH) {
            _mm_stream_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast()));
        }
        let rest = head + whole;
        std::ptr::copy_nonoverlapping(from.add(rest), to.add(rest), bytes - rest);
    }
}

/// Makes streamed stores of this thread visible to others before anything that follows.
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the target.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
