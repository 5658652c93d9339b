launch attention_forward on 4 blocks of 128 threads, 9248 bytes of shared memory

// What this kernel does: attention of f16 with head size 8 and value size 5, in tiles of 64 queries and 64 keys.

struct Parameters {
    long long batch;
    long long heads;
    long long key_batch;
    long long key_heads;
    long long queries;
    long long keys;
    double scale;
    const float16* query;
    long long query_strides[4];
    const float16* key;
    long long key_strides[4];
    const float16* value;
    long long value_strides[4];
    const unsigned char* blocks;
    int* tickets;
    long long map_batch;
    long long map_heads;
    long long query_block;
    long long key_block;
    long long query_blocks;
    long long key_blocks;
    const float* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    unsigned long long* fault;
    long long first_site;
    float16* output;
    long long output_strides[4];
    float* unrounded;
    long long unrounded_strides[4];
    float* log_sum_exp;
    long long log_sum_exp_strides[3];
    float* maximum;
    long long maximum_strides[3];
};

typedef float16 Element;
constexpr int WARPS = 4;
constexpr int COLUMNS = 64;
constexpr int HEAD_SIZE = 8;
constexpr int HEAD = 16;
constexpr int VALUE_SIZE = 5;
constexpr int VALUE = 16;
constexpr bool MASKED = false;
constexpr bool QUERY_VECTOR = true;
constexpr bool KEY_VECTOR = true;
constexpr bool VALUE_VECTOR = false;
constexpr bool UNROUNDED = true;
constexpr bool LOG_SUM_EXP = true;
constexpr bool MAXIMUM = false;
DEVICE bool admits(const Parameters&, int, int, int, int, Fault&) { return true; }
// The score function.
DEVICE float score(const Parameters& p, int b, int h, int q, int k, float s, bool live, Fault& fault) {
    bool r2_inside = live;
    int r2_at = 0;
    r2_at += (int)(q) * (int)p.table_0_strides[0];
    r2_at += (int)(k) * (int)p.table_0_strides[1];
    float r2 = (r2_inside ? read_only(p.table_0 + r2_at) : (float)0);
    float r4 = r2 + s;
    return r4;
}

launch attention_delta on 37 blocks of 128 threads, 0 bytes of shared memory

// What this kernel does: row sums of an attention's output times its cotangent.

struct Parameters {
    long long batch;
    long long heads;
    long long queries;
    const float* output;
    long long output_strides[4];
    const float16* output_cotangent;
    long long output_cotangent_strides[4];
    const float* log_sum_exp_cotangent;
    long long log_sum_exp_cotangent_strides[3];
    float* delta;
};

typedef float16 Element;
constexpr int VALUE_SIZE = 5;
constexpr bool LOG_SUM_EXP_COTANGENT = true;

launch attention_backward_keys on 4 blocks of 128 threads, 12832 bytes of shared memory

// What this kernel does: the gradient of attention with respect to keys and values.

struct Parameters {
    long long batch;
    long long heads;
    long long key_batch;
    long long key_heads;
    long long queries;
    long long keys;
    double scale;
    const float16* query;
    long long query_strides[4];
    const float16* key;
    long long key_strides[4];
    const float16* value;
    long long value_strides[4];
    const unsigned char* blocks;
    int* tickets;
    long long map_batch;
    long long map_heads;
    long long query_block;
    long long key_block;
    long long query_blocks;
    long long key_blocks;
    const float* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    unsigned long long* fault;
    long long first_site;
    const float* log_sum_exp;
    long long log_sum_exp_strides[3];
    const float16* output_cotangent;
    long long output_cotangent_strides[4];
    const float* delta;
    long long delta_rows;
    float16* key_cotangent;
    long long key_cotangent_strides[4];
    float16* value_cotangent;
    long long value_cotangent_strides[4];
    float* row_sums;
};

typedef float16 Element;
constexpr int WARPS = 4;
constexpr int COLUMNS = 64;
constexpr int HEAD_SIZE = 8;
constexpr int HEAD = 16;
constexpr int VALUE_SIZE = 5;
constexpr int VALUE = 16;
constexpr bool MASKED = false;
constexpr bool QUERY_VECTOR = true;
constexpr bool KEY_VECTOR = true;
constexpr bool VALUE_VECTOR = false;
constexpr bool COTANGENT_VECTOR = false;
constexpr int TERMS = 0;
constexpr bool KEY_ROWS = true;
constexpr int SLICES = 1;
constexpr int HEAD_SLICE = 16;
constexpr int VALUE_SLICE = 16;
constexpr int ROW_SUMS = 0;
constexpr bool KEY_COTANGENT = true;
constexpr bool VALUE_COTANGENT = true;
DEVICE bool admits(const Parameters&, int, int, int, int, Fault&) { return true; }
// The score function.
DEVICE float score(const Parameters& p, int b, int h, int q, int k, float s, bool live, Fault& fault) {
    bool r2_inside = live;
    int r2_at = 0;
    r2_at += (int)(q) * (int)p.table_0_strides[0];
    r2_at += (int)(k) * (int)p.table_0_strides[1];
    float r2 = (r2_inside ? read_only(p.table_0 + r2_at) : (float)0);
    float r4 = r2 + s;
    return r4;
}
// The score function's derivative, and the terms of captured arrays.
DEVICE float gradient(const Parameters& p, int b, int h, int q, int k, float s, float cotangent, bool live, Fault& fault, float (&terms)[at_least_one(TERMS)]) {
    return cotangent;
}
// Where the terms of captured arrays go: a flat index, −1 for none.
DEVICE int scatter_place(const Parameters& p, int number, int b, int h, int q, int k, float s, bool live) {
    return -1;
}

launch attention_backward_queries on 4 blocks of 128 threads, 12832 bytes of shared memory

// What this kernel does: the gradient of attention with respect to queries.

struct Parameters {
    long long batch;
    long long heads;
    long long key_batch;
    long long key_heads;
    long long queries;
    long long keys;
    double scale;
    const float16* query;
    long long query_strides[4];
    const float16* key;
    long long key_strides[4];
    const float16* value;
    long long value_strides[4];
    const unsigned char* blocks;
    int* tickets;
    long long map_batch;
    long long map_heads;
    long long query_block;
    long long key_block;
    long long query_blocks;
    long long key_blocks;
    const float* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    unsigned long long* fault;
    long long first_site;
    const float* log_sum_exp;
    long long log_sum_exp_strides[3];
    const float16* output_cotangent;
    long long output_cotangent_strides[4];
    const float* delta;
    long long delta_rows;
    float16* query_cotangent;
    long long query_cotangent_strides[4];
    float* row_sums;
    float* head_sums;
    float* diagonals;
    float* tables;
};

typedef float16 Element;
constexpr int WARPS = 4;
constexpr int COLUMNS = 64;
constexpr int HEAD_SIZE = 8;
constexpr int HEAD = 16;
constexpr int VALUE_SIZE = 5;
constexpr int VALUE = 16;
constexpr bool MASKED = false;
constexpr bool QUERY_VECTOR = true;
constexpr bool KEY_VECTOR = true;
constexpr bool VALUE_VECTOR = false;
constexpr bool COTANGENT_VECTOR = false;
constexpr int TERMS = 0;
constexpr bool KEY_ROWS = false;
constexpr bool QUERY_COTANGENT = true;
constexpr int ROW_SUMS = 0;
constexpr int HEAD_SUMS = 0;
constexpr int DIFFERENCES = 0;
constexpr int SUMS = 0;
constexpr int TABLES = 0;
constexpr int TABLE_ELEMENTS = 0;
DEVICE bool admits(const Parameters&, int, int, int, int, Fault&) { return true; }
// The score function.
DEVICE float score(const Parameters& p, int b, int h, int q, int k, float s, bool live, Fault& fault) {
    bool r2_inside = live;
    int r2_at = 0;
    r2_at += (int)(q) * (int)p.table_0_strides[0];
    r2_at += (int)(k) * (int)p.table_0_strides[1];
    float r2 = (r2_inside ? read_only(p.table_0 + r2_at) : (float)0);
    float r4 = r2 + s;
    return r4;
}
// The score function's derivative, and the terms of captured arrays.
DEVICE float gradient(const Parameters& p, int b, int h, int q, int k, float s, float cotangent, bool live, Fault& fault, float (&terms)[at_least_one(TERMS)]) {
    return cotangent;
}
// Where the terms of captured arrays go: a flat index, −1 for none.
DEVICE int scatter_place(const Parameters& p, int number, int b, int h, int q, int k, float s, bool live) {
    return -1;
}

zero 10360 bytes

launch attention_backward_pairs on 12 blocks of 128 threads, 9776 bytes of shared memory

// What this kernel does: the cotangent of a captured array that single pairs read.

struct Parameters {
    long long batch;
    long long heads;
    long long key_batch;
    long long key_heads;
    long long queries;
    long long keys;
    double scale;
    const float16* query;
    long long query_strides[4];
    const float16* key;
    long long key_strides[4];
    const float16* value;
    long long value_strides[4];
    const unsigned char* blocks;
    int* tickets;
    long long map_batch;
    long long map_heads;
    long long query_block;
    long long key_block;
    long long query_blocks;
    long long key_blocks;
    const float* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    unsigned long long* fault;
    long long first_site;
    const float* log_sum_exp;
    long long log_sum_exp_strides[3];
    const float16* output_cotangent;
    long long output_cotangent_strides[4];
    const float* delta;
    long long delta_rows;
    float* copies;
    long long elements;
    long long extents_0[2];
    long long offset_0;
};

typedef float16 Element;
constexpr int WARPS = 4;
constexpr int COLUMNS = 32;
constexpr int HEAD_SIZE = 8;
constexpr int HEAD = 16;
constexpr int VALUE_SIZE = 5;
constexpr int VALUE = 16;
constexpr bool MASKED = false;
constexpr bool QUERY_VECTOR = true;
constexpr bool KEY_VECTOR = true;
constexpr bool VALUE_VECTOR = false;
constexpr bool COTANGENT_VECTOR = false;
constexpr int TERMS = 1;
constexpr bool KEY_ROWS = false;
constexpr bool OWNED = true;
constexpr bool APART_IN_BATCH = false;
constexpr bool APART_IN_HEADS = false;
constexpr bool SHARED_BY_ALL = true;
DEVICE bool admits(const Parameters&, int, int, int, int, Fault&) { return true; }
// The score function.
DEVICE float score(const Parameters& p, int b, int h, int q, int k, float s, bool live, Fault& fault) {
    bool r2_inside = live;
    int r2_at = 0;
    r2_at += (int)(q) * (int)p.table_0_strides[0];
    r2_at += (int)(k) * (int)p.table_0_strides[1];
    float r2 = (r2_inside ? read_only(p.table_0 + r2_at) : (float)0);
    float r4 = r2 + s;
    return r4;
}
// The score function's derivative, and the terms of captured arrays.
DEVICE float gradient(const Parameters& p, int b, int h, int q, int k, float s, float cotangent, bool live, Fault& fault, float (&terms)[at_least_one(TERMS)]) {
    terms[0] = cotangent;
    return cotangent;
}
// Where the terms of captured arrays go: a flat index, −1 for none.
DEVICE int scatter_place(const Parameters& p, int number, int b, int h, int q, int k, float s, bool live) {
    Fault fault;
    if (!live) return -1;
    if (number == 0) {
    bool inside = true;
    long long at = 0, flat = p.offset_0;
    at = 0;
    locate(q, p.extents_0[0], 1, 0, inside, at, fault);
    flat += at * p.extents_0[1];
    at = 0;
    locate(k, p.extents_0[1], 1, 0, inside, at, fault);
    flat += at;
    return inside ? (int)flat : -1;
    }
    return -1;
}

launch store_capture on 11 blocks of 256 threads, 0 bytes of shared memory

// What this kernel does: rounds the cotangent of a captured array.

struct Parameters {
    long long elements;
    const float* total;
    float* cotangent;
    long long cotangent_strides[2];
};

DEVICE float rounded(float x) { return x; }

