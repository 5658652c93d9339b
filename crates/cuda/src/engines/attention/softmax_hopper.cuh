// What the forward on Hopper does with a warp's 16 rows of scores: a softmax in powers of two that goes on from tile
// to tile, and the rows' results.

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// The query of a lane's first or second row. Rows past the end are made, as the last one, and never stored.
DEVICE int row_of(const Parameters& p, const Item& item, int own_row, int half) {
    return min_of(item.first + own_row + lane_index() / 4 + 8 * half, (int)p.queries - 1);
}

// What is known of the score function before a tile comes: for two rows, whose pairs' first is this lane's.
struct Scorer {
    ScoreHead head;
    ScoreRow rows[2];
    int b, h, q[2];
    // Of an item's 16 rows from `own_row` on.
    DEVICE void begin(const Parameters& p, const Item& item, int own_row) {
        b = item.b;
        h = item.h;
        head = score_head(p, b, h);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            q[half] = row_of(p, item, own_row, half);
            rows[half] = score_row(p, head, b, h, q[half]);
        }
    }
    DEVICE bool outside() const { return head.outside || rows[0].outside || rows[1].outside; }
};

// Turns products into scores, −∞ where the pair is not admitted. Where the score function is none and the scale is
// positive (PLAIN), scores stay products: `Softmax` takes the scale.
DEVICE void score_tile(const Parameters& p, const Scorer& scorer, int key, int state, float (&scores)[COLUMNS / 8][4],
                       Fault& fault) {
    int b = scorer.b, h = scorer.h;
    float scale = p.scale;
    int first = key + 2 * (lane_index() % 4), last = (int)p.keys - 1;
    if (state == FULL && !scorer.outside()) {
        if constexpr (!PLAIN) {
            ScoreTile tile = score_tile_start(p, scorer.head, b, h, scorer.q[0], first);
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; ++i) {
                float& s = scores[i / 4][i % 4];
                s = score_near(p, scorer.head, scorer.rows[i % 4 / 2], tile, b, h, scorer.q[0], first, i % 4 / 2 * 8,
                               i / 4 * 8 + i % 2, s * scale, fault);
            }
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) {
        int half = i % 4 / 2, q = scorer.q[half], column = first + i / 4 * 8 + i % 2, k = min_of(column, last);
        // Both are found: what one decides of the other takes longer than either.
        bool live = admits(p, b, h, q, k, fault) & (column <= last);
        float& s = scores[i / 4][i % 4];
        if constexpr (!PLAIN) {
            s *= scale;
            s = scorer.outside() ? score(p, b, h, q, k, s, live, fault)
                                 : score_checked(p, scorer.head, scorer.rows[half], b, h, q, k, live, s, fault);
        }
        s = live ? s : -infinity<float>();
    }
}

// The state of two rows. Weights are relative to an origin that moves only when a score exceeds it by much: then, and
// not at each new greatest score, are the sums so far scaled. A weight is at most 2⁸ then, which costs no precision.
struct Softmax {
    static constexpr float SLACK = 8;
    float origin[2] = {-infinity<float>(), -infinity<float>()};  // a power of two's exponent
    float greatest[2] = {-infinity<float>(), -infinity<float>()};
    float total[2] = {0, 0};  // of this lane's columns
    float factor[2] = {1, 1};
    bool moved = false;

    // Turns scores, of which each stands for `unit` powers of two, into weights.
    DEVICE void soften(float (&scores)[COLUMNS / 8][4], float unit) {
        // Four chains, so that none is waited for.
        float tops[4], top[2];
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) tops[e] = i == 0 ? scores[i][e] : greater(tops[e], scores[i][e]);
        }
        bool exceeds = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float x = greater(tops[2 * half], tops[2 * half + 1]);
            x = greater(x, shuffle_xor(x, 1));
            x = greater(x, shuffle_xor(x, 2));
            if constexpr (MAXIMUM) greatest[half] = greater(greatest[half], x);
            top[half] = x * unit;
            exceeds = exceeds || top[half] > origin[half] + SLACK;
        }
        moved = ballot(exceeds) != 0;
        if (moved) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float next = top[half] > origin[half] ? top[half] : origin[half];
                factor[half] = next == origin[half] ? 1 : exp2_approximate(origin[half] - next);
                origin[half] = next;
                total[half] *= factor[half];
            }
        }
        // Where every score is −∞ there is nothing to be relative to.
        float from[2] = {origin[0] == -infinity<float>() ? 0 : origin[0], origin[1] == -infinity<float>() ? 0 : origin[1]};
        // A weight is added up some weights later: it takes a while to be made.
        constexpr int LATER = 8;
        float sums[4] = {};
#pragma unroll
        for (int i = 0; i < COLUMNS / 2 + LATER; ++i) {
            if (i < COLUMNS / 2) {
                float& s = scores[i / 4][i % 4];
                s = exp2_in_order(s * unit - from[i % 4 / 2]);
            }
            if (i >= LATER) sums[i % 4] = add_in_order(sums[i % 4], scores[(i - LATER) / 4][i % 4]);
        }
        total[0] += sums[0] + sums[1];
        total[1] += sums[2] + sums[3];
    }

    // Weights as left operands.
    DEVICE void round(const float (&scores)[COLUMNS / 8][4], unsigned (&weights)[COLUMNS / 16][4]) const {
#pragma unroll
        for (int i = 0; i < COLUMNS / 16; ++i) {
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                const float(&block)[4] = scores[2 * i + word / 2];
                weights[i][word] = pack<Element>(block[word % 2 * 2], block[word % 2 * 2 + 1]);
            }
        }
    }

    // Sums relative to the origin before, if it moved.
    DEVICE void rescale(float (&output)[WIDTH / 8][4]) const {
        if (!moved) return;
#pragma unroll
        for (int i = 0; i < WIDTH / 8; ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) output[i][e] *= factor[e / 2];
        }
    }
};

// Adds the values that are not finite, which the tile has not, where pairs are admitted. Weights go by way of a panel
// of this warp's rows.
constexpr int ADMITTED_ROW = COLUMNS + 8, ADMITTED_BYTES = MASKED ? 16 * ADMITTED_ROW * 2 : 0;
DEVICE void accumulate_unfinite(const Parameters& p, const Item& item, int own_row, int key,
                                float (&output)[WIDTH / 8][4], const unsigned (&weights)[COLUMNS / 16][4],
                                Element* rows) {
    int g = lane_index() / 4, t = lane_index() % 4, b = item.b, h = item.h;
    int key_batch = p.key_batch == 1 ? 0 : b, key_head = h / ((int)p.heads / (int)p.key_heads);
    const Element* values =
        p.value + key_batch * p.value_strides[0] + key_head * p.value_strides[1] + key * p.value_strides[2];
    Fault known;  // and reported where the pair's score was made
#pragma unroll
    for (int i = 0; i < COLUMNS / 16; ++i) {
#pragma unroll
        for (int word = 0; word < 4; ++word) {
            *(unsigned*)(rows + (g + word % 2 * 8) * ADMITTED_ROW + 16 * i + word / 2 * 8 + 2 * t) = weights[i][word];
        }
    }
    sync_warp();
    // What is added is ∞, −∞ or both: a bit each for so many blocks of columns, since a loop cannot name registers, and a
    // text without one takes the compiler long.
    constexpr int AT_ONCE = 16;
#pragma unroll
    for (int from = 0; from < WIDTH / 8; from += AT_ONCE) {
        unsigned long long up = 0, down = 0;
#pragma unroll 1
        for (int i = 0; i < 2 * COLUMNS; ++i) {
            int half = i / COLUMNS, depth = i % COLUMNS, row = g + half * 8;
            int q = row_of(p, item, own_row, half);
            if (key + depth >= (int)p.keys || !admits(p, b, h, q, key + depth, known)) continue;
            float weight = to_float(rows[row * ADMITTED_ROW + depth]);
#pragma unroll 1
            for (int j = 0; j < 2 * AT_ONCE; ++j) {
                int column = 8 * (from + j / 2) + 2 * t + j % 2;
                if (column >= VALUE_SIZE) break;
                float x = to_float(values[depth * p.value_strides[2] + column]);
                if (fabsf(x) < infinity<float>()) continue;
                unsigned long long bit = 1ull << (j / 2 * 4 + half * 2 + j % 2);
                if (!(weight * x < 0)) up |= bit;
                if (!(weight * x > 0)) down |= bit;
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * AT_ONCE; ++i) {
            if (from + i / 4 >= WIDTH / 8) continue;
            float& sum = output[from + i / 4 < WIDTH / 8 ? from + i / 4 : 0][i % 4];
            if (up >> i & 1) sum += infinity<float>();
            if (down >> i & 1) sum -= infinity<float>();
        }
    }
    sync_warp();
}

// Stores the results of an item's 16 queries from `own_row` on. `panel` is where their rows were in shared memory, which
// are not asked for again: rows of 64 elements, in panels ROWS rows apart.
DEVICE void store_output(const Parameters& p, const Item& item, int own_row, const float (&output)[WIDTH / 8][4],
                         const Softmax& softmax, Element* panel) {
    int g = lane_index() / 4, t = lane_index() % 4, b = item.b, h = item.h, query = item.first + own_row;
    constexpr bool STAGED = OUTPUT_VECTOR && VALUE <= HEAD && (!MASKED || QUERY_TILES == 2);
    Element* to = p.output + b * p.output_strides[0] + h * p.output_strides[1];
    float totals[2], factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float total = softmax.total[half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        totals[half] = total;
        factors[half] = total == 0 ? 0 : 1 / total;
        if (softmax.origin[half] == infinity<float>()) factors[half] = not_a_number<float>();
    }
    if constexpr (STAGED) {
        // Of each four blocks of 8 × 8 a lane stores a row.
        int lane = lane_index(), place = lane % 16 * 64 + (lane / 16 ^ lane % 8) * PART;
        sync_warp();
#pragma unroll
        for (int i = 0; i < WIDTH / 8; i += 2) {
            unsigned words[4];
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                int block = i + word / 2 < WIDTH / 8 ? i + word / 2 : i, half = word % 2;
                words[word] = pack<Element>(output[block][2 * half] * factors[half], output[block][2 * half + 1] * factors[half]);
            }
            store_matrices(panel + i / 8 * ROWS * 64 + (place ^ i % 8 * PART), words);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = g + half * 8, q = query + row;
        float total = totals[half], factor = factors[half], origin = softmax.origin[half];
        if (q < p.queries) {
            float* unrounded =
                p.unrounded + b * p.unrounded_strides[0] + h * p.unrounded_strides[1] + q * p.unrounded_strides[2];
#pragma unroll
            for (int i = 0; i < WIDTH / 4; ++i) {
                int column = i / 2 * 8 + 2 * t + i % 2;
                if (column >= VALUE_SIZE) continue;
                float x = output[i / 2][2 * half + i % 2] * factor;
                if constexpr (!STAGED) {
                    to[q * p.output_strides[2] + column * p.output_strides[3]] = from_float<Element>(x);
                }
                if constexpr (UNROUNDED && !UNROUNDED_VECTOR) unrounded[column * p.unrounded_strides[3]] = x;
            }
            if constexpr (UNROUNDED && UNROUNDED_VECTOR) {
#pragma unroll
                for (int j = 0; j < WIDTH / 8; ++j) {
                    TwoFloats pair = {output[j][2 * half] * factor, output[j][2 * half + 1] * factor};
                    *(TwoFloats*)(unrounded + 8 * j + 2 * t) = pair;
                }
            }
            if (t == 0) {
                if constexpr (LOG_SUM_EXP) {
                    float log_sum_exp = fabsf(origin) == infinity<float>() ? origin : origin * LN_2 + logf(total);
                    p.log_sum_exp[b * p.log_sum_exp_strides[0] + h * p.log_sum_exp_strides[1] +
                                  q * p.log_sum_exp_strides[2]] = log_sum_exp;
                }
                if constexpr (MAXIMUM) {
                    float top = softmax.greatest[half] * (PLAIN ? (float)p.scale : 1.0f);
                    p.maximum[b * p.maximum_strides[0] + h * p.maximum_strides[1] + q * p.maximum_strides[2]] = top;
                }
            }
        }
    }
    if constexpr (STAGED) {
        sync_warp();
        constexpr int PARTS = VALUE_SIZE / PART;
#pragma unroll
        for (int i = lane_index(); i < 16 * PARTS; i += 32) {
            int row = i / PARTS, part = i % PARTS;
            if (query + row >= p.queries) continue;
            const Words* from = (const Words*)(panel + (part / 8 * ROWS + row) * 64 + (part % 8 ^ row % 8) * PART);
            *(Words*)(to + (query + row) * p.output_strides[2] + part * PART) = *from;
        }
    }
}
