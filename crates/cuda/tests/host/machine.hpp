// What `engines/machine.cuh` asks of a GPU, on the CPU: what kernels see of it. What takes time, or makes threads
// wait for one another, is in `machine.cpp`, which is compiled once and optimised; a kernel's text runs once and is not.

#include <cmath>
#include <cstring>

#define KERNEL static
#define DEVICE inline
#define CALLED inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace host {

[[noreturn]] void fail(const char* message);

struct Kernel {
    const char* name;
    void (*run)(const void*);
};

// Runs the kernels on what a file says.
int run_file(const Kernel* kernels, size_t kernel_count, int argc, char** argv);

}  // namespace host

float float_of_bits(unsigned bits);
unsigned bits_of_float(float x);
unsigned long long bits_of_double(double x);
double double_of_bits(unsigned long long bits);

struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };
inline float to_float(float x) { return x; }
float to_float(bfloat16 x);
float to_float(float16 x);
template <typename E>
E from_float(float x);
template <>
inline float from_float<float>(float x) { return x; }
template <>
bfloat16 from_float<bfloat16>(float x);
template <>
float16 from_float<float16>(float x);
template <typename E>
unsigned pack(float first, float second) {
    return from_float<E>(first).bits | (unsigned)from_float<E>(second).bits << 16;
}
template <int N>
void store_words(void* to, const unsigned (&words)[N]) {
    memcpy(to, words, sizeof(words));
}
float round_tf32(float x);
inline float exp2_approximate(float x) { return exp2f(x); }
inline float divide_approximate(float x, float y) { return x / y; }
inline float reciprocal_approximate(float x) { return 1 / x; }
// With as large an error as the machine's may have.
inline float tanh_approximate(float x) { return fminf(fmaxf(tanhf(x) * (1 + 0x1p-11f), -1), 1); }

template <typename T>
T read_only(const T* from) { return *from; }
inline void atomic_min(unsigned long long* word, unsigned long long x) { *word = x < *word ? x : *word; }

int thread_index();
int thread_count();
long long block_index();
long long block_count();
unsigned char* shared_memory();
void sync_threads();
bool any_thread(bool x);
void sync_warp();
unsigned ballot(bool x);
unsigned lanes_with_equal(int x);
float shuffle(float x, int lane);
double shuffle(double x, int lane);
int shuffle(int x, int lane);
long long shuffle(long long x, int lane);
bool shuffle(bool x, int lane);
float shuffle_xor(float x, int lanes);
inline int count_bits(unsigned x) { return __builtin_popcount(x); }
inline int lowest_bit(unsigned x) { return __builtin_ffs(x) - 1; }

void copy_16(void* to, const void* from, bool inside = true);
inline void wait_for_copies() {}

// Products by a warp: sums[16×8] += a · b.
void load_matrices(unsigned (&words)[4], const void* row);
void load_matrices_transposed(unsigned (&words)[4], const void* row);
void store_matrices(void* row, const unsigned (&words)[4]);
void multiply_words(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat16);
void multiply_words(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], float16);
void multiply_tf32(float (&sums)[4], const float (&a)[4], const float (&b)[2]);

// What blocks of a launch tell each other. They run one after the other, so whatever a block may wait for has been
// told before, and a flag that is not raised is a fault.
inline void make_visible() {}
inline void raise_flag(unsigned* flag) { *flag = 1; }
bool is_raised(const unsigned* flag);
bool is_told(unsigned long long word);
inline unsigned next_ticket(unsigned* counter) { return (*counter)++; }
inline unsigned long long load_word(const unsigned long long* from) { return *from; }
inline void store_word(unsigned long long* to, unsigned long long word) { *to = word; }
void wait_for_flag(const int* flag, int value);
inline void store_release(int* flag, int x) { *flag = x; }
inline int take_ticket(int* counter) { return (*counter)++; }

// Warps with different work. Copies are done at once; what they say of bytes is checked.
void init_barrier(unsigned long long* barrier, int arrivals);
void arrive(unsigned long long* barrier);
void arrive_once(unsigned long long* barrier);
void wait_barrier(unsigned long long* barrier, int parity);
void meet(int number, int threads);
inline void meet_from_anywhere(int number, int threads) { meet(number, threads); }
inline void publish_barriers() {}
constexpr int COPY_ARRIVALS = 1;
void begin_copies(unsigned long long* barrier, int bytes);
void copy_ahead(void* to, const void* from, int bytes, unsigned long long* barrier);
inline void end_copies(unsigned long long*) {}

// Hopper.
void wait_turn(int group);
void give_turn(int group);
bool any_in_warpgroup(bool x, int);
void store_in_bulk(float* to, const float* from, int bytes);
void add_in_bulk(float* to, const float* from, int bytes);
inline void wait_for_bulk_reads() {}
inline void wait_for_bulk() {}
inline void arrive_when_copied(unsigned long long* barrier) { arrive(barrier); }
inline void close_copies() {}
template <int N>
void wait_for_copies_but() {}
inline void publish_to_matrix_units() {}
template <int N>
void give_registers() {}
template <int N>
void take_registers() {}
inline void begin_products() {}
inline void close_products() {}
template <int N>
void wait_for_products_but() {}
template <int BLOCKS>
void hold(float (&)[BLOCKS][4]) {}
template <int N>
void pin(unsigned (&)[N][4]) {}
constexpr int MULTIPROCESSORS = 5;
inline int uniform(int x) { return x; }
inline int anew(int x) { return x; }
inline float exp2_in_order(float x) { return exp2f(x); }
inline float add_in_order(float x, float y) { return x + y; }
inline void finish(float x) {
    if (x < 0) host::fail("a sum of weights below zero");
}
inline float greater(float x, float y) { return x != x || x > y ? x : y; }
struct alignas(16) Words { unsigned words[4]; };
struct alignas(8) TwoFloats { float x[2]; };

// Of the machine's descriptor: the address in shared memory, the bytes between groups of 8 rows, and those between
// panels; the latter two in units of 16.
unsigned long long descriptor(const void* start, int stride, int between);
inline unsigned long long panel_of(const void* start, int stride) { return descriptor(start, stride, 0); }
inline unsigned long long turned_panels(const void* start, int between) { return descriptor(start, 1024, between); }
inline unsigned place_of(const void* start) { return ((const unsigned char*)start - shared_memory()) / 16; }
template <int LEADING, int STRIDE>
unsigned long long panels_at(unsigned place) {
    return descriptor(shared_memory() + place * 16ull, STRIDE, LEADING);
}
inline unsigned long long further(unsigned long long panel, int bytes) { return panel + bytes; }

// Products by a warpgroup: what a thread gives. The left matrix is in registers or in a panel; panels may be turned.
struct GroupProduct {
    float left[8];
    unsigned long long left_panel, right_panel;
    bool left_in_registers, left_turned, right_turned;
    bool keep;  // the sums that there are, rather than begin with 0
};
// sums[64×8·blocks] of products of 16.
void multiply_group(float (*sums)[4], int blocks, const GroupProduct& mine, bfloat16);
void multiply_group(float (*sums)[4], int blocks, const GroupProduct& mine, float16);
