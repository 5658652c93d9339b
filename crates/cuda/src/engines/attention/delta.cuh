// Before the gradient of attention: for each row the sum of the output times its cotangent, less the cotangent
// of the log-sum-exp. A warp sums a row.

KERNEL void __launch_bounds__(128) attention_delta(const __grid_constant__ Parameters p) {
    long long row = block_index() * 4 + warp_index();
    if (row >= p.batch * p.heads * p.queries) return;
    long long b = row / (p.heads * p.queries), h = row / p.queries % p.heads, q = row % p.queries;
    const float* output = p.output + b * p.output_strides[0] + h * p.output_strides[1] + q * p.output_strides[2];
    const Element* cotangent = p.output_cotangent + b * p.output_cotangent_strides[0] +
                               h * p.output_cotangent_strides[1] + q * p.output_cotangent_strides[2];
    float sum = 0;
    for (int i = lane_index(); i < VALUE_SIZE; i += 32) {
        sum += output[i * p.output_strides[3]] * to_float(cotangent[i * p.output_cotangent_strides[3]]);
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    if (lane_index() != 0) return;
    if constexpr (LOG_SUM_EXP_COTANGENT) {
        sum -= p.log_sum_exp_cotangent[b * p.log_sum_exp_cotangent_strides[0] + h * p.log_sum_exp_cotangent_strides[1] +
                                       q * p.log_sum_exp_cotangent_strides[2]];
    }
    p.delta[row] = sum;
}
