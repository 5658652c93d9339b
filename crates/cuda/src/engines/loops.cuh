// What the threads of a loop nest do together, and how they read and write runs of elements.

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T element[N];
};

// Elements that are `stride` apart, in one access where they lie side by side; those beyond `count` repeat the last.
template <typename T, int N>
DEVICE void load_run(T (&run)[N], const T* first, long long stride, int count) {
    if constexpr (N > 1) {
        if (stride == 1 && count == N && (unsigned long long)first % (sizeof(T) * N) == 0) {
            Pack<T, N> pack = *(const Pack<T, N>*)first;
#pragma unroll
            for (int j = 0; j < N; ++j) run[j] = pack.element[j];
            return;
        }
        if (stride == 0) {
            T element = *first;
#pragma unroll
            for (int j = 0; j < N; ++j) run[j] = element;
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < N; ++j) run[j] = first[min_of(j, count - 1) * stride];
}

// The same of an array of which only positions from `low` up to `high` are there; `at` is the first's.
template <typename T, int N>
DEVICE void load_part(T (&run)[N], const T* first, long long stride, int count, long long at, long long low, long long high) {
    if (at >= low && at + count <= high) return load_run(run, first, stride, count);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        int i = min_of(j, count - 1);
        if (at + i >= low && at + i < high) run[j] = first[i * stride];
    }
}

template <typename T, int N>
DEVICE void store_run(const T (&run)[N], T* first, long long stride, int count) {
    if constexpr (N > 1) {
        if (stride == 1 && count == N && (unsigned long long)first % (sizeof(T) * N) == 0) {
            Pack<T, N> pack;
#pragma unroll
            for (int j = 0; j < N; ++j) pack.element[j] = run[j];
            *(Pack<T, N>*)first = pack;
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
        if (j < count) first[j * stride] = run[j];
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
