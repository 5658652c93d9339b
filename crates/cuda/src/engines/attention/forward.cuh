// Attention: scores, softmax and output in one pass over the keys (Milakov and Gimelshein 2018; Dao 2023).
//
// A block of WARPS warps owns 16·WARPS queries of one head and walks the tiles of COLUMNS keys that the mask
// leaves. A warp owns 16 rows; scores, weights and output stay in its registers.

KERNEL void __launch_bounds__(32 * WARPS, 1) attention_forward(const __grid_constant__ Parameters p) {
    constexpr int ROWS = 16 * WARPS, HEAD_STRIDE = HEAD + PADDING, VALUE_STRIDE = VALUE + PADDING;
    Element* query_tile = (Element*)shared_memory();
    Element* key_tile = query_tile + ROWS * HEAD_STRIDE;
    Element* value_tile = key_tile + COLUMNS * HEAD_STRIDE;
    float* panel = (float*)(value_tile + COLUMNS * VALUE_STRIDE) + warp_index() * panel_floats<COLUMNS>();

    // The last queries first: under a causal mask they see the most keys.
    long long tiles = (p.queries + ROWS - 1) / ROWS, head = block_index() / tiles;
    long long first = (tiles - 1 - block_index() % tiles) * ROWS;
    int b = head / p.heads, h = head % p.heads;
    int key_batch = p.key_batch == 1 ? 0 : b, key_head = h / (p.heads / p.key_heads);
    const Element* queries = p.query + b * p.query_strides[0] + h * p.query_strides[1];
    const Element* keys = p.key + key_batch * p.key_strides[0] + key_head * p.key_strides[1];
    const Element* values = p.value + key_batch * p.value_strides[0] + key_head * p.value_strides[1];

    Fault fault;
    float output[VALUE / 8][4] = {};
    float greatest[2] = {-infinity<float>(), -infinity<float>()}, total[2] = {0, 0};
    load_tile<ROWS, HEAD_SIZE, HEAD, QUERY_VECTOR>(query_tile, queries + first * p.query_strides[2],
                                                   p.query_strides[2], p.query_strides[3], p.queries - first);
    for (long long key = 0; key < p.keys; key += COLUMNS) {
        int state = tile_state(p, b, h, first, ROWS, key, COLUMNS);
        if (state == EMPTY) continue;
        sync_threads();
        load_tile<COLUMNS, HEAD_SIZE, HEAD, KEY_VECTOR>(key_tile, keys + key * p.key_strides[2], p.key_strides[2],
                                                        p.key_strides[3], p.keys - key);
        load_tile<COLUMNS, VALUE_SIZE, VALUE, VALUE_VECTOR>(value_tile, values + key * p.value_strides[2],
                                                            p.value_strides[2], p.value_strides[3], p.keys - key);
        wait_for_copies();
        sync_threads();
        float scores[COLUMNS / 8][4];
        product<COLUMNS / 8, HEAD>(scores, query_tile, 16 * warp_index(), key_tile, HEAD_STRIDE);
        Bits admitted = state == FULL ? score_tile<false>(p, b, h, first + 16 * warp_index(), key, scores, fault)
                                          : score_tile<true>(p, b, h, first + 16 * warp_index(), key, scores, fault);
        soften(scores, output, greatest, total);
        bool clean = true;
        if constexpr (MASKED) clean = state == FULL || !any_thread(holds_nonfinite<COLUMNS, VALUE>(value_tile));
        if (clean) {
            accumulate(output, scores, value_tile, VALUE_STRIDE, 0);
        } else if constexpr (MASKED) {
            accumulate_admitted(output, scores, admitted, panel, Rows<VALUE>{value_tile, 0});
        }
    }

    store_rows(p, b, h, first + 16 * warp_index(), output, greatest, total);
    report(fault, p.fault, p.first_site);
}
