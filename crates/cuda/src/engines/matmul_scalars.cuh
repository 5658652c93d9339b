// Products of types that the matrix units have not: a thread for each result, which adds in the order of the depth.

KERNEL void __launch_bounds__(128) matmul(const __grid_constant__ Parameters p) {
    Share share = share_of_block(p);
    for (int i = thread_index(); i < TILE * TILE; i += 128) {
        long long row = share.first_row + i / TILE, column = share.first_column + i % TILE;
        if (row >= p.rows || column >= p.columns) continue;
        Sum sum = 0;
        for (long long at = 0; at < p.depth; ++at) {
            sum += (Sum)p.left[share.left + row * share.left_row + at * share.left_depth] *
                   (Sum)p.right[share.right + at * share.right_depth + column * share.right_column];
        }
        p.output[share.output + row * share.output_row + column * share.output_column] = (Element)sum;
    }
}
