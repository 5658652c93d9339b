// The forward on Hopper's matrix units (Shah et al. 2024, FlashAttention-3): what both of its kernels have in common. One
// warpgroup brings tiles of queries, keys and values to shared memory, others multiply, 64 queries each.
//
// The copies are the threads' own, 16 bytes each, so that any strides and lengths are served.

constexpr int GROUP = 128, ROWS = 64 * GROUPS;
constexpr int BRINGING = GROUP / 2;              // threads that bring keys, and others values
constexpr int WIDTH = (VALUE_SIZE + 7) / 8 * 8;  // columns of the output that are multiplied

// A share of the work: ROWS queries of a head; b is −1 after the last.
struct Item {
    int b, h, first;
};

// The items in order. Under a mask as many heads together as make two items for each multiprocessor, the last queries
// first: under a causal one they see the most keys, so that short items fill what long ones leave.
DEVICE Item item_of(const Parameters& p, int number) {
    if (number >= (int)p.items) return Item{-1, 0, 0};
    int tiles = ((int)p.queries + ROWS - 1) / ROWS, heads = (int)p.batch * (int)p.heads;
    int at_once = MASKED ? max_of(2 * MULTIPROCESSORS / tiles, 1) : 1;
    int first = number / (at_once * tiles) * at_once, within = number - first * tiles;
    at_once = min_of(at_once, heads - first);
    int head = first + within % at_once, tile = tiles - 1 - within / at_once;
    return Item{head / (int)p.heads, head % (int)p.heads, tile * ROWS};
}

// Where the queries of an item begin, and the keys or values that it sees.
DEVICE const Element* queries_of(const Parameters& p, const Item& item) {
    return p.query + item.b * p.query_strides[0] + item.h * p.query_strides[1] + item.first * p.query_strides[2];
}
DEVICE const Element* head_of(const Parameters& p, const Item& item, const Element* all, const long long* strides) {
    int key_batch = p.key_batch == 1 ? 0 : item.b, key_head = item.h / ((int)p.heads / (int)p.key_heads);
    return all + key_batch * strides[0] + key_head * strides[1];
}

// Rows of a matrix to panels of 64 columns, by BRINGING threads; zeros past its rows, and past its columns as far as
// products are deep. Who copies is a single warp on its scheduler, whose every instruction is waited for: a tile within
// the matrix goes without any but the copies and a sum for each row.
template <int TILE_ROWS, int SIZE>
DEVICE void load_panels(Element* tile, const Element* from, long long row_stride, int rows) {
    constexpr int STEP = BRINGING / PART, DEEP = (SIZE + 15) / 16 * 16, PANELS = (SIZE + 63) / 64;
    int thread = thread_index() % BRINGING, row = thread / PART, part = thread % PART;
    Element* to = tile + row * 64 + (part ^ row % 8) * PART;
    const Element* source = from + row * row_stride + part * PART;
    if (rows >= TILE_ROWS && SIZE == DEEP) {
#pragma unroll
        for (int step = 0; step < TILE_ROWS / STEP; ++step) {
#pragma unroll
            for (int panel = 0; panel < PANELS; ++panel) {
                if (panel * 64 + 64 > SIZE && panel * 64 + part * PART >= SIZE) continue;
                copy_16(to + (panel * TILE_ROWS + step * STEP) * 64, source + panel * 64);
            }
            source += STEP * row_stride;
        }
        return;
    }
#pragma unroll 1
    for (int step = 0; step < TILE_ROWS / STEP; ++step) {
        bool inside = row + step * STEP < rows;
#pragma unroll
        for (int panel = 0; panel < PANELS; ++panel) {
            int column = panel * 64 + part * PART;
            if (column >= DEEP) continue;
            bool whole = inside && column < SIZE;
            copy_16(to + (panel * TILE_ROWS + step * STEP) * 64, whole ? source + panel * 64 : from, whole);
        }
        source += STEP * row_stride;
    }
}

// The products of this warpgroup's queries and a tile's keys, at these places.
DEVICE void multiply_keys(float (&scores)[COLUMNS / 8][4], unsigned queries, unsigned keys) {
#pragma unroll
    for (int depth = 0; depth < HEAD_SIZE; depth += 16) {
        int panel = depth / 64, within = depth % 64 / PART;
        multiply_shared(scores, panels_at<16, 1024>(queries + panel * ROWS * PART + within),
                        panels_at<16, 1024>(keys + panel * COLUMNS * PART + within), depth > 0);
    }
}

// output += weights · values.
DEVICE void multiply_values(float (&output)[WIDTH / 8][4], const unsigned (&weights)[COLUMNS / 16][4],
                            unsigned values) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 16; ++i) {
        multiply_weights(output, weights[i], panels_at<COLUMNS * 128, 1024>(values + 16 * i * PART));
    }
}
