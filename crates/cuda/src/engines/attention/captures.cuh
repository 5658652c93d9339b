// From the sums that a pass left to values and their places in a captured array (−1 for none): one thread for
// each key of each (b, h), which adds up what the tiles left for it, in their order.
//
// BY_ROW: there is one sum for each query or key of a head. BY_HEAD: one for each tile of queries. BY_DIFFERENCE
// and BY_SUM: for each tile of queries, one for each of its diagonals.

KERNEL void __launch_bounds__(256) capture_values(const __grid_constant__ Parameters p) {
    long long number = block_index() * 256 + thread_index();
    if (number >= p.batch * p.heads * p.count) return;
    long long head = number / p.count, key = number % p.count;
    float sum = 0;
    if constexpr (BY_ROW) {
        sum = p.sums[number];
    } else if constexpr (BY_HEAD) {
        for (long long tile = 0; tile < p.tiles; ++tile) sum += p.sums[head * p.tiles + tile];
    } else {
        // A tile's diagonals are counted from its first query on.
        long long diagonals = TILE_ROWS + p.keys - 1;
        for (long long tile = 0; tile < p.tiles; ++tile) {
            long long diagonal = key - tile * TILE_ROWS;
            if (diagonal >= 0 && diagonal < diagonals) sum += p.sums[(head * p.tiles + tile) * diagonals + diagonal];
        }
    }
    // A pair that has the key.
    long long q = 0, k = 0;
    if constexpr (BY_ROW) q = k = key;
    if constexpr (BY_DIFFERENCE) {
        q = max_of(key - (p.keys - 1), 0ll);
        k = max_of((p.keys - 1) - key, 0ll);
    }
    if constexpr (BY_SUM) {
        q = min_of(key, p.queries - 1);
        k = key - q;
    }
    p.values[number] = sum;
    p.places[number] = scatter_place(p, 0, head / p.heads, head % p.heads, q, k, 0, true);
}
