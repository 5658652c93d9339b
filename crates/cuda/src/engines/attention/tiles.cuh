// Tiles of an attention: how they come to shared memory, and what the mask leaves of them.

constexpr int PADDING = 8;  // elements between rows, so that neighbouring rows lie in other banks

// A bit for each of a lane's pairs of a tile: element e of block j is bit 4j + e.
template <bool WIDE>
struct BitsOf { typedef unsigned Type; };
template <>
struct BitsOf<true> { typedef unsigned long long Type; };
typedef BitsOf<(COLUMNS > 64)>::Type Bits;

// What a mask leaves of a tile.
constexpr int EMPTY = 0, PARTIAL = 1, FULL = 2;

// Rows of a strided matrix to a tile of PADDED columns; zeros past its rows and columns. Where VECTOR, elements
// of a row are neighbours and 16 bytes of them are aligned.
template <int ROWS, int SIZE, int PADDED, bool VECTOR, typename E>
DEVICE void load_tile(E* tile, const E* from, long long row_stride, long long column_stride, long long rows) {
    if constexpr (VECTOR) {
        constexpr int ONCE = 16 / sizeof(E);
        for (int i = thread_index(); i < ROWS * (PADDED / ONCE); i += thread_count()) {
            int row = i / (PADDED / ONCE), column = i % (PADDED / ONCE) * ONCE;
            bool inside = row < rows && column < SIZE;
            copy_16(tile + row * (PADDED + PADDING) + column, inside ? from + row * row_stride + column : from, inside);
        }
    } else {
        for (int i = thread_index(); i < ROWS * PADDED; i += thread_count()) {
            int row = i / PADDED, column = i % PADDED;
            bool inside = row < rows && column < SIZE;
            tile[row * (PADDED + PADDING) + column] =
                inside ? from[row * row_stride + column * column_stride] : E{0};
        }
    }
}

// Whether this thread's share of a tile holds an infinity or NaN.
template <int ROWS, int PADDED, typename E>
DEVICE bool holds_nonfinite(const E* tile) {
    bool found = false;
    for (int i = thread_index(); i < ROWS * PADDED; i += thread_count()) {
        float x = to_float(tile[i / PADDED * (PADDED + PADDING) + i % PADDED]);
        found = found || !(fabsf(x) < infinity<float>());
    }
    return found;
}

// What the mask leaves of queries `query ..` and keys `key ..`; of a tile past an end, something at most.
DEVICE int tile_state(const Parameters& p, int b, int h, long long query, int queries, long long key, int keys) {
    bool whole = query + queries <= p.queries && key + keys <= p.keys;
    if constexpr (!MASKED) return whole ? FULL : PARTIAL;
    // Positions fit 32 bits, whose division is much cheaper.
    int query_block = p.query_block, key_block = p.key_block;
    int last_row = (int)(min_of(query + queries, p.queries) - 1) / query_block;
    int last_column = (int)(min_of(key + keys, p.keys) - 1) / key_block;
    int slice = (p.map_batch == 1 ? 0 : b) * (int)p.map_heads + (p.map_heads == 1 ? 0 : h);
    bool any = false, all = whole;
    for (int i = (int)query / query_block; i <= last_row; ++i) {
        const unsigned char* row = p.blocks + (slice * p.query_blocks + i) * p.key_blocks;
        for (int j = (int)key / key_block; j <= last_column; ++j) {
            any = any || row[j] != EMPTY;
            all = all && row[j] == FULL;
        }
    }
    return all ? FULL : any ? PARTIAL : EMPTY;
}

// The natural exponential, as exactly as the element type asks for.
DEVICE float exponential(float x) {
    if constexpr (sizeof(Element) == 2) return exp2_approximate(x * 1.4426950408889634f);
    return expf(x);
}

// sums[16 × 8·BLOCKS] += weights · rows of a tile over admitted pairs only: where a row of the tile is not finite, 0
// times it would show. The weights, rounded, and each lane's bits are in a panel of this warp's rows; `element` gives
// an element of the tile.
template <int DEPTH, int BLOCKS, typename F>
DEVICE void accumulate_panel(float (&sums)[BLOCKS][4], const float* panel, F element) {
    int g = lane_index() / 4, t = lane_index() % 4;
    const Bits* flags = (const Bits*)(panel + 16 * (DEPTH + 1));
    for (int i = 0; i < 4 * DEPTH; ++i) {
        int half = i / (2 * DEPTH), depth = i % (2 * DEPTH) / 2, row = g + half * 8;
        // Which lane, and which of its bits, holds this pair.
        bool mine = flags[g * 4 + depth % 8 / 2] >> (depth / 8 * 4 + half * 2 + depth % 2) & 1;
        if (!mine) continue;
        float weight = panel[row * (DEPTH + 1) + depth];
        int e = half * 2 + i % 2;
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j) {
            float x = weight * to_float(element(depth, 8 * j + 2 * t + i % 2));
#pragma unroll
            for (int slot = 0; slot < 4; ++slot) {
                if (slot == e) sums[j][slot] += x;
            }
        }
    }
}

// The same, of weights in registers.
template <int DEPTH_BLOCKS, int BLOCKS, typename F>
DEVICE void accumulate_admitted(float (&sums)[BLOCKS][4], const float (&weights)[DEPTH_BLOCKS][4], Bits admitted,
                                float* panel, F element) {
    constexpr int DEPTH = 8 * DEPTH_BLOCKS;
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < DEPTH_BLOCKS; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            panel[(g + e / 2 * 8) * (DEPTH + 1) + 8 * i + 2 * t + e % 2] = to_float(from_float<Element>(weights[i][e]));
        }
    }
    ((Bits*)(panel + 16 * (DEPTH + 1)))[lane_index()] = admitted;
    sync_warp();
    accumulate_panel<DEPTH>(sums, panel, element);
    sync_warp();
}

// Floats of shared memory that a warp's panel takes.
template <int COLUMNS>
constexpr int panel_floats() { return 16 * (COLUMNS + 1) + 64; }

// The elements of a tile whose rows are padded, from a column on.
template <int PADDED>
struct Rows {
    const Element* tile;
    int column;
    DEVICE Element operator()(int row, int at) const { return tile[row * (PADDED + PADDING) + column + at]; }
};
