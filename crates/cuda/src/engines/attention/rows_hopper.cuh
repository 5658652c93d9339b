// Before the gradient of attention on Hopper: what belongs to each row of scores. Its sum of the output times its
// cotangent, less the cotangent of the log-sum-exp; and the log-sum-exp as a power of 2, ∞ where the row has no
// weight, as a row past the end has none. And its gain, where queries have one. Rows are padded to whole tiles.

template <typename T>
struct alignas(4 * sizeof(T)) FourOf {
    T x[4];
};

// So many threads do a row, each four columns at a time.
constexpr int LANES = VALUE_SIZE <= 32 ? 8 : VALUE_SIZE <= 64 ? 16 : 32, ROWS = 128 / LANES;

KERNEL void __launch_bounds__(128) attention_rows(const __grid_constant__ Parameters p) {
    // Rows fit 32 bits: their elements would not fit memory otherwise.
    const unsigned heads = p.heads, padded = (p.queries + COLUMNS - 1) / COLUMNS * COLUMNS;
    const unsigned row = block_index() * ROWS + thread_index() / LANES, lane = thread_index() % LANES;
    const bool there = row < p.batch * heads * padded;
    const unsigned head = row / padded, q = row - head * padded, b = head / heads, h = head - b * heads;
    float sum = 0, log2_sum_exp = infinity<float>();
    if (there && q < p.queries) {
        const float* output = p.output + b * p.output_strides[0] + h * p.output_strides[1] + q * p.output_strides[2];
        const Element* cotangent = p.output_cotangent + b * p.output_cotangent_strides[0] +
                                   h * p.output_cotangent_strides[1] + q * p.output_cotangent_strides[2];
#pragma unroll
        for (int i = 0; i < VALUE_SIZE; i += 4 * LANES) {
            int column = i + 4 * lane;
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
        if constexpr (LOG_SUM_EXP_COTANGENT) {
            if (lane == 0) sum -= p.log_sum_exp_cotangent[b * p.log_sum_exp_cotangent_strides[0] +
                                           h * p.log_sum_exp_cotangent_strides[1] +
                                           q * p.log_sum_exp_cotangent_strides[2]];
        }
        float log_sum_exp = p.log_sum_exp[b * p.log_sum_exp_strides[0] + h * p.log_sum_exp_strides[1] +
                                          q * p.log_sum_exp_strides[2]];
        if (log_sum_exp != -infinity<float>()) log2_sum_exp = log_sum_exp * 1.4426950408889634f;
    }
#pragma unroll
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    if (!there || lane != 0) return;
    p.delta[row] = sum;
    p.log2_sum_exp[row] = log2_sum_exp;
    if constexpr (ROW_GAINS) {
        Fault fault;
        p.row_gains[row] = q < p.queries ? gain(p, 0, b, h, q, fault) : 0;
    }
}
