// Rounds the sums of a captured array to its type.

KERNEL void __launch_bounds__(256) store_capture(const __grid_constant__ Parameters p) {
    long long element = block_index() * 256 + thread_index();
    if (element < p.elements) p.cotangent[element] = rounded(p.total[element]);
}
