// Matrix products of a warp, on fragments of 16×16, 16×8 elements, for each element type.
//
// Lane l of a warp holds, with g = l / 4 and t = l % 4: of a left operand (16 rows, 16 deep) the elements at
// rows g and g + 8, depths 2t, 2t+1, 2t+8 and 2t+9; of a right operand (16 deep, 8 columns) those at column g,
// depths 2t, 2t+1, 2t+8 and 2t+9; of sums (16 × 8) those at rows g and g + 8, columns 2t and 2t+1. So two
// neighbouring blocks of sums are a left operand without any exchange between lanes.
//
// Floats are multiplied as sums of two numbers of 11 bits each, three products for one (the fourth is below the
// rounding of a float); the depths of `mma.m16n8k8` are permuted so that the layout above holds for them too.

template <typename E>
struct Left { unsigned words[4]; };
template <>
struct Left<float> { float x[8]; };
template <typename E>
struct Right { unsigned words[2]; };
template <>
struct Right<float> { float x[4]; };

// Rows `row ..` and depths `depth ..` of a tile whose rows lie one after the other.
template <typename E>
DEVICE Left<E> load_left(const E* tile, int stride, int row, int depth) {
    Left<E> left;
    int lane = lane_index();
    load_matrices(left.words, tile + (row + lane % 16) * stride + depth + lane / 16 * 8);
    return left;
}
DEVICE Left<float> load_left(const float* tile, int stride, int row, int depth) {
    Left<float> left;
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        left.x[i] = tile[(row + g + i / 2 % 2 * 8) * stride + depth + 2 * t + i % 2 + i / 4 * 8];
    }
    return left;
}

// Two neighbouring right operands, of a tile whose *columns* lie one after the other.
template <typename E>
DEVICE void load_columns(Right<E> (&right)[2], const E* tile, int stride, int depth, int column) {
    unsigned words[4];
    int lane = lane_index();
    load_matrices(words, tile + (column + lane / 16 * 8 + lane % 8) * stride + depth + lane / 8 % 2 * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) right[i / 2].words[i % 2] = words[i];
}
DEVICE void load_columns(Right<float> (&right)[2], const float* tile, int stride, int depth, int column) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        right[i / 4].x[i % 4] = tile[(column + i / 4 * 8 + g) * stride + depth + 2 * t + i % 2 + i / 2 % 2 * 8];
    }
}

// Two neighbouring right operands, of a tile whose *rows* (the depth) lie one after the other.
template <typename E>
DEVICE void load_rows(Right<E> (&right)[2], const E* tile, int stride, int depth, int column) {
    unsigned words[4];
    int lane = lane_index();
    load_matrices_transposed(words, tile + (depth + lane % 16) * stride + column + lane / 16 * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) right[i / 2].words[i % 2] = words[i];
}
DEVICE void load_rows(Right<float> (&right)[2], const float* tile, int stride, int depth, int column) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        right[i / 4].x[i % 4] = tile[(depth + 2 * t + i % 2 + i / 2 % 2 * 8) * stride + column + i / 4 * 8 + g];
    }
}

// Two neighbouring blocks of sums, rounded, as a left operand.
template <typename E>
DEVICE Left<E> left_of_sums(const float (&first)[4], const float (&second)[4], E) {
    return Left<E>{{pack<E>(first[0], first[1]), pack<E>(first[2], first[3]), pack<E>(second[0], second[1]),
                    pack<E>(second[2], second[3])}};
}
DEVICE Left<float> left_of_sums(const float (&first)[4], const float (&second)[4], float) {
    return Left<float>{{first[0], first[1], first[2], first[3], second[0], second[1], second[2], second[3]}};
}

// sums += left · right.
template <typename E>
DEVICE void multiply(float (&sums)[4], const Left<E>& left, const Right<E>& right) {
    multiply_words(sums, left.words, right.words, E{});
}
DEVICE void multiply(float (&sums)[4], const Left<float>& left, const Right<float>& right) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        // Depths t and t + 4 of the machine's operand stand for 2t and 2t + 1 of ours.
        float a[4], a_rest[4], b[2], b_rest[2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x = left.x[half * 4 + i % 2 * 2 + i / 2];
            a[i] = round_tf32(x);
            a_rest[i] = round_tf32(x - a[i]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float x = right.x[half * 2 + i];
            b[i] = round_tf32(x);
            b_rest[i] = round_tf32(x - b[i]);
        }
        multiply_tf32(sums, a_rest, b);
        multiply_tf32(sums, a, b_rest);
        multiply_tf32(sums, a, b);
    }
}

// A product of split floats is NaN where one of them is infinite, whatever the other; such sums are made again,
// one by one.
CALLED float dot(const float* x, const float* y, int depth) {
    float sum = 0;
    for (int i = 0; i < depth; ++i) sum += x[i] * y[i];
    return sum;
}
template <int BLOCKS, int DEPTH, typename E>
DEVICE void mend(float (&)[BLOCKS][4], const E*, int, const E*, int) {}
template <int BLOCKS, int DEPTH>
DEVICE void mend(float (&sums)[BLOCKS][4], const float* left, int row, const float* right, int stride) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int j = 0; j < BLOCKS; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (sums[j][e] == sums[j][e]) continue;
            int column = 8 * j + 2 * t + e % 2;
            sums[j][e] = dot(left + (row + g + e / 2 * 8) * stride, right + column * stride, DEPTH);
        }
    }
}

// sums[16 × 8·BLOCKS] = left rows `row ..` · right columns, over a depth of DEPTH.
template <int BLOCKS, int DEPTH, typename E>
DEVICE void product(float (&sums)[BLOCKS][4], const E* left, int row, const E* right, int stride) {
#pragma unroll
    for (int j = 0; j < BLOCKS; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[j][i] = 0;
    }
#pragma unroll
    for (int depth = 0; depth < DEPTH; depth += 16) {
        Left<E> a = load_left(left, stride, row, depth);
#pragma unroll
        for (int j = 0; j < BLOCKS; j += 2) {
            Right<E> b[2];
            load_columns(b, right, stride, depth, 8 * j);
            multiply(sums[j], a, b[0]);
            multiply(sums[j + 1], a, b[1]);
        }
    }
    mend<BLOCKS, DEPTH>(sums, left, row, right, stride);
}

// sums[16 × 8·BLOCKS] += weights[16 × 8·DEPTH_BLOCKS], rounded, · rows of a tile, from a column on.
template <int DEPTH_BLOCKS, int BLOCKS, typename E>
DEVICE void accumulate(float (&sums)[BLOCKS][4], const float (&weights)[DEPTH_BLOCKS][4], const E* rows, int stride,
                       int column) {
#pragma unroll
    for (int i = 0; i < DEPTH_BLOCKS; i += 2) {
        Left<E> a = left_of_sums(weights[i], weights[i + 1], E{});
#pragma unroll
        for (int j = 0; j < BLOCKS; j += 2) {
            Right<E> b[2];
            load_rows(b, rows, stride, 8 * i, column + 8 * j);
            multiply(sums[j], a, b[0]);
            multiply(sums[j + 1], a, b[1]);
        }
    }
}
