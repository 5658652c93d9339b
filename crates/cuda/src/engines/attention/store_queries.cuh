// Rounds the sums of the queries' cotangents to their type. They lie as the warpgroups left them: for each tile, in
// the order of warpgroups, blocks of 8 columns, threads and the four numbers of each. No block had a part in a tile
// whose turn never came.

KERNEL void __launch_bounds__(256) store_queries(const __grid_constant__ Parameters p) {
    constexpr bool BY_ROWS = COLUMNS == 128;
    constexpr int BLOCKS = BY_ROWS ? HEAD / 8 : HEAD / 16, FOURS = COLUMNS * HEAD / 4;
    long long tiles = (p.queries + COLUMNS - 1) / COLUMNS, number = block_index() * 256 + thread_index();
    if (number >= p.batch * p.heads * tiles * FOURS) return;
    long long tile = number / FOURS;
    int four = number % FOURS, thread = four % 128, j = four / 128 % BLOCKS, group = four / 128 / BLOCKS;
    int g = thread % 32 / 4, t = thread % 4;
    int row = (BY_ROWS ? 64 * group : 0) + thread / 32 * 16 + g;
    int column = (BY_ROWS ? 0 : HEAD / 2 * group) + 8 * j + 2 * t;
    if (column >= HEAD_SIZE) return;
    bool any = p.turns[1 + tile] != 0;
    const float* sums = p.query_sums + number * 4;
    long long head = tile / tiles, b = head / p.heads, h = head % p.heads;
    Fault fault;
    Element* to = p.query_cotangent + b * p.query_cotangent_strides[0] + h * p.query_cotangent_strides[1];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        long long q = tile % tiles * COLUMNS + row + half * 8;
        if (q >= p.queries) continue;
        float factor = (float)p.scale;
        if constexpr (GAINED) factor *= gain(p, 0, b, h, q, fault);
        float first = any ? sums[2 * half] * factor : 0, second = any ? sums[2 * half + 1] * factor : 0;
        *(unsigned*)(to + q * p.query_cotangent_strides[2] + column) = pack<Element>(first, second);
    }
}
