// The blocks that a mask leaves: a warp for each block evaluates the mask over the block's intervals, and where these do
// not tell, at its pairs until it has met one that is admitted and one that is not. No array of queries × keys: one
// byte for each block. Nobody has drawn a ticket yet for the work that the map leaves.

KERNEL void __launch_bounds__(128) block_map(const __grid_constant__ Parameters p) {
    if (block_index() == 0 && thread_index() == 0) *p.tickets = 0;
    int block = block_index() * 4 + warp_index(), row_blocks = p.query_blocks, column_blocks = p.key_blocks;
    if (block >= (int)(p.map_batch * p.map_heads) * row_blocks * column_blocks) return;
    int j = block % column_blocks, i = block / column_blocks % row_blocks, slice = block / column_blocks / row_blocks;
    int b = slice / (int)p.map_heads, h = slice % (int)p.map_heads;
    int query = i * (int)p.query_block, key = j * (int)p.key_block;
    int rows = min_of((int)p.query_block, (int)p.queries - query), columns = min_of((int)p.key_block, (int)p.keys - key);
    Fault fault;
    bool safe = FOLLOWED;
    Truth truth = admits_block(p, Interval{b, b}, Interval{h, h}, Interval{query, query + rows - 1},
                               Interval{key, key + columns - 1}, safe);
    bool any = safe && truth.must, all = any || !safe || truth.may;
    if (!safe || (truth.may && !truth.must)) {
        any = false;
        all = true;
        auto look = [&](int row, int column, bool inside) {
            bool admitted = inside && admits(p, b, h, query + row, key + column, fault);
            any = any || ballot(admitted) != 0;
            all = all && ballot(inside && !admitted) == 0;
        };
        // First from corner to corner, which tells of nearly all blocks that are mixed.
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            look((lane_index() / 16 + i) * (rows - 1) / 7, lane_index() % 16 * (columns - 1) / 15, true);
        }
        for (int pair = 0; pair < rows * columns && (all || !any); pair += 32) {
            int mine = pair + lane_index();
            look(mine / columns, mine % columns, mine < rows * columns);
        }
    }
    if (lane_index() == 0) p.blocks[block] = all ? 2 : any ? 1 : 0;
    report(fault, p.fault, p.first_site);
}
