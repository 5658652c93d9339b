// What programs compute, where C++ leaves it undefined or does otherwise.

DEVICE int wrapping_add(int x, int y) { return (int)((unsigned)x + (unsigned)y); }
DEVICE int wrapping_subtract(int x, int y) { return (int)((unsigned)x - (unsigned)y); }
DEVICE int wrapping_multiply(int x, int y) { return (int)((unsigned)x * (unsigned)y); }
DEVICE int wrapping_negate(int x) { return (int)(0u - (unsigned)x); }
DEVICE long long wrapping_add(long long x, long long y) {
    return (long long)((unsigned long long)x + (unsigned long long)y);
}
DEVICE long long wrapping_subtract(long long x, long long y) {
    return (long long)((unsigned long long)x - (unsigned long long)y);
}
DEVICE long long wrapping_multiply(long long x, long long y) {
    return (long long)((unsigned long long)x * (unsigned long long)y);
}
DEVICE long long wrapping_negate(long long x) { return (long long)(0ull - (unsigned long long)x); }

// Rounded towards −∞; 0 where y is 0. Division by −1 wraps.
template <typename T>
DEVICE T floored_quotient(T x, T y) {
    if (y == 0) return 0;
    if (y == -1) return wrapping_negate(x);
    T quotient = x / y;
    return x % y != 0 && (x < 0) != (y < 0) ? quotient - 1 : quotient;
}

// With the sign of y; 0 where y is 0.
template <typename T>
DEVICE T floored_remainder(T x, T y) {
    if (y == 0 || y == -1) return 0;
    T remainder = x % y;
    return remainder != 0 && (remainder < 0) != (y < 0) ? remainder + y : remainder;
}
DEVICE double floored_remainder(double x, double y) {
    double remainder = fmod(x, y);
    if (remainder == 0) return copysign(remainder, y);
    return (remainder < 0) != (y < 0) ? remainder + y : remainder;
}
DEVICE float floored_remainder(float x, float y) {
    float remainder = fmodf(x, y);
    if (remainder == 0) return copysignf(remainder, y);
    return (remainder < 0) != (y < 0) ? remainder + y : remainder;
}

template <typename T>
DEVICE T infinity();
template <>
DEVICE float infinity<float>() { return float_of_bits(0x7f800000u); }
template <>
DEVICE double infinity<double>() { return (double)float_of_bits(0x7f800000u); }
template <typename T>
DEVICE T not_a_number();
template <>
DEVICE float not_a_number<float>() { return float_of_bits(0x7fffffffu); }
template <>
DEVICE double not_a_number<double>() { return (double)float_of_bits(0x7fffffffu); }

// NaN if either is.
template <typename T>
DEVICE T maximum(T x, T y) { return x != x || x > y ? x : y; }
template <typename T>
DEVICE T minimum(T x, T y) { return x != x || x < y ? x : y; }

// −1, 0 or 1; NaN stays.
template <typename T>
DEVICE T sign(T x) { return x != x ? x : (T)((x > 0) - (x < 0)); }

// Truncated towards zero; what does not fit becomes the nearest that does, NaN 0.
template <typename T>
DEVICE int saturating_int(T x) {
    if (x != x) return 0;
    if (x >= (T)2147483648.0) return 2147483647;
    return x <= (T)-2147483648.0 ? -2147483647 - 1 : (int)x;
}
template <typename T>
DEVICE long long saturating_long(T x) {
    if (x != x) return 0;
    if (x >= (T)9223372036854775808.0) return 9223372036854775807ll;
    return x <= (T)-9223372036854775808.0 ? -9223372036854775807ll - 1 : (long long)x;
}

// To 3 units in the last place: a quotient rounded to the nearest takes as many instructions as the exponential.
DEVICE float sigmoid(float x) { return reciprocal_approximate(1 + expf(-x)); }

// Where what comes of them is rounded to a half type: relative errors of 2⁻¹¹ for tanh, of 2⁻²¹ for the others.
DEVICE float exponential_approximate(float x) { return exp2_approximate(x * 1.4426950408889634f); }
DEVICE float sigmoid_approximate(float x) { return divide_approximate(1, 1 + exponential_approximate(-x)); }

// Word 0 of Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011).
DEVICE int random_bits(long long key, long long position) {
    unsigned c0 = (unsigned)position, c1 = (unsigned)((unsigned long long)position >> 32), c2 = 0, c3 = 0;
    unsigned k0 = (unsigned)key, k1 = (unsigned)((unsigned long long)key >> 32);
    for (int round = 0; round < 10; ++round) {
        unsigned long long low = 0xd2511f53ull * c0, high = 0xcd9e8d57ull * c2;
        c0 = (unsigned)(high >> 32) ^ c1 ^ k0;
        c1 = (unsigned)high;
        c2 = (unsigned)(low >> 32) ^ c3 ^ k1;
        c3 = (unsigned)low;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return (int)c0;
}

// The first index out of range that a thread met: the site with the least number, and the index.
struct Fault {
    int site = -1;
    int index = 0;
};

// Adds what an index along one axis adds to an element's place; a negative index counts from the end.
template <typename T, typename Place>
DEVICE void locate_in(T index, Place extent, Place stride, int site, bool& inside, Place& at, Fault& fault) {
    typedef decltype(T{} + Place{}) Wide;
    Wide position = index < 0 ? index + (Wide)extent : (Wide)index;
    if (position < 0 || position >= (Wide)extent) {
        if (inside && (fault.site < 0 || site < fault.site)) {
            fault.site = site;
            fault.index = saturating_int((double)index);
        }
        inside = false;
        position = 0;
    }
    at += (Place)position * stride;
}
template <typename T>
DEVICE void locate(T index, long long extent, long long stride, int site, bool& inside, long long& at, Fault& fault) {
    locate_in(index, extent, stride, site, inside, at, fault);
}
// Where places fit 32 bits.
template <typename T>
DEVICE void locate(T index, int extent, int stride, int site, bool& inside, int& at, Fault& fault) {
    locate_in(index, extent, stride, site, inside, at, fault);
}

// Leaves a thread's fault in the run's fault word: the least of all, so the same in each run.
DEVICE void report(const Fault& fault, unsigned long long* word, long long first_site) {
    if (fault.site >= 0) {
        atomic_min(word, (unsigned long long)(first_site + fault.site) << 32 | (unsigned)fault.index);
    }
}

template <typename T>
DEVICE T min_of(T x, T y) { return x < y ? x : y; }
template <typename T>
DEVICE T max_of(T x, T y) { return x > y ? x : y; }

// The length of an array that may be empty: C++ has none.
constexpr int at_least_one(int count) { return count > 0 ? count : 1; }

DEVICE int lane_index() { return thread_index() % 32; }
DEVICE int warp_index() { return thread_index() / 32; }
