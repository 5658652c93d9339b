// Attention on Hopper's matrix units: one warpgroup brings tiles of keys and values to shared memory, two others
// own 64 queries each (Shah et al. 2024, FlashAttention-3). While one of these takes the exponentials of its
// scores, the other's products run.
//
// The copies are the threads' own, 16 bytes each, so that any strides and lengths are served.

constexpr int ROWS = 128, STAGES = 2, GROUP = 128, PART = 8;  // elements of 16 bytes

// Rows of a matrix to panels of 64 columns; zeros past its rows and columns.
template <int TILE_ROWS, int SIZE, int PADDED>
DEVICE void load_panels(Element* tile, const Element* from, long long row_stride, long long rows) {
    // Few at a time: this warpgroup has few registers.
#pragma unroll 4
    for (int i = thread_index() % GROUP; i < TILE_ROWS * (PADDED / PART); i += GROUP) {
        int row = i / (PADDED / PART), part = i % (PADDED / PART);
        bool inside = row < rows && part * PART < SIZE;
        Element* to = tile + (part / 8 * TILE_ROWS + row) * 64 + (part % 8 ^ row % 8) * PART;
        copy_16(to, inside ? from + row * row_stride + part * PART : from, inside);
    }
}

// An element of a tile in panels.
template <int TILE_ROWS>
DEVICE Element panel_element(const Element* tile, int row, int column) {
    int part = column % 64 / PART;
    return tile[(column / 64 * TILE_ROWS + row) * 64 + (part ^ row % 8) * PART + column % PART];
}

struct Barriers {
    unsigned long long query, full_keys[STAGES], full_values[STAGES], empty_keys[STAGES], empty_values[STAGES];
};

// Brings the queries and then, tile after tile, keys and values.
DEVICE void produce(const Parameters& p, int b, int h, long long first, Element* query_tile, Element* key_tiles,
                    Element* value_tiles, Barriers* barriers) {
    int key_batch = p.key_batch == 1 ? 0 : b, key_head = h / (p.heads / p.key_heads);
    const Element* keys = p.key + key_batch * p.key_strides[0] + key_head * p.key_strides[1];
    const Element* values = p.value + key_batch * p.value_strides[0] + key_head * p.value_strides[1];
    load_panels<ROWS, HEAD_SIZE, HEAD>(
        query_tile, p.query + b * p.query_strides[0] + h * p.query_strides[1] + first * p.query_strides[2],
        p.query_strides[2], p.queries - first);
    close_copies();
    // One group of copies stays under way: its barrier is due when the next has been asked for.
    unsigned long long* due = &barriers->query;
    int number = 0;
    for (long long key = 0; key < p.keys; key += COLUMNS) {
        if (tile_state(p, b, h, first, ROWS, key, COLUMNS) == EMPTY) continue;
        int stage = number % STAGES, parity = (number / STAGES & 1) ^ 1;
        number += 1;
        wait_barrier(&barriers->empty_keys[stage], parity);
        load_panels<COLUMNS, HEAD_SIZE, HEAD>(key_tiles + stage * COLUMNS * HEAD, keys + key * p.key_strides[2],
                                              p.key_strides[2], p.keys - key);
        close_copies();
        wait_for_copies_but<1>();
        publish_to_matrix_units();
        arrive(due);
        wait_barrier(&barriers->empty_values[stage], parity);
        load_panels<COLUMNS, VALUE_SIZE, VALUE>(value_tiles + stage * COLUMNS * VALUE, values + key * p.value_strides[2],
                                                p.value_strides[2], p.keys - key);
        close_copies();
        wait_for_copies_but<1>();
        publish_to_matrix_units();
        arrive(&barriers->full_keys[stage]);
        due = &barriers->full_values[stage];
    }
    wait_for_copies_but<0>();
    publish_to_matrix_units();
    arrive(due);
}

// Scores, softmax and output of this warpgroup's 64 queries.
DEVICE void consume(const Parameters& p, int b, int h, long long first, const Element* query_tile,
                    const Element* key_tiles, const Element* value_tiles, float* panels, Barriers* barriers) {
    int group = thread_index() / GROUP, warp = warp_index() % 4;
    const Element* own_queries = query_tile + (group - 1) * 64 * 64;
    long long query = first + (group - 1) * 64 + 16 * warp;
    float output[VALUE / 8][4] = {};
    float greatest[2] = {-infinity<float>(), -infinity<float>()}, total[2] = {0, 0};
    Fault fault;
    wait_barrier(&barriers->query, 0);
    int number = 0;
    for (long long key = 0; key < p.keys; key += COLUMNS) {
        int state = tile_state(p, b, h, first, ROWS, key, COLUMNS);
        if (state == EMPTY) continue;
        int stage = number % STAGES, parity = number / STAGES & 1;
        number += 1;
        const Element* key_tile = key_tiles + stage * COLUMNS * HEAD;
        const Element* value_tile = value_tiles + stage * COLUMNS * VALUE;

        float scores[COLUMNS / 8][4];
        wait_barrier(&barriers->full_keys[stage], parity);
        begin_products();
#pragma unroll
        for (int depth = 0; depth < HEAD_SIZE; depth += 16) {
            int panel = depth / 64, within = depth % 64;
            multiply_shared(scores, panel_of(own_queries + panel * ROWS * 64 + within, 1024),
                            panel_of(key_tile + panel * COLUMNS * 64 + within, 1024), depth > 0);
        }
        close_products();
        wait_for_products_but<0>();
        arrive(&barriers->empty_keys[stage]);

        Bits admitted = state == FULL ? score_tile<false>(p, b, h, query, key, scores, fault)
                                      : score_tile<true>(p, b, h, query, key, scores, fault);
        soften(scores, output, greatest, total);

        wait_barrier(&barriers->full_values[stage], parity);
        bool clean = true;
        if constexpr (MASKED) {
            if (state != FULL) {
                bool found = false;
                for (int i = thread_index() % GROUP; i < COLUMNS * VALUE; i += GROUP) {
                    found = found || !(fabsf(to_float(value_tile[i])) < infinity<float>());
                }
                clean = !any_in_warpgroup(found, group);
            }
        }
        if (clean) {
            Left<Element> weights[COLUMNS / 16];
#pragma unroll
            for (int i = 0; i < COLUMNS / 16; ++i) {
                weights[i] = left_of_sums(scores[2 * i], scores[2 * i + 1], Element{});
            }
            begin_products();
#pragma unroll
            for (int i = 0; i < COLUMNS / 16; ++i) {
#pragma unroll
                for (int panel = 0; panel < VALUE / 64; ++panel) {
                    multiply_registers(output + 8 * panel, weights[i].words,
                                       panel_of(value_tile + (panel * COLUMNS + 16 * i) * 64, 1024));
                }
            }
            close_products();
            wait_for_products_but<0>();
        } else if constexpr (MASKED) {
            accumulate_admitted(output, scores, admitted, panels + (4 * (group - 1) + warp) * panel_floats<COLUMNS>(),
                                [&](int row, int column) { return panel_element<COLUMNS>(value_tile, row, column); });
        }
        arrive(&barriers->empty_values[stage]);
    }
    store_rows(p, b, h, query, output, greatest, total);
    report(fault, p.fault, p.first_site);
}

KERNEL void __launch_bounds__(3 * GROUP, 1) attention_forward_hopper(const __grid_constant__ Parameters p) {
    Element* query_tile = (Element*)shared_memory();
    Element* key_tiles = query_tile + ROWS * HEAD;
    Element* value_tiles = key_tiles + STAGES * COLUMNS * HEAD;
    Barriers* barriers = (Barriers*)(value_tiles + STAGES * COLUMNS * VALUE);
    float* panels = (float*)(barriers + 1);
    if (thread_index() == 0) {
        init_barrier(&barriers->query, GROUP);
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(&barriers->full_keys[stage], GROUP);
            init_barrier(&barriers->full_values[stage], GROUP);
            init_barrier(&barriers->empty_keys[stage], 2 * GROUP);
            init_barrier(&barriers->empty_values[stage], 2 * GROUP);
        }
    }
    sync_threads();

    // The last queries first: under a causal mask they see the most keys.
    long long tiles = (p.queries + ROWS - 1) / ROWS, head = block_index() / tiles;
    long long first = (tiles - 1 - block_index() % tiles) * ROWS;
    int b = head / p.heads, h = head % p.heads;
    if (thread_index() < GROUP) {
        give_registers<PRODUCER_REGISTERS>();
        produce(p, b, h, first, query_tile, key_tiles, value_tiles, barriers);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume(p, b, h, first, query_tile, key_tiles, value_tiles, panels, barriers);
    }
}
