// Adds the sums of a captured array that pairs own to their elements. They lie as the warpgroups left them: for each
// slice and tile, in the order of blocks of 8 queries, threads and the four numbers of each. No head had a part in a
// tile whose turn never came.

struct alignas(16) FourFloats {
    float x[4];
};

KERNEL void __launch_bounds__(256) store_pairs(const __grid_constant__ Parameters p) {
    // Blocks fit 32 bits, whose division is much cheaper.
    constexpr int KEYS = 128, BLOCKS = COLUMNS / 8;
    const int query_tiles = ((int)p.queries + COLUMNS - 1) / COLUMNS, key_tiles = ((int)p.keys + KEYS - 1) / KEYS;
    const int block = block_index(), number = block / BLOCKS, j = block % BLOCKS;
    if (p.turns[number] == 0) return;
    const int slot = number / (query_tiles * key_tiles), tile = number % (query_tiles * key_tiles), heads = p.heads;
    const int b = APART_IN_BATCH ? slot / (APART_IN_HEADS ? heads : 1) : 0, h = APART_IN_HEADS ? slot % heads : 0;
    const int query = tile / key_tiles * COLUMNS + 8 * j + lane_index() % 4 * 2;
    const int key = tile % key_tiles * KEYS + 16 * warp_index() + lane_index() / 4;
    const FourFloats sums = ((const FourFloats*)p.sums)[block_index() * 256 + thread_index()];
    int places[4];
    float totals[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        int q = query + e % 2, k = key + e / 2 * 8;
        places[e] = q < (int)p.queries && k < (int)p.keys ? scatter_place(p, 0, b, h, q, k, 0, true) : -1;
        totals[e] = places[e] >= 0 ? p.total[places[e]] : 0;
    }
    // No two pairs have an element.
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        if (places[e] >= 0) p.total[places[e]] = totals[e] + sums.x[e];
    }
}
