// Adds values at places: a warp owns WINDOW neighbouring elements, walks the values in groups of 32, passes by those
// whose range of places lies elsewhere, and keeps its own. Values that share a place are added in order.

constexpr int WINDOW = 256;

KERNEL void __launch_bounds__(128) owner_scan(const __grid_constant__ Parameters p) {
    float* table = (float*)shared_memory() + warp_index() * WINDOW;
    long long first = (block_index() * 4 + warp_index()) * WINDOW;
    for (int i = lane_index(); i < WINDOW; i += 32) {
        table[i] = p.first == 0 && first + i < p.elements ? p.total[first + i] : 0;
    }
    sync_warp();
    for (long long start = 0; start < p.groups; start += 32) {
        long long group = start + lane_index();
        bool near = group < p.groups && p.ranges[2 * group] < first + WINDOW && p.ranges[2 * group + 1] >= first;
        for (unsigned some = ballot(near); some != 0; some &= some - 1) {
            long long at = (start + count_bits((some & (0u - some)) - 1)) * 32 + lane_index(), place = p.places[at] - first;
            bool mine = place >= 0 && place < WINDOW;
            if (ballot(mine) != 0) add_in_turn(table, mine ? (int)place : -1, mine ? p.values[at] : 0);
        }
    }
    for (int i = lane_index(); i < WINDOW; i += 32) {
        if (first + i < p.elements) p.total[first + i] = table[i];
    }
}
