// Scattered sums without atomics: a warp owns a row of the output, 8 columns a lane; it walks the targets of all
// updates and adds those that are its own, in their order.

KERNEL void __launch_bounds__(256) scatter_targets(const __grid_constant__ Parameters p) {
    long long update = block_index() * 256 + thread_index();
    if (update >= p.updates_count) return;
    Fault fault;
    bool inside = true;
    long long row = target_of(p, update, inside, fault);
    p.targets[update] = inside ? row : -1;
    report(fault, p.fault, p.first_site);
}

KERNEL void __launch_bounds__(128) scatter_add(const __grid_constant__ Parameters p) {
    constexpr int LANE_COLUMNS = 8;
    long long chunks = (p.columns + 32 * LANE_COLUMNS - 1) / (32 * LANE_COLUMNS);
    long long unit = block_index() * 4 + warp_index(), row = unit / chunks;
    if (row >= p.rows) return;
    long long first = unit % chunks * 32 * LANE_COLUMNS + lane_index();
    Sum sums[LANE_COLUMNS] = {};
    for (long long i = 0; i < p.updates_count; i += 32) {
        long long mine = i + lane_index();
        unsigned hits = ballot(mine < p.updates_count && p.targets[mine] == row);
        for (int lane = 0; lane < 32; ++lane) {
            if (!(hits >> lane & 1)) continue;
            long long start = update_place(p, i + lane);
#pragma unroll
            for (int j = 0; j < LANE_COLUMNS; ++j) {
                long long column = first + 32 * j;
                if (column < p.columns) sums[j] += value_of(p.updates[start + column_place(p, column)]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < LANE_COLUMNS; ++j) {
        long long column = first + 32 * j;
        if (column < p.columns) p.output[row * p.columns + column] = rounded(sums[j]);
    }
}
