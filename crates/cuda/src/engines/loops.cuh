// What the threads of a loop nest do together, and how they read and write runs of elements.

DEVICE unsigned bits_of(unsigned char x) { return x; }
DEVICE unsigned bits_of(bfloat16 x) { return x.bits; }
DEVICE unsigned bits_of(float16 x) { return x.bits; }
DEVICE unsigned bits_of(int x) { return x; }
DEVICE unsigned bits_of(float x) { return bits_of_float(x); }
DEVICE void of_bits(unsigned char& x, unsigned bits) { x = (unsigned char)bits; }
DEVICE void of_bits(bfloat16& x, unsigned bits) { x.bits = (unsigned short)bits; }
DEVICE void of_bits(float16& x, unsigned bits) { x.bits = (unsigned short)bits; }
DEVICE void of_bits(int& x, unsigned bits) { x = (int)bits; }
DEVICE void of_bits(float& x, unsigned bits) { x = float_of_bits(bits); }

// A run as it lies in memory: in words, since small elements by themselves are read and written one by one.
template <typename T, int N, bool IN_WORDS = sizeof(T) <= 4 && sizeof(T) * N % 4 == 0>
struct alignas(sizeof(T) * N) Pack {
    T element[N];
    DEVICE void to(T (&run)[N]) const {
#pragma unroll
        for (int j = 0; j < N; ++j) run[j] = element[j];
    }
    static DEVICE void store(const T (&run)[N], T* first) {
        Pack pack;
#pragma unroll
        for (int j = 0; j < N; ++j) pack.element[j] = run[j];
        *(Pack*)first = pack;
    }
};
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack<T, N, true> {
    static constexpr int EACH = 4 / sizeof(T), BITS = 8 * sizeof(T);
    unsigned word[N / EACH];
    DEVICE void to(T (&run)[N]) const {
#pragma unroll
        for (int j = 0; j < N; ++j) of_bits(run[j], word[j / EACH] >> j % EACH * BITS);
    }
    static DEVICE void store(const T (&run)[N], T* first) {
        unsigned word[N / EACH];
#pragma unroll
        for (int i = 0; i < N / EACH; ++i) {
            word[i] = 0;
#pragma unroll
            for (int j = 0; j < EACH; ++j) word[i] |= bits_of(run[i * EACH + j]) << j * BITS;
        }
        store_words(first, word);
    }
};

// Whether a run may be read or written in one access.
template <int N, typename T>
DEVICE bool is_aligned(const T* first) {
    return (unsigned long long)first % (sizeof(T) * N) == 0;
}

// One element, for each of a run.
template <typename T, int N>
DEVICE void load_same(T (&run)[N], const T* first) {
    T element = *first;
#pragma unroll
    for (int j = 0; j < N; ++j) run[j] = element;
}

// Elements that are `stride` apart; those beyond `count` repeat the last.
template <typename T, int N>
DEVICE void load_apart(T (&run)[N], const T* first, long long stride, int count) {
#pragma unroll
    for (int j = 0; j < N; ++j) run[j] = first[min_of(j, count - 1) * stride];
}

// Elements side by side, in one access where that can be. Where `count` and `aligned` are known to the compiler there
// is no branch, so that the reads of several arrays are under way together.
template <typename T, int N>
DEVICE void load_packed(T (&run)[N], const T* first, int count, bool aligned) {
    if (count == N && aligned) {
        Pack<T, N> pack = *(const Pack<T, N>*)first;
        pack.to(run);
    } else {
        load_apart(run, first, 1, count);
    }
}

// Of an array that has only the positions from `low` up to `high`: what there is of the run that begins at `at`.
template <typename T, int N>
DEVICE void load_part(T (&run)[N], const T* first, long long stride, int count, long long at, long long low, long long high) {
    if (at >= low && at + count <= high) {
        if (stride == 1) return load_packed(run, first, count, is_aligned<N>(first));
        return load_apart(run, first, stride, count);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
        int i = min_of(j, count - 1);
        if (at + i >= low && at + i < high) run[j] = first[i * stride];
    }
}

template <typename T, int N>
DEVICE void store_apart(const T (&run)[N], T* first, long long stride, int count) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
        if (j < count) first[j * stride] = run[j];
    }
}

template <typename T, int N>
DEVICE void store_packed(const T (&run)[N], T* first, int count, bool aligned) {
    if (count == N && aligned) {
        Pack<T, N>::store(run, first);
    } else {
        store_apart(run, first, 1, count);
    }
}

// The greatest so far and its position; NaN counts as greatest, and of equals the first does.
template <typename T>
struct Greatest {
    T value;
    long long position;
};
template <typename T>
DEVICE Greatest<T> greater(Greatest<T> x, Greatest<T> y) {
    if (x.position < 0 || y.position < 0) return x.position < 0 ? y : x;
    bool x_is_nan = x.value != x.value, y_is_nan = y.value != y.value;
    if (x_is_nan || y_is_nan ? x_is_nan == y_is_nan : x.value == y.value) return x.position < y.position ? x : y;
    return x_is_nan || (!y_is_nan && x.value > y.value) ? x : y;
}
template <typename T>
DEVICE T of_lane(T x, int lane) { return shuffle(x, lane); }
template <typename T>
DEVICE Greatest<T> of_lane(Greatest<T> x, int lane) {
    return Greatest<T>{shuffle(x.value, lane), shuffle(x.position, lane)};
}

// What the threads of a team have, combined in an order that depends on their number only; each gets all of it.
template <int TEAM, typename T, typename F>
DEVICE T reduce_team(T mine, F combine) {
    constexpr int LANES = TEAM < 32 ? TEAM : 32;
#pragma unroll
    for (int lanes = 1; lanes < LANES; lanes *= 2) mine = combine(mine, of_lane(mine, lane_index() ^ lanes));
    if constexpr (TEAM > 32) {
        T* all = (T*)shared_memory();
        sync_threads();
        if (lane_index() == 0) all[warp_index()] = mine;
        sync_threads();
        mine = all[0];
#pragma unroll
        for (int warp = 1; warp < TEAM / 32; ++warp) mine = combine(mine, all[warp]);
    }
    return mine;
}

// What each lane of a block's warps has, combined in the order of the warps.
template <int WARPS, typename T, typename F>
DEVICE T reduce_warps(T mine, F combine) {
    if constexpr (WARPS > 1) {
        T* all = (T*)shared_memory();
        sync_threads();
        all[thread_index()] = mine;
        sync_threads();
        mine = all[lane_index()];
#pragma unroll
        for (int warp = 1; warp < WARPS; ++warp) mine = combine(mine, all[32 * warp + lane_index()]);
    }
    return mine;
}
