// What all passes of the gradient of attention do at a tile of pairs.
//
// A pass *owns* 16 rows a warp and walks tiles of COLUMNS columns: the rows are keys and the columns queries
// where KEY_ROWS, else the other way round. Products that end at a tile's rows keep their sums in registers from
// tile to tile; so no two blocks add to one number, and the order of additions is that of the walk.
//
// The pass evaluates the mask, the score function and its derivative at each pair, and has the terms of captured
// arrays (TERMS of them) in registers, one number for each pair of a lane.

struct Place {
    int b, h;
    long long row, column;  // of this warp's first row and the tile's first column
};

// The query and the key of element e of block j of a lane's share.
DEVICE long long query_of(const Place& at, int j, int e) {
    int g = lane_index() / 4, t = lane_index() % 4;
    return KEY_ROWS ? at.column + 8 * j + 2 * t + e % 2 : at.row + g + e / 2 * 8;
}
DEVICE long long key_of(const Place& at, int j, int e) {
    int g = lane_index() / 4, t = lane_index() % 4;
    return KEY_ROWS ? at.row + g + e / 2 * 8 : at.column + 8 * j + 2 * t + e % 2;
}

// Turns products into raw scores and the weights that the log-sum-exp makes of them. Gives which pairs are
// admitted, a bit each. `log_sum_exps` begins at `first_query`.
template <bool CHECKED>
DEVICE Bits weigh(const Parameters& p, const Place& at, float (&scores)[COLUMNS / 8][4],
                      float (&weights)[COLUMNS / 8][4], const float* log_sum_exps, long long first_query, Fault& fault) {
    Bits admitted = 0;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            long long q = query_of(at, j, e), k = key_of(at, j, e);
            float log_sum_exp = log_sum_exps[q - first_query];
            bool live = log_sum_exp != -infinity<float>();
            if constexpr (CHECKED) live = live && q < p.queries && k < p.keys && admits(p, at.b, at.h, q, k, fault);
            scores[j][e] *= (float)p.scale;
            float s = score(p, at.b, at.h, q, k, scores[j][e], live, fault);
            weights[j][e] = live ? exponential(s - log_sum_exp) : 0;
            admitted |= (Bits)live << (4 * j + e);
        }
    }
    return admitted;
}

// Turns cotangents of weights into those of raw scores, and gives the terms.
DEVICE void differentiate(const Parameters& p, const Place& at, const float (&scores)[COLUMNS / 8][4],
                          const float (&weights)[COLUMNS / 8][4], float (&slopes)[COLUMNS / 8][4], Bits admitted,
                          const float* deltas, long long first_query,
                          float (&terms)[at_least_one(TERMS)][COLUMNS / 8][4], Fault& fault) {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            long long q = query_of(at, j, e), k = key_of(at, j, e);
            bool live = admitted >> (4 * j + e) & 1;
            float cotangent = weights[j][e] * (slopes[j][e] - deltas[q - first_query]);
            float of_pair[at_least_one(TERMS)] = {};
            float slope = gradient(p, at.b, at.h, q, k, scores[j][e], cotangent, live, fault, of_pair);
            slopes[j][e] = live ? slope : 0;
#pragma unroll
            for (int i = 0; i < TERMS; ++i) terms[i][j][e] = live ? of_pair[i] : 0;
        }
    }
}

// Loads what the pairs of some queries need of their rows: log-sum-exps and deltas.
DEVICE void load_rows_of_scores(const Parameters& p, int b, int h, long long query, int count, float* log_sum_exps,
                                float* deltas) {
    for (int i = thread_index(); i < count; i += thread_count()) {
        bool inside = query + i < p.queries;
        log_sum_exps[i] = inside ? p.log_sum_exp[b * p.log_sum_exp_strides[0] + h * p.log_sum_exp_strides[1] +
                                                 (query + i) * p.log_sum_exp_strides[2]]
                                 : -infinity<float>();
        deltas[i] = inside ? p.delta[(b * p.heads + h) * p.delta_rows + query + i] : 0;
    }
}
