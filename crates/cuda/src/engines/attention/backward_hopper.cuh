// The warpgroups of the gradient's one pass on Hopper that multiply, and the kernel. See `turns_hopper.cuh`.

// Neighbouring numbers of shared memory.
struct alignas(8) Two {
    float x[2];
};
struct alignas(16) Four {
    float x[4];
};

// Exponents of a tile's rows that are asked for before its products are: those come from shared memory too, and what is
// asked for after them waits for them. Where tiles are wide there are no registers for it.
constexpr int EARLY = COLUMNS == 64 ? COLUMNS / 8 : 0;
DEVICE void load_early(Two (&early)[at_least_one(EARLY)], const float* log2_sum_exps) {
#pragma unroll
    for (int j = 0; j < EARLY; ++j) early[j] = *(const Two*)(log2_sum_exps + 8 * j + lane_index() % 4 * 2);
}

// Which pairs of a tile are admitted, a bit each.
DEVICE Bits admitted_pairs(const Parameters& p, int b, int h, int query, int key, Fault& fault) {
    int last_query = (int)p.queries - 1, last_key = (int)p.keys - 1;
    query += 2 * (lane_index() % 4);
    key += lane_index() / 4;
    Bits admitted = 0;
    // A few at a time: registers are scarce, and what is read of a query takes a while to come.
#pragma unroll 8
    for (int i = 0; i < COLUMNS / 4; ++i) {
        int q = query + i / 2 * 8 + i % 2;
        Bits of_query = 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int k = key + 8 * half;
            bool live = admits(p, b, h, min_of(q, last_query), min_of(k, last_key), fault) & (q <= last_query) & (k <= last_key);
            of_query |= (Bits)live << 2 * half;
        }
        admitted |= of_query << (i / 2 * 4 + i % 2);
    }
    return admitted;
}

// Turns products into raw scores and weights. Where CHECKED, only the admitted pairs have any. Of a row without any
// weight the log-sum-exp is given as ∞. Where the score is a gain times the raw score, a head's gain is in `scale`.
template <bool CHECKED>
DEVICE void weigh(const Parameters& p, int b, int h, int query, int key, float scale, float (&scores)[COLUMNS / 8][4],
                  float (&weights)[COLUMNS / 8][4], Bits admitted, const float* log2_sum_exps, const float* row_gains,
                  const Two (&early)[at_least_one(EARLY)], Fault& fault) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
        Two rows;
        if (j < EARLY) rows = early[j < EARLY ? j : 0];
        else rows = *(const Two*)(log2_sum_exps + 8 * j + 2 * t);
        float units[2] = {scale * LOG2_E, scale * LOG2_E};
        if constexpr (ROW_GAINS && SCORE_IS_GAIN) {
            Two gains = *(const Two*)(row_gains + 8 * j + 2 * t);
            units[0] *= gains.x[0];
            units[1] *= gains.x[1];
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            bool live = true;
            if constexpr (CHECKED) live = admitted >> (4 * j + e) & 1;
            float s;
            if constexpr (SCORED && !SCORE_IS_GAIN) {
                int q = query + 8 * j + 2 * t + e % 2, k = key + g + e / 2 * 8;
                scores[j][e] *= scale;
                s = fmaf(score(p, b, h, q, k, scores[j][e], live, fault), LOG2_E, -rows.x[e % 2]);
            } else {
                s = fmaf(scores[j][e], units[e % 2], -rows.x[e % 2]);
            }
            weights[j][e] = exp2_approximate(s);
            if constexpr (CHECKED) weights[j][e] = live ? weights[j][e] : 0;
        }
    }
}

// Turns cotangents of weights into those of raw scores, and gives the terms. Where these need the raw scores (AGAIN),
// weights are made again from them: both would take too many registers.
template <bool CHECKED>
DEVICE void differentiate(const Parameters& p, int b, int h, int query, int key, const float (&scores)[COLUMNS / 8][4],
                          const float (&weights)[COLUMNS / 8][4], float (&slopes)[COLUMNS / 8][4], Bits admitted,
                          const float* log2_sum_exps, const float* deltas,
                          TermSums& term_sums, TileTerms& terms, Fault& fault) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
        Two rows = *(const Two*)(deltas + 8 * j + 2 * t), exponents = *(const Two*)(log2_sum_exps + 8 * j + 2 * t);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            int q = query + 8 * j + 2 * t + e % 2, k = key + g + e / 2 * 8;
            bool live = true;
            if constexpr (CHECKED) live = admitted >> (4 * j + e) & 1;
            float weight;
            if constexpr (AGAIN) {
                float s = score(p, b, h, q, k, scores[j][e], live, fault);
                weight = exp2_approximate(fmaf(s, LOG2_E, -exponents.x[e % 2]));
                if constexpr (CHECKED) weight = live ? weight : 0;
            } else {
                weight = weights[j][e];
            }
            float slope = weight * (slopes[j][e] - rows.x[e % 2]);
            float of_pair[at_least_one(TERMS)] = {};
            if constexpr (SCORED) {
                float of_raw_score = gradient(p, b, h, q, k, scores[j][e], slope, live, fault, of_pair);
                // The gain is a factor of what the slopes are summed to.
                if constexpr (!GAINED) slope = of_raw_score;
            }
            slopes[j][e] = live ? slope : 0;
#pragma unroll
            for (int i = 0; i < TERMS; ++i) of_pair[i] = live ? of_pair[i] : 0;
            term_sums.take(of_pair, j, e, terms);
        }
    }
}

// Multiplies slopes by the gains of their queries.
template <bool CHECKED>
DEVICE void gain_slopes(float (&slopes)[COLUMNS / 8][4], const float* row_gains, Bits admitted) {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
        Two gains = *(const Two*)(row_gains + 8 * j + lane_index() % 4 * 2);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            bool live = true;
            if constexpr (CHECKED) live = admitted >> (4 * j + e) & 1;
            slopes[j][e] = live ? slopes[j][e] * gains.x[e % 2] : 0;
        }
    }
}

// Sums as a left operand.
DEVICE void round_left(const float (&sums)[COLUMNS / 8][4], Left<Element> (&left)[COLUMNS / 16]) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 16; ++i) left[i] = left_of_sums(sums[2 * i], sums[2 * i + 1], Element{});
}

// As `accumulate_admitted`, of weights that are rounded already.
template <int BLOCKS, typename F>
DEVICE void accumulate_rounded(float (&sums)[BLOCKS][4], const Left<Element> (&weights)[COLUMNS / 16], Bits admitted,
                               float* panel, F element) {
    int lane = anew(lane_index()), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) {
        int word = i % 8 / 2, row = g + word % 2 * 8, column = i / 8 * 16 + word / 2 * 8 + 2 * t + i % 2;
        panel[row * (COLUMNS + 1) + column] =
            to_float(Element{(unsigned short)(weights[i / 8].words[word] >> 16 * (i % 2))});
    }
    ((Bits*)(panel + 16 * (COLUMNS + 1)))[lane_index()] = admitted;
    sync_warp();
    accumulate_panel<COLUMNS>(sums, panel, element);
    sync_warp();
}

// The warpgroup's rows of the queries' cotangents over admitted pairs only: where a row of keys is not finite, 0
// times it would show. All threads' bits are in `flags`; the slopes are those of the tile in panels.
template <int BLOCKS>
DEVICE void query_sums_of_admitted(float (&sums)[BLOCKS][4], const Shared& s, const Element* slopes, const Bits* flags,
                                   int row, int column) {
    int lane = anew(lane_index()), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < BLOCKS; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[j][e] = 0;
    }
    for (int i = 0; i < 2 * KEYS; ++i) {
        int key = i / 2, half = i % 2, q = row + g + half * 8;
        int thread = key / 16 * 32 + key % 8 * 4 + q % 8 / 2, bit = q / 8 * 4 + key % 16 / 8 * 2 + q % 2;
        if (!(flags[thread] >> bit & 1)) continue;
        float slope = to_float(slopes[panel_place<KEYS>(key, q)]);
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                if (e / 2 != half) continue;
                int at = column + 8 * j + 2 * t + e % 2;
                sums[j][e] += slope * to_float(s.key_tile[panel_place<KEYS>(key, at)]);
            }
        }
    }
}

// Stores the sums of 16 keys, by way of a panel of their own.
template <int SIZE, int BLOCKS>
DEVICE void store_keys(const Parameters& p, Element* to, long long row_stride, const float (&sums)[BLOCKS][4], int key,
                       float factor, Element* panel) {
    int lane = anew(lane_index()), place = lane % 16 * 64 + (lane / 16 ^ lane % 8) * PART, row = lane / 8, part = lane % 8;
#pragma unroll
    for (int first = 0; first < BLOCKS; first += 8) {
        // Of each four blocks of 8 × 8 a lane stores a row.
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unsigned words[4];
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                const float(&x)[4] = sums[first + 2 * i + word / 2];
                words[word] = pack<Element>(x[word % 2 * 2] * factor, x[word % 2 * 2 + 1] * factor);
            }
            store_matrices(panel + (place ^ i * 2 * PART), words);
        }
        sync_warp();
        int column = first * 8 + part * PART;
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            if (key + row + i >= (int)p.keys || column >= SIZE) continue;
            const Words* from = (const Words*)(panel + (row + i) * 64 + (part ^ (row + i) % 8) * PART);
            *(Words*)(to + (key + row + i) * row_stride + column) = *from;
        }
        sync_warp();
    }
}

// A thread's part of the inner product of 16 keys with sums for them. Keys without any are not looked at.
template <int BLOCKS>
DEVICE float keys_times(const float (&sums)[BLOCKS][4], const Element* keys, int first) {
    int g = lane_index() / 4, t = lane_index() % 4;
    float total = 0;
#pragma unroll
    for (int j = 0; j < BLOCKS; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            int at = panel_place<KEYS>(first + g + e / 2 * 8, 8 * j + 2 * t + e % 2);
            if (sums[j][e] != 0) total += sums[j][e] * to_float(keys[at]);
        }
    }
    return total;
}

// Scores, weights and slopes of this warpgroup's keys; the products that end at keys and at queries; terms.
DEVICE void multiply_and_differentiate(const Parameters& p) {
    Shared s = shared_parts();
    const Own own = *s.own;
    int thread = thread_index() - GROUP, warp = uniform(thread / 32), group = warp / 4;
    int g = lane_index() / 4, t = lane_index() % 4, key = own.key + 16 * warp;
    const Element *own_keys = s.key_tile + group * 64 * 64, *own_values = s.value_tile + group * 64 * 64;
    float scale = (float)p.scale;
    float key_sums[HEAD / 8][4] = {}, value_sums[VALUE / 8][4] = {};
    TermSums term_sums;
    term_sums.begin(s.terms, thread);
    Fault fault;
    // A factor of the scores, and of what ends at keys.
    float head_gain = 1;
    if constexpr (GAINED && !ROW_GAINS) head_gain = gain(p, 0, own.key_batch, own.key_head, 0, fault);
    const float factor = scale * (SCORE_IS_GAIN ? head_gain : 1);
    wait_barrier(&s.barriers->keys, 0);
    publish_to_matrix_units();
    bool keys_clean = true;
    if constexpr (MASKED) {
        keys_clean = !any_in_warpgroup(
            panels_hold_nonfinite<KEYS * HEAD, GROUP>(s.key_tile, thread_index() % GROUP), group + 1);
    }
    const unsigned long long own_key_panels = panel_of(own_keys, 1024), own_value_panels = panel_of(own_values, 1024);
    const unsigned long long query_panels = panel_of(s.query_tiles, 1024);
    const unsigned long long cotangent_panels = panel_of(s.cotangent_tiles, 1024);
    // The queries' cotangents of a tile are shared out by rows where there are 128, else by columns.
    constexpr bool BY_ROWS = COLUMNS == 128;
    constexpr int QUERY_BLOCKS = BY_ROWS ? HEAD / 8 : HEAD / 16;
    const int query_row = BY_ROWS ? 64 * group : 0, query_column = BY_ROWS ? 0 : HEAD / 2 * group;
    const unsigned long long turned_keys =
        turned_panels(s.key_tile + query_column / 64 * KEYS * 64 + query_column % 64, KEYS * 128);
    const unsigned long long turned_slopes = turned_panels(s.slope_tiles + query_row / 64 * KEYS * 64, KEYS * 128);
    const unsigned long long turned_queries = turned_panels(s.query_tiles, COLUMNS * 128);
    const unsigned long long turned_cotangents = turned_panels(s.cotangent_tiles, COLUMNS * 128);
    constexpr int PANEL_BYTES = 64 * sizeof(Element);

    float scores[COLUMNS / 8][4], slopes[COLUMNS / 8][4];
    // Begins the products of a tile's scores, or of its weights' cotangents: a group each.
    auto begin_scores = [&](int stage) {
        unsigned long long queries = further(query_panels, stage * COLUMNS * HEAD * (int)sizeof(Element));
        begin_products();
#pragma unroll
        for (int depth = 0; depth < HEAD; depth += 16) {
            int panel = depth / 64 * PANEL_BYTES, within = depth % 64 * (int)sizeof(Element);
            unsigned long long left = further(own_key_panels, panel * KEYS + within);
            unsigned long long right = further(queries, panel * COLUMNS + within);
            if (depth == 0) begin_panels<false, false>(scores, left, right, Element{});
            else multiply_panels<false, false>(scores, left, right, Element{});
        }
        close_products();
    };
    auto begin_slopes = [&](int stage) {
        unsigned long long cotangents = further(cotangent_panels, stage * COLUMNS * VALUE * (int)sizeof(Element));
        begin_products();
#pragma unroll
        for (int depth = 0; depth < VALUE; depth += 16) {
            int panel = depth / 64 * PANEL_BYTES, within = depth % 64 * (int)sizeof(Element);
            unsigned long long left = further(own_value_panels, panel * KEYS + within);
            unsigned long long right = further(cotangents, panel * COLUMNS + within);
            if (depth == 0) begin_panels<false, false>(slopes, left, right, Element{});
            else multiply_panels<false, false>(slopes, left, right, Element{});
        }
        close_products();
    };

    int b = -1, h = -1, count = 0;
    // The tile that is full next; false after the last.
    auto next = [&](Tile& tile) {
        wait_barrier(&s.barriers->full[count % STAGES], count / STAGES & 1);
        tile = s.tiles[count % WALKED];
        tile = Tile{uniform(tile.b), uniform(tile.h), uniform(tile.number), uniform(tile.state), 0};
        if (b >= 0 && (tile.number < 0 || tile.b != b || tile.h != h)) term_sums.leave(p, own, b, h);
        b = tile.b;
        h = tile.h;
        return tile.number >= 0;
    };
    // Slopes to shared memory, for the products that end at queries.
    auto share_slopes = [&](const Left<Element>(&slopes_left)[COLUMNS / 16]) {
        Element* slope_tile = s.slope_tiles + count % 2 * KEYS * COLUMNS;
        // Of each four blocks of 8 × 8 a lane stores a row. Blocks further on, other bits of the part are turned.
        int lane = anew(lane_index()), place = (16 * warp + lane % 16) * 64 + (lane / 16 ^ lane % 8) * PART;
#pragma unroll
        for (int i = 0; i < COLUMNS / 16; ++i) {
            store_matrices(slope_tile + i / 4 * KEYS * 64 + (place ^ i % 4 * 2 * PART), slopes_left[i].words);
        }
        publish_to_matrix_units();
    };
    // Sums to shared memory in the order of threads and their registers, which `store_queries` knows.
    auto pass_on = [&](const float(&query_sums)[QUERY_BLOCKS][4]) {
        wait_for_room(s, count);
#pragma unroll
        for (int j = 0; j < QUERY_BLOCKS; ++j) {
            const float(&x)[4] = query_sums[j];
            ((Four*)s.sums_of(count))[(group * QUERY_BLOCKS + j) * GROUP + thread % GROUP] = Four{{x[0], x[1], x[2], x[3]}};
        }
        publish_to_matrix_units();
        sync_warp();
        if (lane_index() == 0) give_sums(s, count);
    };
    // A tile's terms: those by key and head stay, others are passed on. The numbers of a capture that pairs own in the same
    // order as those sums, which `store_pairs` knows.
    auto pass_terms_on = [&](TileTerms& terms) {
        if constexpr (PASSED) {
            wait_barrier(&s.barriers->empty_terms[count % 2], count / 2 & 1 ^ 1);
            term_sums.pass_on(terms, count);
            sync_warp();
            if (lane_index() == 0) arrive(&s.barriers->full_terms[count % 2]);
        }
        if constexpr (PAIRS == 0) return;
        const float(&term)[COLUMNS / 8][4] = terms.pairs[0];
        wait_barrier(&s.barriers->empty_pairs, count & 1 ^ 1);
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
            ((Four*)s.pairs)[j * 2 * GROUP + thread] = Four{{term[j][0], term[j][1], term[j][2], term[j][3]}};
        }
        publish_to_matrix_units();
        sync_warp();
        if (lane_index() == 0) arrive(&s.barriers->full_pairs);
    };
    auto release = [&](int stage) {
        sync_warp();
        if (lane_index() == 0) arrive(&s.barriers->empty[stage]);
    };

    // Which pairs are admitted of a tile, once it is known. The mask over the next tile is found while sums are waited for; but
    // not where tiles are wide or weights are made again, which leaves no registers for it.
    constexpr bool AHEAD = MASKED && !AGAIN && COLUMNS == 64;
    auto admitted_next = [&](int number) {
        wait_barrier(&s.barriers->known[number % STAGES], number / STAGES & 1);
        Tile tile = s.tiles[number % WALKED];
        if (uniform(tile.number) < 0 || uniform(tile.state) == FULL) return ~(Bits)0;
        return admitted_pairs(p, uniform(tile.b), uniform(tile.h), uniform(tile.number) * COLUMNS, key, fault);
    };

    Tile tile;
    Bits admitted = ~(Bits)0;
    if constexpr (AHEAD) admitted = admitted_next(0);
    bool more = next(tile), clean = true;
    // Sums that no product has touched must not meet those under way: the loop is only entered where there is a tile,
    // and what it began is waited for where it ends.
    if (more) {
#pragma unroll 1
        do {
            int stage = count % STAGES, query = tile.number * COLUMNS;
            if constexpr (MASKED) {
                if (tile.state != FULL) {
                    int member = thread % GROUP;
                    const Element *queries = s.query_tiles + stage * COLUMNS * HEAD,
                                  *cotangents = s.cotangent_tiles + stage * COLUMNS * VALUE;
                    clean = !any_in_warpgroup(!keys_clean ||
                                                  panels_hold_nonfinite<COLUMNS * HEAD, GROUP>(queries, member) ||
                                                  panels_hold_nonfinite<COLUMNS * VALUE, GROUP>(cotangents, member),
                                              group + 1);
                    if (!clean) break;
                }
            }
            const float *log2_sum_exps = s.log2_sum_exps + stage * COLUMNS, *deltas = s.deltas + stage * COLUMNS;
            Two early[at_least_one(EARLY)];
            load_early(early, log2_sum_exps);
            // The matrix units have this tile's work before they are done with the one before.
            begin_scores(stage);
            wait_for_products_but<1>();
            if (count > 0) release(stage ^ 1);
            begin_slopes(stage);
            if constexpr (!AHEAD) {
                admitted = tile.state == FULL ? ~(Bits)0 : admitted_pairs(p, b, h, query, key, fault);
            }

            float weights[COLUMNS / 8][4];
            TileTerms terms;
            Left<Element> weights_left[COLUMNS / 16], slopes_left[COLUMNS / 16];
            wait_for_products_but<1>();
            hold(scores);
            if (tile.state == FULL) {
                weigh<false>(p, b, h, query, key, factor, scores, weights, admitted, log2_sum_exps,
                             s.row_gains + stage * COLUMNS, early, fault);
            } else {
                weigh<true>(p, b, h, query, key, factor, scores, weights, admitted, log2_sum_exps,
                            s.row_gains + stage * COLUMNS, early, fault);
            }
            round_left(weights, weights_left);
            unsigned long long cotangents = further(turned_cotangents, stage * COLUMNS * VALUE * (int)sizeof(Element));
            begin_products();
#pragma unroll
            for (int i = 0; i < COLUMNS / 16; ++i) {
                multiply_left<true>(value_sums, weights_left[i].words, further(cotangents, 16 * i * PANEL_BYTES), Element{});
            }
            close_products();
            wait_for_products_but<1>();
            hold(slopes);
            if constexpr (AGAIN) hold(scores);
            if (tile.state == FULL) {
                differentiate<false>(p, b, h, query, key, scores, weights, slopes, admitted, log2_sum_exps, deltas, term_sums,
                                     terms, fault);
            } else {
                differentiate<true>(p, b, h, query, key, scores, weights, slopes, admitted, log2_sum_exps, deltas, term_sums,
                                    terms, fault);
            }
            round_left(slopes, slopes_left);
            share_slopes(slopes_left);
            if constexpr (ROW_GAINS) {
                // The queries' cotangents are multiplied when they are done.
                const float* row_gains = s.row_gains + stage * COLUMNS;
                if (tile.state == FULL) gain_slopes<false>(slopes, row_gains, admitted);
                else gain_slopes<true>(slopes, row_gains, admitted);
                round_left(slopes, slopes_left);
            }

            float query_sums[QUERY_BLOCKS][4];
            unsigned long long queries = further(turned_queries, stage * COLUMNS * HEAD * (int)sizeof(Element));
            unsigned long long of_slopes = further(turned_slopes, count % 2 * KEYS * COLUMNS * (int)sizeof(Element));
            // The slopes of both warpgroups are there.
            meet(3, 2 * GROUP);
            begin_products();
#pragma unroll
            for (int i = 0; i < KEYS / 16; ++i) {
                unsigned long long left = further(of_slopes, 16 * i * PANEL_BYTES);
                unsigned long long right = further(turned_keys, 16 * i * PANEL_BYTES);
                if (i == 0) begin_panels<true, true>(query_sums, left, right, Element{});
                else multiply_panels<true, true>(query_sums, left, right, Element{});
            }
            close_products();
#pragma unroll
            for (int i = 0; i < COLUMNS / 16; ++i) {
                multiply_left<true>(key_sums, slopes_left[i].words, further(queries, 16 * i * PANEL_BYTES), Element{});
            }
            close_products();
            // Meanwhile there is time for these.
            pass_terms_on(terms);
            if constexpr (AHEAD) admitted = admitted_next(count + 1);
            wait_for_products_but<1>();
            hold(query_sums);
            pass_on(query_sums);
            count += 1;
            more = next(tile);
        } while (more);
        wait_for_products_but<0>();
        hold(key_sums);
        hold(value_sums);
    }
    if constexpr (MASKED) {
        // From a tile on that is not finite where pairs are masked out: slowly, and of admitted pairs only.
        if (!clean && count > 0) release(count % STAGES ^ 1);
        while (!clean && more) {
            int stage = count % STAGES, query = tile.number * COLUMNS;
            const Element *queries = s.query_tiles + stage * COLUMNS * HEAD,
                          *cotangents = s.cotangent_tiles + stage * COLUMNS * VALUE,
                          *slope_tile = s.slope_tiles + count % 2 * KEYS * COLUMNS;
            float weights[COLUMNS / 8][4];
            TileTerms terms;
            Left<Element> weights_left[COLUMNS / 16], slopes_left[COLUMNS / 16];
            admitted = admitted_pairs(p, b, h, query, key, fault);
            begin_scores(stage);
            begin_slopes(stage);
            wait_for_products_but<0>();
            hold(scores);
            hold(slopes);
            Two early[at_least_one(EARLY)];
            load_early(early, s.log2_sum_exps + stage * COLUMNS);
            weigh<true>(p, b, h, query, key, factor, scores, weights, admitted, s.log2_sum_exps + stage * COLUMNS,
                        s.row_gains + stage * COLUMNS, early, fault);
            round_left(weights, weights_left);
            differentiate<true>(p, b, h, query, key, scores, weights, slopes, admitted, s.log2_sum_exps + stage * COLUMNS,
                                s.deltas + stage * COLUMNS, term_sums, terms, fault);
            round_left(slopes, slopes_left);
            share_slopes(slopes_left);
            if constexpr (ROW_GAINS) {
                // The queries' cotangents are multiplied when they are done.
                const float* row_gains = s.row_gains + stage * COLUMNS;
                if (tile.state == FULL) gain_slopes<false>(slopes, row_gains, admitted);
                else gain_slopes<true>(slopes, row_gains, admitted);
                round_left(slopes, slopes_left);
            }
            pass_terms_on(terms);
            // One warp of the group after the other: they share a panel, where the sums come later.
            wait_for_room(s, count);
            float* panel = s.sums_of(count) + group * (16 * (COLUMNS + 1) + 64);
            any_in_warpgroup(false, group + 1);
            for (int turn = 0; turn < 4; ++turn) {
                if (warp % 4 == turn) {
                    accumulate_rounded(value_sums, weights_left, admitted, panel, [&](int row, int column) {
                        return cotangents[panel_place<COLUMNS>(row, column)];
                    });
                    accumulate_rounded(key_sums, slopes_left, admitted, panel, [&](int row, int column) {
                        return queries[panel_place<COLUMNS>(row, column)];
                    });
                }
                any_in_warpgroup(false, group + 1);
            }
            Bits* flags = (Bits*)s.sums_of(count);
            float query_sums[QUERY_BLOCKS][4];
            meet(3, 2 * GROUP);
            flags[thread] = admitted;
            meet(3, 2 * GROUP);
            query_sums_of_admitted(query_sums, s, slope_tile, flags, query_row + 16 * (warp % 4), query_column);
            meet(3, 2 * GROUP);
            pass_on(query_sums);
            release(stage);
            count += 1;
            more = next(tile);
        }
    }

    if constexpr (GAINS > 0 && !ROW_GAINS) {
        float sum = scale * keys_times<HEAD / 8>(key_sums, s.key_tile, 16 * warp);
        for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
        // No product reads the slopes any more.
        meet(3, 2 * GROUP);
        float* of_warps = (float*)s.slope_tiles;
        if (lane_index() == 0) of_warps[warp] = sum;
        meet(3, 2 * GROUP);
        if (thread < GAINS) {
            float all = 0;
            for (int i = 0; i < 8; ++i) all += of_warps[i];
            p.gain_sums[((thread * p.batch + own.key_batch) * p.heads + own.key_head) * own.tiles + own.number] =
                all * gain(p, 1 + thread, own.key_batch, own.key_head, 0, fault);
        }
    }
    // Nobody reads its values any more.
    Element* panel = s.value_tile + 16 * warp * 64;
    if constexpr (KEY_COTANGENT) {
        Element* to = p.key_cotangent + own.key_batch * p.key_cotangent_strides[0] +
                      own.key_head * p.key_cotangent_strides[1];
        store_keys<HEAD_SIZE>(p, to, p.key_cotangent_strides[2], key_sums, key, scale * head_gain, panel);
    }
    if constexpr (VALUE_COTANGENT) {
        Element* to = p.value_cotangent + own.key_batch * p.value_cotangent_strides[0] +
                      own.key_head * p.value_cotangent_strides[1];
        store_keys<VALUE_SIZE>(p, to, p.value_cotangent_strides[2], value_sums, key, 1, panel);
    }
    report(fault, p.fault, p.first_site);
    // No more sums: so much the warp that adds them is told, when both warpgroups' last ones are there.
    wait_for_room(s, count);
    if constexpr (PAIRS > 0) wait_barrier(&s.barriers->empty_pairs, count & 1 ^ 1);
    sync_warp();
    if (lane_index() != 0) return;
    if constexpr (PAIRS > 0) arrive(&s.barriers->full_pairs);
    else give_sums(s, count);
}

// Draws the keys that a block owns. Heads that run at the same time take blocks in turn: then the next heads' blocks
// start as far apart as these ones end, which is how far apart their turns are.
DEVICE Own draw(const Parameters& p) {
    Own own;
    int block = take_ticket(p.turns);
    own.tiles = ((int)p.keys + KEYS - 1) / KEYS;
    int heads = (int)p.key_batch * (int)p.key_heads, at_once = max_of(MULTIPROCESSORS / own.tiles, 1);
    int round = block / (at_once * own.tiles), rounds = (heads + at_once - 1) / at_once;
    int first = round * at_once, within = block - first * own.tiles;
    at_once = min_of(at_once, heads - first);
    int head = first + within % at_once;
    // The last round is walked down: under a causal mask the blocks of fewest tiles come last.
    own.step = ROUNDS && (rounds - round) % 2 == 0 ? 1 : -1;
    own.number = own.step > 0 ? own.tiles - 1 - within / at_once : within / at_once;
    own.key_head = head % (int)p.key_heads;
    own.key_batch = head / (int)p.key_heads;
    own.key = own.number * KEYS;
    return own;
}

KERNEL void __launch_bounds__(3 * GROUP, 1) attention_backward_hopper(const __grid_constant__ Parameters p) {
    Shared s = shared_parts();
    if (thread_index() == 0) {
        init_barrier(&s.barriers->keys, 2 * 32);
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(&s.barriers->known[stage], 1);
            init_barrier(&s.barriers->full[stage], 3);
            init_barrier(&s.barriers->empty[stage], 2 * GROUP / 32);
        }
        for (int i = 0; i < SUM_TILES; ++i) {
            init_barrier(&s.barriers->full_sums[i], 2 * GROUP / 32);
            init_barrier(&s.barriers->empty_sums[i], 1);
        }
        init_barrier(&s.barriers->full_pairs, 2 * GROUP / 32);
        init_barrier(&s.barriers->empty_pairs, 1);
        for (int i = 0; i < 2; ++i) {
            init_barrier(&s.barriers->full_terms[i], 2 * GROUP / 32);
            init_barrier(&s.barriers->empty_terms[i], 1);
        }
        *s.own = draw(p);
    }
    sync_threads();
    int warp = uniform(warp_index());
    if (warp < GROUP / 32) {
        give_registers<PRODUCER_REGISTERS>();
        if (warp == 0) {
            lead(p);
        } else if (warp == 1) {
            bring<true>(p);
        } else if (warp == 2) {
            bring<false>(p);
        } else {
            add_sums(p);
        }
    } else {
        take_registers<CONSUMER_REGISTERS>();
        multiply_and_differentiate(p);
    }
}
