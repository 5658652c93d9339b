//! Instruction sets, chosen at run time.
//!
//! Vector code is written once, as plain loops that the compiler vectorises, and compiled once for each
//! instruction set: a [`Kernel`]'s `run` is inlined into one function for each [`Isa`], which enables that
//! set's features; [`select`] picks among them.
//!
//! Contraction is explicit. Code that gains from a fused multiply-add calls [`Machine::multiply_add`], which
//! rounds once where the machine can and twice where it would have to call a library. So all sets that have
//! the instruction (AVX-512, AVX2, NEON) give the same bits, and [`Isa::Portable`] may differ from them by
//! the bounds stated in [`crate::math`].

use std::sync::OnceLock;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// What every machine of the target has.
    Portable,
    /// 256-bit vectors and fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit vectors (F, BW, DQ, VL).
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// [`Isa::Avx512`], and dot products of pairs of `bf16` (`vdpbf16ps`).
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// [`Isa::Avx512Bf16`], and products of small `bf16` matrices (AMX).
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// 128-bit vectors and fused multiply-add.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The sets that this machine has, the best last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut, reason = "no other set is known on some targets")]
        let mut sets = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Isa::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    sets.push(Isa::Avx512);
                    if is_x86_feature_detected!("avx512bf16") {
                        // Intel's dot products are no faster than multiply-adds, which need no second part.
                        let last = if is_from_intel() { sets.len() - 1 } else { sets.len() };
                        sets.insert(last, Isa::Avx512Bf16);
                        if may_use_tiles() {
                            sets.push(Isa::Amx);
                        }
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        sets.push(Isa::Neon);
        sets
    }

    /// The set to use where nothing else is asked for: the best that the machine has, or the one that the
    /// environment variable `TILEWRIGHT_ISA` names (`portable`, `avx2`, `avx512`, `avx512bf16`, `amx`, `neon`) if the machine
    /// has it. Read once.
    pub fn preferred() -> Isa {
        static PREFERRED: OnceLock<Isa> = OnceLock::new();
        *PREFERRED.get_or_init(|| {
            let sets = Isa::available();
            let asked = std::env::var("TILEWRIGHT_ISA").ok();
            let named = sets.iter().find(|isa| asked.as_deref() == Some(isa.name()));
            *named.unwrap_or(sets.last().expect("portable is always available"))
        })
    }

    /// The name that `TILEWRIGHT_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        }
    }
}

/// Whether Intel made the processor.
#[cfg(target_arch = "x86_64")]
fn is_from_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// Whether the machine multiplies tiles of `bf16` and the system lets this process do so: Linux, which keeps room for
/// the tiles of those threads only that want them, has to be asked once.
#[cfg(target_arch = "x86_64")]
fn may_use_tiles() -> bool {
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    {
        unsafe extern "C" {
            fn syscall(number: i64, ...) -> i64;
        }
        const ARCH_PRCTL: i64 = 158;
        const REQUEST_PERMISSION: i64 = 0x1023;
        const TILE_DATA: i64 = 18;
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        static MAY: OnceLock<bool> = OnceLock::new();
        *MAY.get_or_init(|| {
            let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
            // SAFETY: a system call that takes numbers only; a system that does not know it says so.
            let asked = || unsafe { syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) } == 0;
            features & AMX_BF16 != 0 && features & AMX_TILE != 0 && asked()
        })
    }
    #[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
    false
}

/// What vector code may ask of the machine that it is compiled for.
pub trait Machine {
    /// Whether a fused multiply-add is one instruction.
    const FUSED: bool;

    /// `a · b + c`, rounded once where [`Machine::FUSED`], else twice.
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        if Self::FUSED { a.mul_add(b, c) } else { a * b + c }
    }

    /// As [`Machine::multiply_add`].
    #[inline(always)]
    fn multiply_add_f64(a: f64, b: f64, c: f64) -> f64 {
        if Self::FUSED { a.mul_add(b, c) } else { a * b + c }
    }
}

/// A machine with fused multiply-add.
pub struct Fused;

impl Machine for Fused {
    const FUSED: bool = true;
}

/// A machine without.
pub struct Plain;

impl Machine for Plain {
    const FUSED: bool = false;
}

/// Asks for the line that holds an address, which need not be good, to be brought to the second-level cache: what a tile
/// of pairs will need would not stay in the first until then.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Code to be compiled for each instruction set. `run` must be `#[inline(always)]`; the methods that inline it are the
/// kernel's own, and not functions of this module, because the compiler then builds kernels of several modules side by
/// side.
pub trait Kernel {
    /// What it works on: pointers and sizes.
    type Arguments;

    /// The code.
    ///
    /// # Safety
    /// As the implementation says: its pointers must be good for the sizes that come with them.
    unsafe fn run<M: Machine>(arguments: &Self::Arguments);

    /// [`Kernel::run`] for [`Isa::Portable`].
    ///
    /// # Safety
    /// As [`Kernel::run`], here and below; and the machine must have the features.
    unsafe fn portable(arguments: &Self::Arguments) {
        // SAFETY: the caller's promise.
        unsafe { Self::run::<Plain>(arguments) }
    }

    /// [`Kernel::run`] for [`Isa::Avx2`].
    ///
    /// # Safety
    /// As [`Kernel::portable`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn avx2(arguments: &Self::Arguments) {
        // SAFETY: the caller's promise.
        unsafe { Self::run::<Fused>(arguments) }
    }

    /// [`Kernel::run`] for [`Isa::Avx512`].
    ///
    /// # Safety
    /// As [`Kernel::portable`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn avx512(arguments: &Self::Arguments) {
        // SAFETY: the caller's promise.
        unsafe { Self::run::<Fused>(arguments) }
    }

    /// [`Kernel::run`] for [`Isa::Neon`].
    ///
    /// # Safety
    /// As [`Kernel::portable`].
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon")]
    unsafe fn neon(arguments: &Self::Arguments) {
        // SAFETY: the caller's promise.
        unsafe { Self::run::<Fused>(arguments) }
    }
}

/// A kernel compiled for one instruction set. The caller vouches for the machine as for the arguments.
pub type Compiled<A> = unsafe fn(&A);

/// The compiled form of `K` for `isa`.
pub fn select<K: Kernel>(isa: Isa) -> Compiled<K::Arguments> {
    match isa {
        Isa::Portable => K::portable,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => K::avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => K::avx512,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => K::neon,
    }
}

/// A choice among fewer sets than [`select`]'s, for kernels that have no use for all: every set is a copy to build.
pub trait Level {
    /// The compiled form of `K` for `isa`, which must be of this level.
    fn select<K: Kernel>(isa: Isa) -> Compiled<K::Arguments>;
}

/// [`Isa::Portable`].
pub struct Baseline;

impl Level for Baseline {
    fn select<K: Kernel>(_: Isa) -> Compiled<K::Arguments> {
        K::portable
    }
}

/// The least of the better sets, which all of them contain.
pub struct Better;

impl Level for Better {
    fn select<K: Kernel>(_: Isa) -> Compiled<K::Arguments> {
        #[cfg(target_arch = "x86_64")]
        return K::avx2;
        #[cfg(target_arch = "aarch64")]
        return K::neon;
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        K::portable
    }
}

/// Every better set.
pub struct Best;

impl Level for Best {
    fn select<K: Kernel>(isa: Isa) -> Compiled<K::Arguments> {
        #[cfg(target_arch = "x86_64")]
        if isa > Isa::Avx2 {
            return K::avx512;
        }
        Better::select::<K>(isa)
    }
}
