// The gradient of attention with respect to queries, and sums of terms by query, by head, along diagonals and
// into small tables.
//
// A block owns 16·WARPS queries of one head and walks the keys that they see. It makes scores and their
// cotangents again, two products more than if the pass over keys added to the queries' cotangents; but nothing
// is added to from two blocks, so that the result has the same bits in each run.

KERNEL void __launch_bounds__(32 * WARPS, 1) attention_backward_queries(const __grid_constant__ Parameters p) {
    constexpr int ROWS = 16 * WARPS, HEAD_STRIDE = HEAD + PADDING, VALUE_STRIDE = VALUE + PADDING;
    Element* query_tile = (Element*)shared_memory();
    Element* cotangent_tile = query_tile + ROWS * HEAD_STRIDE;
    Element* key_tile = cotangent_tile + ROWS * VALUE_STRIDE;
    Element* value_tile = key_tile + COLUMNS * HEAD_STRIDE;
    float* log_sum_exps = (float*)(value_tile + COLUMNS * VALUE_STRIDE);
    float* deltas = log_sum_exps + ROWS;
    float* head_parts = deltas + ROWS;
    float* tables = head_parts + WARPS * HEAD_SUMS;
    float* scratch = tables + WARPS * TABLE_ELEMENTS;
    float* panel = scratch + warp_index() * panel_floats<COLUMNS>();

    long long tiles = (p.queries + ROWS - 1) / ROWS, head = block_index() / tiles;
    long long tile = tiles - 1 - block_index() % tiles, first = tile * ROWS, slot = head * tiles + tile;
    int b = head / p.heads, h = head % p.heads;
    int key_batch = p.key_batch == 1 ? 0 : b, key_head = h / (p.heads / p.key_heads);
    const Element* keys = p.key + key_batch * p.key_strides[0] + key_head * p.key_strides[1];
    const Element* values = p.value + key_batch * p.value_strides[0] + key_head * p.value_strides[1];
    load_tile<ROWS, HEAD_SIZE, HEAD, QUERY_VECTOR>(
        query_tile, p.query + b * p.query_strides[0] + h * p.query_strides[1] + first * p.query_strides[2],
        p.query_strides[2], p.query_strides[3], p.queries - first);
    load_tile<ROWS, VALUE_SIZE, VALUE, COTANGENT_VECTOR>(
        cotangent_tile,
        p.output_cotangent + b * p.output_cotangent_strides[0] + h * p.output_cotangent_strides[1] +
            first * p.output_cotangent_strides[2],
        p.output_cotangent_strides[2], p.output_cotangent_strides[3], p.queries - first);
    load_rows_of_scores(p, b, h, first, ROWS, log_sum_exps, deltas);

    // Diagonals of this block: differences from −(keys − 1), sums from 0.
    long long diagonals = ROWS + p.keys - 1;
    auto diagonal_sums = [&](int number) {
        return p.diagonals + (number * p.batch * p.heads * tiles + slot) * diagonals;
    };
    for (int i = 0; i < DIFFERENCES + SUMS; ++i) {
        for (long long j = thread_index(); j < diagonals; j += thread_count()) diagonal_sums(i)[j] = 0;
    }
    for (int i = thread_index(); i < WARPS * TABLE_ELEMENTS; i += thread_count()) tables[i] = 0;

    Fault fault;
    int g = lane_index() / 4, t = lane_index() % 4;
    float query_sums[HEAD / 8][4] = {};
    float row_sums[at_least_one(ROW_SUMS)][2] = {}, head_sums[at_least_one(HEAD_SUMS)] = {};
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

        Place at = {b, h, first + 16 * warp_index(), key};
        float scores[COLUMNS / 8][4], weights[COLUMNS / 8][4], slopes[COLUMNS / 8][4];
        float terms[at_least_one(TERMS)][COLUMNS / 8][4];
        product<COLUMNS / 8, HEAD>(scores, query_tile, 16 * warp_index(), key_tile, HEAD_STRIDE);
        Bits admitted = state == FULL ? weigh<false>(p, at, scores, weights, log_sum_exps, first, fault)
                                          : weigh<true>(p, at, scores, weights, log_sum_exps, first, fault);
        product<COLUMNS / 8, VALUE>(slopes, cotangent_tile, 16 * warp_index(), value_tile, VALUE_STRIDE);
        differentiate(p, at, scores, weights, slopes, admitted, deltas, first, terms, fault);
        if constexpr (QUERY_COTANGENT) {
            bool clean = true;
            if constexpr (MASKED) clean = state == FULL || !any_thread(holds_nonfinite<COLUMNS, HEAD>(key_tile));
            if (clean) {
                accumulate(query_sums, slopes, key_tile, HEAD_STRIDE, 0);
            } else if constexpr (MASKED) {
                accumulate_admitted(query_sums, slopes, admitted, panel, Rows<HEAD>{key_tile, 0});
            }
        }
        constexpr int HEADS_FROM = ROW_SUMS, DIFFERENCES_FROM = HEADS_FROM + HEAD_SUMS,
                      SUMS_FROM = DIFFERENCES_FROM + DIFFERENCES, TABLES_FROM = SUMS_FROM + SUMS;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
#pragma unroll
                for (int i = 0; i < ROW_SUMS; ++i) row_sums[i][e / 2] += terms[i][j][e];
#pragma unroll
                for (int i = 0; i < HEAD_SUMS; ++i) head_sums[i] += terms[HEADS_FROM + i][j][e];
            }
        }
#pragma unroll
        for (int i = 0; i < DIFFERENCES; ++i) {
            add_diagonals<false>(scratch, terms[DIFFERENCES_FROM + i], diagonal_sums(i), p.keys - 1 - key, diagonals);
        }
#pragma unroll
        for (int i = 0; i < SUMS; ++i) {
            add_diagonals<true>(scratch, terms[SUMS_FROM + i], diagonal_sums(DIFFERENCES + i), key, diagonals);
        }
#pragma unroll
        for (int i = 0; i < TABLES; ++i) {
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    bool live = admitted >> (4 * j + e) & 1;
                    int place = scatter_place(p, i, b, h, query_of(at, j, e), key_of(at, j, e), scores[j][e], live);
                    add_in_turn(tables + warp_index() * TABLE_ELEMENTS, place, terms[TABLES_FROM + i][j][e]);
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 2 * ROW_SUMS; ++i) {
        float sum = row_sums[i / 2][i % 2];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        long long q = first + 16 * warp_index() + g + i % 2 * 8;
        if (t == 0 && q < p.queries) p.row_sums[((i / 2 * p.batch + b) * p.heads + h) * p.queries + q] = sum;
    }
#pragma unroll
    for (int i = 0; i < HEAD_SUMS; ++i) {
        float sum = head_sums[i];
        for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
        if (lane_index() == 0) head_parts[i * WARPS + warp_index()] = sum;
    }
    sync_threads();
    for (int i = thread_index(); i < HEAD_SUMS; i += thread_count()) {
        float sum = 0;
        for (int warp = 0; warp < WARPS; ++warp) sum += head_parts[i * WARPS + warp];
        p.head_sums[i * p.batch * p.heads * tiles + slot] = sum;
    }
    for (int i = thread_index(); i < TABLE_ELEMENTS; i += thread_count()) {
        float sum = 0;
        for (int warp = 0; warp < WARPS; ++warp) sum += tables[warp * TABLE_ELEMENTS + i];
        p.tables[slot * TABLE_ELEMENTS + i] = sum;
    }

    if constexpr (QUERY_COTANGENT) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            long long q = first + 16 * warp_index() + g + half * 8;
            if (q >= p.queries) continue;
            Element* to = p.query_cotangent + b * p.query_cotangent_strides[0] + h * p.query_cotangent_strides[1] +
                          q * p.query_cotangent_strides[2];
#pragma unroll
            for (int i = 0; i < HEAD / 4; ++i) {
                int column = i / 2 * 8 + 2 * t + i % 2;
                if (column < HEAD_SIZE) {
                    to[column * p.query_cotangent_strides[3]] =
                        from_float<Element>(query_sums[i / 2][2 * half + i % 2] * (float)p.scale);
                }
            }
        }
    }
    report(fault, p.fault, p.first_site);
}
