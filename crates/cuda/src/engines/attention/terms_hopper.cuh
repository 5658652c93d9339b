// Sums of the terms of captured arrays in the one pass of the gradient on Hopper: by key, by query, by head, along
// diagonals. The order of additions depends on sizes only.
//
// A block has KEYS keys. By key: in registers. By query: one line of sums for each block, added up later. By head: one
// number a block. Along diagonals: a tile of terms touches COLUMNS + KEYS − 1 of them, of which the next tile touches
// all but COLUMNS again; so sums stay in a ring in shared memory until the walk has passed them, and go out to the
// block's line of diagonals. The warps that multiply sum their own rows, while products are made; the warp that walks
// does the rest.

constexpr int ROW_AT = KEY_SUMS, HEAD_AT = ROW_AT + ROW_SUMS, DIFFERENCE_AT = HEAD_AT + HEAD_SUMS;
constexpr int DIAGONALS = DIFFERENCES + SUMS, ACROSS = COLUMNS + 127, RING = 256;
constexpr int OF_WARP = COLUMNS + 15, SLOT = COLUMNS + 16;
// Whether there are sums that the warp that walks finishes.
constexpr bool PASSED = ROW_SUMS + DIAGONALS > 0;

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
// key or head, which `TermSums` takes. Rows 8 apart have their diagonals in blocks 1 apart, so that two of these make one.
struct TileTerms {
    float columns[at_least_one(ROW_SUMS)][COLUMNS / 4];
    float diagonals[at_least_one(DIAGONALS)][COLUMNS / 8 + 1][2];
    float pairs[at_least_one(PAIRS)][COLUMNS / 8][4];
};

// Sums 8 rows along their diagonals to OF_WARP numbers, and a zero behind them. Number u is for column − row = u − 15 of
// the 16 rows that were made 8, or column + row = OF_WARP − 1 − u where ASCENDING: such diagonals are those of columns in the
// other order.
template <bool ASCENDING>
DEVICE void sum_diagonals(const float (&rows)[COLUMNS / 8 + 1][2], float* sums) {
    constexpr int BLOCKS = COLUMNS / 8 + 1, ALL = BLOCKS + 1, HALF = ALL / 2, QUARTER = (HALF + 1) / 2;
    auto lane_of = [](int row, int pair) { return 4 * row + (ASCENDING ? 3 - pair % 4 : pair % 4); };
    int lane = lane_index(), g = lane / 4, t = ASCENDING ? 3 - lane % 4 : lane % 4;
    auto at = [&](int j, int e) {
        bool there = j >= 0 && j < BLOCKS;
        return there ? rows[there ? ASCENDING ? BLOCKS - 1 - j : j : 0][ASCENDING ? 1 - e : e] : 0;
    };
    // Rows 1 apart: each lane keeps the first of its two columns, and gives the second.
    float kept[ALL];
    bool odd = g & 1, last = !odd && t == 3;
    int from = odd ? lane_of(g - 1, t + 3) : lane_of(g + 1, t);
#pragma unroll
    for (int j = 0; j < ALL; ++j) kept[j] = at(j, 0) + shuffle(last ? at(j - 1, 1) : at(j, 1), from);
    // Columns are counted along the diagonals from here on, which brings some lanes into the next block.
    int pair = t + 3 - g / 2;
#pragma unroll
    for (int j = ALL - 1; j >= 0; --j) {
        float before = j > 0 ? kept[j > 0 ? j - 1 : 0] : 0;
        kept[j] = pair < 4 ? kept[j] : before;
    }
    // Rows 2 and then 4 apart: each lane keeps half of the blocks, and gives the other.
    bool high = g & 2;
    from = lane_of(g ^ 2, high ? t + 3 : t + 1);
#pragma unroll
    for (int j = 0; j < HALF; ++j) {
        float mine = high ? kept[HALF + j] : kept[j], given = high ? kept[j] : kept[HALF + j];
        kept[j] = mine + shuffle(given, from);
    }
    bool higher = g & 4;
    from = lane_of(g ^ 4, t + 2);
    int first = (high ? HALF : 0) + (higher ? QUARTER : 0);
#pragma unroll
    for (int j = 0; j < QUARTER; ++j) {
        float upper = QUARTER + j < HALF ? kept[QUARTER + j < HALF ? QUARTER + j : 0] : 0;
        float mine = higher ? upper : kept[j], given = higher ? kept[j] : upper;
        float sum = mine + shuffle(given, from);
        if (QUARTER + j < HALF || !higher) sums[8 * (first + j) + 2 * (pair % 4) + 1 - g % 2] = sum;
    }
}

struct TermSums {
    float by_key[at_least_one(KEY_SUMS)][2], by_head[at_least_one(HEAD_SUMS)];
    float *parts, *slots, *heads;
    int thread;

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 2 * KEY_SUMS; ++i) by_key[i / 2][i % 2] = 0;
#pragma unroll
        for (int i = 0; i < HEAD_SUMS; ++i) by_head[i] = 0;
    }

    DEVICE void begin(float* memory, int thread_of_two_groups) {
        thread = thread_of_two_groups;
        parts = memory;
        slots = parts + ROW_SUMS * 2 * 8 * COLUMNS;
        heads = slots + DIAGONALS * (2 * 8 * SLOT + RING);
        clear();
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
        for (int i = 0; i < DIAGONALS; ++i) {
            // The row whose diagonals are those of the other one's next block.
            bool ahead = (i < DIFFERENCES) == (e < 2);
            float& sum = tile.diagonals[i][ahead ? j + 1 : j][e % 2];
            sum = ahead || j == 0 ? of_pair[DIFFERENCE_AT + i] : sum + of_pair[DIFFERENCE_AT + i];
        }
#pragma unroll
        for (int i = 0; i < PAIRS; ++i) tile.pairs[i][j][e] = of_pair[TERMS - PAIRS + i];
    }

    // Of a tile whose terms were all taken, the warp's part of what `TermLines` finishes.
    DEVICE void pass_on(TileTerms& tile, int count) {
        int warp = thread / 32;
#pragma unroll
        for (int i = 0; i < ROW_SUMS; ++i) {
            sum_columns(tile.columns[i]);
            float* part = parts + ((i * 2 + count % 2) * 8 + warp) * COLUMNS;
#pragma unroll
            for (int j = 0; j < LEFT_WITH; ++j) part[summed_column(j)] = tile.columns[i][j];
        }
        float* slot = slots + (count % 2 * 8 + warp) * SLOT;
#pragma unroll
        for (int i = 0; i < DIFFERENCES; ++i) sum_diagonals<false>(tile.diagonals[i], slot + i * 2 * 8 * SLOT);
#pragma unroll
        for (int i = DIFFERENCES; i < DIAGONALS; ++i) sum_diagonals<true>(tile.diagonals[i], slot + i * 2 * 8 * SLOT);
    }

    // After a head's last tile.
    template <typename O>
    DEVICE void leave(const Parameters& p, const O& own, int b, int h) {
        int warp = thread / 32, g = lane_index() / 4, t = lane_index() % 4;
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

// What one warp makes of the parts that the warps have left.
struct TermLines {
    const float *parts, *slots;
    float* rings;
    int b, h, before;  // of the tile before, or −1

    DEVICE void begin(float* memory) {
        parts = memory;
        slots = parts + ROW_SUMS * 2 * 8 * COLUMNS;
        rings = memory + ROW_SUMS * 2 * 8 * COLUMNS + DIAGONALS * 2 * 8 * SLOT;
        for (int i = lane_index(); i < DIAGONALS * RING; i += 32) rings[i] = 0;
        before = -1;
        sync_warp();
    }

    // Stores the diagonals of the tile before that a tile of queries does not touch.
    template <typename O>
    DEVICE void retire(const Parameters& p, const O& own, int query) {
        if (before < 0) return;
        int length = ((int)p.queries + COLUMNS - 1) / COLUMNS * COLUMNS + 127;
#pragma unroll
        for (int i = 0; i < DIAGONALS; ++i) {
            float* line = p.diagonals + (((i * p.batch + b) * p.heads + h) * own.tiles + own.number) * length;
#pragma unroll 1
            for (int diagonal = before + lane_index(); diagonal < before + ACROSS; diagonal += 32) {
                if (diagonal >= query && diagonal < query + ACROSS) continue;
                float* sum = rings + i * RING + diagonal % RING;
                line[diagonal] = *sum;
                *sum = 0;
            }
        }
    }

    // The tile's parts are there.
    template <typename O>
    DEVICE void finish(const Parameters& p, const O& own, int tile_b, int tile_h, int query, int count) {
        if constexpr (DIAGONALS > 0) retire(p, own, tile_b == b && tile_h == h ? query : -ACROSS);
        b = tile_b;
        h = tile_h;
        before = query;
        sync_warp();
#pragma unroll
        for (int i = 0; i < ROW_SUMS; ++i) {
            float* sums = p.row_sums + (((i * (long long)own.tiles + own.number) * p.batch + b) * p.heads + h) * p.queries;
            for (int column = lane_index(); column < COLUMNS && query + column < (int)p.queries; column += 32) {
                const float* part = parts + (i * 2 + count % 2) * 8 * COLUMNS + column;
                float sum = 0;
#pragma unroll
                for (int warp = 0; warp < 8; ++warp) sum += part[warp * COLUMNS];
                sums[query + column] = sum;
            }
        }
#pragma unroll
        for (int i = 0; i < DIAGONALS; ++i) {
            const float* slot = slots + (i * 2 + count % 2) * 8 * SLOT;
#pragma unroll 1
            for (int at = lane_index(); at < ACROSS; at += 32) {
                float sum = 0;
                // Diagonal 127 is that of the tile's first query and the block's first key; or sum 0.
#pragma unroll
                for (int n = 0; n < SLOT / 16; ++n) {
                    int warp = i < DIFFERENCES ? 7 - at / 16 + n : at / 16 - n, u = at % 16 + 16 * n;
                    if (warp < 0 || warp >= 8 || u >= OF_WARP) continue;
                    sum += slot[warp * SLOT + (i < DIFFERENCES ? u : OF_WARP - 1 - u)];
                }
                rings[i * RING + (query + at) % RING] += sum;
            }
        }
        sync_warp();
    }
};
