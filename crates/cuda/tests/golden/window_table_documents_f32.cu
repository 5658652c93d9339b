launch block_map on 1 blocks of 128 threads, 0 bytes of shared memory

// What this kernel does: finds which blocks a mask leaves.

struct Parameters {
    unsigned char* blocks;
    long long map_batch;
    long long map_heads;
    long long query_block;
    long long key_block;
    long long query_blocks;
    long long key_blocks;
    long long queries;
    long long keys;
    const int* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    unsigned long long* fault;
    long long first_site;
};

// The mask.
DEVICE bool admits(const Parameters& p, int b, int h, int q, int k, Fault& fault) {
    bool r2_inside = true;
    long long r2_at = 0;
    locate(b, p.table_0_extents[0], p.table_0_strides[0], 0, r2_inside, r2_at, fault);
    locate(q, p.table_0_extents[1], p.table_0_strides[1], 1, r2_inside, r2_at, fault);
    int r2 = (r2_inside ? read_only(p.table_0 + r2_at) : (int)0);
    bool r4_inside = true;
    long long r4_at = 0;
    locate(b, p.table_0_extents[0], p.table_0_strides[0], 2, r4_inside, r4_at, fault);
    locate(k, p.table_0_extents[1], p.table_0_strides[1], 3, r4_inside, r4_at, fault);
    int r4 = (r4_inside ? read_only(p.table_0 + r4_at) : (int)0);
    bool r5 = r2 == r4;
    return r5;
}

launch attention_forward on 4 blocks of 128 threads, 36128 bytes of shared memory

// What this kernel does: attention of f32 with head size 8 and value size 5, in tiles of 64 queries and 64 keys.

struct Parameters {
    long long batch;
    long long heads;
    long long key_batch;
    long long key_heads;
    long long queries;
    long long keys;
    double scale;
    const float* query;
    long long query_strides[4];
    const float* key;
    long long key_strides[4];
    const float* value;
    long long value_strides[4];
    unsigned char* blocks;
    long long map_batch;
    long long map_heads;
    long long query_block;
    long long key_block;
    long long query_blocks;
    long long key_blocks;
    const float* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    const int* table_1;
    long long table_1_strides[2];
    long long table_1_extents[2];
    unsigned long long* fault;
    long long first_site;
    float* output;
    long long output_strides[4];
    float* unrounded;
    long long unrounded_strides[4];
    float* log_sum_exp;
    long long log_sum_exp_strides[3];
    float* maximum;
    long long maximum_strides[3];
};

typedef float Element;
constexpr int WARPS = 4;
constexpr int COLUMNS = 64;
constexpr int HEAD_SIZE = 8;
constexpr int HEAD = 16;
constexpr int VALUE_SIZE = 5;
constexpr int VALUE = 16;
constexpr bool MASKED = true;
constexpr bool QUERY_VECTOR = true;
constexpr bool KEY_VECTOR = true;
constexpr bool VALUE_VECTOR = false;
constexpr bool UNROUNDED = false;
constexpr bool LOG_SUM_EXP = true;
constexpr bool MAXIMUM = false;
// The mask.
DEVICE bool admits(const Parameters& p, int b, int h, int q, int k, Fault& fault) {
    bool r2_inside = true;
    long long r2_at = 0;
    locate(b, p.table_1_extents[0], p.table_1_strides[0], 0, r2_inside, r2_at, fault);
    locate(q, p.table_1_extents[1], p.table_1_strides[1], 1, r2_inside, r2_at, fault);
    int r2 = (r2_inside ? read_only(p.table_1 + r2_at) : (int)0);
    bool r4_inside = true;
    long long r4_at = 0;
    locate(b, p.table_1_extents[0], p.table_1_strides[0], 2, r4_inside, r4_at, fault);
    locate(k, p.table_1_extents[1], p.table_1_strides[1], 3, r4_inside, r4_at, fault);
    int r4 = (r4_inside ? read_only(p.table_1 + r4_at) : (int)0);
    bool r5 = r2 == r4;
    return r5;
}
// The score function.
DEVICE float score(const Parameters& p, int b, int h, int q, int k, float s, bool live, Fault& fault) {
    int r2 = wrapping_subtract(q, k);
    int r4 = wrapping_add(r2, 8);
    int r7 = (r4 > 0 ? r4 : 0);
    int r8 = (r7 < 16 ? r7 : 16);
    bool r10_inside = live;
    long long r10_at = 0;
    locate(h, p.table_0_extents[0], p.table_0_strides[0], 4, r10_inside, r10_at, fault);
    locate(r8, p.table_0_extents[1], p.table_0_strides[1], 5, r10_inside, r10_at, fault);
    float r10 = (r10_inside ? read_only(p.table_0 + r10_at) : (float)0);
    float r12 = r10 + s;
    return r12;
}

launch attention_delta on 37 blocks of 128 threads, 0 bytes of shared memory

// What this kernel does: row sums of an attention's output times its cotangent.

struct Parameters {
    long long batch;
    long long heads;
    long long queries;
    const float* output;
    long long output_strides[4];
    const float* output_cotangent;
    long long output_cotangent_strides[4];
    const float* log_sum_exp_cotangent;
    long long log_sum_exp_cotangent_strides[3];
    float* delta;
};

typedef float Element;
constexpr int VALUE_SIZE = 5;
constexpr bool LOG_SUM_EXP_COTANGENT = true;

launch attention_backward_keys on 4 blocks of 128 threads, 42784 bytes of shared memory

// What this kernel does: the gradient of attention with respect to keys and values.

struct Parameters {
    long long batch;
    long long heads;
    long long key_batch;
    long long key_heads;
    long long queries;
    long long keys;
    double scale;
    const float* query;
    long long query_strides[4];
    const float* key;
    long long key_strides[4];
    const float* value;
    long long value_strides[4];
    unsigned char* blocks;
    long long map_batch;
    long long map_heads;
    long long query_block;
    long long key_block;
    long long query_blocks;
    long long key_blocks;
    const float* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    const int* table_1;
    long long table_1_strides[2];
    long long table_1_extents[2];
    unsigned long long* fault;
    long long first_site;
    const float* log_sum_exp;
    long long log_sum_exp_strides[3];
    const float* output_cotangent;
    long long output_cotangent_strides[4];
    const float* delta;
    float* key_cotangent;
    long long key_cotangent_strides[4];
    float* value_cotangent;
    long long value_cotangent_strides[4];
    float* row_sums;
};

typedef float Element;
constexpr int WARPS = 4;
constexpr int COLUMNS = 64;
constexpr int HEAD_SIZE = 8;
constexpr int HEAD = 16;
constexpr int VALUE_SIZE = 5;
constexpr int VALUE = 16;
constexpr bool MASKED = true;
constexpr bool QUERY_VECTOR = true;
constexpr bool KEY_VECTOR = true;
constexpr bool VALUE_VECTOR = false;
constexpr bool COTANGENT_VECTOR = false;
constexpr bool KEY_ROWS = true;
constexpr int TERMS = 0;
constexpr int SLICES = 1;
constexpr int HEAD_SLICE = 16;
constexpr int VALUE_SLICE = 16;
constexpr int ROW_SUMS = 0;
constexpr bool KEY_COTANGENT = true;
constexpr bool VALUE_COTANGENT = true;
// The mask.
DEVICE bool admits(const Parameters& p, int b, int h, int q, int k, Fault& fault) {
    bool r2_inside = true;
    long long r2_at = 0;
    locate(b, p.table_1_extents[0], p.table_1_strides[0], 0, r2_inside, r2_at, fault);
    locate(q, p.table_1_extents[1], p.table_1_strides[1], 1, r2_inside, r2_at, fault);
    int r2 = (r2_inside ? read_only(p.table_1 + r2_at) : (int)0);
    bool r4_inside = true;
    long long r4_at = 0;
    locate(b, p.table_1_extents[0], p.table_1_strides[0], 2, r4_inside, r4_at, fault);
    locate(k, p.table_1_extents[1], p.table_1_strides[1], 3, r4_inside, r4_at, fault);
    int r4 = (r4_inside ? read_only(p.table_1 + r4_at) : (int)0);
    bool r5 = r2 == r4;
    return r5;
}
// The score function.
DEVICE float score(const Parameters& p, int b, int h, int q, int k, float s, bool live, Fault& fault) {
    int r2 = wrapping_subtract(q, k);
    int r4 = wrapping_add(r2, 8);
    int r7 = (r4 > 0 ? r4 : 0);
    int r8 = (r7 < 16 ? r7 : 16);
    bool r10_inside = live;
    long long r10_at = 0;
    locate(h, p.table_0_extents[0], p.table_0_strides[0], 4, r10_inside, r10_at, fault);
    locate(r8, p.table_0_extents[1], p.table_0_strides[1], 5, r10_inside, r10_at, fault);
    float r10 = (r10_inside ? read_only(p.table_0 + r10_at) : (float)0);
    float r12 = r10 + s;
    return r12;
}
// The score function's derivative, and the terms of captured arrays.
DEVICE float gradient(const Parameters& p, int b, int h, int q, int k, float s, float cotangent, bool live, Fault& fault, float (&terms)[at_least_one(TERMS)]) {
    return cotangent;
}
// Where the terms of captured arrays go: a flat index, −1 for none.
DEVICE int scatter_place(const Parameters& p, int number, int b, int h, int q, int k, float s, bool live) {
    return -1;
}

launch attention_backward_queries on 4 blocks of 128 threads, 42800 bytes of shared memory

// What this kernel does: the gradient of attention with respect to queries.

struct Parameters {
    long long batch;
    long long heads;
    long long key_batch;
    long long key_heads;
    long long queries;
    long long keys;
    double scale;
    const float* query;
    long long query_strides[4];
    const float* key;
    long long key_strides[4];
    const float* value;
    long long value_strides[4];
    unsigned char* blocks;
    long long map_batch;
    long long map_heads;
    long long query_block;
    long long key_block;
    long long query_blocks;
    long long key_blocks;
    const float* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    const int* table_1;
    long long table_1_strides[2];
    long long table_1_extents[2];
    unsigned long long* fault;
    long long first_site;
    const float* log_sum_exp;
    long long log_sum_exp_strides[3];
    const float* output_cotangent;
    long long output_cotangent_strides[4];
    const float* delta;
    float* query_cotangent;
    long long query_cotangent_strides[4];
    float* row_sums;
    float* head_sums;
    float* diagonals;
    float* tables;
};

typedef float Element;
constexpr int WARPS = 4;
constexpr int COLUMNS = 64;
constexpr int HEAD_SIZE = 8;
constexpr int HEAD = 16;
constexpr int VALUE_SIZE = 5;
constexpr int VALUE = 16;
constexpr bool MASKED = true;
constexpr bool QUERY_VECTOR = true;
constexpr bool KEY_VECTOR = true;
constexpr bool VALUE_VECTOR = false;
constexpr bool COTANGENT_VECTOR = false;
constexpr bool KEY_ROWS = false;
constexpr int TERMS = 1;
constexpr bool QUERY_COTANGENT = true;
constexpr int ROW_SUMS = 0;
constexpr int HEAD_SUMS = 0;
constexpr int DIFFERENCES = 1;
constexpr int SUMS = 0;
constexpr int TABLES = 0;
constexpr int TABLE_ELEMENTS = 0;
// The mask.
DEVICE bool admits(const Parameters& p, int b, int h, int q, int k, Fault& fault) {
    bool r2_inside = true;
    long long r2_at = 0;
    locate(b, p.table_1_extents[0], p.table_1_strides[0], 0, r2_inside, r2_at, fault);
    locate(q, p.table_1_extents[1], p.table_1_strides[1], 1, r2_inside, r2_at, fault);
    int r2 = (r2_inside ? read_only(p.table_1 + r2_at) : (int)0);
    bool r4_inside = true;
    long long r4_at = 0;
    locate(b, p.table_1_extents[0], p.table_1_strides[0], 2, r4_inside, r4_at, fault);
    locate(k, p.table_1_extents[1], p.table_1_strides[1], 3, r4_inside, r4_at, fault);
    int r4 = (r4_inside ? read_only(p.table_1 + r4_at) : (int)0);
    bool r5 = r2 == r4;
    return r5;
}
// The score function.
DEVICE float score(const Parameters& p, int b, int h, int q, int k, float s, bool live, Fault& fault) {
    int r2 = wrapping_subtract(q, k);
    int r4 = wrapping_add(r2, 8);
    int r7 = (r4 > 0 ? r4 : 0);
    int r8 = (r7 < 16 ? r7 : 16);
    bool r10_inside = live;
    long long r10_at = 0;
    locate(h, p.table_0_extents[0], p.table_0_strides[0], 4, r10_inside, r10_at, fault);
    locate(r8, p.table_0_extents[1], p.table_0_strides[1], 5, r10_inside, r10_at, fault);
    float r10 = (r10_inside ? read_only(p.table_0 + r10_at) : (float)0);
    float r12 = r10 + s;
    return r12;
}
// The score function's derivative, and the terms of captured arrays.
DEVICE float gradient(const Parameters& p, int b, int h, int q, int k, float s, float cotangent, bool live, Fault& fault, float (&terms)[at_least_one(TERMS)]) {
    terms[0] = cotangent;
    return cotangent;
}
// Where the terms of captured arrays go: a flat index, −1 for none.
DEVICE int scatter_place(const Parameters& p, int number, int b, int h, int q, int k, float s, bool live) {
    return -1;
}

launch capture_values on 2 blocks of 256 threads, 0 bytes of shared memory

// What this kernel does: sums by a key, and their places in a captured array.

struct Parameters {
    long long batch;
    long long heads;
    long long queries;
    long long keys;
    long long count;
    long long tiles;
    const float* sums;
    float* values;
    int* places;
    const float* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    const int* table_1;
    long long table_1_strides[2];
    long long table_1_extents[2];
    long long extents_0[2];
    long long offset_0;
};

constexpr int TILE_ROWS = 64;
constexpr bool BY_ROW = false;
constexpr bool BY_HEAD = false;
constexpr bool BY_DIFFERENCE = true;
constexpr bool BY_SUM = false;
// Where the terms of captured arrays go: a flat index, −1 for none.
DEVICE int scatter_place(const Parameters& p, int number, int b, int h, int q, int k, float s, bool live) {
    Fault fault;
    if (!live) return -1;
    if (number == 0) {
    int r2 = wrapping_subtract(q, k);
    int r4 = wrapping_add(r2, 8);
    int r7 = (r4 > 0 ? r4 : 0);
    int r8 = (r7 < 16 ? r7 : 16);
    bool inside = true;
    long long at = 0, flat = p.offset_0;
    at = 0;
    locate(h, p.extents_0[0], 1, 0, inside, at, fault);
    flat += at * p.extents_0[1];
    at = 0;
    locate(r8, p.extents_0[1], 1, 0, inside, at, fault);
    flat += at;
    return inside ? (int)flat : -1;
    }
    return -1;
}

launch owner_scan on 1 blocks of 128 threads, 4096 bytes of shared memory

// What this kernel does: adds values at their places.

struct Parameters {
    long long count;
    long long elements;
    long long first;
    const float* values;
    const int* places;
    float* total;
};


launch store_capture on 1 blocks of 256 threads, 0 bytes of shared memory

// What this kernel does: rounds the cotangent of a captured array.

struct Parameters {
    long long elements;
    const float* total;
    float* cotangent;
    long long cotangent_strides[2];
};

DEVICE float rounded(float x) { return x; }

