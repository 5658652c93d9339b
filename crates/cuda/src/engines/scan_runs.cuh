// Reading and writing runs along a scan.
//
// A scan's *step* counts along its direction; the position of a step runs backwards in a reversed scan. Steps beyond
// the length stand for the last one: what is made of them is never stored, nor combined with what is.

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T element[N];
};

DEVICE long long position_of(long long step, long long length) {
    step = min_of(step, length - 1);
    return REVERSE ? length - 1 - step : step;
}

// A run of steps from memory, where `start` is position 0; in one access where they lie so.
template <typename T>
DEVICE void load_run(T (&run)[RUN], const T* start, long long stride, long long step, long long length) {
    if constexpr (WIDE && RUN > 1) {
        const T* first = start + position_of(step, length) * stride;
        long long pace = REVERSE ? -stride : stride;
        if (pace < 0) first -= RUN - 1;
        if (step + RUN <= length && (pace == 1 || pace == -1) && (unsigned long long)first % (sizeof(T) * RUN) == 0) {
            Pack<T, RUN> pack = *(const Pack<T, RUN>*)first;
#pragma unroll
            for (int j = 0; j < RUN; ++j) run[j] = pace == 1 ? pack.element[j] : pack.element[RUN - 1 - j];
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < RUN; ++j) run[j] = start[position_of(step + j, length) * stride];
}

// Writes those steps of a run that there are.
template <typename T>
DEVICE void store_run(const T (&run)[RUN], T* start, long long stride, long long step, long long length) {
    if constexpr (WIDE && RUN > 1) {
        T* first = start + position_of(step, length) * stride;
        long long pace = REVERSE ? -stride : stride;
        if (pace < 0) first -= RUN - 1;
        if (step + RUN <= length && (pace == 1 || pace == -1) && (unsigned long long)first % (sizeof(T) * RUN) == 0) {
            Pack<T, RUN> pack;
#pragma unroll
            for (int j = 0; j < RUN; ++j) pack.element[j] = pace == 1 ? run[j] : run[RUN - 1 - j];
            *(Pack<T, RUN>*)first = pack;
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < RUN; ++j) {
        if (step + j < length) start[position_of(step + j, length) * stride] = run[j];
    }
}
