// Before the gradient of attention on Hopper: what belongs to each row of scores. Its sum of the output times its
// cotangent, less the cotangent of the log-sum-exp; and the log-sum-exp as a power of 2, ∞ where the row has no
// weight, as a row past the end has none. Rows are padded to whole tiles. A warp does a row.

template <typename T>
struct alignas(4 * sizeof(T)) FourOf {
    T x[4];
};

KERNEL void __launch_bounds__(128) attention_rows(const __grid_constant__ Parameters p) {
    long long padded = (p.queries + COLUMNS - 1) / COLUMNS * COLUMNS, row = block_index() * 4 + warp_index();
    if (row >= p.batch * p.heads * padded) return;
    long long b = row / (p.heads * padded), h = row / padded % p.heads, q = row % padded;
    float sum = 0, log2_sum_exp = infinity<float>();
    if (q < p.queries) {
        const float* output = p.output + b * p.output_strides[0] + h * p.output_strides[1] + q * p.output_strides[2];
        const Element* cotangent = p.output_cotangent + b * p.output_cotangent_strides[0] +
                                   h * p.output_cotangent_strides[1] + q * p.output_cotangent_strides[2];
#pragma unroll
        for (int i = 0; i < VALUE_SIZE; i += 128) {
            int column = i + 4 * lane_index();
            if (column >= VALUE_SIZE) continue;
            FourOf<Element> right = *(const FourOf<Element>*)(cotangent + column);
            FourOf<float> left;
            if constexpr (OUTPUT_VECTOR) {
                left = *(const FourOf<float>*)(output + column);
            } else {
#pragma unroll
                for (int j = 0; j < 4; ++j) left.x[j] = output[(column + j) * p.output_strides[3]];
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) sum += left.x[j] * to_float(right.x[j]);
        }
        for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
        if constexpr (LOG_SUM_EXP_COTANGENT) {
            sum -= p.log_sum_exp_cotangent[b * p.log_sum_exp_cotangent_strides[0] +
                                           h * p.log_sum_exp_cotangent_strides[1] +
                                           q * p.log_sum_exp_cotangent_strides[2]];
        }
        float log_sum_exp = p.log_sum_exp[b * p.log_sum_exp_strides[0] + h * p.log_sum_exp_strides[1] +
                                          q * p.log_sum_exp_strides[2]];
        if (log_sum_exp != -infinity<float>()) log2_sum_exp = log_sum_exp * 1.4426950408889634f;
    }
    if (lane_index() != 0) return;
    p.delta[row] = sum;
    p.log2_sum_exp[row] = log2_sum_exp;
}
