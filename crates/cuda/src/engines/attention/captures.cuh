// From the sums that a pass left to values and their places in a captured array (−1 for none), for each key of each
// slice of heads. A block does 32 keys: lanes are keys, each of 8 warps adds up every 8th of the sums that belong to
// one, of all tiles and of all heads that share the element, in their order. Where there is one key only, lanes share its
// sums as well.
//
// With each 32 values goes the range of their places, so that whoever looks for some places can pass by.

KERNEL void __launch_bounds__(256) capture_values(const __grid_constant__ Parameters p) {
    constexpr bool ONE = !BY_ROW && !BY_DIFFERENCE && !BY_SUM;
    float* parts = (float*)shared_memory();
    long long groups = (p.count + 31) / 32, slice = block_index() / groups;
    long long key = block_index() % groups * 32 + lane_index();
    int heads = PER_HEAD ? p.heads : 1, b = slice / heads, h = slice % heads;
    int sharing = PER_HEAD ? 1 : p.heads;
    long long all = (PER_BATCH ? 1 : p.batch) * sharing * p.tiles;
    float sum = 0;
    for (long long i = ONE ? thread_index() : warp_index(); i < all; i += ONE ? 256 : 8) {
        long long tile = i % p.tiles, other = i / p.tiles, at = (ONE ? 0 : key) + p.base - tile * p.step;
        long long head = (b + other / sharing) * p.heads + h + other % sharing;
        if ((ONE || key < p.count) && at >= 0 && at < p.line) sum += p.sums[head * p.head_stride + tile * p.tile_stride + at];
    }
    parts[thread_index()] = sum;
    sync_threads();
    if (warp_index() != 0) return;
    sum = 0;
    for (int warp = 0; warp < 8; ++warp) sum += parts[warp * 32 + lane_index()];
    for (int lanes = ONE ? 16 : 0; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);

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
    int place = key < p.count ? scatter_place(p, 0, b, h, q, k, 0, true) : -1;
    p.values[block_index() * 32 + lane_index()] = sum;
    p.places[block_index() * 32 + lane_index()] = place;
    int least = place < 0 ? 2147483647 : place, greatest = place;
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        least = min_of(least, (int)bits_of_float(shuffle_xor(float_of_bits(least), lanes)));
        greatest = max_of(greatest, (int)bits_of_float(shuffle_xor(float_of_bits(greatest), lanes)));
    }
    if (lane_index() == 0) {
        p.ranges[2 * block_index()] = least;
        p.ranges[2 * block_index() + 1] = greatest;
    }
}
