// The gradient of attention with respect to keys and values (Dao 2023, algorithm 2), and sums of terms by key.
//
// A block owns 16·WARPS keys of one key head, and one of SLICES slices of their cotangents' columns; it walks
// the queries of all heads, and batch elements, that see these keys. Scores are transposed: rows are keys.

KERNEL void __launch_bounds__(32 * WARPS, 1) attention_backward_keys(const __grid_constant__ Parameters p) {
    constexpr int ROWS = 16 * WARPS, HEAD_STRIDE = HEAD + PADDING, VALUE_STRIDE = VALUE + PADDING;
    Element* key_tile = (Element*)shared_memory();
    Element* value_tile = key_tile + ROWS * HEAD_STRIDE;
    Element* query_tile = value_tile + ROWS * VALUE_STRIDE;
    Element* cotangent_tile = query_tile + COLUMNS * HEAD_STRIDE;
    float* log_sum_exps = (float*)(cotangent_tile + COLUMNS * VALUE_STRIDE);
    float* deltas = log_sum_exps + COLUMNS;
    float* panel = deltas + COLUMNS + warp_index() * panel_floats<COLUMNS>();

    long long tiles = (p.keys + ROWS - 1) / ROWS, block = block_index() / SLICES;
    int slice = block_index() % SLICES;
    long long first = block % tiles * ROWS, first_of_warp = first + 16 * warp_index();
    int key_head = block / tiles % p.key_heads, key_batch = block / tiles / p.key_heads;
    int group = p.heads / p.key_heads;
    load_tile<ROWS, HEAD_SIZE, HEAD, KEY_VECTOR>(
        key_tile, p.key + key_batch * p.key_strides[0] + key_head * p.key_strides[1] + first * p.key_strides[2],
        p.key_strides[2], p.key_strides[3], p.keys - first);
    load_tile<ROWS, VALUE_SIZE, VALUE, VALUE_VECTOR>(
        value_tile,
        p.value + key_batch * p.value_strides[0] + key_head * p.value_strides[1] + first * p.value_strides[2],
        p.value_strides[2], p.value_strides[3], p.keys - first);

    Fault fault;
    int g = lane_index() / 4, t = lane_index() % 4;
    float key_sums[HEAD_SLICE / 8][4] = {}, value_sums[VALUE_SLICE / 8][4] = {};
    int last_batch = p.key_batch == 1 ? p.batch - 1 : key_batch;
    for (int b = p.key_batch == 1 ? 0 : key_batch; b <= last_batch; ++b) {
        for (int h = key_head * group; h < (key_head + 1) * group; ++h) {
            float row_sums[at_least_one(ROW_SUMS)][2] = {};
            for (long long query = 0; query < p.queries; query += COLUMNS) {
                int state = tile_state(p, b, h, query, COLUMNS, first, ROWS);
                if (state == EMPTY) continue;
                sync_threads();
                load_tile<COLUMNS, HEAD_SIZE, HEAD, QUERY_VECTOR>(
                    query_tile,
                    p.query + b * p.query_strides[0] + h * p.query_strides[1] + query * p.query_strides[2],
                    p.query_strides[2], p.query_strides[3], p.queries - query);
                load_tile<COLUMNS, VALUE_SIZE, VALUE, COTANGENT_VECTOR>(
                    cotangent_tile,
                    p.output_cotangent + b * p.output_cotangent_strides[0] + h * p.output_cotangent_strides[1] +
                        query * p.output_cotangent_strides[2],
                    p.output_cotangent_strides[2], p.output_cotangent_strides[3], p.queries - query);
                load_rows_of_scores(p, b, h, query, COLUMNS, log_sum_exps, deltas);
                wait_for_copies();
                sync_threads();

                Place at = {b, h, first_of_warp, query};
                float scores[COLUMNS / 8][4], weights[COLUMNS / 8][4], slopes[COLUMNS / 8][4];
                float terms[at_least_one(TERMS)][COLUMNS / 8][4];
                product<COLUMNS / 8, HEAD>(scores, key_tile, 16 * warp_index(), query_tile, HEAD_STRIDE);
                Bits admitted = state == FULL
                                        ? weigh<false>(p, at, scores, weights, log_sum_exps, query, fault)
                                        : weigh<true>(p, at, scores, weights, log_sum_exps, query, fault);
                bool clean = true;
                if constexpr (MASKED) {
                    clean = state == FULL || !any_thread(holds_nonfinite<COLUMNS, VALUE>(cotangent_tile) ||
                                                         holds_nonfinite<COLUMNS, HEAD>(query_tile));
                }
                if constexpr (VALUE_COTANGENT) {
                    if (clean) {
                        accumulate(value_sums, weights, cotangent_tile, VALUE_STRIDE, slice * VALUE_SLICE);
                    } else if constexpr (MASKED) {
                        accumulate_admitted(value_sums, weights, admitted, panel, Rows<VALUE>{cotangent_tile, slice * VALUE_SLICE});
                    }
                }
                if constexpr (KEY_COTANGENT || TERMS > 0) {
                    product<COLUMNS / 8, VALUE>(slopes, value_tile, 16 * warp_index(), cotangent_tile, VALUE_STRIDE);
                    differentiate(p, at, scores, weights, slopes, admitted, deltas, query, terms, fault);
                }
                if constexpr (KEY_COTANGENT) {
                    if (clean) {
                        accumulate(key_sums, slopes, query_tile, HEAD_STRIDE, slice * HEAD_SLICE);
                    } else if constexpr (MASKED) {
                        accumulate_admitted(key_sums, slopes, admitted, panel, Rows<HEAD>{query_tile, slice * HEAD_SLICE});
                    }
                }
#pragma unroll
                for (int i = 0; i < ROW_SUMS; ++i) {
#pragma unroll
                    for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) row_sums[i][e / 2] += terms[i][j][e];
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < 2 * ROW_SUMS; ++i) {
                float sum = row_sums[i / 2][i % 2];
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                long long k = first_of_warp + g + i % 2 * 8;
                if (t == 0 && k < p.keys && slice == 0) {
                    p.row_sums[((i / 2 * p.batch + b) * p.heads + h) * p.keys + k] = sum;
                }
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        long long k = first_of_warp + g + half * 8;
        if (k >= p.keys) continue;
        if constexpr (KEY_COTANGENT) {
            Element* to = p.key_cotangent + key_batch * p.key_cotangent_strides[0] +
                          key_head * p.key_cotangent_strides[1] + k * p.key_cotangent_strides[2];
#pragma unroll
            for (int i = 0; i < HEAD_SLICE / 4; ++i) {
                int column = slice * HEAD_SLICE + i / 2 * 8 + 2 * t + i % 2;
                if (column < HEAD_SIZE) {
                    to[column * p.key_cotangent_strides[3]] =
                        from_float<Element>(key_sums[i / 2][2 * half + i % 2] * (float)p.scale);
                }
            }
        }
        if constexpr (VALUE_COTANGENT) {
            Element* to = p.value_cotangent + key_batch * p.value_cotangent_strides[0] +
                          key_head * p.value_cotangent_strides[1] + k * p.value_cotangent_strides[2];
#pragma unroll
            for (int i = 0; i < VALUE_SLICE / 4; ++i) {
                int column = slice * VALUE_SLICE + i / 2 * 8 + 2 * t + i % 2;
                if (column < VALUE_SIZE) {
                    to[column * p.value_cotangent_strides[3]] =
                        from_float<Element>(value_sums[i / 2][2 * half + i % 2]);
                }
            }
        }
    }
    report(fault, p.fault, p.first_site);
}
