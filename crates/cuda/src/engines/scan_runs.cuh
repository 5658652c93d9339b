// Reading and writing runs along a scan.
//
// A scan's *step* counts along its direction; the position of a step runs backwards in a reversed scan. Steps beyond
// the length stand for the last one: what is made of them is never stored, nor combined with what is.

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T element[N];
};

template <bool WHOLE = false>
DEVICE Step position_of(Step step, Step length) {
    if (!WHOLE) step = min_of<Step>(step, length - 1);
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
// in one access, or two, where steps are neighbours. WHOLE: all steps are there.
template <bool WHOLE, typename T>
DEVICE void load_run(T (&run)[RUN], const T* start, long long stride, int shift, Step step, Step length, Step low,
                     Step high) {
    if constexpr (WHOLE) {
        const T* first = start + (REVERSE ? length - RUN - step : step) * stride;
        if (WIDE && shift == 0) {
            Pack<T, RUN> pack = *(const Pack<T, RUN>*)first;
#pragma unroll
            for (int j = 0; j < RUN; ++j) run[j] = pack.element[REVERSE ? RUN - 1 - j : j];
        } else {
#pragma unroll
            for (int j = 0; j < RUN; ++j) run[j] = first[(REVERSE ? RUN - 1 - j : j) * stride];
        }
        return;
    }
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

// A run that several sources share, with more steps than theirs: from a step on, all of which are there.
template <typename T, int N>
DEVICE void load_steps(T (&steps)[N], const T* start, long long stride, Step step, Step length) {
    const T* first = start + (REVERSE ? length - N - step : step) * stride;
#pragma unroll
    for (int j = 0; j < N; ++j) steps[j] = first[(REVERSE ? N - 1 - j : j) * stride];
}

// What a source has of them, from the one of number BEGIN on: its steps that are there, or those beyond the length.
template <bool THERE, int BEGIN, typename T, int N>
DEVICE void load_part(T (&steps)[N], const T* start, long long stride, Step step, Step length, Step low, Step high) {
#pragma unroll
    for (int j = 0; j < RUN; ++j) {
        Step position = position_of(step + j, length);
        if ((step + j < length) == THERE && position >= low && position < high) steps[BEGIN + j] = start[position * stride];
    }
}

// Writes those steps of a run that there are.
template <bool WHOLE, typename T>
DEVICE void store_run(const T (&run)[RUN], T* start, long long stride, int shift, Step step, Step length) {
    if constexpr (WIDE && RUN > 1) {
        if (shift == 0 && (WHOLE || step + RUN <= length)) {
            Pack<T, RUN> pack;
#pragma unroll
            for (int j = 0; j < RUN; ++j) pack.element[REVERSE ? RUN - 1 - j : j] = run[j];
            *(Pack<T, RUN>*)(start + (REVERSE ? length - RUN - step : step)) = pack;
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < RUN; ++j) {
        if (WHOLE || step + j < length) start[position_of<WHOLE>(step + j, length) * stride] = run[j];
    }
}

// A source's part of a tile may be copied ahead to shared memory, its *stage*. It lies there as it does in memory as far
// as multiples of GRANULE bytes go, so that runs are read alike from both.
template <typename T>
constexpr int GRANULE = sizeof(T) * RUN > 16 ? sizeof(T) * RUN : 16;

DEVICE unsigned long long address_of(const void* place) { return (unsigned long long)place; }

// Where position 0 of a row would lie, if all of it were in a stage whose tile begins at a position.
template <typename T>
DEVICE const T* in_stage(const T* start, Step begin, unsigned char* stage) {
    return (const T*)(stage + address_of(start + begin) % GRANULE<T>) - begin;
}

// Bytes to be copied.
struct Piece {
    const unsigned char* from;
    unsigned char* to;
    int bytes;
};

// What a stage holds of the positions between `begin` and `end`, as far as they are between `low` and `high`: whole
// pieces of 16 bytes, the first and last of which may hold something else besides.
template <typename T>
DEVICE Piece piece_of(const T* start, Step begin, Step end, Step low, Step high, unsigned char* stage) {
    constexpr unsigned long long COARSE = GRANULE<T> - 1, FINE = 15;
    unsigned long long origin = address_of(start + begin) & ~COARSE;
    unsigned long long from = max_of(origin, address_of(start + low) & ~FINE);
    unsigned long long to = min_of((address_of(start + end) + COARSE) & ~COARSE, (address_of(start + high) + FINE) & ~FINE);
    return {(const unsigned char*)from, stage + (from - origin), low < high && from < to ? (int)(to - from) : 0};
}
