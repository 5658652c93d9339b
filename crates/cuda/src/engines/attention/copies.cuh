// Adds up copies of an array: a warp for each element, whose lanes take every 32nd copy.

KERNEL void __launch_bounds__(128) sum_copies(const __grid_constant__ Parameters p) {
    long long element = block_index() * 4 + warp_index();
    if (element >= p.elements) return;
    float sum = 0;
    for (long long i = lane_index(); i < p.count; i += 32) sum += p.copies[i * p.stride + element];
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    if (lane_index() == 0) p.total[element] = (p.first ? 0 : p.total[element]) + sum;
}
