// Attention on Hopper's matrix units: one warpgroup brings tiles of keys and values to shared memory, others own 64
// queries each (Shah et al. 2024, FlashAttention-3). The scores of the next tile and the last weights times values
// are asked for together; the softmax of the former runs while the latter are multiplied. The groups take turns to
// ask, so that one takes exponentials while the other's products run.
//
// The copies are the threads' own, 16 bytes each, so that any strides and lengths are served.

constexpr int STAGES = 2;

struct Barriers {
    unsigned long long full_query, empty_query, full_keys[STAGES], full_values[STAGES], empty_keys[STAGES],
        empty_values[STAGES];
    int key[STAGES], state[STAGES];  // of a stage's tile: its first key, −1 after the last
    int dirty[STAGES];               // the last tile in this place that held a value that is not finite
};

// Rows of a matrix to panels of 64 columns, by THREADS threads; zeros past its rows, and past its columns as far as
// products are deep. Who copies is a single warp on its scheduler, whose every instruction is waited for: a tile within
// the matrix goes without any but the copies and a sum for each row.
template <int TILE_ROWS, int SIZE, int THREADS>
DEVICE void load_panels(Element* tile, const Element* from, long long row_stride, int rows, int thread) {
    constexpr int STEP = THREADS / PART, DEEP = (SIZE + 15) / 16 * 16, PANELS = (SIZE + 63) / 64;
    int row = thread / PART, part = thread % PART;
    Element* to = tile + row * 64 + (part ^ row % 8) * PART;
    const Element* source = from + row * row_stride + part * PART;
    if (rows >= TILE_ROWS && SIZE == DEEP) {
#pragma unroll
        for (int step = 0; step < TILE_ROWS / STEP; ++step) {
#pragma unroll
            for (int panel = 0; panel < PANELS; ++panel) {
                if (panel * 64 + 64 > SIZE && panel * 64 + part * PART >= SIZE) continue;
                copy_16(to + (panel * TILE_ROWS + step * STEP) * 64, source + panel * 64);
            }
            source += STEP * row_stride;
        }
        return;
    }
#pragma unroll 1
    for (int step = 0; step < TILE_ROWS / STEP; ++step) {
        bool inside = row + step * STEP < rows;
#pragma unroll
        for (int panel = 0; panel < PANELS; ++panel) {
            int column = panel * 64 + part * PART;
            if (column >= DEEP) continue;
            bool whole = inside && column < SIZE;
            copy_16(to + (panel * TILE_ROWS + step * STEP) * 64, whole ? source + panel * 64 : from, whole);
        }
        source += STEP * row_stride;
    }
}

// Calls `each` for the tiles that the mask leaves, in order: its first key, and what is left of it.
template <typename F>
DEVICE void walk(const Parameters& p, int b, int h, int first, F each) {
    int keys = p.keys, tiles = (keys + COLUMNS - 1) / COLUMNS;
    bool whole_rows = first + ROWS <= (int)p.queries;
    if constexpr (!MASKED) {
        for (int tile = 0; tile < tiles; ++tile) {
            each(tile * COLUMNS, whole_rows && (tile + 1) * COLUMNS <= keys ? FULL : PARTIAL);
        }
    } else {
        int slice = (p.map_batch == 1 ? 0 : b) * (int)p.map_heads + (p.map_heads == 1 ? 0 : h);
        int width = p.key_blocks, top = first / MAP_ROWS;
        int rows = (min_of(first + ROWS, (int)p.queries) - 1) / MAP_ROWS - top + 1;
        const unsigned char* map = p.blocks + ((long long)slice * p.query_blocks + top) * width;
        // A tile for each lane.
#pragma unroll 1
        for (int base = 0; base < tiles; base += 32) {
            int key = (base + lane_index()) * COLUMNS, right = (min_of(key + COLUMNS, keys) - 1) / MAP_COLUMNS;
            bool any = false, all = whole_rows && key + COLUMNS <= keys;
            for (int column = key / MAP_COLUMNS; column <= right && key < keys; ++column) {
                for (int row = 0; row < rows; ++row) {
                    int state = map[row * width + column];
                    any = any || state != EMPTY;
                    all = all && state == FULL;
                }
            }
            unsigned left = ballot(any), full = ballot(all);
#pragma unroll 1
            while (left != 0) {
                int lane = count_bits((left & -left) - 1);
                left &= left - 1;
                each((base + lane) * COLUMNS, full >> lane & 1 ? FULL : PARTIAL);
            }
        }
    }
}

// A block's share of the work: 64·GROUPS queries of a head.
struct Item {
    int b, h, first;
};
DEVICE Item item_of(const Parameters& p, int number) {
    int tiles = ((int)p.queries + ROWS - 1) / ROWS, heads = (int)p.batch * (int)p.heads;
    // Under a mask as many heads together as make two items for each multiprocessor, the last queries first: under a causal
    // one they see the most keys, so that short items fill what long ones leave.
    int at_once = MASKED ? max_of(2 * MULTIPROCESSORS / tiles, 1) : 1;
    int first = number / (at_once * tiles) * at_once, within = number - first * tiles;
    at_once = min_of(at_once, heads - first);
    int head = first + within % at_once, tile = tiles - 1 - within / at_once;
    return Item{head / (int)p.heads, head % (int)p.heads, tile * ROWS};
}

// Where the keys or values of an item begin.
DEVICE const Element* head_of(const Parameters& p, const Item& item, const Element* all, const long long* strides) {
    int key_batch = p.key_batch == 1 ? 0 : item.b, key_head = item.h / ((int)p.heads / (int)p.key_heads);
    return all + key_batch * strides[0] + key_head * strides[1];
}

// Brings the queries and then, tile after tile, keys.
DEVICE void produce_keys(const Parameters& p, Element* query_tile, Element* key_tiles, Barriers* barriers) {
    int thread = thread_index() % (GROUP / 2), number = 0, items = 0;
    for (int i = block_index(); i < (int)p.items; i += block_count()) {
        Item item = item_of(p, i);
        const Element* keys = head_of(p, item, p.key, p.key_strides);
        wait_barrier(&barriers->empty_query, items & 1 ^ 1);
        items += 1;
        load_panels<ROWS, HEAD_SIZE, GROUP / 2>(
            query_tile,
            p.query + item.b * p.query_strides[0] + item.h * p.query_strides[1] + item.first * p.query_strides[2],
            p.query_strides[2], (int)p.queries - item.first, thread);
        bool asked = true;  // for the queries, which come with the first keys
        auto bring = [&](int key, int state) {
            int stage = number % STAGES;
            wait_barrier(&barriers->empty_keys[stage], number / STAGES & 1 ^ 1);
            number += 1;
            if (thread == 0) {
                barriers->key[stage] = key;
                barriers->state[stage] = state;
            }
            if (key >= 0) {
                load_panels<COLUMNS, HEAD_SIZE, GROUP / 2>(key_tiles + stage * COLUMNS * HEAD,
                                                                 keys + key * p.key_strides[2], p.key_strides[2],
                                                                 (int)p.keys - key, thread);
            }
            close_copies();
            wait_for_copies_but<0>();
            publish_to_matrix_units();
            if (asked) arrive(&barriers->full_query);
            asked = false;
            arrive(&barriers->full_keys[stage]);
        };
        walk(p, item.b, item.h, item.first, bring);
        bring(-1, EMPTY);
    }
}

// The bits of an exponent, all of which are set in what is not finite.
DEVICE unsigned exponent_bits(bfloat16) { return 0x7f80u; }
DEVICE unsigned exponent_bits(float16) { return 0x7c00u; }

// A word of two elements with those that are not finite made zero.
DEVICE unsigned finite_word(unsigned word, unsigned exponent) {
    if ((word & exponent) == exponent) word &= 0xffff0000u;
    return (word >> 16 & exponent) == exponent ? word & 0xffffu : word;
}

// Brings values, tile after tile.
DEVICE void produce_values(const Parameters& p, Element* value_tiles, Barriers* barriers) {
    int thread = thread_index() % (GROUP / 2), number = 0;
    for (int i = block_index(); i < (int)p.items; i += block_count()) {
        Item item = item_of(p, i);
        const Element* values = head_of(p, item, p.value, p.value_strides);
        walk(p, item.b, item.h, item.first, [&](int key, int state) {
            int stage = number % STAGES;
            wait_barrier(&barriers->empty_values[stage], number / STAGES & 1 ^ 1);
            number += 1;
            Element* tile = value_tiles + stage * COLUMNS * VALUE;
            load_panels<COLUMNS, VALUE_SIZE, GROUP / 2>(tile, values + key * p.value_strides[2],
                                                               p.value_strides[2], (int)p.keys - key, thread);
            close_copies();
            wait_for_copies_but<0>();
            if constexpr (MASKED) {
                // A value that is not finite would show in rows that the mask keeps from it: zero instead, and
                // the rows that see it add it later. Each thread looks at what it copied.
                if (state == PARTIAL) {
                    bool found = false;
                    unsigned* words = (unsigned*)(tile + thread / PART * 64 + (thread % PART ^ thread / PART) * PART);
#pragma unroll 1
                    for (int step = 0; step < COLUMNS / 8 * (VALUE / 64); ++step) {
                        if (step / (COLUMNS / 8) * 64 + thread % PART * PART >= VALUE_SIZE) continue;
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            unsigned word = words[step * 256 + i], finite = finite_word(word, exponent_bits(Element{}));
                            if (finite == word) continue;
                            words[step * 256 + i] = finite;
                            found = true;
                        }
                    }
                    if (found) barriers->dirty[stage] = number;
                }
            }
            publish_to_matrix_units();
            arrive(&barriers->full_values[stage]);
        });
    }
}

// The products of this warpgroup's queries and a tile's keys, at these places.
DEVICE void multiply_keys(float (&scores)[COLUMNS / 8][4], unsigned queries, unsigned keys) {
#pragma unroll
    for (int depth = 0; depth < HEAD_SIZE; depth += 16) {
        int panel = depth / 64, within = depth % 64 / PART;
        multiply_shared(scores, panels_at<16, 1024>(queries + panel * ROWS * PART + within),
                        panels_at<16, 1024>(keys + panel * COLUMNS * PART + within), depth > 0);
    }
}

// output += weights · values.
DEVICE void multiply_values(float (&output)[WIDTH / 8][4], const unsigned (&weights)[COLUMNS / 16][4],
                            unsigned values) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 16; ++i) {
        multiply_weights(output, weights[i], panels_at<COLUMNS * 128, 1024>(values + 16 * i * PART));
    }
}

// Scores, softmax and output of this warpgroup's 64 queries.
DEVICE void consume(const Parameters& p, Element* query_tile, const Element* key_tiles, const Element* value_tiles,
                    Element* panels, Barriers* barriers) {
    int group = thread_index() / GROUP - 1, warp = warp_index() % 4;
    Element* own_queries = query_tile + group * 64 * 64;
    Element* panel = panels + (4 * group + warp) * (ADMITTED_BYTES / 2);
    float unit = LOG2_E * (PLAIN ? (float)p.scale : 1.0f);
    Fault fault;
    unsigned query_place = place_of(own_queries), key_place = place_of(key_tiles), value_place = place_of(value_tiles);
    int keys = 0, values = 0, items = 0;  // how many came so far
    if (TURNS && group == GROUPS - 1) give_turn(0);
    for (int i = block_index(); i < (int)p.items; i += block_count()) {
        Item item = item_of(p, i);
        int query = item.first + group * 64 + 16 * warp;
        float output[WIDTH / 8][4] = {}, scores[COLUMNS / 8][4];
        unsigned weights[COLUMNS / 16][4];
        Softmax softmax;
        Scorer scorer(p, item.b, item.h, query);
        wait_barrier(&barriers->full_query, items & 1);
        items += 1;
        int stage = keys % STAGES;
        wait_barrier(&barriers->full_keys[stage], keys / STAGES & 1);
        keys += 1;
        int key = barriers->key[stage], state = barriers->state[stage];
        bool any = key >= 0;
        if (any) {
            begin_products();
            multiply_keys(scores, uniform(query_place), uniform(key_place + stage * (COLUMNS * HEAD / PART)));
            close_products();
            wait_for_products_but<0>();
            hold(scores);
            arrive_once(&barriers->empty_keys[stage]);
            score_tile(p, item.b, item.h, scorer, key, state, scores, fault);
            softmax.soften(scores, unit);
            softmax.round(scores, weights);
            while (true) {
                // The values of the tile whose weights are known are still to be multiplied.
                stage = keys % STAGES;
                wait_barrier(&barriers->full_keys[stage], keys / STAGES & 1);
                int next = barriers->key[stage];
                if (next < 0) break;
                int next_state = barriers->state[stage], last = values % STAGES, parity = values / STAGES & 1;
                keys += 1;
                values += 1;
                unsigned query_panels = uniform(query_place);
                unsigned key_panels = uniform(key_place + stage * (COLUMNS * HEAD / PART));
                unsigned value_panels = uniform(value_place + last * (COLUMNS * VALUE / PART));
                if constexpr (TURNS) wait_turn(group);
                begin_products();
                multiply_keys(scores, query_panels, key_panels);
                close_products();
                wait_barrier(&barriers->full_values[last], parity);
                begin_products();
                multiply_values(output, weights, value_panels);
                close_products();
                if constexpr (TURNS) give_turn((group + 1) % GROUPS);
                wait_for_products_but<1>();
                hold(scores);
                arrive_once(&barriers->empty_keys[stage]);
                score_tile(p, item.b, item.h, scorer, next, next_state, scores, fault);
                softmax.soften(scores, unit);
                finish(softmax.total[0] + softmax.total[1]);
                wait_for_products_but<0>();
                hold(output);
                pin(weights);
                if constexpr (MASKED) {
                    if (state == PARTIAL && barriers->dirty[last] == values) {
                        accumulate_unfinite(p, item.b, item.h, scorer, key, output, weights, panel);
                    }
                }
                arrive_once(&barriers->empty_values[last]);
                key = next;
                state = next_state;
                softmax.round(scores, weights);
                softmax.rescale(output);
            }
        }
        // What came after the last tile.
        if (any) keys += 1;
        arrive_once(&barriers->empty_keys[stage]);
        if (any) {
            int last = values % STAGES;
            wait_barrier(&barriers->full_values[last], values / STAGES & 1);
            values += 1;
            begin_products();
            multiply_values(output, weights, uniform(value_place + last * (COLUMNS * VALUE / PART)));
            close_products();
            wait_for_products_but<0>();
            hold(output);
            if constexpr (MASKED) {
                if (state == PARTIAL && barriers->dirty[last] == values) {
                    accumulate_unfinite(p, item.b, item.h, scorer, key, output, weights, panel);
                }
            }
            arrive_once(&barriers->empty_values[last]);
        }
        store_output(p, item.b, item.h, query, output, softmax, own_queries + 16 * warp * 64);
        arrive_once(&barriers->empty_query);
    }
    report(fault, p.fault, p.first_site);
}

KERNEL void __launch_bounds__((GROUPS + 1) * GROUP, 1) attention_forward_hopper(const __grid_constant__ Parameters p) {
    Element* query_tile = (Element*)shared_memory();
    Element* key_tiles = query_tile + ROWS * HEAD;
    Element* value_tiles = key_tiles + STAGES * COLUMNS * HEAD;
    Barriers* barriers = (Barriers*)(value_tiles + STAGES * COLUMNS * VALUE);
    Element* panels = (Element*)(barriers + 1);
    if (thread_index() == 0) {
        init_barrier(&barriers->full_query, GROUP / 2);
        init_barrier(&barriers->empty_query, 4 * GROUPS);
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(&barriers->full_keys[stage], GROUP / 2);
            init_barrier(&barriers->full_values[stage], GROUP / 2);
            init_barrier(&barriers->empty_keys[stage], 4 * GROUPS);
            init_barrier(&barriers->empty_values[stage], 4 * GROUPS);
            barriers->dirty[stage] = 0;
        }
    }
    sync_threads();
    if (thread_index() < GROUP) {
        give_registers<PRODUCER_REGISTERS>();
        if (warp_index() < 2) produce_keys(p, query_tile, key_tiles, barriers);
        else produce_values(p, value_tiles, barriers);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume(p, query_tile, key_tiles, value_tiles, panels, barriers);
    }
}
