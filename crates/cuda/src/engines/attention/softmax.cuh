// What the forward kernels do with a warp's 16 rows of scores: a softmax that goes on from tile to tile.

// Turns products into scores: −∞ where the pair is not admitted. Gives which are, a bit each.
template <bool CHECKED>
DEVICE Bits score_tile(const Parameters& p, int b, int h, long long query, long long key,
                           float (&scores)[COLUMNS / 8][4], Fault& fault) {
    int g = lane_index() / 4, t = lane_index() % 4;
    Bits admitted = 0;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            long long q = query + g + e / 2 * 8, k = key + 8 * j + 2 * t + e % 2;
            bool live = true;
            if constexpr (CHECKED) live = q < p.queries && k < p.keys && admits(p, b, h, q, k, fault);
            float s = score(p, b, h, q, k, scores[j][e] * (float)p.scale, live, fault);
            scores[j][e] = live ? s : -infinity<float>();
            admitted |= (Bits)live << (4 * j + e);
        }
    }
    return admitted;
}

// Turns a tile of scores into weights relative to the greatest score so far, and rescales what was summed relative
// to a lesser one.
DEVICE void soften(float (&scores)[COLUMNS / 8][4], float (&output)[VALUE / 8][4], float (&greatest)[2],
                   float (&total)[2]) {
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
}

// Stores the results of 16 queries.
DEVICE void store_rows(const Parameters& p, int b, int h, long long query, const float (&output)[VALUE / 8][4],
                       const float (&greatest)[2], float (&total)[2]) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        total[half] += shuffle_xor(total[half], 1);
        total[half] += shuffle_xor(total[half], 2);
        long long q = query + g + half * 8;
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
}
