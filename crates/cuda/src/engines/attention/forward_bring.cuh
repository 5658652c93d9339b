// The forward on Hopper under a mask: what its blocks do, and the warps that bring tiles.
//
// Items differ in work, so a block stays for as long as there are any, and draws them. Its tiles, of whatever item, are one
// row of tiles: the first tiles of an item are there before the last of the item before it are done with. Two warps bring
// queries and tiles of keys and two bring those of values. Nobody waits for copies but who multiplies, and he makes them
// known to the matrix units.

// A tile of keys: where it begins, or −1 after the last; what the mask leaves of it; whether it is its item's first or
// last.
struct alignas(16) Tile {
    int key, state, begins, ends;
};

struct Barriers {
    unsigned long long known[2];  // an item, of the last two
    unsigned long long full_query[QUERY_TILES], empty_query[QUERY_TILES];
    unsigned long long full_keys[STAGES], full_values[STAGES], empty_keys[STAGES], empty_values[STAGES];
    Tile tiles[STAGES];
    Item items[2];
    int dirty[STAGES];  // the number of the last tile in this place that held a value that is not finite, plus 1
};
static_assert(sizeof(Barriers) <= BARRIER_BYTES, "as much as tiles are chosen by");

// How many blocks of a map a tile of `rows` may touch that begins at a multiple of `rows`.
constexpr int touched(int rows, int block) {
    return rows % block == 0 ? rows / block : block % rows == 0 ? 1 : (rows - 1) / block + 2;
}

// The tiles of an item that the mask leaves, in order; where it leaves none, one of which nothing is admitted.
struct Walk {
    const unsigned char* map;
    int keys, rows, width, base;
    bool whole_rows;
    unsigned left, full;  // a bit for each tile from `base` on

    DEVICE Walk(const Parameters& p, const Item& item) {
        int slice = (p.map_batch == 1 ? 0 : item.b) * (int)p.map_heads + (p.map_heads == 1 ? 0 : item.h);
        int top = item.first / MAP_ROWS;
        keys = p.keys;
        whole_rows = item.first + ROWS <= (int)p.queries;
        rows = (min_of(item.first + ROWS, (int)p.queries) - 1) / MAP_ROWS - top + 1;
        width = p.key_blocks;
        map = p.blocks + ((long long)slice * p.query_blocks + top) * width;
        base = -32 * COLUMNS;
        left = 0;
        look();
        if (left == 0) {
            base = full = 0;
            left = 1;
        }
    }

    // Goes on to the next tiles of which something is left: a tile for each lane.
    DEVICE void look() {
#pragma unroll 1
        while (left == 0 && base + 32 * COLUMNS < keys) {
            base += 32 * COLUMNS;
            int key = base + lane_index() * COLUMNS, column = key / MAP_COLUMNS;
            bool any = false, all = whole_rows && key + COLUMNS <= keys;
            // As many blocks as a tile may touch, all asked for together.
            constexpr int DOWN = touched(ROWS, MAP_ROWS), ACROSS = touched(COLUMNS, MAP_COLUMNS);
#pragma unroll
            for (int i = 0; i < DOWN * ACROSS; ++i) {
                int row = i / ACROSS, at = column + i % ACROSS;
                if (row >= rows || key >= keys || at * MAP_COLUMNS >= min_of(key + COLUMNS, keys)) continue;
                int state = map[row * width + at];
                any = any | (state != EMPTY);
                all = all & (state == FULL);
            }
            left = ballot(any);
            full = ballot(all);
        }
    }

    DEVICE Tile next() {
        int lane = lowest_bit(left);
        Tile tile{base + lane * COLUMNS, full >> lane & 1 ? FULL : PARTIAL, 0, 0};
        left &= left - 1;
        look();
        tile.ends = left == 0;
        return tile;
    }
};

// Values that are not finite, of those that this thread copied: zero instead. They would show in rows that the mask keeps
// from them; the rows that see them add them later. Says whether there were any.
DEVICE bool clear_unfinite(Element* tile) {
    constexpr int PANELS = (VALUE_SIZE + 63) / 64, STEPS = COLUMNS / (BRINGING / PART);
    int thread = thread_index() % BRINGING, row = thread / PART, part = thread % PART;
    Words* words = (Words*)(tile + row * 64 + (part ^ row % 8) * PART);
    auto holds = [&](int i) { return i / STEPS * 64 + part * PART < VALUE_SIZE; };
    bool found = false;
#pragma unroll 8
    for (int i = 0; i < PANELS * STEPS; ++i) {
        if (holds(i)) found = found | holds_unfinite(words[i * BRINGING]);
    }
    if (!found) return false;
#pragma unroll 1
    for (int i = 0; i < PANELS * STEPS; ++i) {
        if (!holds(i)) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) words[i * BRINGING].words[j] = finite_word(words[i * BRINGING].words[j]);
    }
    return true;
}

// Brings each item's queries and tiles of keys, or its tiles of values. The first warp draws the items: its block's number
// first, and then the numbers after the last block's.
template <bool OF_KEYS>
DEVICE void bring(const Parameters& p, Element* query_tiles, Element* tiles, Barriers* barriers) {
    constexpr int SIZE = OF_KEYS ? HEAD_SIZE : VALUE_SIZE, PADDED = OF_KEYS ? HEAD : VALUE;
    bool draws = warp_index() == 0;
    int number = 0, drawn = block_index(), ticket = 0;
    unsigned long long* full = OF_KEYS ? barriers->full_keys : barriers->full_values;
    unsigned long long* empty = OF_KEYS ? barriers->empty_keys : barriers->empty_values;
#pragma unroll 1
    for (int items = 0;; ++items) {
        int place = items % 2, query_place = items % QUERY_TILES;
        if (draws) {
            wait_barrier(&barriers->empty_query[query_place], items / QUERY_TILES & 1 ^ 1);
            if (items > 0) drawn = block_count() + shuffle(ticket, 0);
            if (lane_index() == 0) {
                barriers->items[place] = item_of(p, drawn);
                arrive(&barriers->known[place]);
                // A ticket is drawn with each item, ahead, since it takes a while to come. Who has the last one leaves none
                // drawn, as it was.
                if (items > 0 && ticket == (int)p.items - 1) *p.tickets = 0;
                if (drawn < (int)p.items) ticket = take_ticket(p.tickets);
            }
        }
        wait_barrier(&barriers->known[place], items / 2 & 1);
        Item item = barriers->items[place];
        sync_warp();
        if (!draws && lane_index() == 0) arrive(&barriers->empty_query[query_place]);
        bool there = item.b >= 0;
        if constexpr (OF_KEYS) {
            if (there) {
                load_panels<ROWS, HEAD_SIZE>(query_tiles + query_place * ROWS * HEAD, queries_of(p, item), p.query_strides[2],
                                             (int)p.queries - item.first);
            }
            arrive_when_copied(&barriers->full_query[query_place]);
        } else if (!there) {
            break;
        }
        const long long* strides = OF_KEYS ? p.key_strides : p.value_strides;
        const Element* head = head_of(p, item, OF_KEYS ? p.key : p.value, strides);
        Walk walk(p, there ? item : Item{0, 0, 0});
        // After the last item one tile more, which says so.
        Tile tile{-1, FULL, 1, 1};
        bool begins = true;
#pragma unroll 1
        do {
            if (there) tile = walk.next();
            tile.begins = begins;
            begins = false;
            int stage = number % STAGES;
            wait_barrier(&empty[stage], number / STAGES & 1 ^ 1);
            number += 1;
            if (OF_KEYS && thread_index() == 0) {
                barriers->tiles[stage] = tile;
                arrive(&full[stage]);
            }
            Element* to = tiles + stage * COLUMNS * PADDED;
            if (there) {
                load_panels<COLUMNS, SIZE>(to, head + tile.key * strides[2], strides[2], (int)p.keys - tile.key);
            }
            if (!OF_KEYS && tile.state == PARTIAL) {
                close_copies();
                wait_for_copies_but<0>();
                if (clear_unfinite(to)) barriers->dirty[stage] = number;
                arrive(&full[stage]);
            } else {
                arrive_when_copied(&full[stage]);
            }
        } while (!tile.ends);
        if (!there) break;
    }
}
