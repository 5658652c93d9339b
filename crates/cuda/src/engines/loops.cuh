// What the threads of a block do together in a loop nest.

// Everything that a block's threads have, combined in an order that depends on their number only.
template <typename T, typename F>
DEVICE T reduce_block(T mine, F combine) {
    T* all = (T*)shared_memory();
    sync_threads();
    all[thread_index()] = mine;
    for (int half = thread_count() / 2; half > 0; half /= 2) {
        sync_threads();
        if (thread_index() < half) all[thread_index()] = combine(all[thread_index()], all[thread_index() + half]);
    }
    sync_threads();
    return all[0];
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
