// A batch of matrix products: which results a block of threads has, and where its operands lie.

constexpr int TILE = 64;

struct Share {
    long long first_row, first_column;
    long long left, right, output;  // elements from the operands' origins
    long long left_row, left_depth, right_depth, right_column, output_row, output_column;
};

DEVICE Share share_of_block(const Parameters& p) {
    long long row_tiles = (p.rows + TILE - 1) / TILE, column_tiles = (p.columns + TILE - 1) / TILE;
    Share share = {};
    share.first_row = block_index() / column_tiles % row_tiles * TILE;
    share.first_column = block_index() % column_tiles * TILE;
    long long batch = block_index() / (row_tiles * column_tiles);
    for (int axis = BATCH_AXES - 1; axis >= 0; --axis) {
        long long position = batch % p.batch[axis];
        batch /= p.batch[axis];
        share.left += position * p.left_strides[axis];
        share.right += position * p.right_strides[axis];
        share.output += position * p.output_strides[axis];
    }
    share.left_row = p.left_strides[BATCH_AXES];
    share.left_depth = p.left_strides[BATCH_AXES + 1];
    share.right_depth = p.right_strides[BATCH_AXES];
    share.right_column = p.right_strides[BATCH_AXES + 1];
    share.output_row = p.output_strides[BATCH_AXES];
    share.output_column = p.output_strides[BATCH_AXES + 1];
    return share;
}
