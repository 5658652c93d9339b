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
