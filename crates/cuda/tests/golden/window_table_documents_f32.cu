launch block_map on 1 blocks of 128 threads, 0 bytes of shared memory

// What this kernel does: finds which blocks a mask leaves.

struct Parameters {
    unsigned char* blocks;
    int* tickets;
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
    int r2_at = 0;
    r2_at += (int)(b) * (int)p.table_0_strides[0];
    r2_at += (int)(q) * (int)p.table_0_strides[1];
    int r2 = (r2_inside ? read_only(p.table_0 + r2_at) : (int)0);
    bool r4_inside = true;
    int r4_at = 0;
    r4_at += (int)(b) * (int)p.table_0_strides[0];
    r4_at += (int)(k) * (int)p.table_0_strides[1];
    int r4 = (r4_inside ? read_only(p.table_0 + r4_at) : (int)0);
    bool r5 = r2 == r4;
    return r5;
}
// What masks give over a rectangle of pairs, from the intervals of what they compute there. All lanes of a warp have
// the same rectangle.

// Every value of an integer; where an end is ±LIMIT, beyond it too.
struct Interval { long long low, high; };
// Whether something may hold somewhere, and whether it must everywhere.
struct Truth { bool may, must; };

constexpr long long LIMIT = 1ll << 62;
DEVICE Interval anything() { return Interval{-LIMIT, LIMIT}; }
DEVICE Truth unknown() { return Truth{true, false}; }

// What fits neither a register of so many bits nor the limit has wrapped.
template <typename T>
DEVICE Interval kept(Interval x) {
    long long most = sizeof(T) == 4 ? 2147483647ll : LIMIT - 1;
    return x.low < -most || x.high > most ? anything() : x;
}
DEVICE bool finite(Interval x) { return x.low > -LIMIT && x.high < LIMIT; }

template <typename T>
DEVICE Interval add(Interval x, Interval y) { return kept<T>(Interval{x.low + y.low, x.high + y.high}); }
template <typename T>
DEVICE Interval subtract(Interval x, Interval y) { return kept<T>(Interval{x.low - y.high, x.high - y.low}); }
template <typename T>
DEVICE Interval multiply(Interval x, Interval y) {
    const long long most = 1ll << 30;
    if (x.low < -most || x.high > most || y.low < -most || y.high > most) return anything();
    long long a = x.low * y.low, b = x.low * y.high, c = x.high * y.low, d = x.high * y.high;
    return kept<T>(Interval{min_of(min_of(a, b), min_of(c, d)), max_of(max_of(a, b), max_of(c, d))});
}
DEVICE Interval least(Interval x, Interval y) { return Interval{min_of(x.low, y.low), min_of(x.high, y.high)}; }
DEVICE Interval most(Interval x, Interval y) { return Interval{max_of(x.low, y.low), max_of(x.high, y.high)}; }
DEVICE Interval hull(Interval x, Interval y) { return Interval{min_of(x.low, y.low), max_of(x.high, y.high)}; }
DEVICE Interval negative(Interval x) { return Interval{-x.high, -x.low}; }
DEVICE Interval absolute(Interval x) {
    if (!finite(x)) return Interval{-LIMIT, LIMIT};
    return Interval{x.low > 0 ? x.low : x.high < 0 ? -x.high : 0, max_of(-x.low, x.high)};
}
DEVICE Interval quotient(Interval x, Interval y) {
    if (y.low <= 0 || !finite(x) || !finite(y)) return anything();
    long long a = floored_quotient(x.low, y.low), b = floored_quotient(x.low, y.high);
    long long c = floored_quotient(x.high, y.low), d = floored_quotient(x.high, y.high);
    return Interval{min_of(a, b), max_of(c, d)};
}
DEVICE Interval remainder(Interval x, Interval y) {
    if (y.low <= 0 || !finite(x) || !finite(y)) return anything();
    if (y.low == y.high && floored_quotient(x.low, y.low) == floored_quotient(x.high, y.low)) {
        return Interval{floored_remainder(x.low, y.low), floored_remainder(x.high, y.low)};
    }
    return Interval{0, y.high - 1};
}

DEVICE Truth opposite(Truth x) { return Truth{!x.must, !x.may}; }
DEVICE Truth both(Truth x, Truth y) { return Truth{x.may && y.may, x.must && y.must}; }
DEVICE Truth either(Truth x, Truth y) { return Truth{x.may || y.may, x.must || y.must}; }
DEVICE Truth differ(Truth x, Truth y) {
    bool known = x.may == x.must && y.may == y.must, apart = x.must != y.must;
    return Truth{!known || apart, known && apart};
}
DEVICE Truth below(Interval x, Interval y) {
    return finite(x) && finite(y) ? Truth{x.low < y.high, x.high < y.low} : unknown();
}
DEVICE Truth equal(Interval x, Interval y) {
    if (!finite(x) || !finite(y)) return unknown();
    return Truth{x.low <= y.high && y.low <= x.high, x.low == x.high && y.low == y.high && x.low == y.low};
}
DEVICE Interval number(Truth x) { return Interval{x.must, x.may}; }
DEVICE Interval choice(Truth c, Interval x, Interval y) { return c.must ? x : c.may ? hull(x, y) : y; }
DEVICE Truth choice(Truth c, Truth x, Truth y) {
    return c.must ? x : c.may ? Truth{x.may || y.may, x.must && y.must} : y;
}

DEVICE long long exchange(long long x, int lanes) {
    unsigned low = bits_of_float(shuffle_xor(float_of_bits((unsigned)x), lanes));
    unsigned high = bits_of_float(shuffle_xor(float_of_bits((unsigned)((unsigned long long)x >> 32)), lanes));
    return (long long)((unsigned long long)high << 32 | low);
}

// The interval of a table's elements within intervals of its indices, by all lanes together; anything where these are
// many. Where one may be out of range, `safe` becomes false: then pairs are to be looked at.
template <int AXES, typename E>
DEVICE Interval elements(const E* table, const long long* extents, const long long* strides, Interval (&index)[AXES],
                         bool& safe) {
    const long long MANY = 512;
    long long count = 1;
    for (int axis = 0; axis < AXES; ++axis) {
        Interval& x = index[axis];
        if (x.high < 0 && x.low >= -extents[axis]) x = Interval{x.low + extents[axis], x.high + extents[axis]};
        if (x.low < 0 || x.high >= extents[axis]) {
            safe = false;
            return anything();
        }
        count = count > MANY ? count : count * (x.high - x.low + 1);
    }
    if (count > MANY) return anything();
    Interval found = Interval{LIMIT, -LIMIT};
    for (long long i = lane_index(); i < count; i += 32) {
        long long rest = i, at = 0;
        for (int axis = AXES - 1; axis >= 0; --axis) {
            long long extent = index[axis].high - index[axis].low + 1;
            at += (index[axis].low + rest % extent) * strides[axis];
            rest /= extent;
        }
        long long x = (long long)read_only(table + at);
        found = hull(found, Interval{x, x});
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        found = hull(found, Interval{exchange(found.low, lanes), exchange(found.high, lanes)});
    }
    return kept<long long>(found);
}
// The mask over a rectangle of pairs.
DEVICE Truth admits_block(const Parameters& p, Interval b, Interval h, Interval q, Interval k, bool& safe) {
    Interval r0 = b;
    Interval r1 = q;
    Interval at_2[2] = {r0, r1};
    Interval r2 = elements(p.table_0, p.table_0_extents, p.table_0_strides, at_2, safe);
    Interval r3 = k;
    Interval at_4[2] = {r0, r3};
    Interval r4 = elements(p.table_0, p.table_0_extents, p.table_0_strides, at_4, safe);
    Truth r5 = equal(r2, r4);
    return r5;
}
constexpr bool FOLLOWED = true;

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
    int r2_at = 0;
    r2_at += (int)(b) * (int)p.table_1_strides[0];
    r2_at += (int)(q) * (int)p.table_1_strides[1];
    int r2 = (r2_inside ? read_only(p.table_1 + r2_at) : (int)0);
    bool r4_inside = true;
    int r4_at = 0;
    r4_at += (int)(b) * (int)p.table_1_strides[0];
    r4_at += (int)(k) * (int)p.table_1_strides[1];
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
    int r10_at = 0;
    r10_at += (int)(h) * (int)p.table_0_strides[0];
    r10_at += (int)(r8) * (int)p.table_0_strides[1];
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
    long long delta_rows;
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
constexpr int TERMS = 0;
constexpr bool KEY_ROWS = true;
constexpr int SLICES = 1;
constexpr int HEAD_SLICE = 16;
constexpr int VALUE_SLICE = 16;
constexpr int ROW_SUMS = 0;
constexpr bool KEY_COTANGENT = true;
constexpr bool VALUE_COTANGENT = true;
// The mask.
DEVICE bool admits(const Parameters& p, int b, int h, int q, int k, Fault& fault) {
    bool r2_inside = true;
    int r2_at = 0;
    r2_at += (int)(b) * (int)p.table_1_strides[0];
    r2_at += (int)(q) * (int)p.table_1_strides[1];
    int r2 = (r2_inside ? read_only(p.table_1 + r2_at) : (int)0);
    bool r4_inside = true;
    int r4_at = 0;
    r4_at += (int)(b) * (int)p.table_1_strides[0];
    r4_at += (int)(k) * (int)p.table_1_strides[1];
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
    int r10_at = 0;
    r10_at += (int)(h) * (int)p.table_0_strides[0];
    r10_at += (int)(r8) * (int)p.table_0_strides[1];
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
    long long delta_rows;
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
constexpr int TERMS = 1;
constexpr bool KEY_ROWS = false;
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
    int r2_at = 0;
    r2_at += (int)(b) * (int)p.table_1_strides[0];
    r2_at += (int)(q) * (int)p.table_1_strides[1];
    int r2 = (r2_inside ? read_only(p.table_1 + r2_at) : (int)0);
    bool r4_inside = true;
    int r4_at = 0;
    r4_at += (int)(b) * (int)p.table_1_strides[0];
    r4_at += (int)(k) * (int)p.table_1_strides[1];
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
    int r10_at = 0;
    r10_at += (int)(h) * (int)p.table_0_strides[0];
    r10_at += (int)(r8) * (int)p.table_0_strides[1];
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

launch capture_values on 8 blocks of 256 threads, 1024 bytes of shared memory

// What this kernel does: sums by a key, and their places in a captured array.

struct Parameters {
    long long batch;
    long long heads;
    long long queries;
    long long keys;
    long long count;
    long long tiles;
    long long line;
    long long head_stride;
    long long tile_stride;
    long long base;
    long long step;
    const float* sums;
    float* values;
    int* places;
    int* ranges;
    const float* table_0;
    long long table_0_strides[2];
    long long table_0_extents[2];
    const int* table_1;
    long long table_1_strides[2];
    long long table_1_extents[2];
    long long extents_0[2];
    long long offset_0;
};

constexpr bool PER_BATCH = false;
constexpr bool PER_HEAD = true;
constexpr bool BY_ROW = false;
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
    long long groups;
    long long elements;
    long long first;
    const float* values;
    const int* places;
    const int* ranges;
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

