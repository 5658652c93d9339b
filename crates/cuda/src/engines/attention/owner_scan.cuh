// Adds values at places: a warp owns WINDOW neighbouring elements, walks all values and keeps its own. Many times
// the reads of a sort's last step, and none of its other steps; values that share a place are added in order.

constexpr int WINDOW = 256;

KERNEL void __launch_bounds__(128) owner_scan(const __grid_constant__ Parameters p) {
    float* table = (float*)shared_memory() + warp_index() * WINDOW;
    long long first = (block_index() * 4 + warp_index()) * WINDOW;
    for (int i = lane_index(); i < WINDOW; i += 32) {
        table[i] = p.first == 0 && first + i < p.elements ? p.total[first + i] : 0;
    }
    sync_warp();
    for (long long i = 0; i < p.count; i += 32) {
        long long at = i + lane_index(), place = at < p.count ? p.places[at] - first : -1;
        bool mine = place >= 0 && place < WINDOW;
        if (ballot(mine) != 0) add_in_turn(table, mine ? (int)place : -1, mine ? p.values[at] : 0);
    }
    for (int i = lane_index(); i < WINDOW; i += 32) {
        if (first + i < p.elements) p.total[first + i] = table[i];
    }
}
