// What the scan engines have in common: prefixes, and what blocks tell each other.

// A prefix that may be empty.
struct Prefix {
    State state;
    bool any = false;
};

DEVICE void append(Prefix& prefix, const State& next, const Parameters& p, const Row& row, bool live, Fault& fault) {
    prefix.state = prefix.any ? combine(p, row, prefix.state, next, live, fault) : next;
    prefix.any = true;
}

// The state of another lane of the warp; of the nearest that there is.
DEVICE State of_lane(const State& state, int lane) { return shuffle_state(state, max_of(0, min_of(lane, 31))); }

// What blocks tell each other of their tiles. The order in which states are combined depends on the tiles' numbers
// only, never on which block is the faster: 32 tiles make a group, and 32 groups a stretch; what lies before a tile is
// the stretches before (told as one, in a chain), then the groups before it in its stretch, then the tiles before it
// in its group. A block only waits for tiles with smaller numbers, whose blocks run by then.
//
// A flag says that the words of a slot have been written: in a word of its own, before which they are made visible; or,
// where parts of the state have four bytes at most, in the upper half of each word, so that whoever sees the flag has
// the word (FLAGGED).
struct Told {
    unsigned* flags;
    unsigned long long* words;
};

// What has been read of a slot.
DEVICE Words told_words(const Told& told, long long slot, int lane) {
    return load_words(told.words + (slot * STATE * LANES + lane));
}

// Waits until a slot has been told of, where words have flags.
DEVICE State told_state(const Told& told, long long slot, int lane) {
    Words words = told_words(told, slot, lane);
    while (!are_told(words)) words = told_words(told, slot, lane);
    return state_of(words);
}

// Waits until a slot has been told of, where words have none.
DEVICE void wait_for(const Told& told, long long slot) {
    if constexpr (!FLAGGED) {
        while (!is_raised(told.flags + slot)) {
        }
    }
}

// The places of the three kinds in scratch memory.
DEVICE Told told_tiles(const Parameters& p) { return {p.flags, p.words}; }
DEVICE Told told_groups(const Parameters& p) {
    long long before = p.rows_told * p.tiles;
    return {p.flags + before, p.words + before * STATE * LANES};
}
DEVICE Told told_stretches(const Parameters& p) {
    long long before = p.rows_told * (p.tiles + p.groups);
    return {p.flags + before, p.words + before * STATE * LANES};
}
