// Sums of the terms of captured arrays in the one pass of the gradient on Hopper: by key, by query, by head, along
// diagonals. The order of additions depends on sizes only.
//
// A block has KEYS keys. By key: in registers. By query: one line of sums for each block, added up later. By head: one
// number a block. Along diagonals: a tile of terms touches COLUMNS + KEYS − 1 of them, of which the next tile touches
// all but COLUMNS again; so sums stay in a ring in shared memory until the walk has passed them, and go out to the
// block's line of diagonals.

constexpr int ROW_AT = KEY_SUMS, HEAD_AT = ROW_AT + ROW_SUMS, DIFFERENCE_AT = HEAD_AT + HEAD_SUMS,
              SUM_AT = DIFFERENCE_AT + DIFFERENCES;
constexpr int DIAGONALS = DIFFERENCES + SUMS, ACROSS = COLUMNS + 127, RING = 256;
constexpr int OF_WARP = COLUMNS + 15, SLOT = COLUMNS + 16;

// Sums columns of terms, of which each lane has those of two rows, over the rows. Each lane is left with some columns'
// sums: of column `summed_column(i)` the i-th.
constexpr int LEFT_WITH = COLUMNS / 32;
DEVICE int summed_column(int i) {
    int g = lane_index() / 4, t = lane_index() % 4;
    return 8 * (g * (LEFT_WITH / 2) + i / 2) + 2 * t + i % 2;
}
DEVICE void sum_columns(float (&columns)[COLUMNS / 4]) {
#pragma unroll
    for (int step = 0; step < 3; ++step) {
        int half = COLUMNS / 8 >> step, lanes = 16 >> step;
        bool high = lane_index() & lanes;
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; ++i) {
            if (i >= half) continue;
            float mine = high ? columns[i + half] : columns[i], other = high ? columns[i] : columns[i + half];
            columns[i] = mine + shuffle_xor(other, lanes);
        }
    }
}

// A tile's terms, as far as they must be kept apart: those of a column are added up as they come, and so are all of a
// key or head, which `TermSums` takes.
struct TileTerms {
    float columns[at_least_one(ROW_SUMS)][COLUMNS / 4];
    float pairs[at_least_one(TERMS - DIFFERENCE_AT)][COLUMNS / 8][4];
};

// Sums 16 × COLUMNS terms along their diagonals to OF_WARP numbers: rows 8 apart are added in registers, what is left
// goes by way of 8 rows of shared memory. Number u is for column − row = u − 15, or column + row = u where ASCENDING.
template <bool ASCENDING>
DEVICE void sum_diagonals(const float (&term)[COLUMNS / 8][4], float* rows, float* sums) {
    constexpr int STRIDE = COLUMNS + 8;
    int g = lane_index() / 4, t = lane_index() % 4;
    sync_warp();
#pragma unroll
    for (int j = 0; j <= COLUMNS / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float sum = 0;
            if (j < COLUMNS / 8) sum += term[j < COLUMNS / 8 ? j : 0][ASCENDING ? e : 2 + e];
            if (j > 0) sum += term[j > 0 ? j - 1 : 0][ASCENDING ? 2 + e : e];
            rows[g * STRIDE + 8 * j + 2 * t + e] = sum;
        }
    }
    sync_warp();
    for (int u = lane_index(); u < OF_WARP; u += 32) {
        float sum = 0;
#pragma unroll
        for (int row = 0; row < 8; ++row) {
            int column = ASCENDING ? u - row : u - 7 + row;
            if (column >= 0 && column < STRIDE) sum += rows[row * STRIDE + column];
        }
        sums[u] = sum;
    }
}

struct TermSums {
    float by_key[at_least_one(KEY_SUMS)][2], by_head[at_least_one(HEAD_SUMS)];
    float *parts, *slots, *rings, *heads, *scratch;
    int thread, before;  // the queries of the tile before, or −1

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 2 * KEY_SUMS; ++i) by_key[i / 2][i % 2] = 0;
#pragma unroll
        for (int i = 0; i < HEAD_SUMS; ++i) by_head[i] = 0;
        before = -1;
    }

    DEVICE void begin(float* memory, int thread_of_two_groups) {
        thread = thread_of_two_groups;
        parts = memory;
        slots = parts + ROW_SUMS * 2 * 8 * COLUMNS;
        rings = slots + DIAGONALS * 2 * 8 * SLOT;
        heads = rings + DIAGONALS * RING;
        scratch = heads + HEAD_SUMS * 8;
        for (int i = thread; i < DIAGONALS * RING; i += 256) rings[i] = 0;
        clear();
    }

    // Where the block's line of diagonals lies.
    DEVICE float* line(const Parameters& p, int tiles, int number, int b, int h, int i) const {
        long long length = (p.queries + COLUMNS - 1) / COLUMNS * COLUMNS + 127;
        return p.diagonals + (((i * p.batch + b) * p.heads + h) * tiles + number) * length;
    }

    // Stores the diagonals of the tile before that a tile of queries does not touch.
    template <typename O>
    DEVICE void retire(const Parameters& p, const O& own, int b, int h, int query) {
        if (before < 0 || thread >= ACROSS) return;
        int diagonal = before + thread;
        if (diagonal >= query && diagonal < query + ACROSS) return;
#pragma unroll
        for (int i = 0; i < DIAGONALS; ++i) {
            float* sum = rings + i * RING + diagonal % RING;
            line(p, own.tiles, own.number, b, h, i)[diagonal] = *sum;
            *sum = 0;
        }
    }

    // The terms of element e of block j of this lane's pairs.
    DEVICE void take(const float (&of_pair)[at_least_one(TERMS)], int j, int e, TileTerms& tile) {
#pragma unroll
        for (int i = 0; i < KEY_SUMS; ++i) by_key[i][e / 2] += of_pair[i];
#pragma unroll
        for (int i = 0; i < ROW_SUMS; ++i) {
            float& sum = tile.columns[i][2 * j + e % 2];
            sum = e < 2 ? of_pair[ROW_AT + i] : sum + of_pair[ROW_AT + i];
        }
#pragma unroll
        for (int i = 0; i < HEAD_SUMS; ++i) by_head[i] += of_pair[HEAD_AT + i];
#pragma unroll
        for (int i = DIFFERENCE_AT; i < TERMS; ++i) tile.pairs[i - DIFFERENCE_AT][j][e] = of_pair[i];
    }

    // All of a tile's terms were taken; before all threads of both warpgroups meet.
    template <typename O>
    DEVICE void add(const Parameters& p, const O& own, int b, int h, int query, TileTerms& tile, int count) {
        int warp = thread / 32;
#pragma unroll
        for (int i = 0; i < ROW_SUMS; ++i) {
            sum_columns(tile.columns[i]);
            float* part = parts + ((i * 2 + count % 2) * 8 + warp) * COLUMNS;
#pragma unroll
            for (int j = 0; j < LEFT_WITH; ++j) part[summed_column(j)] = tile.columns[i][j];
        }
        if constexpr (DIAGONALS > 0) {
            retire(p, own, b, h, query);
            float* rows = scratch + warp * (8 * (COLUMNS + 8));
            float* slot = slots + (count % 2 * 8 + warp) * SLOT;
#pragma unroll
            for (int i = 0; i < DIFFERENCES; ++i) sum_diagonals<false>(tile.pairs[i], rows, slot + i * 2 * 8 * SLOT);
#pragma unroll
            for (int i = DIFFERENCES; i < DIAGONALS; ++i) {
                sum_diagonals<true>(tile.pairs[i], rows, slot + i * 2 * 8 * SLOT);
            }
        }
    }

    // What is left to do for the tile after they met.
    template <typename O>
    DEVICE void finish(const Parameters& p, const O& own, int b, int h, int query, int count) {
#pragma unroll
        for (int i = 0; i < ROW_SUMS; ++i) {
            const float* part = parts + (i * 2 + count % 2) * 8 * COLUMNS + thread;
            if (thread < COLUMNS && query + thread < p.queries) {
                float sum = 0;
#pragma unroll
                for (int warp = 0; warp < 8; ++warp) sum += part[warp * COLUMNS];
                p.row_sums[(((i * (long long)own.tiles + own.number) * p.batch + b) * p.heads + h) * p.queries +
                           query + thread] = sum;
            }
        }
        if (DIAGONALS > 0 && thread < ACROSS) {
#pragma unroll
            for (int i = 0; i < DIAGONALS; ++i) {
                const float* slot = slots + (i * 2 + count % 2) * 8 * SLOT;
                float sum = 0;
#pragma unroll
                for (int warp = 0; warp < 8; ++warp) {
                    // Diagonal 127 is that of the tile's first query and the block's first key; or sum 0.
                    int u = i < DIFFERENCES ? thread - 112 + 16 * warp : thread - 16 * warp;
                    if (u >= 0 && u < OF_WARP) sum += slot[warp * SLOT + u];
                }
                rings[i * RING + (query + thread) % RING] += sum;
            }
        }
        before = query;
    }

    // After a head's last tile.
    template <typename O>
    DEVICE void leave(const Parameters& p, const O& own, int b, int h) {
        int warp = thread / 32, g = lane_index() / 4, t = lane_index() % 4;
        if constexpr (DIAGONALS > 0) retire(p, own, b, h, -ACROSS);
#pragma unroll
        for (int i = 0; i < 2 * KEY_SUMS; ++i) {
            float sum = by_key[i / 2][i % 2];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            long long k = own.key + 16 * warp + g + i % 2 * 8;
            if (t == 0 && k < p.keys) p.key_sums[((i / 2 * p.batch + b) * p.heads + h) * p.keys + k] = sum;
        }
        if constexpr (HEAD_SUMS > 0) {
#pragma unroll
            for (int i = 0; i < HEAD_SUMS; ++i) {
                float sum = by_head[i];
                for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
                if (lane_index() == 0) heads[i * 8 + warp] = sum;
            }
            meet(3, 256);
            if (thread < HEAD_SUMS) {
                float sum = 0;
                for (int i = 0; i < 8; ++i) sum += heads[thread * 8 + i];
                p.head_sums[((thread * p.batch + b) * p.heads + h) * own.tiles + own.number] = sum;
            }
            meet(3, 256);
        }
        clear();
    }
};
