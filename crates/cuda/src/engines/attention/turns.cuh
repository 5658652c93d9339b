// Adds the values of a warp at some places of a table that the warp owns; −1 for no place. Lanes that share a
// place add in turn.
DEVICE void add_in_turn(float* table, int place, float value) {
    unsigned peers = lanes_with_equal(place);
    int before = count_bits(peers & ((1u << lane_index()) - 1));
    for (int turn = 0; ballot(place >= 0 && before >= turn); ++turn) {
        if (place >= 0 && before == turn) table[place] += value;
        sync_warp();
    }
}
