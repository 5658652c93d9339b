// What blocks of a launch tell each other, in the emulation: blocks run one after the other, so whatever a block may
// wait for has been told before, and a flag that is not raised is a fault.

template <typename T>
T shuffled(T x, int lane) {
    return together<std::pair<T, int>, T>({x, lane}, [](auto& given, auto& got) {
        for (int i = 0; i < 32; ++i) got[i] = given[given[i].second].first;
    });
}
DEVICE double shuffle(double x, int lane) { return shuffled(x, lane); }
DEVICE int shuffle(int x, int lane) { return shuffled(x, lane); }
DEVICE long long shuffle(long long x, int lane) { return shuffled(x, lane); }
DEVICE bool shuffle(bool x, int lane) { return shuffled(x, lane); }

DEVICE void make_visible() {}
DEVICE void raise_flag(unsigned* flag) { *flag = 1; }
DEVICE bool is_raised(const unsigned* flag) {
    if (*flag != 1) host::fail("a block waits for one that has not begun");
    return true;
}
DEVICE unsigned next_ticket(unsigned* counter) { return (*counter)++; }
DEVICE unsigned long long load_word(const unsigned long long* from) { return *from; }
DEVICE void store_word(unsigned long long* to, unsigned long long word) { *to = word; }
DEVICE unsigned long long bits_of_double(double x) {
    unsigned long long bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
}
DEVICE double double_of_bits(unsigned long long bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
