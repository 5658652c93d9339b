// Hopper's products, within a kernel's own namespace: its `Element` is not known before its text, and is a half
// type whose name the products do not have; so they are templates over it.

template <bool LEFT_TURNED, bool RIGHT_TURNED, typename E, int BLOCKS>
void multiply_panels_of(float (&sums)[BLOCKS][4], unsigned long long left, unsigned long long right, bool keep, E) {
    GroupProduct mine = {};
    mine.left_panel = left;
    mine.right_panel = right;
    mine.left_turned = LEFT_TURNED;
    mine.right_turned = RIGHT_TURNED;
    mine.keep = keep;
    multiply_group(sums, BLOCKS, mine, E{});
}

template <typename E>
void multiply_registers_by(
    float (*sums)[4], int blocks, const unsigned (&left)[4], unsigned long long right, bool right_turned, E) {
    GroupProduct mine = {};
    for (int i = 0; i < 8; ++i) mine.left[i] = to_float(E{(unsigned short)(left[i / 2] >> 16 * (i % 2))});
    mine.left_in_registers = true;
    mine.right_panel = right;
    mine.right_turned = right_turned;
    mine.keep = true;
    multiply_group(sums, blocks, mine, E{});
}

template <bool LEFT_TURNED, bool RIGHT_TURNED, typename E, int BLOCKS>
void begin_panels(float (&sums)[BLOCKS][4], unsigned long long left, unsigned long long right, E) {
    multiply_panels_of<LEFT_TURNED, RIGHT_TURNED>(sums, left, right, false, E{});
}
template <bool LEFT_TURNED, bool RIGHT_TURNED, typename E, int BLOCKS>
void multiply_panels(float (&sums)[BLOCKS][4], unsigned long long left, unsigned long long right, E) {
    multiply_panels_of<LEFT_TURNED, RIGHT_TURNED>(sums, left, right, true, E{});
}
template <bool RIGHT_TURNED, typename E, int BLOCKS>
void multiply_left(float (&sums)[BLOCKS][4], const unsigned (&left)[4], unsigned long long right, E) {
    multiply_registers_by(sums, BLOCKS, left, right, RIGHT_TURNED, E{});
}

template <typename E, int BLOCKS>
void multiply_shared_of(float (&sums)[BLOCKS][4], unsigned long long left, unsigned long long right, bool keep) {
    multiply_panels_of<false, false>(sums, left, right, keep, E{});
}
template <typename E>
void multiply_registers_of(float (*sums)[4], const unsigned (&left)[4], unsigned long long right) {
    multiply_registers_by(sums, 8, left, right, true, E{});
}
// As `multiply_registers`, of as many columns as there are sums.
template <typename E, int BLOCKS>
void multiply_weights_of(float (&sums)[BLOCKS][4], const unsigned (&left)[4], unsigned long long right) {
    multiply_registers_by(sums, BLOCKS, left, right, true, E{});
}

#define multiply_weights multiply_weights_of<Element>
#define multiply_shared multiply_shared_of<Element>
#define multiply_registers multiply_registers_of<Element>
