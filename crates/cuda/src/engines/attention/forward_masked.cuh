// The forward on Hopper under a mask: the warpgroups that multiply, and the kernel. See `forward_bring.cuh`. The scores of
// the next tile and the last weights times values are asked for together; the softmax of the former runs while the latter
// are multiplied, and what an item comes to is stored while the first tile of the next is. Where groups take turns to ask,
// one takes exponentials while the other's products run.

// Scores, softmax and output of this warpgroup's 64 queries of each item.
DEVICE void consume(const Parameters& p, Element* query_tiles, const Element* key_tiles, const Element* value_tiles,
                    Element* panels, Barriers* barriers) {
    int group = thread_index() / GROUP - 1, warp = warp_index() % 4, own_row = group * 64 + 16 * warp;
    Element* panel = panels + (4 * group + warp) * (ADMITTED_BYTES / 2);
    float unit = LOG2_E * (PLAIN ? (float)p.scale : 1.0f);
    Fault fault;
    unsigned query_place = place_of(query_tiles + group * 64 * 64);
    unsigned key_place = place_of(key_tiles), value_place = place_of(value_tiles);
    // Nothing is asked of what these hold before the first item.
    float output[WIDTH / 8][4] = {}, scores[COLUMNS / 8][4];
    unsigned weights[COLUMNS / 16][4] = {};
    Softmax softmax;
    Scorer scorer;
    Tile before{0, FULL, 0, 0};  // whose weights are known, and whose values are still to be multiplied
    int items = -1;              // the number of the tile's item
    if (TURNS && group == GROUPS - 1) give_turn(0);
#pragma unroll 1
    for (int number = 0;; ++number) {
        int stage = number % STAGES, last = (number + STAGES - 1) % STAGES, place = items & 1;
        bool goes_on = number > 0;
        wait_barrier(&barriers->full_keys[stage], (unsigned)number / STAGES & 1);
        Tile tile = barriers->tiles[stage];
        auto wait_for_values = [&] {
            if (goes_on) wait_barrier(&barriers->full_values[last], (unsigned)(number - 1) / STAGES & 1);
        };
        if constexpr (TURNS) wait_for_values();
        publish_to_matrix_units();
        if (tile.begins) {
            items += 1;
            wait_barrier(&barriers->full_query[items % QUERY_TILES], (unsigned)items / QUERY_TILES & 1);
            publish_to_matrix_units();
        }
        unsigned query_panels = uniform(query_place + items % QUERY_TILES * (ROWS * HEAD / PART));
        unsigned key_panels = uniform(key_place + stage * (COLUMNS * HEAD / PART));
        unsigned value_panels = uniform(value_place + last * (COLUMNS * VALUE / PART));
        // Nothing but the products stands between a turn's begin and end.
        if constexpr (TURNS) wait_turn(group);
        begin_products();
        multiply_keys(scores, query_panels, key_panels);
        close_products();
        if constexpr (!TURNS) {
            wait_for_values();
            publish_to_matrix_units();
        }
        begin_products();
        multiply_values(output, weights, value_panels);
        close_products();
        if constexpr (TURNS) give_turn((group + 1) % GROUPS);
        if (tile.begins && tile.key >= 0) scorer.begin(p, barriers->items[items & 1], own_row);
        wait_for_products_but<1>();
        hold(scores);
        arrive_once(&barriers->empty_keys[stage]);
        Softmax done = softmax;
        if (tile.begins) softmax = Softmax();
        if (tile.key >= 0) {
            score_tile(p, scorer, tile.key, tile.state, scores, fault);
            softmax.soften(scores, unit);
            finish(softmax.total[0] + softmax.total[1]);
        }
        wait_for_products_but<0>();
        hold(output);
        pin(weights);
        if (goes_on && before.state == PARTIAL && barriers->dirty[last] == number) {
            accumulate_unfinite(p, barriers->items[place], own_row, before.key, output, weights, panel);
        }
        if (goes_on) arrive_once(&barriers->empty_values[last]);
        if (tile.begins) {
            if (goes_on) {
                Element* staged = query_tiles + place % QUERY_TILES * ROWS * HEAD + own_row * 64;
                store_output(p, barriers->items[place], own_row, output, done, staged);
                if (QUERY_TILES == 2) arrive_once(&barriers->empty_query[place % QUERY_TILES]);
            }
            if (tile.key < 0) break;
#pragma unroll
            for (int i = 0; i < WIDTH / 2; ++i) output[i / 4][i % 4] = 0;
        }
        // Where there is room for one tile of queries, the next is waited for, and comes as soon as this one is done with.
        if (QUERY_TILES == 1 && tile.ends) arrive_once(&barriers->empty_query[0]);
        before = tile;
        softmax.round(scores, weights);
        softmax.rescale(output);
    }
    report(fault, p.fault, p.first_site);
}

KERNEL void __launch_bounds__((GROUPS + 1) * GROUP, 1) attention_forward_hopper(const __grid_constant__ Parameters p) {
    Element* query_tiles = (Element*)shared_memory();
    Element* key_tiles = query_tiles + QUERY_TILES * ROWS * HEAD;
    Element* value_tiles = key_tiles + STAGES * COLUMNS * HEAD;
    Barriers* barriers = (Barriers*)(value_tiles + STAGES * COLUMNS * VALUE);
    Element* panels = (Element*)((unsigned char*)barriers + BARRIER_BYTES);
    if (thread_index() == 0) {
        for (int i = 0; i < QUERY_TILES; ++i) {
            init_barrier(&barriers->full_query[i], BRINGING);
            // And three warps that bring, which have read of the item.
            init_barrier(&barriers->empty_query[i], 4 * GROUPS + 3);
        }
        for (int i = 0; i < 2; ++i) init_barrier(&barriers->known[i], 1);
        for (int stage = 0; stage < STAGES; ++stage) {
            // And who says which tile it is.
            init_barrier(&barriers->full_keys[stage], BRINGING + 1);
            init_barrier(&barriers->full_values[stage], BRINGING);
            init_barrier(&barriers->empty_keys[stage], 4 * GROUPS);
            init_barrier(&barriers->empty_values[stage], 4 * GROUPS);
            barriers->dirty[stage] = 0;
        }
    }
    sync_threads();
    if (thread_index() < GROUP) {
        give_registers<PRODUCER_REGISTERS>();
        if (warp_index() < 2) bring<true>(p, query_tiles, key_tiles, barriers);
        else bring<false>(p, query_tiles, value_tiles, barriers);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume(p, query_tiles, key_tiles, value_tiles, panels, barriers);
    }
}
