// What kernels whose warps have different work ask of the machine beyond `machine.cuh`: barriers, and copies that
// arrive at them.

// Barriers in shared memory. Phases are counted from 0; a wait is for the end of the phase of a parity.
DEVICE unsigned shared_address(const void* x) { return (unsigned)__cvta_generic_to_shared(x); }
DEVICE void init_barrier(unsigned long long* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DEVICE void arrive(unsigned long long* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(barrier))
                 : "memory");
}
#if __CUDA_ARCH__ >= 900
#define WAIT "try_wait"
#else
#define WAIT "test_wait"
#endif
DEVICE void wait_barrier(unsigned long long* barrier, int parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier." WAIT ".parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// One arrival of this warp, after all of its lanes.
DEVICE void arrive_once(unsigned long long* barrier) {
    sync_warp();
    if (threadIdx.x % 32 == 0) arrive(barrier);
}

// Waits until so many threads have come to the barrier of this number; 1 and 2 are those of warpgroups.
DEVICE void meet(int number, int threads) {
    asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// The same where warps come to it from several instructions, which the sanitizer's synccheck takes for lanes that went
// different ways if the barrier is an aligned one.
DEVICE void meet_from_anywhere(int number, int threads) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Makes barriers that were just initialised known to copies.
DEVICE void publish_barriers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Copies to shared memory that end a barrier's phase, by one warp: it begins with how many bytes there will be, and ends
// with an arrival of the last. Hopper's copies say themselves how much has come; before Hopper, each lane's arrive.
#if __CUDA_ARCH__ >= 900
constexpr int COPY_ARRIVALS = 1;
DEVICE void begin_copies(unsigned long long* barrier, int bytes) {
    if (threadIdx.x % 32 != 0) return;
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}
DEVICE void copy_ahead(void* to, const void* from, int bytes, unsigned long long* barrier) {
    if (threadIdx.x % 32 != 0 || bytes == 0) return;
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
DEVICE void end_copies(unsigned long long*) {}
#else
constexpr int COPY_ARRIVALS = 32;
DEVICE void begin_copies(unsigned long long*, int) {}
DEVICE void copy_ahead(void* to, const void* from, int bytes, unsigned long long*) {
    for (int at = threadIdx.x % 32 * 16; at < bytes; at += 512) {
        copy_16((unsigned char*)to + at, (const unsigned char*)from + at, true);
    }
}
DEVICE void end_copies(unsigned long long* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
#endif
