// The machine: what the engines ask of it beyond plain C++. Every other file of theirs runs on anything that
// defines these; the tests define them for the CPU.

#define KERNEL extern "C" __global__
#define DEVICE __device__ __forceinline__
#define CALLED __device__ __noinline__

DEVICE float float_of_bits(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned bits_of_float(float x) { return __float_as_uint(x); }

// Half types. Floats are rounded to the nearest, ties to even.
struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bfloat16 x) { return float_of_bits((unsigned)x.bits << 16); }
DEVICE float to_float(float16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
template <typename E>
DEVICE E from_float(float x);
template <>
DEVICE float from_float<float>(float x) { return x; }
template <>
DEVICE bfloat16 from_float<bfloat16>(float x) {
    bfloat16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <>
DEVICE float16 from_float<float16>(float x) {
    float16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two elements in a word, the first in its low half.
template <typename E>
DEVICE unsigned pack(float first, float second);
template <>
DEVICE unsigned pack<bfloat16>(float first, float second) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
}
template <>
DEVICE unsigned pack<float16>(float first, float second) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
}

// Words side by side, in one access. As plain assignments they are written one by one now and then.
DEVICE void store_words(void* to, const unsigned (&words)[1]) { *(unsigned*)to = words[0]; }
DEVICE void store_words(void* to, const unsigned (&words)[2]) {
    asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(words[0]), "r"(words[1]) : "memory");
}
DEVICE void store_words(void* to, const unsigned (&words)[4]) {
    asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}

// A float's nearest with 10 fraction bits.
DEVICE float round_tf32(float x) {
    unsigned word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
    return float_of_bits(word);
}

// 2ˣ to 2 units in the last place.
DEVICE float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// To 1 unit in the last place; 0 where that is below the normal numbers.
DEVICE float reciprocal_approximate(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// To 2 units in the last place; tanh with a relative error of 2⁻¹¹.
DEVICE float divide_approximate(float x, float y) {
    float z;
    asm("div.full.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}
DEVICE float tanh_approximate(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// An element of memory that no thread of the launch writes.
template <typename T>
DEVICE T read_only(const T* from) { return __ldg(from); }
template <>
DEVICE bfloat16 read_only(const bfloat16* from) { return bfloat16{__ldg(&from->bits)}; }
template <>
DEVICE float16 read_only(const float16* from) { return float16{__ldg(&from->bits)}; }

DEVICE void atomic_min(unsigned long long* word, unsigned long long x) { atomicMin(word, x); }

// Threads. A block is one-dimensional.
DEVICE int thread_index() { return threadIdx.x; }
DEVICE int thread_count() { return blockDim.x; }
DEVICE long long block_index() { return blockIdx.x; }
DEVICE long long block_count() { return gridDim.x; }
DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(1024) unsigned char shared[];
    return shared;
}
DEVICE void sync_threads() { __syncthreads(); }
// Whether x holds in any thread of the block; waits for all.
DEVICE bool any_thread(bool x) { return __syncthreads_or(x); }

// Warps: what all 32 lanes do together.
DEVICE void sync_warp() { __syncwarp(); }
DEVICE unsigned ballot(bool x) { return __ballot_sync(~0u, x); }
DEVICE unsigned lanes_with_equal(int x) { return __match_any_sync(~0u, x); }
DEVICE float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(~0u, x, lanes); }
DEVICE float shuffle(float x, int lane) { return __shfl_sync(~0u, x, lane); }
DEVICE int count_bits(unsigned x) { return __popc(x); }

// Asynchronous copy of 16 bytes to shared memory; zeros where not inside.
DEVICE void copy_16(void* to, const void* from, bool inside) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8×8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, and receives of
// each matrix the elements (l / 4, 2 (l % 4)) and the next; of its transpose, if transposed.
DEVICE void load_matrices(unsigned (&words)[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}
DEVICE void load_matrices_transposed(unsigned (&words)[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// sums[16×8] += a[16×16] · b[16×8], in the fragments of `mma.m16n8k16`.
DEVICE void multiply_words(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void multiply_words(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], float16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// sums[16×8] += a[16×8] · b[8×8], in the fragments of `mma.m16n8k8`, of floats with 10 fraction bits.
DEVICE void multiply_tf32(float (&sums)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(bits_of_float(a[0])), "r"(bits_of_float(a[1])), "r"(bits_of_float(a[2])), "r"(bits_of_float(a[3])),
          "r"(bits_of_float(b[0])), "r"(bits_of_float(b[1])));
}

DEVICE double shuffle(double x, int lane) { return __shfl_sync(~0u, x, lane); }
DEVICE int shuffle(int x, int lane) { return __shfl_sync(~0u, x, lane); }
DEVICE long long shuffle(long long x, int lane) { return __shfl_sync(~0u, x, lane); }
DEVICE bool shuffle(bool x, int lane) { return __shfl_sync(~0u, (int)x, lane) != 0; }

// Between the blocks of a launch. What a thread wrote before it raised a flag is seen by whoever sees the flag.
DEVICE void make_visible() { __threadfence(); }
DEVICE void raise_flag(unsigned* flag) {
    __threadfence();
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(1u) : "memory");
}
DEVICE bool is_raised(const unsigned* flag) {
    unsigned x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(flag) : "memory");
    return x != 0;
}
// Numbers from 0 on, in the order in which blocks ask.
DEVICE unsigned next_ticket(unsigned* counter) { return atomicAdd(counter, 1u); }
// A word that other blocks of the launch write or read, as a whole.
DEVICE unsigned long long load_word(const unsigned long long* from) {
    unsigned long long word;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
    return word;
}
DEVICE void store_word(unsigned long long* to, unsigned long long word) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
// Whether a word has been told that has its flag in its upper half.
DEVICE bool is_told(unsigned long long word) { return word >> 32 != 0; }
DEVICE unsigned long long bits_of_double(double x) { return (unsigned long long)__double_as_longlong(x); }
DEVICE double double_of_bits(unsigned long long bits) { return __longlong_as_double((long long)bits); }
