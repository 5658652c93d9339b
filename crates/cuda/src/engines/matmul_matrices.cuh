// Products on the machine's matrix units: a block makes TILE × TILE results, a warp 16 rows of them.

constexpr int DEPTH = 32, STRIDE = DEPTH + 8, COLUMN_STRIDE = TILE + 8;

KERNEL void __launch_bounds__(128) matmul(const __grid_constant__ Parameters p) {
    Share share = share_of_block(p);
    Element* left_tile = (Element*)shared_memory();
    Element* right_tile = left_tile + TILE * STRIDE;
    float sums[TILE / 8][4] = {};
    for (long long depth = 0; depth < p.depth; depth += DEPTH) {
        sync_threads();
        for (int i = thread_index(); i < TILE * DEPTH; i += 128) {
            // Neighbouring threads read neighbouring elements, whichever axis these lie along.
            int row = share.left_depth == 1 ? i / DEPTH : i % TILE, at = share.left_depth == 1 ? i % DEPTH : i / TILE;
            bool inside = share.first_row + row < p.rows && depth + at < p.depth;
            left_tile[row * STRIDE + at] =
                inside ? p.left[share.left + (share.first_row + row) * share.left_row + (depth + at) * share.left_depth] : Element{0};
            int column = share.right_column == 1 ? i % TILE : i / DEPTH;
            at = share.right_column == 1 ? i / TILE : i % DEPTH;
            inside = share.first_column + column < p.columns && depth + at < p.depth;
            right_tile[at * COLUMN_STRIDE + column] =
                inside ? p.right[share.right + (depth + at) * share.right_depth + (share.first_column + column) * share.right_column]
                       : Element{0};
        }
        sync_threads();
#pragma unroll
        for (int at = 0; at < DEPTH; at += 16) {
            Left<Element> a = load_left(left_tile, STRIDE, 16 * warp_index(), at);
#pragma unroll
            for (int j = 0; j < TILE / 8; j += 2) {
                Right<Element> b[2];
                load_rows(b, right_tile, COLUMN_STRIDE, at, 8 * j);
                multiply(sums[j], a, b[0]);
                multiply(sums[j + 1], a, b[1]);
            }
        }
    }
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < TILE / 2; ++i) {
        long long row = share.first_row + 16 * warp_index() + g + i % 4 / 2 * 8, column = share.first_column + i / 4 * 8 + 2 * t + i % 2;
        if (row < p.rows && column < p.columns) {
            p.output[share.output + row * share.output_row + column * share.output_column] = from_float<Element>(sums[i / 4][i % 4]);
        }
    }
}
