// Sums of terms along diagonals, within a block: in an order that depends on sizes only.

// Adds a tile of terms along its diagonals, row − column (or row + column where ASCENDING), to a row of sums,
// whose number `first` belongs to the tile's diagonal 0. The tile goes by way of shared memory; no thread may
// be reading there.
template <bool ASCENDING>
DEVICE void add_diagonals(float* tile, const float (&term)[COLUMNS / 8][4], float* sums, long long first,
                          long long count) {
    constexpr int ROWS = 16 * WARPS, STRIDE = COLUMNS + 1;
    int g = lane_index() / 4, t = lane_index() % 4;
    sync_threads();
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            tile[(16 * warp_index() + g + e / 2 * 8) * STRIDE + 8 * j + 2 * t + e % 2] = term[j][e];
        }
    }
    sync_threads();
    for (int i = thread_index(); i < ROWS + COLUMNS - 1; i += thread_count()) {
        int diagonal = ASCENDING ? i : i - (COLUMNS - 1);
        float sum = 0;
        for (int row = 0; row < ROWS; ++row) {
            int column = ASCENDING ? diagonal - row : row - diagonal;
            if (column >= 0 && column < COLUMNS) sum += tile[row * STRIDE + column];
        }
        long long place = first + diagonal;
        if (place >= 0 && place < count) sums[place] += sum;
    }
}
