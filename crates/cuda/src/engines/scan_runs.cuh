// Reading and writing runs along a scan.
//
// A scan's *step* counts along its direction; the position of a step runs backwards in a reversed scan. Steps beyond
// the length stand for the last one: what is made of them is never stored, nor combined with what is.

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T element[N];
};

DEVICE Step position_of(Step step, Step length) {
    step = min_of<Step>(step, length - 1);
    return REVERSE ? length - 1 - step : step;
}

// By how many elements the runs of a row begin after a place that one access may begin at; −1 where steps are not
// neighbours in memory.
template <typename T>
DEVICE int shift_of(const T* start, long long stride, Step length) {
    if (!WIDE || stride != 1) return -1;
    return (int)((unsigned long long)(start + (REVERSE ? length : 0)) / sizeof(T) % RUN);
}

// A run of steps from memory, where `start` is position 0, as far as they are among positions from `low` up to `high`:
// in one access, or two, where steps are neighbours.
template <typename T>
DEVICE void load_run(T (&run)[RUN], const T* start, long long stride, int shift, Step step, Step length, Step low,
                     Step high) {
    if constexpr (WIDE && RUN > 1) {
        Step first = (REVERSE ? length - RUN - step : step) - shift;
        if (shift >= 0 && first >= low && first + (shift > 0 ? 2 * RUN : RUN) <= high) {
            const Pack<T, RUN>* packs = (const Pack<T, RUN>*)(start + first);
            Pack<T, RUN> pack = packs[0];
            if (shift > 0) {
                Pack<T, RUN> next = packs[1], both = pack;
#pragma unroll
                for (int k = 1; k < RUN; ++k) {
                    if (shift != k) continue;
#pragma unroll
                    for (int j = 0; j < RUN; ++j) both.element[j] = j + k < RUN ? pack.element[(j + k) % RUN] : next.element[(j + k) % RUN];
                }
                pack = both;
            }
#pragma unroll
            for (int j = 0; j < RUN; ++j) run[j] = pack.element[REVERSE ? RUN - 1 - j : j];
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < RUN; ++j) {
        Step position = position_of(step + j, length);
        if (position >= low && position < high) run[j] = start[position * stride];
    }
}

// Writes those steps of a run that there are.
template <typename T>
DEVICE void store_run(const T (&run)[RUN], T* start, long long stride, int shift, Step step, Step length) {
    if constexpr (WIDE && RUN > 1) {
        if (shift == 0 && step + RUN <= length) {
            Pack<T, RUN> pack;
#pragma unroll
            for (int j = 0; j < RUN; ++j) pack.element[REVERSE ? RUN - 1 - j : j] = run[j];
            *(Pack<T, RUN>*)(start + (REVERSE ? length - RUN - step : step)) = pack;
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < RUN; ++j) {
        if (step + j < length) start[position_of(step + j, length) * stride] = run[j];
    }
}
