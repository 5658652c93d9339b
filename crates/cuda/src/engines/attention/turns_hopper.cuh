// The gradient of attention on Hopper's matrix units, in one pass of five products (Dao 2023, algorithm 2; Shah et
// al. 2024, FlashAttention-3).
//
// A block owns KEYS keys of one key head and walks the tiles of COLUMNS queries that see them. Two warpgroups own 64
// keys each: scores are transposed, their rows are keys, so that weights and slopes are left operands of the products
// that end at keys without leaving registers. Four more warps, with few registers, walk, bring queries, bring their outputs'
// cotangents, and bring sums of queries' cotangents to memory.
//
// The queries' cotangents are sums over blocks. Each block adds its part to a tile in *turn*: after the block before
// it, in the order of keys, that has a part in this tile. So the order of additions is fixed, and with it every bit.
// A block's number is a ticket, drawn when it starts: whoever is waited for has a lower one, so has started, and ends.
// As the blocks of a head start together and walk in the same direction, each soon runs one tile behind the one before
// it, and nobody waits any more.
//
// Under a mask blocks have different work. Heads then take turns, a round of them at a time, in how they are walked. Down:
// blocks in the order of keys, from the last tile of queries to the first. Up: all the other way round. Under a causal mask
// one begins with the blocks of most tiles, and the other with those of fewest; so each round fills the gaps that the
// round before leaves, and each block starts about two tiles behind the one before it, in either direction.
constexpr bool ROUNDS = MASKED && PAIRS == 0;

constexpr int KEYS = 128, STAGES = 2, GROUP = 128, WALKED = 4;
constexpr float LOG2_E = 1.4426950408889634f;

struct Barriers {
    unsigned long long keys, known[STAGES], full[STAGES], empty[STAGES], full_sums[SUM_TILES], empty_sums[SUM_TILES], full_pairs,
        empty_pairs, full_terms[2], empty_terms[2];
};

// A tile of queries that the block does; −1 after the last. `before` is the number of the block whose turn is before this
// one's, plus 1, or 0.
struct Tile {
    int b, h, number, state, before;
};

// Which keys a block owns.
struct Own {
    int number, tiles, key_batch, key_head, key;
    int step;  // to the next tile of queries: 1 up, −1 down; and to the block whose turn is before this one's
};

// What a block has in shared memory.
struct Shared {
    Element *key_tile, *value_tile, *query_tiles, *cotangent_tiles, *slope_tiles;
    float *sums, *log2_sum_exps, *deltas, *row_gains, *terms, *pairs;
    Barriers* barriers;
    Tile* tiles;  // the last that were walked to
    Own* own;
    // Where a tile's part of the queries' cotangents lies until it is brought to memory.
    // There are `count` tiles before it: a number without a sign, whose remainder takes fewer registers.
    DEVICE float* sums_of(unsigned count) const { return sums + count % SUM_TILES * (COLUMNS * HEAD); }
};

// Waits until there are a tile's sums, or room for them.
DEVICE void wait_for_sums(const Shared& s, unsigned count) {
    wait_barrier(&s.barriers->full_sums[count % SUM_TILES], count / SUM_TILES & 1);
}
DEVICE void wait_for_room(const Shared& s, unsigned count) {
    wait_barrier(&s.barriers->empty_sums[count % SUM_TILES], count / SUM_TILES & 1 ^ 1);
}
// Says that there are.
DEVICE void give_sums(const Shared& s, unsigned count) { arrive(&s.barriers->full_sums[count % SUM_TILES]); }

DEVICE Shared shared_parts() {
    Shared s;
    s.key_tile = (Element*)shared_memory();
    s.value_tile = s.key_tile + KEYS * HEAD;
    s.query_tiles = s.value_tile + KEYS * VALUE;
    s.cotangent_tiles = s.query_tiles + STAGES * COLUMNS * HEAD;
    s.slope_tiles = s.cotangent_tiles + STAGES * COLUMNS * VALUE;
    s.sums = (float*)(s.slope_tiles + 2 * KEYS * COLUMNS);
    s.log2_sum_exps = s.sums + SUM_TILES * COLUMNS * HEAD;
    s.deltas = s.log2_sum_exps + STAGES * COLUMNS;
    s.row_gains = s.deltas + STAGES * COLUMNS;
    s.terms = s.row_gains + ROW_GAINS * STAGES * COLUMNS;
    s.pairs = s.terms + TERM_FLOATS;
    s.barriers = (Barriers*)(s.pairs + PAIRS * COLUMNS * KEYS);
    s.tiles = (Tile*)(s.barriers + 1);
    s.own = (Own*)(s.tiles + WALKED);
    return s;
}

// The next tile of queries after `tile` that the mask leaves something of, or −1; for all lanes of a warp.
DEVICE int tile_after(const Parameters& p, const Own& own, int b, int h, int tile, int& state) {
    int tiles = ((int)p.queries + COLUMNS - 1) / COLUMNS, step = ROUNDS ? own.step : -1;
    if constexpr (!MASKED) {
        if (tile > 0) state = tile_state(p, b, h, (long long)(tile - 1) * COLUMNS, COLUMNS, own.key, KEYS);
        return tile - 1;
    }
    for (int from = tile + step; from >= 0 && from < tiles; from += 32 * step) {
        int mine = from + lane_index() * step;
        bool there = mine >= 0 && mine < tiles;
        int found = there ? tile_state(p, b, h, (long long)mine * COLUMNS, COLUMNS, own.key, KEYS) : EMPTY;
        unsigned some = ballot(found != EMPTY), full = ballot(found == FULL);
        if (some == 0) continue;
        int lane = lowest_bit(some);
        state = full >> lane & 1 ? FULL : PARTIAL;
        return from + lane * step;
    }
    return -1;
}

// The number of the tile of keys whose turn is before this block's at a tile of queries, plus 1; 0 for none.
DEVICE int turn_before(const Parameters& p, const Own& own, int b, int h, int tile) {
    if constexpr (!MASKED) return own.number;
    int step = ROUNDS ? own.step : -1;
    for (int from = own.number + step; from >= 0 && from < own.tiles; from += 32 * step) {
        int mine = from + lane_index() * step;
        bool there = mine >= 0 && mine < own.tiles;
        unsigned some = ballot(there && tile_state(p, b, h, (long long)tile * COLUMNS, COLUMNS, (long long)mine * KEYS,
                                                   KEYS) != EMPTY);
        if (some != 0) return from + lowest_bit(some) * step + 1;
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
            for (int tile = tile_after(p, own, b, h, ROUNDS && own.step > 0 ? -1 : tiles, state); tile >= 0;
                 tile = tile_after(p, own, b, h, tile, state)) {
                visit(b, h, tile, state);
            }
        }
    }
}

// After a warp's copies: they are there, for the matrix units too.
DEVICE void copied(unsigned long long* barrier) {
    close_copies();
    wait_for_copies_but<0>();
    publish_to_matrix_units();
    sync_warp();
    if (lane_index() == 0) arrive(barrier);
}

// Walks: says which tile is next, and brings what belongs to its rows. Then it finishes what was summed of the terms of the
// tile before the one that is being done.
DEVICE void lead(const Parameters& p) {
    Shared s = shared_parts();
    const Own own = *s.own;
    int rows = ((int)p.queries + COLUMNS - 1) / COLUMNS * COLUMNS, count = 0, finished = 0;
    TermLines lines;
    if constexpr (PASSED) lines.begin(s.terms);
    auto finish_terms = [&](int until) {
        if constexpr (!PASSED) return;
        for (; finished < until; ++finished) {
            wait_barrier(&s.barriers->full_terms[finished % 2], finished / 2 & 1);
            Tile tile = s.tiles[finished % WALKED];
            lines.finish(p, own, tile.b, tile.h, tile.number * COLUMNS, finished);
            if (lane_index() == 0) arrive(&s.barriers->empty_terms[finished % 2]);
        }
    };
    auto begin = [&](Tile tile) {
        int stage = count % STAGES;
        wait_barrier(&s.barriers->empty[stage], (count / STAGES & 1) ^ 1);
        if (lane_index() == 0) {
            s.tiles[count % WALKED] = tile;
            arrive(&s.barriers->known[stage]);
        }
        count += 1;
        return stage;
    };
    walk(p, own, [&](int b, int h, int tile, int state) {
        int stage = begin(Tile{b, h, tile, state, turn_before(p, own, b, h, tile)});
        long long row = ((long long)b * (int)p.heads + h) * rows + tile * COLUMNS;
        for (int i = 4 * lane_index(); i < COLUMNS; i += 4 * 32) {
            copy_16(s.log2_sum_exps + stage * COLUMNS + i, p.log2_sum_exp + row + i, true);
            copy_16(s.deltas + stage * COLUMNS + i, p.delta + row + i, true);
            if constexpr (ROW_GAINS) copy_16(s.row_gains + stage * COLUMNS + i, p.row_gains + row + i, true);
        }
        copied(&s.barriers->full[stage]);
        finish_terms(count - 2);
    });
    copied(&s.barriers->full[begin(Tile{0, 0, -1, EMPTY, 0})]);
    finish_terms(count - 1);
    if constexpr (DIAGONALS > 0) lines.retire(p, own, -ACROSS);
}

// Brings the block's keys, then each tile's queries; or its values, then the cotangents of each tile's outputs.
template <bool OF_QUERIES>
DEVICE void bring(const Parameters& p) {
    Shared s = shared_parts();
    const Own own = *s.own;
    constexpr int SIZE = OF_QUERIES ? HEAD_SIZE : VALUE_SIZE, PADDED = OF_QUERIES ? HEAD : VALUE;
    const Element* own_rows =
        OF_QUERIES ? p.key + own.key_batch * p.key_strides[0] + own.key_head * p.key_strides[1] + own.key * p.key_strides[2]
                   : p.value + own.key_batch * p.value_strides[0] + own.key_head * p.value_strides[1] +
                         own.key * p.value_strides[2];
    load_panels<KEYS, SIZE, PADDED, 32>(OF_QUERIES ? s.key_tile : s.value_tile, own_rows,
                                        OF_QUERIES ? p.key_strides[2] : p.value_strides[2], (int)p.keys - own.key,
                                        lane_index());
    // Who multiplies waits for them, and not the copies of the first tile.
    arrive_when_copied(&s.barriers->keys);
#pragma unroll 1
    for (int count = 0;; ++count) {
        int stage = count % STAGES;
        wait_barrier(&s.barriers->known[stage], count / STAGES & 1);
        Tile tile = s.tiles[count % WALKED];
        if (tile.number >= 0) {
            int query = tile.number * COLUMNS;
            const Element* rows =
                OF_QUERIES ? p.query + tile.b * p.query_strides[0] + tile.h * p.query_strides[1] + query * p.query_strides[2]
                           : p.output_cotangent + tile.b * p.output_cotangent_strides[0] +
                                 tile.h * p.output_cotangent_strides[1] + query * p.output_cotangent_strides[2];
            load_panels<COLUMNS, SIZE, PADDED, 32>(
                (OF_QUERIES ? s.query_tiles : s.cotangent_tiles) + stage * COLUMNS * PADDED, rows,
                OF_QUERIES ? p.query_strides[2] : p.output_cotangent_strides[2], (int)p.queries - query, lane_index());
        }
        copied(&s.barriers->full[stage]);
        if (tile.number < 0) break;
    }
}

// Of the heads that share the elements of a capture that pairs own, how many have their turn before this one: in the
// order in which blocks take heads.
DEVICE int heads_before(const Parameters& p, int b, int h) {
    if constexpr (APART_IN_HEADS) return APART_IN_BATCH ? 0 : b;
    if constexpr (APART_IN_BATCH) return h;
    int group = (int)p.heads / (int)p.key_heads;
    if (p.key_batch != 1) return b * (int)p.heads + h;
    return h / group * (int)p.batch * group + b * group + h % group;
}

// Brings floats of shared memory to memory: stored by the first, added by the others when it is their turn. That is looked
// for when the floats are there, and mostly has come by then: looking all the time slows down the whole machine. Says when
// shared memory is free, and whose turn is next.
DEVICE void add_in_turn(float* to, const float* from, int bytes, int* turn, int before, int after,
                        unsigned long long* empty) {
    if (lane_index() == 0) {
        if (before == 0) {
            store_in_bulk(to, from, bytes);
        } else {
            wait_for_flag(turn, before);
            add_in_bulk(to, from, bytes);
        }
        wait_for_bulk_reads();
        arrive(empty);
        wait_for_bulk();
        store_release(turn, after);
    }
    sync_warp();
}

// Brings each tile's part of the queries' cotangents to memory, and its terms of a capture that pairs own.
DEVICE void add_sums(const Parameters& p) {
    Shared s = shared_parts();
    const Own own = *s.own;
    int tiles = ((int)p.queries + COLUMNS - 1) / COLUMNS;
    for (int count = 0;; ++count) {
        if constexpr (PAIRS > 0) wait_barrier(&s.barriers->full_pairs, count & 1);
        else wait_for_sums(s, count);
        Tile tile = s.tiles[count % WALKED];
        if (tile.number < 0) break;
        if constexpr (PAIRS > 0) {
            int slot = (APART_IN_BATCH ? tile.b : 0) * (APART_IN_HEADS ? (int)p.heads : 1) + (APART_IN_HEADS ? tile.h : 0);
            long long number = ((long long)slot * tiles + tile.number) * own.tiles + own.number;
            int before = heads_before(p, tile.b, tile.h);
            add_in_turn(p.pair_sums + number * COLUMNS * KEYS, s.pairs, COLUMNS * KEYS * 4, p.pair_turns + number, before,
                        before + 1, &s.barriers->empty_pairs);
            wait_for_sums(s, count);
        }
        long long number = ((long long)tile.b * (int)p.heads + tile.h) * tiles + tile.number;
        add_in_turn(p.query_sums + number * COLUMNS * HEAD, s.sums_of(count), COLUMNS * HEAD * 4, p.turns + 1 + number,
                    tile.before, own.number + 1, &s.barriers->empty_sums[(unsigned)count % SUM_TILES]);
    }
}
