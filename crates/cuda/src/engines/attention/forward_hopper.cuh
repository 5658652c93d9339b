// The forward on Hopper without a mask: an item a block. The scores of the next tile and the last weights times values are
// asked for together; the softmax of the former runs while the latter are multiplied. The groups take turns to ask, so that
// one takes exponentials while the other's products run. Blocks that stay, as under a mask, are slower here: their loop
// has more to do for each tile, and all items have the same work.

struct Barriers {
    unsigned long long full_query, full_keys[STAGES], full_values[STAGES], empty_keys[STAGES], empty_values[STAGES];
};
static_assert(sizeof(Barriers) <= BARRIER_BYTES, "as much as tiles are chosen by");

// Brings the queries and tiles of keys, or tiles of values.
template <bool OF_KEYS>
DEVICE void bring(const Parameters& p, Element* query_tile, Element* tiles, Barriers* barriers) {
    constexpr int SIZE = OF_KEYS ? HEAD_SIZE : VALUE_SIZE, PADDED = OF_KEYS ? HEAD : VALUE;
    Item item = item_of(p, block_index());
    long long stride = OF_KEYS ? p.key_strides[2] : p.value_strides[2];
    const Element* rows = head_of(p, item, OF_KEYS ? p.key : p.value, OF_KEYS ? p.key_strides : p.value_strides);
    unsigned long long* full = OF_KEYS ? barriers->full_keys : barriers->full_values;
    unsigned long long* empty = OF_KEYS ? barriers->empty_keys : barriers->empty_values;
    if constexpr (OF_KEYS) {
        load_panels<ROWS, HEAD_SIZE>(query_tile, queries_of(p, item), p.query_strides[2], (int)p.queries - item.first);
    }
    int number = 0;
#pragma unroll 1
    for (int key = 0; key < (int)p.keys; key += COLUMNS) {
        int stage = number % STAGES;
        wait_barrier(&empty[stage], number / STAGES & 1 ^ 1);
        load_panels<COLUMNS, SIZE>(tiles + stage * COLUMNS * PADDED, rows, stride, (int)p.keys - key);
        rows += COLUMNS * stride;
        close_copies();
        wait_for_copies_but<0>();
        publish_to_matrix_units();
        // The queries come with the first keys.
        if (OF_KEYS && number == 0) arrive(&barriers->full_query);
        arrive(&full[stage]);
        number += 1;
    }
}

// Scores, softmax and output of this warpgroup's 64 queries.
DEVICE void consume(const Parameters& p, Element* query_tile, const Element* key_tiles, const Element* value_tiles,
                    Barriers* barriers) {
    int group = thread_index() / GROUP - 1, own_row = group * 64 + 16 * (warp_index() % 4);
    Item item = item_of(p, block_index());
    bool whole_rows = item.first + ROWS <= (int)p.queries;
    auto state_of = [&](int key) { return whole_rows && key + COLUMNS <= (int)p.keys ? FULL : PARTIAL; };
    float unit = LOG2_E * (PLAIN ? (float)p.scale : 1.0f);
    Fault fault;
    unsigned query_place = place_of(query_tile + group * 64 * 64);
    unsigned key_place = place_of(key_tiles), value_place = place_of(value_tiles);
    float output[WIDTH / 8][4] = {}, scores[COLUMNS / 8][4];
    unsigned weights[COLUMNS / 16][4];
    Softmax softmax;
    Scorer scorer;
    scorer.begin(p, item, own_row);
    if (group == GROUPS - 1) give_turn(0);
    wait_barrier(&barriers->full_query, 0);
    wait_barrier(&barriers->full_keys[0], 0);
    begin_products();
    multiply_keys(scores, uniform(query_place), uniform(key_place));
    close_products();
    wait_for_products_but<0>();
    hold(scores);
    arrive_once(&barriers->empty_keys[0]);
    score_tile(p, scorer, 0, state_of(0), scores, fault);
    softmax.soften(scores, unit);
    softmax.round(scores, weights);
    int number = 1;
#pragma unroll 1
    for (int key = COLUMNS; key < (int)p.keys; key += COLUMNS) {
        // The values of the tile whose weights are known are still to be multiplied.
        int stage = number % STAGES, last = (number - 1) % STAGES, parity = (number - 1) / STAGES & 1;
        wait_barrier(&barriers->full_keys[stage], number / STAGES & 1);
        number += 1;
        unsigned query_panels = uniform(query_place);
        unsigned key_panels = uniform(key_place + stage * (COLUMNS * HEAD / PART));
        unsigned value_panels = uniform(value_place + last * (COLUMNS * VALUE / PART));
        wait_turn(group);
        begin_products();
        multiply_keys(scores, query_panels, key_panels);
        close_products();
        wait_barrier(&barriers->full_values[last], parity);
        begin_products();
        multiply_values(output, weights, value_panels);
        close_products();
        give_turn((group + 1) % GROUPS);
        wait_for_products_but<1>();
        hold(scores);
        arrive_once(&barriers->empty_keys[stage]);
        score_tile(p, scorer, key, state_of(key), scores, fault);
        softmax.soften(scores, unit);
        finish(softmax.total[0] + softmax.total[1]);
        wait_for_products_but<0>();
        hold(output);
        pin(weights);
        arrive_once(&barriers->empty_values[last]);
        softmax.round(scores, weights);
        softmax.rescale(output);
    }
    int last = (number - 1) % STAGES;
    wait_barrier(&barriers->full_values[last], (number - 1) / STAGES & 1);
    begin_products();
    multiply_values(output, weights, uniform(value_place + last * (COLUMNS * VALUE / PART)));
    close_products();
    wait_for_products_but<0>();
    hold(output);
    store_output(p, item, own_row, output, softmax, query_tile + own_row * 64);
    report(fault, p.fault, p.first_site);
}

KERNEL void __launch_bounds__((GROUPS + 1) * GROUP, 1) attention_forward_hopper(const __grid_constant__ Parameters p) {
    Element* query_tile = (Element*)shared_memory();
    Element* key_tiles = query_tile + ROWS * HEAD;
    Element* value_tiles = key_tiles + STAGES * COLUMNS * HEAD;
    Barriers* barriers = (Barriers*)(value_tiles + STAGES * COLUMNS * VALUE);
    if (thread_index() == 0) {
        init_barrier(&barriers->full_query, BRINGING);
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(&barriers->full_keys[stage], BRINGING);
            init_barrier(&barriers->full_values[stage], BRINGING);
            init_barrier(&barriers->empty_keys[stage], 4 * GROUPS);
            init_barrier(&barriers->empty_values[stage], 4 * GROUPS);
        }
    }
    sync_threads();
    if (thread_index() < GROUP) {
        give_registers<PRODUCER_REGISTERS>();
        if (warp_index() < 2) bring<true>(p, query_tile, key_tiles, barriers);
        else bring<false>(p, query_tile, value_tiles, barriers);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume(p, query_tile, key_tiles, value_tiles, barriers);
    }
}
