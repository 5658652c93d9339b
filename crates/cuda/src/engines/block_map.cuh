// The blocks that a mask leaves: a warp for each block evaluates the mask at its pairs until it has met one that
// is admitted and one that is not. No array of queries × keys: one byte for each block.

KERNEL void __launch_bounds__(128) block_map(const __grid_constant__ Parameters p) {
    long long block = block_index() * 4 + warp_index();
    if (block >= p.map_batch * p.map_heads * p.query_blocks * p.key_blocks) return;
    long long j = block % p.key_blocks, i = block / p.key_blocks % p.query_blocks;
    long long slice = block / p.key_blocks / p.query_blocks;
    int b = slice / p.map_heads, h = slice % p.map_heads;
    long long query = i * p.query_block, key = j * p.key_block;
    long long rows = min_of(p.query_block, p.queries - query), columns = min_of(p.key_block, p.keys - key);
    Fault fault;
    bool any = false, all = true;
    for (long long pair = 0; pair < rows * columns && (all || !any); pair += 32) {
        long long mine = pair + lane_index();
        bool inside = mine < rows * columns;
        bool admitted = inside && admits(p, b, h, query + mine / columns, key + mine % columns, fault);
        any = any || ballot(admitted) != 0;
        all = all && ballot(inside && !admitted) == 0;
    }
    if (lane_index() == 0) p.blocks[block] = all ? 2 : any ? 1 : 0;
    report(fault, p.fault, p.first_site);
}
