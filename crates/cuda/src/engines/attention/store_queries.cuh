// Rounds the sums of the queries' cotangents to their type. They lie as the warpgroups left them: for each tile, in
// the order of warpgroups, blocks of 8 columns, threads and the four numbers of each. No block had a part in a tile
// whose turn never came.

struct alignas(16) FourFloats {
    float x[4];
};

// Of four lanes with four words each, word i of lane t and word t of lane i change places.
DEVICE void exchange_words(unsigned (&words)[4]) {
    int lane = lane_index();
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
        bool upper = lane & bit;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            unsigned mine = upper ? words[i] : words[i + bit];
            unsigned other = bits_of_float(shuffle_xor(float_of_bits(mine), bit));
            if (upper) words[i] = other;
            else words[i + bit] = other;
        }
    }
}

KERNEL void __launch_bounds__(256) store_queries(const __grid_constant__ Parameters p) {
    constexpr bool BY_ROWS = COLUMNS == 128;
    // A thread does four blocks of columns, of two rows.
    constexpr int BLOCKS = BY_ROWS ? HEAD / 8 : HEAD / 16, SHARES = 2 * BLOCKS / 4 * 128 / 256;
    const int tiles = ((int)p.queries + COLUMNS - 1) / COLUMNS, heads = p.heads;
    const int tile = (int)block_index() / SHARES, head = tile / tiles, b = head / heads, h = head % heads;
    const int share = (int)block_index() % SHARES * 256 + thread_index(), thread = share % 128;
    const int group = share / 128 / (BLOCKS / 4), first = share / 128 % (BLOCKS / 4) * 4;
    const int g = thread % 32 / 4, t = thread % 4;
    const int row = (BY_ROWS ? 64 * group : 0) + thread / 32 * 16 + g;
    const int column = (BY_ROWS ? 0 : HEAD / 2 * group) + 8 * (first + t);
    bool any = p.turns[1 + tile] != 0;
    const FourFloats* sums = (const FourFloats*)p.query_sums + (long long)tile * (COLUMNS * HEAD / 4) +
                             (group * BLOCKS + first) * 128 + thread;
    FourFloats found[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) found[i] = any ? sums[i * 128] : FourFloats{};
    Fault fault;
    Element* to = p.query_cotangent + b * p.query_cotangent_strides[0] + h * p.query_cotangent_strides[1];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int q = tile % tiles * COLUMNS + row + half * 8;
        float factor = (float)p.scale;
        if constexpr (GAINED) factor *= gain(p, 0, b, h, min_of(q, (int)p.queries - 1), fault);
        Words words;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words.words[i] = pack<Element>(found[i].x[2 * half] * factor, found[i].x[2 * half + 1] * factor);
        }
        exchange_words(words.words);
        if (q < (int)p.queries && column < HEAD_SIZE) *(Words*)(to + q * p.query_cotangent_strides[2] + column) = words;
    }
}
