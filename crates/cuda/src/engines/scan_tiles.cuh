// Scans whose steps lie next to each other, of few long rows: the rows are cut into tiles, and the blocks, which all run
// at once, do them in turn. Within a block warps have different work, so that nobody waits for memory: one copies tiles
// ahead; WARPS of them fold a tile, each thread runs of steps, ROUNDS of them, and later scan it, with what lies before it;
// and between these one folds what these warps tell it, tells other blocks of it, and looks back at what they have told.
//
// When tile i of a block is folded, the block tells of it and looks back from tile i − 1, and tile i − 2 is scanned and
// stored. So what a tile looks back at has been told by then, if blocks are about as fast as each other.
//
// Warps with different work: Bauer, Cook & Khailany, "CudaDMA" (2011). Look-back: Merrill & Garland (2016).

constexpr int ENTRIES = ROUNDS * WARPS, TILE = ENTRIES * 32 * RUN;

struct Shared {
    unsigned long long full[STAGES], empty[STAGES];
    State totals[2][ENTRIES];     // of each warp's part of each round, of this tile and the one before
    State inclusive[3][ENTRIES];  // the same, scanned; of two tiles before
    Prefix before[2];             // what lies before a tile
};

// The tiles of this block, in order. There are less than 2³¹ tiles: a division of 64 bits takes long.
struct Turns {
    unsigned first, step;
    int count;

    DEVICE static Turns of(const Parameters& p) {
        unsigned all = (unsigned)(p.rows * p.tiles), first = (unsigned)block_index(), step = (unsigned)block_count();
        return {first, step, first < all ? (int)((all - first + step - 1) / step) : 0};
    }
};

// A tile: which row it is of, and where in the row it is.
struct Place {
    long long row;
    int index;
    Step first;

    DEVICE static Place of(const Parameters& p, const Turns& turns, int turn) {
        unsigned number = turns.first + turn * turns.step, row_tiles = (unsigned)p.tiles, row = number / row_tiles;
        int index = (int)(number - row * row_tiles);
        return {row, index, (Step)index * TILE};
    }

    // The positions of its steps.
    DEVICE Step begin(const Parameters& p) const {
        return REVERSE ? max_of<Step>((Step)p.length - first - TILE, 0) : first;
    }
    DEVICE Step end(const Parameters& p) const {
        return REVERSE ? (Step)p.length - first : min_of<Step>(first + TILE, (Step)p.length);
    }

    // Whether it is a tile as most are.
    DEVICE bool whole(const Parameters& p, const Row& row) const {
        return first + TILE <= (Step)p.length && all_there(p, row, begin(p), end(p));
    }
};

DEVICE unsigned char* stage_of(int turn) { return shared_memory() + turn % STAGES * STAGE_BYTES; }

DEVICE void copy_tiles(const Parameters& p, const Turns& turns, Shared& shared) {
    for (int turn = 0; turn < turns.count; ++turn) {
        // One lane waits: another might look when the next phase is over as well.
        if (turn >= STAGES && lane_index() == 0) wait_barrier(&shared.empty[turn % STAGES], (turn / STAGES - 1) & 1);
        sync_warp();
        Place place = Place::of(p, turns, turn);
        copy_sources(p, row_of(p, place.row), place.begin(p), place.end(p), stage_of(turn), &shared.full[turn % STAGES]);
    }
}

// A thread's part of a tile.
struct Part {
    State before[ROUNDS];  // what the lanes before have of a round, for lanes but the first

    DEVICE static Step step_of(Step first, int round) {
        return first + (Step)((round * WARPS * 32 + thread_index()) * RUN);
    }

    // The steps of a run, folded. WHOLE: all of the tile's steps are there, as they mostly are; then the code is a
    // tenth, and stays in the cache of instructions.
    template <bool WHOLE>
    DEVICE static void load(const Parameters& p, const Row& row, Step step, State (&run)[RUN], Fault& fault) {
        Loaded loaded;
        load_sources<WHOLE>(p, row, step, loaded);
        elements_of<WHOLE>(p, row, step, loaded, run, fault);
#pragma unroll
        for (int j = 1; j < RUN; ++j) {
            run[j] = combine(p, row, run[j - 1], run[j], WHOLE || step + j < (Step)p.length, fault);
        }
    }

    template <bool WHOLE>
    DEVICE void fold(const Parameters& p, const Row& row, Step first, State (&totals)[ENTRIES], Fault& fault) {
        const int lane = lane_index();
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            State run[RUN];
            load<WHOLE>(p, row, step_of(first, r), run, fault);
            before[r] = run[RUN - 1];
        }
        // Round beside round, as a shuffle takes its time.
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) {
#pragma unroll
            for (int r = 0; r < ROUNDS; ++r) {
                State other = of_lane(before[r], lane - lanes);
                bool live = WHOLE || step_of(first, r) < (Step)p.length;
                if (lane >= lanes) before[r] = combine(p, row, other, before[r], live, fault);
            }
        }
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            if (lane == 31) totals[r * WARPS + warp_index()] = before[r];
            before[r] = of_lane(before[r], lane - 1);
        }
    }

    template <bool WHOLE>
    DEVICE void store(const Parameters& p, const Row& row, Step first, const Prefix& carry,
                      const State (&inclusive)[ENTRIES], Fault& fault) const {
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            Step step = step_of(first, r);
            if (!WHOLE && step >= (Step)p.length) break;
            Prefix prefix = carry;
            int entry = r * WARPS + warp_index();
            if (entry > 0) append(prefix, inclusive[entry - 1], p, row, true, fault);
            if (lane_index() > 0) append(prefix, before[r], p, row, true, fault);
            State run[RUN];
            load<WHOLE>(p, row, step, run, fault);
            if (prefix.any) {
#pragma unroll
                for (int j = 0; j < RUN; ++j) {
                    bool live = WHOLE || step + j < (Step)p.length;
                    run[j] = combine(p, row, prefix.state, run[j], live, fault);
                }
            }
            LoadedResults loaded;
            load_result_sources<WHOLE>(p, row, step, loaded);
            store_results<WHOLE>(p, row, step, loaded, run, fault);
        }
    }
};

// All threads that fold, scan and look back come by here, once a turn; a warp's lanes together.
DEVICE void meet_all() {
    sync_warp();
    meet_from_anywhere(1, 32 * (WARPS + 1));
}

DEVICE void scan_tiles(const Parameters& p, const Turns& turns, Shared& shared, Fault& fault) {
    Part now, last, older;
    for (int turn = 0; turn < turns.count + 2; ++turn) {
        older = last;
        last = now;
        if (turn < turns.count) {
            Place place = Place::of(p, turns, turn);
            Row row = row_in_stage(p, row_of(p, place.row), place.begin(p), stage_of(turn));
            State(&totals)[ENTRIES] = shared.totals[turn % 2];
            wait_barrier(&shared.full[turn % STAGES], turn / STAGES & 1);
            if (place.whole(p, row)) now.fold<true>(p, row, place.first, totals, fault);
            else now.fold<false>(p, row, place.first, totals, fault);
        }
        meet_all();
        if (turn >= 2) {
            Place place = Place::of(p, turns, turn - 2);
            Row row = row_in_stage(p, row_of(p, place.row), place.begin(p), stage_of(turn - 2));
            const Prefix& carry = shared.before[turn % 2];
            const State(&inclusive)[ENTRIES] = shared.inclusive[(turn - 2) % 3];
            if (place.whole(p, row)) older.store<true>(p, row, place.first, carry, inclusive, fault);
            else older.store<false>(p, row, place.first, carry, inclusive, fault);
            arrive_once(&shared.empty[(turn - 2) % STAGES]);
        }
    }
}

// Slots that lie before a tile, of which what has been told is asked for before it is needed.
struct Asked {
    Told told;
    long long first;
    int count;
    Words words;

    DEVICE long long slot() const { return first + max_of(0, min_of(lane_index(), count - 1)); }

    DEVICE static Asked of(const Told& told, long long first, int count) {
        Asked asked = {told, first, count};
        if (FLAGGED && count > 0) asked.words = told_words(told, asked.slot(), 0);
        return asked;
    }

    // What they come to, in lane 0; the others help.
    DEVICE State fold(const Parameters& p, const Row& row, Fault& fault) {
        const int lane = lane_index();
        if constexpr (FLAGGED) {
            while (!are_told(words)) words = told_words(told, slot(), 0);
        } else {
            wait_for(told, slot());
            words = told_words(told, slot(), 0);
        }
        sync_warp();
        State state = state_of(words);
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) {
            State other = of_lane(state, lane + lanes);
            if (lane % (2 * lanes) == 0 && lane + lanes < count) state = combine(p, row, state, other, true, fault);
        }
        return state;
    }
};

DEVICE void tell(const Told& told, long long slot, const State& state) {
    write_words(state, told.words + slot * STATE);
    if constexpr (!FLAGGED) raise_flag(told.flags + slot);
}

// Scans what the warps' parts of a tile come to, and tells what all of it does.
DEVICE void tell_tile(const Parameters& p, const Place& place, const Row& row, const State (&totals)[ENTRIES],
                      State (&inclusive)[ENTRIES], Fault& fault) {
    constexpr int EACH = (ENTRIES + 31) / 32;
    const int lane = lane_index();
    auto live = [&](int entry) { return place.first + entry * 32 * RUN < (Step)p.length; };
    State mine[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        int entry = min_of(lane * EACH + i, ENTRIES - 1);
        mine[i] = totals[entry];
        if (i > 0) mine[i] = combine(p, row, mine[i - 1], mine[i], live(entry), fault);
    }
    State total = mine[EACH - 1];
#pragma unroll
    for (int lanes = 1; lanes * EACH < ENTRIES; lanes *= 2) {
        State other = of_lane(total, lane - lanes);
        if (lane >= lanes) total = combine(p, row, other, total, live(lane * EACH), fault);
    }
    State before = of_lane(total, lane - 1);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        int entry = lane * EACH + i;
        if (entry >= ENTRIES) break;
        if (lane > 0) mine[i] = combine(p, row, before, mine[i], live(entry), fault);
        inclusive[entry] = mine[i];
    }
    sync_warp();
    if (lane == 0 && place.index != p.tiles - 1) {
        tell(told_tiles(p), place.row * p.tiles + place.index, inclusive[ENTRIES - 1]);
    }
}

DEVICE void look_back(const Parameters& p, const Turns& turns, Shared& shared, Fault& fault) {
    const Told tiles = told_tiles(p), groups = told_groups(p), stretches = told_stretches(p);
    for (int turn = 0; turn < turns.count + 2; ++turn) {
        meet_all();
        const bool looks = turn >= 1 && turn - 1 < turns.count;
        Place place = Place::of(p, turns, max_of(turn - 1, 0));
        const int group = place.index / 32, stretch = place.index / 1024;
        const int tiles_before = place.index % 32, groups_before = group % 32, stretches_before = min_of(stretch, 1);
        Asked asked_tiles = Asked::of(tiles, place.row * p.tiles + 32 * group, looks ? tiles_before : 0);
        Asked asked_groups = Asked::of(groups, place.row * p.groups + 32 * stretch, looks ? groups_before : 0);
        Asked asked_stretch = Asked::of(stretches, place.row * p.stretches + stretch - 1, looks ? stretches_before : 0);
        if (turn < turns.count) {
            Place next = Place::of(p, turns, turn);
            tell_tile(p, next, row_of(p, next.row), shared.totals[turn % 2], shared.inclusive[turn % 3], fault);
        }
        if (!looks) continue;
        Row row = row_of(p, place.row);
        const State& own = shared.inclusive[(turn - 1) % 3][ENTRIES - 1];
        const bool last = place.index == p.tiles - 1;
        State of_tiles, of_groups, of_stretches;
        if (tiles_before > 0) {
            of_tiles = asked_tiles.fold(p, row, fault);
            if (tiles_before == 31 && !last && lane_index() == 0) {
                tell(groups, place.row * p.groups + group, combine(p, row, of_tiles, own, true, fault));
            }
        }
        if (groups_before > 0) of_groups = asked_groups.fold(p, row, fault);
        if (stretches_before > 0) of_stretches = asked_stretch.fold(p, row, fault);
        if (lane_index() != 0) continue;
        Prefix before;
        if (stretches_before > 0) append(before, of_stretches, p, row, true, fault);
        if (groups_before > 0) append(before, of_groups, p, row, true, fault);
        if (tiles_before > 0) append(before, of_tiles, p, row, true, fault);
        if (place.index % 1024 == 1023 && !last) {
            tell(stretches, place.row * p.stretches + stretch, combine(p, row, before.state, own, true, fault));
        }
        shared.before[(turn - 1) % 2] = before;
    }
}

KERNEL void __launch_bounds__(32 * (WARPS + 2), 1) scan(const __grid_constant__ Parameters p) {
    Shared& shared = *(Shared*)(shared_memory() + STAGES * STAGE_BYTES);
    if (thread_index() == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(&shared.full[stage], COPY_ARRIVALS);
            init_barrier(&shared.empty[stage], WARPS);
        }
        publish_barriers();
    }
    sync_threads();
    const Turns turns = Turns::of(p);
    Fault fault;
    if (warp_index() < WARPS) scan_tiles(p, turns, shared, fault);
    else if (warp_index() == WARPS) look_back(p, turns, shared, fault);
    else copy_tiles(p, turns, shared);
    report(fault, p.fault, p.first_site);
}
