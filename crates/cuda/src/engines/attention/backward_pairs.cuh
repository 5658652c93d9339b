// One term of one captured array whose elements are read by single pairs, or by any.
//
// OWNED: different pairs of one (b, h) have different elements. A block has one tile of pairs, of all batch
// elements and heads that may share an element; nobody else adds to its elements. SHARED_BY_ALL: the elements
// are the same for each of these, so that sums stay in registers.
// Otherwise: a block, a *lane* of work, takes every n-th tile of all, and adds to a copy of the array of its own.

KERNEL void __launch_bounds__(32 * WARPS, 1) attention_backward_pairs(const __grid_constant__ Parameters p) {
    constexpr int ROWS = 16 * WARPS, HEAD_STRIDE = HEAD + PADDING, VALUE_STRIDE = VALUE + PADDING;
    Element* query_tile = (Element*)shared_memory();
    Element* cotangent_tile = query_tile + ROWS * HEAD_STRIDE;
    Element* key_tile = cotangent_tile + ROWS * VALUE_STRIDE;
    Element* value_tile = key_tile + COLUMNS * HEAD_STRIDE;
    float* log_sum_exps = (float*)(value_tile + COLUMNS * VALUE_STRIDE);
    float* deltas = log_sum_exps + ROWS;

    // Units in the order b, h, query tile, key tile. An owned element's unit is the first of those that share it.
    long long query_tiles = (p.queries + ROWS - 1) / ROWS, key_tiles = (p.keys + COLUMNS - 1) / COLUMNS;
    long long tiles = query_tiles * key_tiles;
    int batches = OWNED && !APART_IN_BATCH ? 1 : p.batch, heads = OWNED && !APART_IN_HEADS ? 1 : p.heads;
    int shared_batches = p.batch / batches, shared_heads = p.heads / heads;
    float* copy = p.copies + (OWNED ? 0 : block_index() * p.elements);
    Fault fault;
    for (long long unit = block_index(); unit < batches * heads * tiles; unit += block_count()) {
        long long query = unit % tiles / key_tiles * ROWS, key = unit % key_tiles * COLUMNS;
        float sums[COLUMNS / 8][4] = {};
        Bits ever = 0;
        Place at;
        for (int i = 0; i < shared_batches * shared_heads; ++i) {
            int b = unit / tiles / heads + i / shared_heads, h = unit / tiles % heads + i % shared_heads;
            at = {b, h, query + 16 * warp_index(), key};
            int state = tile_state(p, b, h, query, ROWS, key, COLUMNS);
            if (state == EMPTY) continue;
            int key_batch = p.key_batch == 1 ? 0 : b, key_head = h / (p.heads / p.key_heads);
            sync_threads();
            load_tile<ROWS, HEAD_SIZE, HEAD, QUERY_VECTOR>(
                query_tile, p.query + b * p.query_strides[0] + h * p.query_strides[1] + query * p.query_strides[2],
                p.query_strides[2], p.query_strides[3], p.queries - query);
            load_tile<ROWS, VALUE_SIZE, VALUE, COTANGENT_VECTOR>(
                cotangent_tile,
                p.output_cotangent + b * p.output_cotangent_strides[0] + h * p.output_cotangent_strides[1] +
                    query * p.output_cotangent_strides[2],
                p.output_cotangent_strides[2], p.output_cotangent_strides[3], p.queries - query);
            load_tile<COLUMNS, HEAD_SIZE, HEAD, KEY_VECTOR>(
                key_tile, p.key + key_batch * p.key_strides[0] + key_head * p.key_strides[1] + key * p.key_strides[2],
                p.key_strides[2], p.key_strides[3], p.keys - key);
            load_tile<COLUMNS, VALUE_SIZE, VALUE, VALUE_VECTOR>(
                value_tile,
                p.value + key_batch * p.value_strides[0] + key_head * p.value_strides[1] + key * p.value_strides[2],
                p.value_strides[2], p.value_strides[3], p.keys - key);
            load_rows_of_scores(p, b, h, query, ROWS, log_sum_exps, deltas);
            wait_for_copies();
            sync_threads();
            float scores[COLUMNS / 8][4], weights[COLUMNS / 8][4], slopes[COLUMNS / 8][4];
            float terms[at_least_one(TERMS)][COLUMNS / 8][4];
            product<COLUMNS / 8, HEAD>(scores, query_tile, 16 * warp_index(), key_tile, HEAD_STRIDE);
            Bits admitted = state == FULL ? weigh<false>(p, at, scores, weights, log_sum_exps, query, fault)
                                              : weigh<true>(p, at, scores, weights, log_sum_exps, query, fault);
            product<COLUMNS / 8, VALUE>(slopes, cotangent_tile, 16 * warp_index(), value_tile, VALUE_STRIDE);
            differentiate(p, at, scores, weights, slopes, admitted, deltas, query, terms, fault);
            if constexpr (OWNED && SHARED_BY_ALL) {
                ever |= admitted;
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[j][e] += terms[0][j][e];
                }
            } else if constexpr (OWNED) {
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        bool live = admitted >> (4 * j + e) & 1;
                        int place = scatter_place(p, 0, b, h, query_of(at, j, e), key_of(at, j, e), scores[j][e], live);
                        if (place >= 0) copy[place] += terms[0][j][e];
                    }
                }
            } else {
                for (int warp = 0; warp < WARPS; ++warp) {
                    sync_threads();
                    if (warp != warp_index()) continue;
#pragma unroll
                    for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            bool live = admitted >> (4 * j + e) & 1;
                            int place = scatter_place(p, 0, b, h, query_of(at, j, e), key_of(at, j, e), scores[j][e], live);
                            add_in_turn(copy, place, terms[0][j][e]);
                        }
                    }
                }
            }
        }
        if constexpr (OWNED && SHARED_BY_ALL) {
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    bool live = ever >> (4 * j + e) & 1;
                    int place = scatter_place(p, 0, at.b, at.h, query_of(at, j, e), key_of(at, j, e), 0, live);
                    if (place >= 0) copy[place] += sums[j][e];
                }
            }
        }
    }
    report(fault, p.fault, p.first_site);
}
