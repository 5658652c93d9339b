// What kernels for Hopper ask of the machine beyond `machine.cuh` and `machine_barriers.cuh`. Its matrix units read shared memory as panels of
// 64 elements a row, 128 bytes, whose 16-byte parts are exchanged: part c of row r lies at c ^ (r % 8). A warpgroup
// of four warps multiplies together, and goes on before the product is done.

// Copies of this thread since the last call are a group; waits until all groups but the last N are done.
DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEVICE void wait_for_copies_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// An arrival of this thread, when the copies that it asked for so far are there.
DEVICE void arrive_when_copied(unsigned long long* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Asynchronous copy of 16 bytes to shared memory.
DEVICE void copy_16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// Lets the matrix units see what this thread wrote to shared memory, and what it was told that others did.
DEVICE void publish_to_matrix_units() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Registers of a thread, changed by all warps of a warpgroup.
template <int N>
DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// The inverse of `load_matrices`.
DEVICE void store_matrices(void* row, const unsigned (&words)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}

// Products: those between `begin_products` and `close_products` are a group.
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
DEVICE void wait_for_products_but() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// Where the matrix units find a panel, from a row and depth on: groups of 8 rows are `stride` bytes apart.
DEVICE unsigned long long panel_of(const void* start, int stride) {
    unsigned long long address = shared_address(start) >> 4 & 0x3fff;
    return address | 1ull << 16 | (unsigned long long)(stride >> 4) << 32 | 1ull << 62;
}

// The same of an operand whose rows, as it lies there, are the product's depth: the panels of its next 64 columns are
// `between` bytes away.
DEVICE unsigned long long turned_panels(const void* start, int between) {
    unsigned long long address = shared_address(start) >> 4 & 0x3fff;
    return address | (unsigned long long)(between >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

// A panel some bytes further on.
DEVICE unsigned long long further(unsigned long long panel, int bytes) {
    return (panel & ~0xffffffffull) | ((unsigned)panel + (unsigned)(bytes >> 4));
}

// Keeps uses of a product's sums behind the wait for it.
template <int BLOCKS>
DEVICE void hold(float (&sums)[BLOCKS][4]) {
#pragma unroll
    for (int i = 0; i < 4 * BLOCKS; ++i) asm volatile("" : "+f"(sums[i / 4][i % 4])::"memory");
}

// Floats from shared memory to memory, asynchronously: stored, or added to what is there. `bytes` is a multiple of 16.
DEVICE void store_in_bulk(float* to, const float* from, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
                 "r"(bytes)
                 : "memory");
}
DEVICE void add_in_bulk(float* to, const float* from, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
}
// Until shared memory has been read; until all is done. The first of the two begins the wait.
DEVICE void wait_for_bulk_reads() {
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
}
DEVICE void wait_for_bulk() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Flags in memory by which blocks wait for one another, and numbers in the order in which they are asked for. What is added
// in bulk between them needs no fence of its own: only bulk copies touch it, and each block waits for the end of its own
// before it raises a flag. A look that acquires also clears the first cache, so that only the first and the last do.
DEVICE int look_at_flag(const int* flag) {
    int x;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(flag) : "memory");
    return x;
}
DEVICE void wait_for_flag(const int* flag, int value) {
    while (look_at_flag(flag) != value) {
        int x;
        do {
            asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(flag) : "memory");
        } while (x != value);
    }
}
DEVICE void store_release(int* flag, int x) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(x) : "memory");
}
DEVICE int take_ticket(int* counter) { return atomicAdd(counter, 1); }

// How many blocks run at once on most of these machines, where one takes a whole multiprocessor. Orders of additions
// follow from it, so that it is the same on all of them.
constexpr int MULTIPROCESSORS = 132;

// A number that all lanes of a warp have, so that the compiler knows it for one.
DEVICE int uniform(int x) { return __shfl_sync(~0u, x, 0); }

// The same number, of which the compiler does not know that: what is made of it is not kept ready for a path that is
// hardly ever taken.
DEVICE int anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// The lowest bit that is set.
DEVICE int lowest_bit(unsigned x) { return __ffs(x) - 1; }

// Whether x holds in any thread of the warpgroup; waits for all of it. `number` names the warpgroup.
template <int NUMBER>
DEVICE bool any_in_named(bool x) {
    int any;
    asm volatile(
        "{ .reg .pred mine, all; setp.ne.b32 mine, %1, 0;\n"
        "barrier.cta.red.or.aligned.pred all, %2, 128, mine;\n"
        "selp.b32 %0, 1, 0, all; }"
        : "=r"(any)
        : "r"((int)x), "n"(NUMBER)
        : "memory");
    return any != 0;
}
DEVICE bool any_in_warpgroup(bool x, int number) { return number == 1 ? any_in_named<1>(x) : any_in_named<2>(x); }

// The same in two steps, so that the places of a warp's panels are sums in the registers that a warp shares: a place is a
// sixteenth of an address, the same in all lanes. `leading` is the distance of panels of 64 columns, where the rows of an
// operand are its depth.
DEVICE unsigned place_of(const void* start) { return __shfl_sync(~0u, shared_address(start) >> 4, 0); }
template <int LEADING, int STRIDE>
DEVICE unsigned long long panels_at(unsigned place) {
    unsigned low = place | LEADING / 16 << 16, high = 1 << 30 | STRIDE / 16;
    return (unsigned long long)high << 32 | low;
}

// Keeps what a product reads until here, where it is waited for.
template <int N>
DEVICE void pin(unsigned (&x)[N][4]) {
#pragma unroll
    for (int i = 0; i < 4 * N; ++i) asm volatile("" : "+r"(x[i / 4][i % 4])::"memory");
}

// Powers of two and sums in the order that they are asked for, and the end of those that x, not negative, is made of
// before what follows: the assembler moves a wait ahead of arithmetic on which it does not depend, but not ahead of this.
DEVICE float exp2_in_order(float x) {
    float y;
    asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float add_in_order(float x, float y) {
    float z;
    asm volatile("add.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}
DEVICE void finish(float x) {
    // A branch over a rest that never is: with a trap there, in the loop of `forward_masked.cuh`, the assembler takes the
    // registers that warpgroups start with for all they have.
    asm volatile(
        "{ .reg .pred ever; setp.geu.f32 ever, %0, 0f00000000;\n"
        "@ever bra made; nanosleep.u32 0;\n"
        "made: }" ::"f"(x)
        : "memory");
}

// Warpgroups take turns: one waits for its turn, which another gives.
DEVICE void wait_turn(int group) { asm volatile("barrier.cta.sync %0, 256;" ::"r"(group + 4) : "memory"); }
DEVICE void give_turn(int group) { asm volatile("barrier.cta.arrive %0, 256;" ::"r"(group + 4) : "memory"); }

// The greater; NaN if either is.
DEVICE float greater(float x, float y) {
    float z;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}

// What is read and written at once: 16 and 8 bytes.
struct __align__(16) Words { unsigned words[4]; };
struct __align__(8) TwoFloats { float x[2]; };
