// What `engines/machine.cuh` asks of a GPU, on the CPU.

#include "emulator.hpp"

#define KERNEL static
#define DEVICE inline
#define CALLED inline
#define __launch_bounds__(...)
#define __grid_constant__

DEVICE float float_of_bits(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
DEVICE unsigned bits_of_float(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bfloat16 x) { return float_of_bits((unsigned)x.bits << 16); }
DEVICE float to_float(float16 x) {
    _Float16 y;
    memcpy(&y, &x.bits, 2);
    return (float)y;
}
template <typename E>
DEVICE E from_float(float x);
template <>
DEVICE float from_float<float>(float x) { return x; }
template <>
DEVICE bfloat16 from_float<bfloat16>(float x) {
    unsigned bits = bits_of_float(x);
    if (x != x) return bfloat16{0x7fff};
    return bfloat16{(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
DEVICE float16 from_float<float16>(float x) {
    _Float16 y = (_Float16)x;
    float16 z;
    memcpy(&z.bits, &y, 2);
    return z;
}
template <typename E>
DEVICE unsigned pack(float first, float second) {
    return from_float<E>(first).bits | (unsigned)from_float<E>(second).bits << 16;
}
template <int N>
DEVICE void store_words(void* to, const unsigned (&words)[N]) {
    memcpy(to, words, sizeof(words));
}
DEVICE float round_tf32(float x) {
    unsigned bits = bits_of_float(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return x;
    return float_of_bits((bits + 0x1000) & ~0x1fffu);
}
DEVICE float exp2_approximate(float x) { return exp2f(x); }
DEVICE float divide_approximate(float x, float y) { return x / y; }
// With as large an error as the machine's may have.
DEVICE float tanh_approximate(float x) { return fminf(fmaxf(tanhf(x) * (1 + 0x1p-11f), -1), 1); }

template <typename T>
DEVICE T read_only(const T* from) { return *from; }
DEVICE void atomic_min(unsigned long long* word, unsigned long long x) { *word = x < *word ? x : *word; }

DEVICE int thread_index() { return host::block.current; }
DEVICE int thread_count() { return host::block.all.size; }
DEVICE long long block_index() { return host::block.index; }
DEVICE long long block_count() { return host::block.count; }
DEVICE unsigned char* shared_memory() { return host::block.shared; }
DEVICE void sync_threads() {
    host::meet(host::block.all, [] {});
}
DEVICE bool any_thread(bool x) {
    static bool so_far = false, result = false;
    so_far = so_far || x;
    host::meet(host::block.all, [] {
        result = so_far;
        so_far = false;
    });
    return result;
}

// What the lanes of a warp give, and what they get.
template <typename In, typename Out, typename F>
DEVICE Out together(In mine, F work) {
    static std::vector<std::vector<In>> given;
    static std::vector<std::vector<Out>> got;
    size_t warp = host::block.current / 32;
    if (given.size() <= warp) {
        given.resize(warp + 1, std::vector<In>(32));
        got.resize(warp + 1, std::vector<Out>(32));
    }
    int lane = host::lane();
    given[warp][lane] = mine;
    host::meet(host::warp(), [&] { work(given[warp], got[warp]); });
    return got[warp][lane];
}

DEVICE void sync_warp() {
    host::meet(host::warp(), [] {});
}
DEVICE unsigned ballot(bool x) {
    return together<bool, unsigned>(x, [](auto& given, auto& got) {
        unsigned all = 0;
        for (int i = 0; i < 32; ++i) all |= (unsigned)given[i] << i;
        for (int i = 0; i < 32; ++i) got[i] = all;
    });
}
DEVICE unsigned lanes_with_equal(int x) {
    return together<int, unsigned>(x, [](auto& given, auto& got) {
        for (int i = 0; i < 32; ++i) {
            got[i] = 0;
            for (int j = 0; j < 32; ++j) got[i] |= (unsigned)(given[i] == given[j]) << j;
        }
    });
}
DEVICE float shuffle(float x, int lane) {
    return together<std::pair<float, int>, float>({x, lane}, [](auto& given, auto& got) {
        for (int i = 0; i < 32; ++i) got[i] = given[given[i].second].first;
    });
}
DEVICE float shuffle_xor(float x, int lanes) { return shuffle(x, host::lane() ^ lanes); }
DEVICE int count_bits(unsigned x) { return __builtin_popcount(x); }

DEVICE void copy_16(void* to, const void* from, bool inside) {
    if (reinterpret_cast<size_t>(to) % 16 != 0 || reinterpret_cast<size_t>(from) % 16 != 0) {
        host::fail("a copy of 16 bytes that are not aligned");
    }
    if (inside) memcpy(to, from, 16);
    else memset(to, 0, 16);
}
DEVICE void copy_16(void* to, const void* from) { copy_16(to, from, true); }
DEVICE void wait_for_copies() {}

struct MatrixWords {
    unsigned words[4];
};

template <bool TRANSPOSED>
DEVICE void load_matrices_of(unsigned (&words)[4], const void* row) {
    if (reinterpret_cast<size_t>(row) % 16 != 0) host::fail("a matrix row that is not aligned");
    MatrixWords found = together<const void*, MatrixWords>(row, [](auto& given, auto& got) {
        for (int lane = 0; lane < 32; ++lane) {
            for (int matrix = 0; matrix < 4; ++matrix) {
                unsigned short pair[2];
                for (int i = 0; i < 2; ++i) {
                    int row = lane / 4, column = lane % 4 * 2 + i;
                    if (TRANSPOSED) std::swap(row, column);
                    pair[i] = ((const unsigned short*)given[matrix * 8 + row])[column];
                }
                got[lane].words[matrix] = pair[0] | (unsigned)pair[1] << 16;
            }
        }
    });
    memcpy(words, found.words, sizeof words);
}
DEVICE void load_matrices(unsigned (&words)[4], const void* row) { load_matrices_of<false>(words, row); }
DEVICE void load_matrices_transposed(unsigned (&words)[4], const void* row) { load_matrices_of<true>(words, row); }

// One lane's part of a product: its fragments, in elements.
template <int A, int B>
struct Fragments {
    float sums[4], a[A], b[B];
};
struct Sums {
    float x[4];
};

// sums[16×8] += a[16×DEPTH] · b[DEPTH×8]; `depth_of` gives the depth of a lane's elements.
template <int A, int B, typename DepthA, typename RowA, typename DepthB>
DEVICE void multiply_fragments(float (&sums)[4], const Fragments<A, B>& mine, DepthA depth_a, RowA row_a, DepthB depth_b) {
    constexpr int DEPTH = A * 2;
    Sums result = together<Fragments<A, B>, Sums>(mine, [&](auto& given, auto& got) {
        float a[16][DEPTH], b[DEPTH][8];
        for (int lane = 0; lane < 32; ++lane) {
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < A; ++i) a[g + row_a(i)][depth_a(t, i)] = given[lane].a[i];
            for (int i = 0; i < B; ++i) b[depth_b(t, i)][g] = given[lane].b[i];
        }
        for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 4; ++i) {
                int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = given[lane].sums[i];
                for (int depth = 0; depth < DEPTH; ++depth) sum += a[row][depth] * b[depth][column];
                got[lane].x[i] = sum;
            }
        }
    });
    memcpy(sums, result.x, sizeof sums);
}

template <typename E>
DEVICE void multiply_words(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], E) {
    Fragments<8, 4> mine;
    memcpy(mine.sums, sums, sizeof sums);
    auto half = [](unsigned word, int i) { return to_float(E{(unsigned short)(word >> 16 * i)}); };
    for (int i = 0; i < 8; ++i) mine.a[i] = half(a[i / 2], i % 2);
    for (int i = 0; i < 4; ++i) mine.b[i] = half(b[i / 2], i % 2);
    multiply_fragments(
        sums, mine, [](int t, int i) { return 2 * t + i % 2 + i / 4 * 8; }, [](int i) { return i / 2 % 2 * 8; },
        [](int t, int i) { return 2 * t + i % 2 + i / 2 * 8; });
}
DEVICE void multiply_tf32(float (&sums)[4], const float (&a)[4], const float (&b)[2]) {
    Fragments<4, 2> mine;
    memcpy(mine.sums, sums, sizeof sums);
    memcpy(mine.a, a, sizeof a);
    memcpy(mine.b, b, sizeof b);
    multiply_fragments(
        sums, mine, [](int t, int i) { return t + i / 2 * 4; }, [](int i) { return i % 2 * 8; },
        [](int t, int i) { return t + i * 4; });
}

// Hopper. A barrier's word holds how many arrivals end a phase, how many are missing, and the phase's number.
struct BarrierWord {
    short arrivals, missing;
    int phase;
};
static_assert(sizeof(BarrierWord) == 8);
DEVICE void init_barrier(unsigned long long* barrier, int arrivals) {
    BarrierWord word = {(short)arrivals, (short)arrivals, 0};
    memcpy(barrier, &word, 8);
}
DEVICE void arrive(unsigned long long* barrier) {
    BarrierWord word;
    memcpy(&word, barrier, 8);
    if (--word.missing == 0) {
        word.missing = word.arrivals;
        word.phase += 1;
    }
    memcpy(barrier, &word, 8);
    host::progress();
}
DEVICE void wait_barrier(unsigned long long* barrier, int parity) {
    BarrierWord word;
    for (memcpy(&word, barrier, 8); (word.phase & 1) == parity; memcpy(&word, barrier, 8)) host::wait_a_while();
}
DEVICE void close_copies() {}
template <int N>
DEVICE void wait_for_copies_but() {}
DEVICE void publish_to_matrix_units() {}
template <int N>
DEVICE void give_registers() {}
template <int N>
DEVICE void take_registers() {}
DEVICE void begin_products() {}
DEVICE void close_products() {}
template <int N>
DEVICE void wait_for_products_but() {}

template <int BLOCKS>
DEVICE void hold(float (&)[BLOCKS][4]) {}
DEVICE void meet(int number, int threads) {
    host::Group& group = host::block.named[number];
    group.size = threads;
    host::meet(group, [] {});
}
DEVICE void store_in_bulk(float* to, const float* from, int bytes) {
    if ((size_t)to % 16 != 0 || (size_t)from % 16 != 0 || bytes % 16 != 0) host::fail("a bulk copy that is not aligned");
    memcpy(to, from, bytes);
}
DEVICE void add_in_bulk(float* to, const float* from, int bytes) {
    if ((size_t)to % 16 != 0 || (size_t)from % 16 != 0 || bytes % 16 != 0) host::fail("a bulk copy that is not aligned");
    for (int i = 0; i < bytes / 4; ++i) to[i] += from[i];
}
DEVICE void wait_for_bulk_reads() {}
DEVICE void wait_for_bulk() {}
// Blocks run one after another: whoever waits for a later one waits for ever.
DEVICE void wait_for_flag(const int* flag, int value) {
    if (*flag != value) host::fail("a block waits for one that has not begun");
}
DEVICE void store_release(int* flag, int x) { *flag = x; }
DEVICE int take_ticket(int* counter) { return (*counter)++; }
DEVICE int multiprocessors() { return 5; }
DEVICE int uniform(int x) { return x; }
DEVICE int anew(int x) { return x; }
DEVICE int lowest_bit(unsigned x) { return __builtin_ffs(x) - 1; }

DEVICE bool any_in_warpgroup(bool x, int) {
    static bool so_far[8], result[8];
    int group = host::block.current / 128;
    so_far[group] = so_far[group] || x;
    host::meet(host::block.warpgroups[group], [&] {
        result[group] = so_far[group];
        so_far[group] = false;
    });
    return result[group];
}

template <int N>
DEVICE void pin(unsigned (&)[N][4]) {}
DEVICE float exp2_in_order(float x) { return exp2f(x); }
DEVICE float add_in_order(float x, float y) { return x + y; }
DEVICE void finish(float x) {
    if (x < 0) host::fail("a sum of weights below zero");
}
DEVICE void arrive_once(unsigned long long* barrier) {
    sync_warp();
    if (host::lane() == 0) arrive(barrier);
}
DEVICE void wait_turn(int group) { host::meet_of(host::block.turns[group], 256, true); }
DEVICE void give_turn(int group) { host::meet_of(host::block.turns[group], 256, false); }
DEVICE float greater(float x, float y) { return x != x || x > y ? x : y; }
struct alignas(16) Words { unsigned words[4]; };
struct alignas(8) TwoFloats { float x[2]; };

// Of the machine's descriptor: the address in shared memory, the bytes between groups of 8 rows, and those between
// panels; the latter two in units of 16.
DEVICE unsigned long long descriptor(const void* start, int stride, int between) {
    size_t address = (const unsigned char*)start - host::block.shared;
    return address | (unsigned long long)(stride / 16) << 20 | (unsigned long long)(between / 16) << 40;
}
DEVICE unsigned long long panel_of(const void* start, int stride) { return descriptor(start, stride, 0); }
DEVICE unsigned long long turned_panels(const void* start, int between) { return descriptor(start, 1024, between); }
DEVICE unsigned place_of(const void* start) { return ((const unsigned char*)start - host::block.shared) / 16; }
template <int LEADING, int STRIDE>
DEVICE unsigned long long panels_at(unsigned place) {
    return descriptor(host::block.shared + place * 16ull, STRIDE, LEADING);
}
DEVICE unsigned long long further(unsigned long long panel, int bytes) { return panel + bytes; }
template <typename E>
DEVICE float panel_read(unsigned long long panel, int row, int column) {
    constexpr int FIELD = (1 << 20) - 1;
    size_t stride = (panel >> 20 & FIELD) * 16, between = (panel >> 40 & FIELD) * 16;
    // Parts of 16 bytes are exchanged by bits of the address.
    size_t address = (panel & FIELD) + column / 64 * between + row / 8 * stride + row % 8 * 128 + column % 64 * 2;
    address ^= address >> 3 & 0x70;
    E x;
    memcpy(&x, host::block.shared + address, 2);
    return to_float(x);
}

// What a thread gives to a product of its warpgroup.
struct GroupProduct {
    float sums[128];
    float left[8];
    unsigned long long left_panel, right_panel;
    bool keep;
};
struct GroupSums {
    float x[128];
};

// `left(row, depth)` and `right(depth, column)` of what the threads gave.
template <int BLOCKS, typename L, typename R>
DEVICE void multiply_group(float (*sums)[4], GroupProduct mine, L left, R right) {
    static std::vector<std::vector<GroupProduct>> given(8, std::vector<GroupProduct>(128));
    static std::vector<std::vector<GroupSums>> got(8, std::vector<GroupSums>(128));
    int group = host::block.current / 128, thread = host::block.current % 128;
    memcpy(mine.sums, sums, sizeof(float) * 4 * BLOCKS);
    given[group][thread] = mine;
    host::meet(host::block.warpgroups[group], [&] {
        auto& all = given[group];
        float a[64][16], b[8 * BLOCKS][16];
        for (int depth = 0; depth < 16; ++depth) {
            for (int row = 0; row < 64; ++row) a[row][depth] = left(all, row, depth);
            for (int column = 0; column < 8 * BLOCKS; ++column) b[column][depth] = right(all, depth, column);
        }
        for (int i = 0; i < 128; ++i) {
            for (int j = 0; j < 4 * BLOCKS; ++j) {
                int row = i / 32 * 16 + i % 32 / 4 + j % 4 / 2 * 8, column = j / 4 * 8 + i % 4 * 2 + j % 2;
                float sum = all[i].keep ? all[i].sums[j] : 0;
                for (int depth = 0; depth < 16; ++depth) sum += a[row][depth] * b[column][depth];
                got[group][i].x[j] = sum;
            }
        }
    });
    memcpy(sums, got[group][thread].x, sizeof(float) * 4 * BLOCKS);
}
