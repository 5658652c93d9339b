// Hopper's products, within a kernel's own namespace: its `Element` is not known before its text, and is a half
// type whose name the products do not have; so they are templates over it.

template <typename E, int BLOCKS>
inline void multiply_shared_of(float (&sums)[BLOCKS][4], unsigned long long left, unsigned long long right, bool keep) {
    GroupProduct mine = {};
    mine.left_panel = left;
    mine.right_panel = right;
    mine.keep = keep;
    multiply_group<BLOCKS>(
        sums, mine,
        [](auto& all, int row, int depth) { return panel_read<E>(all[0].left_panel, row, depth); },
        [](auto& all, int depth, int column) { return panel_read<E>(all[0].right_panel, column, depth); });
}

template <typename E>
inline void multiply_registers_of(float (*sums)[4], const unsigned (&left)[4], unsigned long long right) {
    GroupProduct mine = {};
    for (int i = 0; i < 8; ++i) mine.left[i] = to_float(E{(unsigned short)(left[i / 2] >> 16 * (i % 2))});
    mine.right_panel = right;
    mine.keep = true;
    multiply_group<8>(
        sums, mine,
        [](auto& all, int row, int depth) {
            int lane = row % 8 * 4 + depth % 8 / 2;
            return all[row / 16 * 32 + lane].left[depth / 8 * 4 + row % 16 / 8 * 2 + depth % 2];
        },
        [](auto& all, int depth, int column) { return panel_read<E>(all[0].right_panel, depth, column); });
}

template <bool LEFT_TURNED, bool RIGHT_TURNED, typename E, int BLOCKS>
inline void multiply_panels_of(float (&sums)[BLOCKS][4], unsigned long long left, unsigned long long right, bool keep, E) {
    GroupProduct mine = {};
    mine.left_panel = left;
    mine.right_panel = right;
    mine.keep = keep;
    multiply_group<BLOCKS>(
        sums, mine,
        [](auto& all, int row, int depth) {
            return LEFT_TURNED ? panel_read<E>(all[0].left_panel, depth, row)
                               : panel_read<E>(all[0].left_panel, row, depth);
        },
        [](auto& all, int depth, int column) {
            return RIGHT_TURNED ? panel_read<E>(all[0].right_panel, depth, column)
                                : panel_read<E>(all[0].right_panel, column, depth);
        });
}

template <bool LEFT_TURNED, bool RIGHT_TURNED, typename E, int BLOCKS>
inline void begin_panels(float (&sums)[BLOCKS][4], unsigned long long left, unsigned long long right, E) {
    multiply_panels_of<LEFT_TURNED, RIGHT_TURNED>(sums, left, right, false, E{});
}
template <bool LEFT_TURNED, bool RIGHT_TURNED, typename E, int BLOCKS>
inline void multiply_panels(float (&sums)[BLOCKS][4], unsigned long long left, unsigned long long right, E) {
    multiply_panels_of<LEFT_TURNED, RIGHT_TURNED>(sums, left, right, true, E{});
}

template <bool RIGHT_TURNED, typename E, int BLOCKS>
inline void multiply_left(float (&sums)[BLOCKS][4], const unsigned (&left)[4], unsigned long long right, E) {
    GroupProduct mine = {};
    for (int i = 0; i < 8; ++i) mine.left[i] = to_float(E{(unsigned short)(left[i / 2] >> 16 * (i % 2))});
    mine.right_panel = right;
    mine.keep = true;
    multiply_group<BLOCKS>(
        sums, mine,
        [](auto& all, int row, int depth) {
            int lane = row % 8 * 4 + depth % 8 / 2;
            return all[row / 16 * 32 + lane].left[depth / 8 * 4 + row % 16 / 8 * 2 + depth % 2];
        },
        [](auto& all, int depth, int column) {
            return RIGHT_TURNED ? panel_read<E>(all[0].right_panel, depth, column)
                                : panel_read<E>(all[0].right_panel, column, depth);
        });
}

// As `multiply_registers`, of as many columns as there are sums.
template <typename E, int BLOCKS>
inline void multiply_weights_of(float (&sums)[BLOCKS][4], const unsigned (&left)[4], unsigned long long right) {
    GroupProduct mine = {};
    for (int i = 0; i < 8; ++i) mine.left[i] = to_float(E{(unsigned short)(left[i / 2] >> 16 * (i % 2))});
    mine.right_panel = right;
    mine.keep = true;
    multiply_group<BLOCKS>(
        sums, mine,
        [](auto& all, int row, int depth) {
            int lane = row % 8 * 4 + depth % 8 / 2;
            return all[row / 16 * 32 + lane].left[depth / 8 * 4 + row % 16 / 8 * 2 + depth % 2];
        },
        [](auto& all, int depth, int column) { return panel_read<E>(all[0].right_panel, depth, column); });
}

#define multiply_weights multiply_weights_of<Element>
#define multiply_shared multiply_shared_of<Element>
#define multiply_registers multiply_registers_of<Element>
