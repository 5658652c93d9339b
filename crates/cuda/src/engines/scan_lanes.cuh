// Scans whose rows lie next to each other: a lane takes a row, and warps take runs of its steps, a tile of them. A block
// does its rows, tile after tile; or, where rows are few and long, one tile of them, and looks back at what the tiles before
// have told. A block has as many rows as a warp has lanes; or half as many, and each half of a warp a run of its own, where
// else blocks were too few to be shared out evenly.

constexpr int RUNS = WARPS * 32 / LANES, TILE = RUNS * RUN;
static_assert(LANES == 32 || LANES == 16 && !CHAINED, "who looks back has a row for each lane");

// Which of the block's rows, and which run of it, is this thread's.
DEVICE int row_index() { return thread_index() % LANES; }
DEVICE int run_index() { return thread_index() / LANES; }

// Whether what a tile's elements are made of is read while the tile before is worked on: it takes as many registers again.
// What only its results need is so as well where there is room for all; else it is asked for when the tile begins, and is
// there soon after it is folded.
constexpr bool AHEAD = STATE <= 8, LATE_AHEAD = AHEAD && READS <= 4;

struct Shared {
    State totals[2][RUNS][LANES];  // of each run; of this tile and the one before
    State parts[3][LANES];
    unsigned ticket;
};

struct Tile {
    State run[RUN];
    Loaded loaded;
    LoadedResults loaded_results;
    bool whole = false;  // whether the warp's runs are as most are: all steps are there, and all that is read for them

    // Asks for what is read ahead; nothing is waited for.
    DEVICE void load(const Parameters& p, const Row& row, Step first) {
        Step step = first + run_index() * RUN, begin = REVERSE ? (Step)p.length - RUN - step : step;
        whole = ballot(step + RUN <= (Step)p.length && all_there(p, row, begin, begin + RUN)) == ~0u;
        if (whole) load_sources<true>(p, row, step, loaded);
        else load_sources<false>(p, row, step, loaded);
        if (LATE_AHEAD) load_late(p, row, first);
    }

    // Asks for what only the tile's results need.
    DEVICE void load_late(const Parameters& p, const Row& row, Step first) {
        Step step = first + run_index() * RUN;
        if (whole) load_result_sources<true>(p, row, step, loaded_results);
        else load_result_sources<false>(p, row, step, loaded_results);
    }

    // Takes over what was read for another tile.
    DEVICE void follow(const Tile& next) {
        loaded = next.loaded;
        if (LATE_AHEAD) loaded_results = next.loaded_results;
        whole = next.whole;
    }

    template <bool WHOLE>
    DEVICE void fold_run(const Parameters& p, const Row& row, Step step, Fault& fault) {
        elements_of<WHOLE>(p, row, step, loaded, run, fault);
#pragma unroll
        for (int j = 1; j < RUN; ++j) {
            run[j] = combine(p, row, run[j - 1], run[j], WHOLE || step + j < (Step)p.length, fault);
        }
    }

    // Folds the run, and tells the other warps; gives what the whole tile comes to.
    DEVICE State fold(const Parameters& p, const Row& row, Step first, State (&totals)[RUNS][LANES], Prefix& before,
                      Fault& fault) {
        Step step = first + run_index() * RUN;
        if (whole) fold_run<true>(p, row, step, fault);
        else fold_run<false>(p, row, step, fault);
        if constexpr (RUNS == 1) return run[RUN - 1];
        totals[run_index()][row_index()] = run[RUN - 1];
        sync_threads();
        Prefix all;
#pragma unroll
        for (int i = 0; i < RUNS; ++i) {
            if (i == run_index()) before = all;
            append(all, totals[i][row_index()], p, row, first + i * RUN < (Step)p.length, fault);
        }
        return all.state;
    }

    template <bool WHOLE>
    DEVICE void store_run_of(const Parameters& p, const Row& row, Step step, const Prefix& prefix, Fault& fault) {
        if (prefix.any) {
#pragma unroll
            for (int j = 0; j < RUN; ++j) {
                run[j] = combine(p, row, prefix.state, run[j], WHOLE || step + j < (Step)p.length, fault);
            }
        }
        store_results<WHOLE>(p, row, step, loaded, loaded_results, run, fault);
    }

    DEVICE void store(const Parameters& p, const Row& row, Step first, const Prefix& carry, const Prefix& before,
                      bool there, Fault& fault) {
        Step step = first + run_index() * RUN;
        if (!there || step >= (Step)p.length) return;
        Prefix prefix = carry;
        if (before.any) append(prefix, before.state, p, row, true, fault);
        if (whole) store_run_of<true>(p, row, step, prefix, fault);
        else store_run_of<false>(p, row, step, prefix, fault);
    }
};

// What some neighbouring slots come to, for each lane its own row.
DEVICE State fold_told(const Told& told, long long first, int count, const Parameters& p, const Row& row, Fault& fault) {
    if (lane_index() < count) wait_for(told, first + lane_index());
    sync_warp();
    State state = told_state(told, first, lane_index());
    for (int i = 1; i < count; ++i) {
        state = combine(p, row, state, told_state(told, first + i, lane_index()), true, fault);
    }
    return state;
}

// All lanes of a warp.
DEVICE void tell(const Told& told, long long slot, const State& state) {
    write_words(state, told.words + (slot * STATE * LANES + lane_index()));
    make_visible();
    sync_warp();
    if (lane_index() == 0) raise_flag(told.flags + slot);
}

KERNEL void __launch_bounds__(32 * WARPS, LANES == 16 ? 3 : 1) scan(const __grid_constant__ Parameters p) {
    Shared& shared = *(Shared*)shared_memory();
    Fault fault;
    Tile tile;
    if constexpr (CHAINED) {
        if (thread_index() == 0) shared.ticket = next_ticket(p.ticket);
        sync_threads();
        long long number = shared.ticket, team = number / p.tiles;
        int index = (int)(number % p.tiles);
        long long row_number = 32 * team + lane_index();
        bool there = row_number < p.rows;
        Row row = row_of(p, min_of(row_number, p.rows - 1));
        Step first = (Step)index * TILE;
        tile.load(p, row, first);
        if (!LATE_AHEAD) tile.load_late(p, row, first);
        Prefix before;
        State aggregate = tile.fold(p, row, first, shared.totals[0], before, fault);
        bool last = index == p.tiles - 1;
        Told tiles = told_tiles(p), groups = told_groups(p), stretches = told_stretches(p);
        long long tile_slot = team * p.tiles, group_slot = team * p.groups, stretch_slot = team * p.stretches;
        int group = index / 32, stretch = index / 1024;
        if (warp_index() == 0) {
            if (!last) tell(tiles, tile_slot + index, aggregate);
            if (index % 32 > 0) {
                State state = fold_told(tiles, tile_slot + 32 * group, index % 32, p, row, fault);
                shared.parts[2][lane_index()] = state;
                if (index % 32 == 31 && !last) {
                    tell(groups, group_slot + group, combine(p, row, state, aggregate, true, fault));
                }
            }
        }
        if (warp_index() == 1 % WARPS && group % 32 > 0) {
            shared.parts[1][lane_index()] = fold_told(groups, group_slot + 32 * stretch, group % 32, p, row, fault);
        }
        if (warp_index() == 2 % WARPS && stretch > 0) {
            if (lane_index() == 0) wait_for(stretches, stretch_slot + stretch - 1);
            sync_warp();
            shared.parts[0][lane_index()] = told_state(stretches, stretch_slot + stretch - 1, lane_index());
        }
        sync_threads();
        Prefix prefix;
        if (stretch > 0) append(prefix, shared.parts[0][lane_index()], p, row, true, fault);
        if (group % 32 > 0) append(prefix, shared.parts[1][lane_index()], p, row, true, fault);
        if (index % 32 > 0) append(prefix, shared.parts[2][lane_index()], p, row, true, fault);
        if (warp_index() == 0 && index % 1024 == 1023 && !last) {
            tell(stretches, stretch_slot + stretch, combine(p, row, prefix.state, aggregate, true, fault));
        }
        tile.store(p, row, first, prefix, before, there, fault);
    } else {
        for (long long team = block_index(); LANES * team < p.rows; team += block_count()) {
            long long row_number = LANES * team + row_index();
            bool there = row_number < p.rows;
            Row row = row_of(p, min_of(row_number, p.rows - 1));
            Prefix carry;
            int turn = 0;
            if (AHEAD) tile.load(p, row, 0);
            for (Step first = 0; first < (Step)p.length; first += TILE) {
                Tile next;
                if (!AHEAD) tile.load(p, row, first);
                if (!LATE_AHEAD) tile.load_late(p, row, first);
                if (AHEAD && first + TILE < (Step)p.length) next.load(p, row, first + TILE);
                Prefix before;
                State aggregate = tile.fold(p, row, first, shared.totals[turn], before, fault);
                tile.store(p, row, first, carry, before, there, fault);
                append(carry, aggregate, p, row, first + TILE <= (Step)p.length, fault);
                if (AHEAD) tile.follow(next);
                turn = 1 - turn;
            }
            // The next rows begin with the first totals again.
            if constexpr (RUNS > 1) sync_threads();
        }
    }
    report(fault, p.fault, p.first_site);
}
