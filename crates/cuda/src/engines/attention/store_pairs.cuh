// Adds the sums of a captured array that pairs own to their elements. They lie as the warpgroups left them: for each
// slice and tile, in the order of blocks of 8 queries, threads and the four numbers of each. No head had a part in a
// tile whose turn never came.

KERNEL void __launch_bounds__(256) store_pairs(const __grid_constant__ Parameters p) {
    constexpr int KEYS = 128;
    long long query_tiles = (p.queries + COLUMNS - 1) / COLUMNS, key_tiles = (p.keys + KEYS - 1) / KEYS;
    long long number = block_index() / (COLUMNS / 8);
    if (p.turns[number] == 0) return;
    int j = block_index() % (COLUMNS / 8), g = lane_index() / 4, t = lane_index() % 4;
    long long slot = number / (query_tiles * key_tiles), tile = number % (query_tiles * key_tiles);
    int b = APART_IN_BATCH ? slot / (APART_IN_HEADS ? p.heads : 1) : 0, h = APART_IN_HEADS ? slot % p.heads : 0;
    const float* sums = p.sums + (number * (COLUMNS / 8) + j) * 1024 + 4 * thread_index();
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        long long q = tile / key_tiles * COLUMNS + 8 * j + 2 * t + e % 2;
        long long k = tile % key_tiles * KEYS + 16 * warp_index() + g + e / 2 * 8;
        if (q >= p.queries || k >= p.keys) continue;
        int place = scatter_place(p, 0, b, h, q, k, 0, true);
        if (place >= 0) p.total[place] += sums[e];
    }
}
