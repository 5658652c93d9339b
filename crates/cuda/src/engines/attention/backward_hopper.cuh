// The gradient of attention on Hopper's matrix units, in one pass of five products (Dao 2023, algorithm 2; Shah et
// al. 2024, FlashAttention-3).
//
// A block owns KEYS keys of one key head and walks the tiles of COLUMNS queries that see them, the last first. Two
// warpgroups own 64 keys each: scores are transposed, their rows are keys, so that weights and slopes are left
// operands of the products that end at keys without leaving registers. Three warps bring tiles; one brings sums of
// queries' cotangents to memory.
//
// The queries' cotangents are sums over blocks. Each block adds its part to a tile in *turn*: after the block before
// it, in the order of keys, that has a part in this tile. So the order of additions is fixed, and with it every bit.
// A block's number is a ticket, drawn when it starts: whoever is waited for has started, and ends. As the blocks of a
// head start together and walk in the same direction, each soon runs one tile behind the one before it, and nobody
// waits any more.

constexpr int KEYS = 128, STAGES = 2, GROUP = 128, LOADERS = 96;
constexpr float LOG2_E = 1.4426950408889634f;

struct Barriers {
    unsigned long long keys, full[STAGES], empty[STAGES], full_sums, empty_sums;
};

// A tile of queries that the block does; −1 after the last.
struct Tile {
    int b, h, number, state;
};

// What a block has in shared memory.
struct Shared {
    Element *key_tile, *value_tile, *query_tiles, *cotangent_tiles, *slope_tiles;
    float *sums, *log2_sum_exps, *deltas, *scratch, *terms;
    Barriers* barriers;
    Tile* tiles;  // of each stage
    int* ticket;
};

DEVICE Shared shared_parts() {
    Shared s;
    s.key_tile = (Element*)shared_memory();
    s.value_tile = s.key_tile + KEYS * HEAD;
    s.query_tiles = s.value_tile + KEYS * VALUE;
    s.cotangent_tiles = s.query_tiles + STAGES * COLUMNS * HEAD;
    s.slope_tiles = s.cotangent_tiles + STAGES * COLUMNS * VALUE;
    s.sums = (float*)(s.slope_tiles + 2 * KEYS * COLUMNS);
    s.log2_sum_exps = s.sums + COLUMNS * HEAD;
    s.deltas = s.log2_sum_exps + STAGES * COLUMNS;
    s.scratch = s.deltas + STAGES * COLUMNS;
    s.terms = s.scratch + SCRATCH;
    s.barriers = (Barriers*)(s.terms + TERM_FLOATS);
    s.tiles = (Tile*)(s.barriers + 1);
    s.ticket = (int*)(s.tiles + STAGES);
    return s;
}

// Which keys a block owns.
struct Own {
    int number, tiles, key_batch, key_head, key;
};

// The last tile of queries before `tile` that the mask leaves something of, or −1; for all lanes of a warp.
DEVICE int tile_before(const Parameters& p, const Own& own, int b, int h, int tile, int& state) {
    if constexpr (!MASKED) {
        if (tile > 0) state = tile_state(p, b, h, (long long)(tile - 1) * COLUMNS, COLUMNS, own.key, KEYS);
        return tile - 1;
    }
    for (int from = tile - 1; from >= 0; from -= 32) {
        int mine = from - lane_index();
        int found = mine < 0 ? EMPTY : tile_state(p, b, h, (long long)mine * COLUMNS, COLUMNS, own.key, KEYS);
        unsigned some = ballot(found != EMPTY), full = ballot(found == FULL);
        if (some == 0) continue;
        int lane = lowest_bit(some);
        state = full >> lane & 1 ? FULL : PARTIAL;
        return from - lane;
    }
    return -1;
}

// The number of the tile of keys whose turn is before this block's at a tile of queries, plus 1; 0 for none.
DEVICE int turn_before(const Parameters& p, const Own& own, int b, int h, int tile) {
    if constexpr (!MASKED) return own.number;
    for (int from = own.number - 1; from >= 0; from -= 32) {
        int mine = from - lane_index();
        unsigned some = ballot(mine >= 0 && tile_state(p, b, h, (long long)tile * COLUMNS, COLUMNS,
                                                       (long long)mine * KEYS, KEYS) != EMPTY);
        if (some != 0) return from - lowest_bit(some) + 1;
    }
    return 0;
}

// Calls `visit(b, h, tile, state)` for each tile of queries that sees the block's keys.
template <typename V>
DEVICE void walk(const Parameters& p, const Own& own, V visit) {
    int group = (int)p.heads / (int)p.key_heads, tiles = ((int)p.queries + COLUMNS - 1) / COLUMNS;
    int first = p.key_batch == 1 ? 0 : own.key_batch, last = p.key_batch == 1 ? (int)p.batch - 1 : own.key_batch;
    for (int b = first; b <= last; ++b) {
        for (int h = own.key_head * group; h < (own.key_head + 1) * group; ++h) {
            int state = EMPTY;
            for (int tile = tile_before(p, own, b, h, tiles, state); tile >= 0;
                 tile = tile_before(p, own, b, h, tile, state)) {
                visit(b, h, tile, state);
            }
        }
    }
}

// Brings keys and values, then tile after tile queries, their outputs' cotangents, and what belongs to their rows.
DEVICE void bring(const Parameters& p, const Own& own, const Shared& s) {
    int thread = thread_index();
    auto done = [&](unsigned long long* barrier) {
        close_copies();
        wait_for_copies_but<0>();
        publish_to_matrix_units();
        sync_warp();
        if (lane_index() == 0) arrive(barrier);
    };
    load_panels<KEYS, HEAD_SIZE, HEAD, LOADERS>(
        s.key_tile,
        p.key + own.key_batch * p.key_strides[0] + own.key_head * p.key_strides[1] + own.key * p.key_strides[2],
        p.key_strides[2], (int)p.keys - own.key, thread);
    load_panels<KEYS, VALUE_SIZE, VALUE, LOADERS>(
        s.value_tile,
        p.value + own.key_batch * p.value_strides[0] + own.key_head * p.value_strides[1] +
            own.key * p.value_strides[2],
        p.value_strides[2], (int)p.keys - own.key, thread);
    done(&s.barriers->keys);
    int rows = ((int)p.queries + COLUMNS - 1) / COLUMNS * COLUMNS, count = 0;
    auto begin = [&](Tile tile) {
        int stage = count % STAGES;
        wait_barrier(&s.barriers->empty[stage], (count / STAGES & 1) ^ 1);
        count += 1;
        if (thread == 0) s.tiles[stage] = tile;
        return stage;
    };
    walk(
        p, own,
        [&](int b, int h, int tile, int state) {
            int stage = begin(Tile{b, h, tile, state});
            int query = tile * COLUMNS;
            load_panels<COLUMNS, HEAD_SIZE, HEAD, LOADERS>(
                s.query_tiles + stage * COLUMNS * HEAD,
                p.query + b * p.query_strides[0] + h * p.query_strides[1] + query * p.query_strides[2],
                p.query_strides[2], (int)p.queries - query, thread);
            load_panels<COLUMNS, VALUE_SIZE, VALUE, LOADERS>(
                s.cotangent_tiles + stage * COLUMNS * VALUE,
                p.output_cotangent + b * p.output_cotangent_strides[0] + h * p.output_cotangent_strides[1] +
                    query * p.output_cotangent_strides[2],
                p.output_cotangent_strides[2], (int)p.queries - query, thread);
            if (thread < COLUMNS / 4) {
                long long row = ((long long)b * (int)p.heads + h) * rows + query;
                copy_16(s.log2_sum_exps + stage * COLUMNS + 4 * thread, p.log2_sum_exp + row + 4 * thread, true);
                copy_16(s.deltas + stage * COLUMNS + 4 * thread, p.delta + row + 4 * thread, true);
            }
            done(&s.barriers->full[stage]);
        });
    int stage = begin(Tile{0, 0, -1, EMPTY});
    done(&s.barriers->full[stage]);
}

// Brings each tile's part of the queries' cotangents to memory, in turn.
DEVICE void add_sums(const Parameters& p, const Own& own, const Shared& s) {
    long long tiles = (p.queries + COLUMNS - 1) / COLUMNS;
    int count = 0;
    walk(
        p, own,
        [&](int b, int h, int tile, int) {
            int before = turn_before(p, own, b, h, tile);
            wait_barrier(&s.barriers->full_sums, count & 1);
            count += 1;
            if (lane_index() == 0) {
                long long number = (b * p.heads + h) * tiles + tile;
                int* turn = p.turns + 1 + number;
                float* to = p.query_sums + number * COLUMNS * HEAD;
                constexpr int BYTES = COLUMNS * HEAD * 4;
                if (before == 0) {
                    store_in_bulk(to, s.sums, BYTES);
                } else {
                    while (load_acquire(turn) != before) {
                    }
                    add_in_bulk(to, s.sums, BYTES);
                }
                wait_for_bulk_reads();
                arrive(&s.barriers->empty_sums);
                wait_for_bulk();
                store_release(turn, own.number + 1);
            }
            sync_warp();
        });
}

// Neighbouring numbers of shared memory.
struct alignas(8) Two {
    float x[2];
};
struct alignas(16) Four {
    float x[4];
};

// Which pairs of a tile are admitted, a bit each.
DEVICE Bits admitted_pairs(const Parameters& p, int b, int h, int query, int key, Fault& fault) {
    int g = lane_index() / 4, t = lane_index() % 4;
    Bits admitted = 0;
    // One after the other: registers are scarce.
#pragma unroll 1
    for (int i = 0; i < COLUMNS / 2; ++i) {
        int q = query + i / 4 * 8 + 2 * t + i % 2, k = key + g + i % 4 / 2 * 8;
        bool live = q < (int)p.queries && k < (int)p.keys && admits(p, b, h, q, k, fault);
        admitted |= (Bits)live << i;
    }
    return admitted;
}

// Turns products into raw scores and weights. Where CHECKED, only the admitted pairs have any. Of a row without any
// weight the log-sum-exp is given as ∞.
template <bool CHECKED>
DEVICE void weigh(const Parameters& p, int b, int h, int query, int key, float scale, float (&scores)[COLUMNS / 8][4],
                  float (&weights)[COLUMNS / 8][4], Bits admitted, const float* log2_sum_exps, Fault& fault) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
        Two rows = *(const Two*)(log2_sum_exps + 8 * j + 2 * t);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            bool live = true;
            if constexpr (CHECKED) live = admitted >> (4 * j + e) & 1;
            float s;
            if constexpr (SCORED) {
                int q = query + 8 * j + 2 * t + e % 2, k = key + g + e / 2 * 8;
                scores[j][e] *= scale;
                s = fmaf(score(p, b, h, q, k, scores[j][e], live, fault), LOG2_E, -rows.x[e % 2]);
            } else {
                s = fmaf(scores[j][e], scale * LOG2_E, -rows.x[e % 2]);
            }
            weights[j][e] = exp2_approximate(s);
            if constexpr (CHECKED) weights[j][e] = live ? weights[j][e] : 0;
        }
    }
}

// Turns cotangents of weights into those of raw scores, and gives the terms.
template <bool CHECKED>
DEVICE void differentiate(const Parameters& p, int b, int h, int query, int key, const float (&scores)[COLUMNS / 8][4],
                          const float (&weights)[COLUMNS / 8][4], float (&slopes)[COLUMNS / 8][4], Bits admitted,
                          const float* deltas, float (&terms)[at_least_one(TERMS)][COLUMNS / 8][4], Fault& fault) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
        Two rows = *(const Two*)(deltas + 8 * j + 2 * t);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            bool live = true;
            if constexpr (CHECKED) live = admitted >> (4 * j + e) & 1;
            float slope = weights[j][e] * (slopes[j][e] - rows.x[e % 2]);
            float of_pair[at_least_one(TERMS)] = {};
            if constexpr (SCORED) {
                int q = query + 8 * j + 2 * t + e % 2, k = key + g + e / 2 * 8;
                slope = gradient(p, b, h, q, k, scores[j][e], slope, live, fault, of_pair);
            }
            slopes[j][e] = live ? slope : 0;
#pragma unroll
            for (int i = 0; i < TERMS; ++i) terms[i][j][e] = live ? of_pair[i] : 0;
        }
    }
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

// Stores the sums of 16 keys.
template <int SIZE, int BLOCKS>
DEVICE void store_keys(const Parameters& p, Element* to, long long row_stride, const float (&sums)[BLOCKS][4], int key,
                       float factor) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int k = key + g + half * 8;
        if (k >= p.keys) continue;
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j) {
            int column = 8 * j + 2 * t;
            if (column < SIZE) {
                *(unsigned*)(to + k * row_stride + column) =
                    pack<Element>(sums[j][2 * half] * factor, sums[j][2 * half + 1] * factor);
            }
        }
    }
}

// Scores, weights and slopes of this warpgroup's keys; the products that end at keys and at queries; terms.
DEVICE void multiply_and_differentiate(const Parameters& p, const Own& own, const Shared& s) {
    // The queries' cotangents of a tile are shared out by rows where there are 128, else by columns.
    constexpr bool BY_ROWS = COLUMNS == 128;
    constexpr int QUERY_BLOCKS = BY_ROWS ? HEAD / 8 : HEAD / 16;
    int thread = thread_index() - GROUP, warp = uniform(thread / 32), group = warp / 4;
    int g = lane_index() / 4, t = lane_index() % 4, key = own.key + 16 * warp;
    const Element *own_keys = s.key_tile + group * 64 * 64, *own_values = s.value_tile + group * 64 * 64;
    float scale = (float)p.scale;
    float key_sums[HEAD / 8][4] = {}, value_sums[VALUE / 8][4] = {};
    TermSums term_sums;
    term_sums.begin(s.terms, thread);
    Fault fault;
    wait_barrier(&s.barriers->keys, 0);
    bool keys_clean = true;
    if constexpr (MASKED) {
        keys_clean = !any_in_warpgroup(
            panels_hold_nonfinite<KEYS * HEAD, GROUP>(s.key_tile, thread_index() % GROUP), group + 1);
    }
    int b = -1, h = -1;
    for (int count = 0;; ++count) {
            int stage = count % STAGES;
            wait_barrier(&s.barriers->full[stage], count / STAGES & 1);
            Tile tile = s.tiles[stage];
            tile.number = uniform(tile.number);
            tile.b = uniform(tile.b);
            tile.h = uniform(tile.h);
            if (b >= 0 && (tile.number < 0 || tile.b != b || tile.h != h)) term_sums.leave(p, own, b, h);
            if (tile.number < 0) break;
            b = tile.b;
            h = tile.h;
            int state = uniform(tile.state), query = tile.number * COLUMNS;
            const Element* query_tile = s.query_tiles + stage * COLUMNS * HEAD;
            const Element* cotangent_tile = s.cotangent_tiles + stage * COLUMNS * VALUE;
            Element* slope_tile = s.slope_tiles + count % 2 * KEYS * COLUMNS;
            const float *log2_sum_exps = s.log2_sum_exps + stage * COLUMNS, *deltas = s.deltas + stage * COLUMNS;
            float scores[COLUMNS / 8][4], slopes[COLUMNS / 8][4], weights[COLUMNS / 8][4];
            Bits admitted = state == FULL ? ~(Bits)0 : admitted_pairs(p, b, h, query, key, fault);
            begin_products();
#pragma unroll
            for (int depth = 0; depth < HEAD; depth += 16) {
                int panel = depth / 64, within = depth % 64;
                multiply_panels<false, false>(scores, panel_of(own_keys + panel * KEYS * 64 + within, 1024),
                                              panel_of(query_tile + panel * COLUMNS * 64 + within, 1024), depth > 0,
                                              Element{});
            }
            close_products();
#pragma unroll
            for (int depth = 0; depth < VALUE; depth += 16) {
                int panel = depth / 64, within = depth % 64;
                multiply_panels<false, false>(slopes, panel_of(own_values + panel * KEYS * 64 + within, 1024),
                                              panel_of(cotangent_tile + panel * COLUMNS * 64 + within, 1024),
                                              depth > 0, Element{});
            }
            close_products();
            wait_for_products_but<1>();
            hold(scores);
            if (state == FULL) {
                weigh<false>(p, b, h, query, key, scale, scores, weights, admitted, log2_sum_exps, fault);
            } else {
                weigh<true>(p, b, h, query, key, scale, scores, weights, admitted, log2_sum_exps, fault);
            }
            Left<Element> weights_left[COLUMNS / 16], slopes_left[COLUMNS / 16];
#pragma unroll
            for (int i = 0; i < COLUMNS / 16; ++i) {
                weights_left[i] = left_of_sums(weights[2 * i], weights[2 * i + 1], Element{});
            }
            wait_for_products_but<0>();
            hold(slopes);
            float terms[at_least_one(TERMS)][COLUMNS / 8][4];
            if (state == FULL) {
                differentiate<false>(p, b, h, query, key, scores, weights, slopes, admitted, deltas, terms, fault);
            } else {
                differentiate<true>(p, b, h, query, key, scores, weights, slopes, admitted, deltas, terms, fault);
            }
#pragma unroll
            for (int i = 0; i < COLUMNS / 16; ++i) {
                slopes_left[i] = left_of_sums(slopes[2 * i], slopes[2 * i + 1], Element{});
#pragma unroll
                for (int word = 0; word < 4; ++word) {
                    int row = 16 * warp + g + word % 2 * 8, column = 16 * i + word / 2 * 8 + 2 * t;
                    *(unsigned*)(slope_tile + panel_place<KEYS>(row, column)) = slopes_left[i].words[word];
                }
            }
            term_sums.add(p, own, b, h, query, terms, s.scratch, count);
            publish_to_matrix_units();

            bool clean = true;
            if constexpr (MASKED) {
                if (state != FULL) {
                    int member = thread_index() % GROUP;
                    clean = keys_clean &&
                            !any_in_warpgroup(panels_hold_nonfinite<COLUMNS * HEAD, GROUP>(query_tile, member) ||
                                                  panels_hold_nonfinite<COLUMNS * VALUE, GROUP>(cotangent_tile, member),
                                              group + 1);
                }
            }
            float query_sums[QUERY_BLOCKS][4];
            int row = BY_ROWS ? 64 * group : 0, column = BY_ROWS ? 0 : HEAD / 2 * group;
            auto pass_on = [&] {
                term_sums.finish(p, own, b, h, query, count);
                // In the order of threads and their registers: `store_queries` knows it.
                wait_barrier(&s.barriers->empty_sums, count & 1 ^ 1);
#pragma unroll
                for (int j = 0; j < QUERY_BLOCKS; ++j) {
                    const float(&x)[4] = query_sums[j];
                    ((Four*)s.sums)[(group * QUERY_BLOCKS + j) * GROUP + thread % GROUP] = Four{{x[0], x[1], x[2], x[3]}};
                }
                publish_to_matrix_units();
                sync_warp();
                if (lane_index() == 0) arrive(&s.barriers->full_sums);
            };
            if (clean) {
                begin_products();
#pragma unroll
                for (int i = 0; i < COLUMNS / 16; ++i) {
                    multiply_left<true>(value_sums, weights_left[i].words,
                                        turned_panels(cotangent_tile + 16 * i * 64, COLUMNS * 128), Element{});
                }
                close_products();
                meet(3, 2 * GROUP);
#pragma unroll
                for (int i = 0; i < KEYS / 16; ++i) {
                    multiply_panels<true, true>(
                        query_sums, turned_panels(slope_tile + (row / 64 * KEYS + 16 * i) * 64, KEYS * 128),
                        turned_panels(s.key_tile + (column / 64 * KEYS + 16 * i) * 64 + column % 64, KEYS * 128), i > 0,
                        Element{});
                }
                close_products();
#pragma unroll
                for (int i = 0; i < COLUMNS / 16; ++i) {
                    multiply_left<true>(key_sums, slopes_left[i].words,
                                        turned_panels(query_tile + 16 * i * 64, COLUMNS * 128), Element{});
                }
                close_products();
                wait_for_products_but<1>();
                hold(query_sums);
                pass_on();
                wait_for_products_but<0>();
                hold(key_sums);
                hold(value_sums);
            } else if constexpr (MASKED) {
                // One warp of the group after the other: they share a panel.
                float* panel = s.scratch + group * (SCRATCH / 2);
                for (int turn = 0; turn < 4; ++turn) {
                    if (warp % 4 == turn) {
                        accumulate_rounded(value_sums, weights_left, admitted, panel, [&](int row, int column) {
                            return cotangent_tile[panel_place<COLUMNS>(row, column)];
                        });
                        accumulate_rounded(key_sums, slopes_left, admitted, panel, [&](int row, int column) {
                            return query_tile[panel_place<COLUMNS>(row, column)];
                        });
                    }
                    any_in_warpgroup(false, group + 1);
                }
                Bits* flags = (Bits*)s.scratch;
                meet(3, 2 * GROUP);
                flags[thread] = admitted;
                meet(3, 2 * GROUP);
                query_sums_of_admitted(query_sums, s, slope_tile, flags, row + 16 * (warp % 4), column);
                meet(3, 2 * GROUP);
                pass_on();
            }
            sync_warp();
            if (lane_index() == 0) arrive(&s.barriers->empty[stage]);
    }

    if constexpr (KEY_COTANGENT) {
        Element* to = p.key_cotangent + own.key_batch * p.key_cotangent_strides[0] +
                      own.key_head * p.key_cotangent_strides[1];
        store_keys<HEAD_SIZE>(p, to, p.key_cotangent_strides[2], key_sums, key, scale);
    }
    if constexpr (VALUE_COTANGENT) {
        Element* to = p.value_cotangent + own.key_batch * p.value_cotangent_strides[0] +
                      own.key_head * p.value_cotangent_strides[1];
        store_keys<VALUE_SIZE>(p, to, p.value_cotangent_strides[2], value_sums, key, 1);
    }
    report(fault, p.fault, p.first_site);
}

KERNEL void __launch_bounds__(3 * GROUP, 1) attention_backward_hopper(const __grid_constant__ Parameters p) {
    Shared s = shared_parts();
    if (thread_index() == 0) {
        init_barrier(&s.barriers->keys, LOADERS / 32);
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(&s.barriers->full[stage], LOADERS / 32);
            init_barrier(&s.barriers->empty[stage], 2 * GROUP / 32);
        }
        init_barrier(&s.barriers->full_sums, 2 * GROUP / 32);
        init_barrier(&s.barriers->empty_sums, 1);
        *s.ticket = take_ticket(p.turns);
    }
    sync_threads();
    Own own;
    int block = *s.ticket;
    own.tiles = (p.keys + KEYS - 1) / KEYS;
    own.number = block % own.tiles;
    own.key_head = block / own.tiles % (int)p.key_heads;
    own.key_batch = block / own.tiles / (int)p.key_heads;
    own.key = own.number * KEYS;
    if (thread_index() < GROUP) {
        give_registers<PRODUCER_REGISTERS>();
        if (thread_index() < LOADERS) bring(p, own, s);
        else add_sums(p, own, s);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        multiply_and_differentiate(p, own, s);
    }
}
