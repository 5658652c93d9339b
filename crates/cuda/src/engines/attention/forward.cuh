// Attention: scores, softmax and output in one pass over the keys (Milakov and Gimelshein 2018; Dao 2023).
//
// A block of WARPS warps owns 16·WARPS queries of one head and walks the tiles of COLUMNS keys that the mask
// leaves. A warp owns 16 rows; scores, weights and output stay in its registers.

// Turns products into scores: −∞ where the pair is not admitted. Gives which are, a bit each.
template <bool CHECKED>
DEVICE unsigned score_tile(const Parameters& p, int b, int h, long long query, long long key,
                           float (&scores)[COLUMNS / 8][4], Fault& fault) {
    int g = lane_index() / 4, t = lane_index() % 4;
    unsigned admitted = 0;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            long long q = query + g + e / 2 * 8, k = key + 8 * j + 2 * t + e % 2;
            bool live = true;
            if constexpr (CHECKED) live = q < p.queries && k < p.keys && admits(p, b, h, q, k, fault);
            float s = score(p, b, h, q, k, scores[j][e] * (float)p.scale, live, fault);
            scores[j][e] = live ? s : -infinity<float>();
            admitted |= (unsigned)live << (4 * j + e);
        }
    }
    return admitted;
}

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
        unsigned admitted = state == FULL ? score_tile<false>(p, b, h, first + 16 * warp_index(), key, scores, fault)
                                          : score_tile<true>(p, b, h, first + 16 * warp_index(), key, scores, fault);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float top = greatest[half];
#pragma unroll
            for (int i = 0; i < COLUMNS / 4; ++i) top = maximum(top, scores[i / 2][2 * half + i % 2]);
            top = maximum(top, shuffle_xor(top, 1));
            top = maximum(top, shuffle_xor(top, 2));
            // Where every score is −∞ there is nothing to be relative to.
            float origin = top == -infinity<float>() ? 0 : top;
            float factor = exponential(greatest[half] - origin);
            greatest[half] = top;
            total[half] *= factor;
#pragma unroll
            for (int i = 0; i < VALUE / 4; ++i) output[i / 2][2 * half + i % 2] *= factor;
#pragma unroll
            for (int i = 0; i < COLUMNS / 4; ++i) {
                float weight = exponential(scores[i / 2][2 * half + i % 2] - origin);
                scores[i / 2][2 * half + i % 2] = weight;
                total[half] += weight;
            }
        }
        bool clean = true;
        if constexpr (MASKED) clean = state == FULL || !any_thread(holds_nonfinite<COLUMNS, VALUE>(value_tile));
        if (clean) {
            accumulate(output, scores, value_tile, VALUE_STRIDE, 0);
        } else if constexpr (MASKED) {
            accumulate_admitted(output, scores, admitted, panel, value_tile, VALUE_STRIDE, 0);
        }
    }

    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        total[half] += shuffle_xor(total[half], 1);
        total[half] += shuffle_xor(total[half], 2);
        long long q = first + 16 * warp_index() + g + half * 8;
        if (q >= p.queries) continue;
        float factor = total[half] == 0 ? 0 : 1 / total[half], top = greatest[half];
        if (top == infinity<float>()) factor = not_a_number<float>();
        Element* to = p.output + b * p.output_strides[0] + h * p.output_strides[1] + q * p.output_strides[2];
        float* unrounded =
            p.unrounded + b * p.unrounded_strides[0] + h * p.unrounded_strides[1] + q * p.unrounded_strides[2];
#pragma unroll
        for (int i = 0; i < VALUE / 4; ++i) {
            int column = i / 2 * 8 + 2 * t + i % 2;
            if (column >= VALUE_SIZE) continue;
            float x = output[i / 2][2 * half + i % 2] * factor;
            to[column * p.output_strides[3]] = from_float<Element>(x);
            if constexpr (UNROUNDED) unrounded[column * p.unrounded_strides[3]] = x;
        }
        if (t != 0) continue;
        if constexpr (LOG_SUM_EXP) {
            float log_sum_exp = fabsf(top) == infinity<float>() ? top : top + logf(total[half]);
            p.log_sum_exp[b * p.log_sum_exp_strides[0] + h * p.log_sum_exp_strides[1] + q * p.log_sum_exp_strides[2]] = log_sum_exp;
        }
        if constexpr (MAXIMUM) {
            p.maximum[b * p.maximum_strides[0] + h * p.maximum_strides[1] + q * p.maximum_strides[2]] = top;
        }
    }
    report(fault, p.fault, p.first_site);
}
