// The machine of `machine.hpp`, on the emulated threads of `emulator.hpp`.

#include "machine.hpp"

#include "emulator.hpp"

float float_of_bits(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
unsigned bits_of_float(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
unsigned long long bits_of_double(double x) {
    unsigned long long bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
}
double double_of_bits(unsigned long long bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

float to_float(bfloat16 x) { return float_of_bits((unsigned)x.bits << 16); }
float to_float(float16 x) {
    _Float16 y;
    memcpy(&y, &x.bits, 2);
    return (float)y;
}
template <>
bfloat16 from_float<bfloat16>(float x) {
    unsigned bits = bits_of_float(x);
    if (x != x) return bfloat16{0x7fff};
    return bfloat16{(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
float16 from_float<float16>(float x) {
    _Float16 y = (_Float16)x;
    float16 z;
    memcpy(&z.bits, &y, 2);
    return z;
}
float round_tf32(float x) {
    unsigned bits = bits_of_float(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return x;
    return float_of_bits((bits + 0x1000) & ~0x1fffu);
}

int thread_index() { return host::block.current; }
int thread_count() { return host::block.all.size; }
long long block_index() { return host::block.index; }
long long block_count() { return host::block.count; }
unsigned char* shared_memory() { return host::block.shared; }
void sync_threads() {
    host::meet(host::block.all, [] {});
}
bool any_thread(bool x) {
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
static Out together(In mine, F work) {
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

void sync_warp() {
    host::meet(host::warp(), [] {});
}
unsigned ballot(bool x) {
    return together<bool, unsigned>(x, [](auto& given, auto& got) {
        unsigned all = 0;
        for (int i = 0; i < 32; ++i) all |= (unsigned)given[i] << i;
        for (int i = 0; i < 32; ++i) got[i] = all;
    });
}
unsigned lanes_with_equal(int x) {
    return together<int, unsigned>(x, [](auto& given, auto& got) {
        for (int i = 0; i < 32; ++i) {
            got[i] = 0;
            for (int j = 0; j < 32; ++j) got[i] |= (unsigned)(given[i] == given[j]) << j;
        }
    });
}
template <typename T>
static T shuffled(T x, int lane) {
    return together<std::pair<T, int>, T>({x, lane}, [](auto& given, auto& got) {
        for (int i = 0; i < 32; ++i) got[i] = given[given[i].second].first;
    });
}
float shuffle(float x, int lane) { return shuffled(x, lane); }
double shuffle(double x, int lane) { return shuffled(x, lane); }
int shuffle(int x, int lane) { return shuffled(x, lane); }
long long shuffle(long long x, int lane) { return shuffled(x, lane); }
bool shuffle(bool x, int lane) { return shuffled(x, lane); }
float shuffle_xor(float x, int lanes) { return shuffled(x, host::lane() ^ lanes); }

static bool aligned(const void* address) { return reinterpret_cast<size_t>(address) % 16 == 0; }

void copy_16(void* to, const void* from, bool inside) {
    if (!aligned(to) || !aligned(from)) host::fail("a copy of 16 bytes that are not aligned");
    if (inside) memcpy(to, from, 16);
    else memset(to, 0, 16);
}

struct MatrixWords {
    unsigned words[4];
};

template <bool TRANSPOSED>
static void load_matrices_of(unsigned (&words)[4], const void* row) {
    if (!aligned(row)) host::fail("a matrix row that is not aligned");
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
void load_matrices(unsigned (&words)[4], const void* row) { load_matrices_of<false>(words, row); }
void load_matrices_transposed(unsigned (&words)[4], const void* row) { load_matrices_of<true>(words, row); }

struct MatrixRow {
    unsigned char* at;
    MatrixWords words;
};
struct Nothing {};
void store_matrices(void* row, const unsigned (&words)[4]) {
    if (!aligned(row)) host::fail("a matrix row that is not aligned");
    MatrixRow mine = {(unsigned char*)row, {}};
    memcpy(mine.words.words, words, sizeof words);
    together<MatrixRow, Nothing>(mine, [](auto& given, auto&) {
        for (int lane = 0; lane < 32; ++lane) {
            for (int matrix = 0; matrix < 4; ++matrix) {
                memcpy(given[matrix * 8 + lane / 4].at + lane % 4 * 4, &given[lane].words.words[matrix], 4);
            }
        }
    });
}

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
static void multiply_fragments(
    float (&sums)[4], const Fragments<A, B>& mine, DepthA depth_a, RowA row_a, DepthB depth_b) {
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
static void multiply_halves(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    Fragments<8, 4> mine;
    memcpy(mine.sums, sums, sizeof sums);
    auto half = [](unsigned word, int i) { return to_float(E{(unsigned short)(word >> 16 * i)}); };
    for (int i = 0; i < 8; ++i) mine.a[i] = half(a[i / 2], i % 2);
    for (int i = 0; i < 4; ++i) mine.b[i] = half(b[i / 2], i % 2);
    multiply_fragments(
        sums, mine, [](int t, int i) { return 2 * t + i % 2 + i / 4 * 8; }, [](int i) { return i / 2 % 2 * 8; },
        [](int t, int i) { return 2 * t + i % 2 + i / 2 * 8; });
}
void multiply_words(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat16) {
    multiply_halves<bfloat16>(sums, a, b);
}
void multiply_words(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], float16) {
    multiply_halves<float16>(sums, a, b);
}
void multiply_tf32(float (&sums)[4], const float (&a)[4], const float (&b)[2]) {
    Fragments<4, 2> mine;
    memcpy(mine.sums, sums, sizeof sums);
    memcpy(mine.a, a, sizeof a);
    memcpy(mine.b, b, sizeof b);
    multiply_fragments(
        sums, mine, [](int t, int i) { return t + i / 2 * 4; }, [](int i) { return i % 2 * 8; },
        [](int t, int i) { return t + i * 4; });
}

bool is_raised(const unsigned* flag) {
    if (*flag != 1) host::fail("a block waits for one that has not begun");
    return true;
}
bool is_told(unsigned long long word) {
    if (word >> 32 != 1) host::fail("a block waits for one that has not begun");
    return true;
}
void wait_for_flag(const int* flag, int value) {
    if (*flag != value) host::fail("a block waits for one that has not begun");
}

static void check_bulk(const void* to, const void* from, int bytes) {
    if (!aligned(to) || !aligned(from) || bytes % 16 != 0) host::fail("a bulk copy that is not aligned");
}
// A barrier's word holds how many arrivals end a phase, how many are missing, the phase's parity, and how many pieces of
// 16 bytes have yet to be copied.
struct BarrierWord {
    short arrivals, missing, parity, pieces;
};
static_assert(sizeof(BarrierWord) == 8);
template <typename F>
static void change(unsigned long long* barrier, F change) {
    BarrierWord word;
    memcpy(&word, barrier, 8);
    change(word);
    if (word.missing == 0 && word.pieces == 0) {
        word.missing = word.arrivals;
        word.parity ^= 1;
    }
    memcpy(barrier, &word, 8);
    host::progress();
}
void init_barrier(unsigned long long* barrier, int arrivals) {
    BarrierWord word = {(short)arrivals, (short)arrivals, 0, 0};
    memcpy(barrier, &word, 8);
}
void arrive(unsigned long long* barrier) {
    change(barrier, [](BarrierWord& word) { word.missing -= 1; });
}
void begin_copies(unsigned long long* barrier, int bytes) {
    if (host::lane() != 0) return;
    change(barrier, [&](BarrierWord& word) {
        word.missing -= 1;
        word.pieces += bytes / 16;
    });
}
// What is copied begins and ends where pieces of 16 bytes do, which an array need not: neither does the sanitizer's
// memory, in which such a piece is never another array's.
UNSEEN static void copy_pieces(unsigned char* to, const unsigned char* from, int bytes) {
    for (int i = 0; i < bytes; ++i) to[i] = ((const volatile unsigned char*)from)[i];
}
void copy_ahead(void* to, const void* from, int bytes, unsigned long long* barrier) {
    if (host::lane() != 0 || bytes == 0) return;
    check_bulk(to, from, bytes);
    copy_pieces((unsigned char*)to, (const unsigned char*)from, bytes);
    change(barrier, [&](BarrierWord& word) {
        word.pieces -= bytes / 16;
        if (word.pieces < 0) host::fail("more is copied than was said");
    });
}
void arrive_once(unsigned long long* barrier) {
    sync_warp();
    if (host::lane() == 0) arrive(barrier);
}
void wait_barrier(unsigned long long* barrier, int parity) {
    BarrierWord word;
    for (memcpy(&word, barrier, 8); word.parity == parity; memcpy(&word, barrier, 8)) host::wait_a_while();
}
void meet(int number, int threads) {
    host::Group& group = host::block.named[number];
    group.size = threads;
    host::meet(group, [] {});
}
void wait_turn(int group) { host::meet_of(host::block.turns[group], 256, true); }
void give_turn(int group) { host::meet_of(host::block.turns[group], 256, false); }
bool any_in_warpgroup(bool x, int) {
    static bool so_far[8], result[8];
    int group = host::block.current / 128;
    so_far[group] = so_far[group] || x;
    host::meet(host::block.warpgroups[group], [&] {
        result[group] = so_far[group];
        so_far[group] = false;
    });
    return result[group];
}

void store_in_bulk(float* to, const float* from, int bytes) {
    check_bulk(to, from, bytes);
    memcpy(to, from, bytes);
}
void add_in_bulk(float* to, const float* from, int bytes) {
    check_bulk(to, from, bytes);
    for (int i = 0; i < bytes / 4; ++i) to[i] += from[i];
}

unsigned long long descriptor(const void* start, int stride, int between) {
    size_t address = (const unsigned char*)start - host::block.shared;
    return address | (unsigned long long)(stride / 16) << 20 | (unsigned long long)(between / 16) << 40;
}
template <typename E>
static float panel_read(unsigned long long panel, int row, int column) {
    constexpr int FIELD = (1 << 20) - 1;
    size_t stride = (panel >> 20 & FIELD) * 16, between = (panel >> 40 & FIELD) * 16;
    // Parts of 16 bytes are exchanged by bits of the address.
    size_t address = (panel & FIELD) + column / 64 * between + row / 8 * stride + row % 8 * 128 + column % 64 * 2;
    address ^= address >> 3 & 0x70;
    E x;
    memcpy(&x, host::block.shared + address, 2);
    return to_float(x);
}

struct GroupSums {
    float x[32][4];
};
struct GroupGiven {
    GroupProduct product;
    GroupSums sums;
};

template <typename E>
static float left_of(const std::vector<GroupGiven>& all, int row, int depth) {
    const GroupProduct& first = all[0].product;
    if (first.left_in_registers) {
        int lane = row % 8 * 4 + depth % 8 / 2;
        return all[row / 16 * 32 + lane].product.left[depth / 8 * 4 + row % 16 / 8 * 2 + depth % 2];
    }
    return first.left_turned ? panel_read<E>(first.left_panel, depth, row)
                             : panel_read<E>(first.left_panel, row, depth);
}
template <typename E>
static float right_of(const GroupProduct& first, int depth, int column) {
    return first.right_turned ? panel_read<E>(first.right_panel, depth, column)
                              : panel_read<E>(first.right_panel, column, depth);
}

template <typename E>
static void multiply_group_of(float (*sums)[4], int blocks, const GroupProduct& mine) {
    static std::vector<std::vector<GroupGiven>> given(8, std::vector<GroupGiven>(128));
    static std::vector<std::vector<GroupSums>> got(8, std::vector<GroupSums>(128));
    int group = host::block.current / 128, thread = host::block.current % 128;
    given[group][thread].product = mine;
    memcpy(given[group][thread].sums.x, sums, sizeof *sums * blocks);
    host::meet(host::block.warpgroups[group], [&] {
        auto& all = given[group];
        float a[64][16], b[256][16];
        for (int depth = 0; depth < 16; ++depth) {
            for (int row = 0; row < 64; ++row) a[row][depth] = left_of<E>(all, row, depth);
            for (int column = 0; column < 8 * blocks; ++column) {
                b[column][depth] = right_of<E>(all[0].product, depth, column);
            }
        }
        for (int i = 0; i < 128; ++i) {
            for (int j = 0; j < 4 * blocks; ++j) {
                int row = i / 32 * 16 + i % 32 / 4 + j % 4 / 2 * 8, column = j / 4 * 8 + i % 4 * 2 + j % 2;
                float sum = all[i].product.keep ? all[i].sums.x[j / 4][j % 4] : 0;
                for (int depth = 0; depth < 16; ++depth) sum += a[row][depth] * b[column][depth];
                got[group][i].x[j / 4][j % 4] = sum;
            }
        }
    });
    memcpy(sums, got[group][thread].x, sizeof *sums * blocks);
}
void multiply_group(float (*sums)[4], int blocks, const GroupProduct& mine, bfloat16) {
    multiply_group_of<bfloat16>(sums, blocks, mine);
}
void multiply_group(float (*sums)[4], int blocks, const GroupProduct& mine, float16) {
    multiply_group_of<float16>(sums, blocks, mine);
}
