// Tiles in shared memory as Hopper's matrix units read them: panels of 64 columns, whose 16-byte parts are exchanged:
// part c of row r lies at c ^ (r % 8).

// Rows of a matrix to panels, by THREADS threads; zeros past its rows and columns. A thread copies the same columns of
// every n-th row.
template <int TILE_ROWS, int SIZE, int PADDED, int THREADS>
DEVICE void load_panels(Element* tile, const Element* from, long long row_stride, int rows, int thread) {
    constexpr int PARTS = PADDED / PART, STEP = THREADS / PARTS;
    static_assert(THREADS % PARTS == 0, "threads share out whole rows");
    int part = thread % PARTS, first = thread / PARTS;
    bool within = part * PART < SIZE;
    const Element* at = within ? from + first * row_stride + part * PART : from;
    row_stride *= within ? STEP : 0;
    tile += part / 8 * TILE_ROWS * 64;
    if (SIZE == PADDED && rows >= TILE_ROWS) {
        // The exchange of parts repeats every 8 rows, and a step changes other bits of a row's number than the threads
        // do: so the next place is this one with some bits turned.
        static_assert(STEP <= 8, "threads take fewer rows at a time than the exchange");
        constexpr int PERIOD = 8 / STEP;
        int place = first * 64 + (part % 8 ^ first) * PART;
#pragma unroll
        for (int i = 0; i < TILE_ROWS / STEP; ++i) {
            copy_16(tile + (place ^ i % PERIOD * STEP * PART) + i * STEP * 64, at, true);
            at += row_stride;
        }
        return;
    }
    // Few at a time: the threads that copy have few registers.
#pragma unroll 4
    for (int row = first; row < TILE_ROWS; row += STEP) {
        bool inside = within && row < rows;
        copy_16(tile + row * 64 + (part % 8 ^ row % 8) * PART, inside ? at : from, inside);
        at += row_stride;
    }
}

// Where an element of a tile in panels lies.
template <int TILE_ROWS>
DEVICE int panel_place(int row, int column) {
    return (column / 64 * TILE_ROWS + row) * 64 + (column % 64 / PART ^ row % 8) * PART + column % PART;
}

// Whether a tile holds an infinity or NaN, among the elements that this thread of THREADS looks at.
template <int ELEMENTS, int THREADS>
DEVICE bool panels_hold_nonfinite(const Element* tile, int thread) {
    static_assert(ELEMENTS % (PART * THREADS) == 0, "each thread looks at as many");
    bool found = false;
#pragma unroll 4
    for (int i = 0; i < ELEMENTS / (PART * THREADS); ++i) {
        found = found | holds_unfinite(((const Words*)tile)[i * THREADS + thread]);
    }
    return found;
}
