// Runs kernels on the CPU, so that their text is tested without a GPU.
//
// Each thread of a block is a coroutine; what threads do together (barriers, shuffles, matrix products) makes
// them wait for one another. One block runs at a time. Of the threads that can go on, either the first always does
// or the last: some warps run ahead of the others as far as barriers let them. A kernel whose result depends on
// which has a race, and a barrier that not all threads reach is a fault. Buffers and shared memory are allocations of
// exactly their size, so that the address sanitizer sees accesses outside them.

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace host {

constexpr size_t STACK = 256 << 10;

void fail(const char* message) {
    fprintf(stderr, "emulator: %s\n", message);
    exit(2);
}

// A place to go on from: what `__builtin_setjmp` keeps.
struct Place {
    void* words[5];
};

struct Thread {
    ucontext_t begin;
    Place place;
    std::unique_ptr<char[]> stack;
    bool begun = false, done = false;
};

// Threads that wait for one another, and what they exchange.
struct Group {
    int size = 0, arrived = 0;
    std::vector<int> waiting;
};

// Threads that can go on: a bit for each.
struct Ready {
    unsigned long long words[16] = {};

    void insert(int thread) { words[thread / 64] |= 1ull << thread % 64; }
    void insert(const std::vector<int>& threads) {
        for (int thread : threads) insert(thread);
    }
    // Takes the first or the last of them; -1 if there is none.
    int take(bool last) {
        for (int i = 0; i < 16; ++i) {
            unsigned long long& word = words[last ? 15 - i : i];
            if (word == 0) continue;
            int bit = last ? 63 - __builtin_clzll(word) : __builtin_ctzll(word);
            word &= ~(1ull << bit);
            return (int)(&word - words) * 64 + bit;
        }
        return -1;
    }
};

struct Block {
    std::vector<Thread> threads;
    Ready ready;
    std::vector<int> idle;  // waiting for another thread to change something
    bool last_first = false;
    Group all;
    std::vector<Group> warps, warpgroups, named, turns;
    int current = 0;
    Place scheduler;
    unsigned char* shared = nullptr;
    long long index = 0, count = 0;
    void (*kernel)(const void*) = nullptr;
    const void* parameters = nullptr;
};

inline Block block;

inline int lane() { return block.current % 32; }
inline Group& warp() { return block.warps[block.current / 32]; }

// Going from stack to stack by jumps costs a few instructions; `swapcontext` would ask the kernel twice, and have the
// sanitizer clear its records of a whole stack. So the sanitizer has to look away here.
#define UNSEEN __attribute__((noinline, no_sanitize("address")))

UNSEEN inline void go_to(Place& place) { __builtin_longjmp(place.words, 1); }

UNSEEN inline void suspend() {
    if (__builtin_setjmp(block.threads[block.current].place.words) == 0) go_to(block.scheduler);
}

UNSEEN inline void resume(Thread& thread) {
    if (__builtin_setjmp(block.scheduler.words) != 0) return;
    if (thread.begun) go_to(thread.place);
    thread.begun = true;
    setcontext(&thread.begin);
}

// Waits until all of a group have come; the last does `work` before the others go on.
template <typename F>
void meet(Group& group, F work) {
    int me = block.current;
    group.arrived += 1;
    if (group.arrived < group.size) {
        group.waiting.push_back(me);
        suspend();
        return;
    }
    work();
    group.arrived = 0;
    block.ready.insert(group.waiting);
    group.waiting.clear();
}

// A barrier that so many threads come to, of which only some wait. The next phase's may come before those of this one
// went on: who waits is let go when the last comes.
inline void meet_of(Group& group, int size, bool waits) {
    int me = block.current;
    group.arrived += 1;
    bool last = group.arrived == size;
    if (last) {
        group.arrived = 0;
        block.ready.insert(group.waiting);
        group.waiting.clear();
    } else if (waits) {
        group.waiting.push_back(me);
        suspend();
    }
}

// Lets others go on, for one that waits for them to change something.
inline void wait_a_while() {
    block.idle.push_back(block.current);
    suspend();
}
// Something was changed that others may wait for.
inline void progress() {
    block.ready.insert(block.idle);
    block.idle.clear();
}

inline void enter() {
    block.kernel(block.parameters);
    block.threads[block.current].done = true;
    suspend();
}

inline void run_block(void (*kernel)(const void*), const void* parameters, long long index, long long count,
                      int threads, size_t shared_bytes) {
    block.kernel = kernel;
    block.parameters = parameters;
    block.index = index;
    block.count = count;
    if ((int)block.threads.size() < threads) block.threads.resize(threads);
    block.shared = (unsigned char*)aligned_alloc(1024, (shared_bytes + 1023) / 1024 * 1024 + 1024);
    // Garbage: shared memory begins with anything.
    memset(block.shared, 0xff, shared_bytes);
    block.all = Group{threads};
    block.warps.assign((threads + 31) / 32, Group{32});
    block.warpgroups.assign((threads + 127) / 128, Group{128});
    block.named.assign(16, Group{});
    block.turns.assign(8, Group{});
    block.ready = Ready{};
    block.idle.clear();
    for (int i = threads - 1; i >= 0; --i) {
        Thread& thread = block.threads[i];
        thread.begun = thread.done = false;
        if (!thread.stack) thread.stack.reset(new char[STACK]);
        getcontext(&thread.begin);
        thread.begin.uc_stack.ss_sp = thread.stack.get();
        thread.begin.uc_stack.ss_size = STACK;
        thread.begin.uc_link = nullptr;
        makecontext(&thread.begin, enter, 0);
        block.ready.insert(i);
    }
    while ((block.current = block.ready.take(block.last_first)) >= 0) resume(block.threads[block.current]);
    for (int i = 0; i < threads; ++i) {
        if (block.threads[i].done) continue;
        fprintf(stderr, "emulator: block %lld, thread %d\n", index, i);
        fail("a thread waits for others that never come");
    }
    free(block.shared);
}

template <typename T>
T read(FILE* file) {
    T x;
    if (fread(&x, sizeof x, 1, file) != 1) fail("the input ends early");
    return x;
}

// Reads buffers and steps from a file, runs these, and writes the buffers back to another.
int run_file(const Kernel* kernels, size_t kernel_count, int argc, char** argv) {
    if (argc != 4) fail("usage: kernels INPUT OUTPUT first|last");
    FILE* file = fopen(argv[1], "rb");
    if (!file) fail("the input cannot be read");
    block.last_first = argv[3] == std::string("last");
    std::vector<std::pair<unsigned char*, size_t>> buffers(read<long long>(file));
    for (auto& [data, size] : buffers) {
        size = read<long long>(file);
        data = (unsigned char*)malloc(size);
        if (size && fread(data, 1, size, file) != size) fail("the input ends early");
    }
    for (long long steps = read<long long>(file); steps > 0; --steps) {
        long long kernel = read<long long>(file);
        if (kernel < 0) {
            long long buffer = read<long long>(file), place = read<long long>(file), bytes = read<long long>(file);
            memset(buffers[buffer].first + place, 0, bytes);
            continue;
        }
        if (kernel >= (long long)kernel_count) fail("no such kernel");
        long long blocks = read<long long>(file), threads = read<long long>(file), shared = read<long long>(file);
        std::vector<unsigned long long> parameters(read<long long>(file));
        for (auto& word : parameters) {
            long long buffer = read<long long>(file), value = read<long long>(file);
            word = buffer < 0 ? value : (unsigned long long)(buffers[buffer].first + value);
        }
        for (long long index = 0; index < blocks; ++index) {
            run_block(kernels[kernel].run, parameters.data(), index, blocks, threads, shared);
        }
    }
    fclose(file);
    file = fopen(argv[2], "wb");
    for (auto& [data, size] : buffers) {
        if (size && fwrite(data, 1, size, file) != size) fail("the output cannot be written");
        free(data);
    }
    return fclose(file) == 0 ? 0 : 2;
}

}  // namespace host
