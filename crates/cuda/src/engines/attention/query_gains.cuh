// The terms of arrays that gains of queries are learned by: a query's inner product with what its cotangent is before
// it is multiplied by the gain. The sums lie as `store_queries` says.

KERNEL void __launch_bounds__(128) query_gains(const __grid_constant__ Parameters p) {
    constexpr bool BY_ROWS = COLUMNS == 128;
    constexpr int BLOCKS = BY_ROWS ? HEAD / 8 : HEAD / 16, PARTS = BY_ROWS ? 2 : 1;
    int tiles = ((int)p.queries + COLUMNS - 1) / COLUMNS, tile = block_index(), head = tile / tiles;
    int b = head / (int)p.heads, h = head % (int)p.heads;
    int thread = thread_index(), g = thread % 32 / 4, t = thread % 4;
    int first = tile % tiles * COLUMNS + thread / 32 * 16 + g;
    const Element* queries = p.query + b * p.query_strides[0] + h * p.query_strides[1];
    float totals[PARTS][2] = {};
    if (p.turns[1 + tile] != 0) {
#pragma unroll
        for (int group = 0; group < 2; ++group) {
            int part = BY_ROWS ? group : 0;
            for (int j = 0; j < BLOCKS; ++j) {
                int column = (BY_ROWS ? 0 : HEAD / 2 * group) + 8 * j + 2 * t;
                if (column >= HEAD_SIZE) continue;
                const float* sums = p.query_sums + (((long long)tile * 2 + group) * BLOCKS + j) * 512 + thread * 4;
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    int q = first + 64 * part + e / 2 * 8;
                    // Queries without any are not looked at.
                    if (q >= (int)p.queries || sums[e] == 0) continue;
                    totals[part][e / 2] += sums[e] * to_float(queries[q * p.query_strides[2] + column + e % 2]);
                }
            }
        }
    }
    Fault fault;
#pragma unroll
    for (int i = 0; i < 2 * PARTS; ++i) {
        float sum = totals[i / 2][i % 2] * (float)p.scale;
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        int q = first + 64 * (i / 2) + i % 2 * 8;
        if (t != 0 || q >= (int)p.queries) continue;
        for (int number = 0; number < GAINS; ++number) {
            p.gain_sums[((number * p.batch + b) * p.heads + h) * p.queries + q] =
                sum * gain(p, 1 + number, b, h, q, fault);
        }
    }
}
