// Scans whose steps lie next to each other: the threads of a block take runs of a row, WARPS × 32 × ROUNDS of them
// a tile. A block does whole rows, tile after tile; or, where rows are few and long, one tile, and looks back at what
// the tiles before have told.

constexpr int ENTRIES = ROUNDS * WARPS, TILE = ENTRIES * 32 * RUN;

struct Shared {
    State totals[ENTRIES];     // of each warp's part of each round
    State inclusive[ENTRIES];  // the same, scanned
    State parts[3];
    unsigned ticket;
};

DEVICE State of_lane(const State& state, int lane) { return shuffle_state(state, max_of(0, min_of(lane, 31))); }

// Scans a tile that begins at a step. `aggregate` becomes what all of it comes to.
struct Tile {
    State runs[ROUNDS][RUN];
    State before[ROUNDS];  // what the lanes before have, for lanes but the first

    DEVICE static Step step_of(Step first, int round) {
        return first + (Step)((round * WARPS * 32 + thread_index()) * RUN);
    }

    DEVICE void load(const Parameters& p, const Row& row, Step first, Fault& fault) {
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            Loaded loaded;
            load_sources(p, row, step_of(first, r), loaded);
            elements_of(p, row, step_of(first, r), loaded, runs[r], fault);
        }
    }

    DEVICE void fold(const Parameters& p, const Row& row, Step first, Shared& shared, Fault& fault) {
        int lane = lane_index();
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            Step step = step_of(first, r);
#pragma unroll
            for (int j = 1; j < RUN; ++j) {
                runs[r][j] = combine(p, row, runs[r][j - 1], runs[r][j], step + j < (Step)p.length, fault);
            }
            State total = runs[r][RUN - 1];
            bool live = step < (Step)p.length;
#pragma unroll
            for (int lanes = 1; lanes < 32; lanes *= 2) {
                State other = of_lane(total, lane - lanes);
                if (lane >= lanes) total = combine(p, row, other, total, live, fault);
            }
            if (lane == 31) shared.totals[r * WARPS + warp_index()] = total;
            before[r] = of_lane(total, lane - 1);
        }
        sync_threads();
        if (warp_index() == 0) {
            State total = shared.totals[min_of(lane, ENTRIES - 1)];
            bool live = first + lane * 32 * RUN < (Step)p.length;
#pragma unroll
            for (int lanes = 1; lanes < ENTRIES; lanes *= 2) {
                State other = of_lane(total, lane - lanes);
                if (lane >= lanes && lane < ENTRIES) total = combine(p, row, other, total, live, fault);
            }
            if (lane < ENTRIES) shared.inclusive[lane] = total;
        }
        sync_threads();
    }

    DEVICE void store(const Parameters& p, const Row& row, Step first, const Prefix& carry, const Shared& shared,
                      Fault& fault) {
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            Step step = step_of(first, r);
            if (step >= (Step)p.length) break;
            Prefix prefix = carry;
            int entry = r * WARPS + warp_index();
            if (entry > 0) append(prefix, shared.inclusive[entry - 1], p, row, true, fault);
            if (lane_index() > 0) append(prefix, before[r], p, row, true, fault);
            if (prefix.any) {
#pragma unroll
                for (int j = 0; j < RUN; ++j) {
                    runs[r][j] = combine(p, row, prefix.state, runs[r][j], step + j < (Step)p.length, fault);
                }
            }
            LoadedResults loaded;
            load_result_sources(p, row, step, loaded);
            store_results(p, row, step, loaded, runs[r], fault);
        }
    }
};

// What some neighbouring slots come to, in lane 0; the others help.
DEVICE State fold_told(const Told& told, long long first, int count, const Parameters& p, const Row& row, Fault& fault) {
    int lane = lane_index();
    if (lane < count) wait_for(told, first + lane);
    sync_warp();
    State state = told_state(told, first + min_of(lane, count - 1), 0);
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        State other = of_lane(state, lane + lanes);
        if (lane % (2 * lanes) == 0 && lane + lanes < count) state = combine(p, row, state, other, true, fault);
    }
    return state;
}

DEVICE void tell(const Told& told, long long slot, const State& state) {
    write_words(state, told.words + slot * STATE);
    if constexpr (!FLAGGED) raise_flag(told.flags + slot);
}

KERNEL void __launch_bounds__(32 * WARPS) scan(const __grid_constant__ Parameters p) {
    Shared& shared = *(Shared*)shared_memory();
    Fault fault;
    Tile tile;
    if constexpr (CHAINED) {
        if (thread_index() == 0) shared.ticket = next_ticket(p.ticket);
        sync_threads();
        const unsigned number = shared.ticket, row_tiles = p.tiles, row_number = number / row_tiles;
        const int index = number - row_number * row_tiles;
        Row row = row_of(p, row_number);
        Step first = (Step)index * TILE;
        tile.load(p, row, first, fault);
        tile.fold(p, row, first, shared, fault);
        const State& aggregate = shared.inclusive[ENTRIES - 1];
        bool last = index == p.tiles - 1;
        Told tiles = told_tiles(p), groups = told_groups(p), stretches = told_stretches(p);
        const long long tile_slot = row_number * p.tiles, group_slot = row_number * p.groups, stretch_slot = row_number * p.stretches;
        if (thread_index() == 0 && !last) tell(tiles, tile_slot + index, aggregate);
        int group = index / 32, stretch = index / 1024;
        if (warp_index() == 0 && index % 32 > 0) {
            State state = fold_told(tiles, tile_slot + 32 * group, index % 32, p, row, fault);
            if (lane_index() == 0) {
                shared.parts[2] = state;
                if (index % 32 == 31 && !last) {
                    tell(groups, group_slot + group, combine(p, row, state, aggregate, true, fault));
                }
            }
        }
        if (warp_index() == 1 % WARPS && group % 32 > 0) {
            State state = fold_told(groups, group_slot + 32 * stretch, group % 32, p, row, fault);
            if (lane_index() == 0) shared.parts[1] = state;
        }
        if (warp_index() == 2 % WARPS && stretch > 0 && lane_index() == 0) {
            wait_for(stretches, stretch_slot + stretch - 1);
            shared.parts[0] = told_state(stretches, stretch_slot + stretch - 1, 0);
        }
        sync_threads();
        Prefix prefix;
        if (stretch > 0) append(prefix, shared.parts[0], p, row, true, fault);
        if (group % 32 > 0) append(prefix, shared.parts[1], p, row, true, fault);
        if (index % 32 > 0) append(prefix, shared.parts[2], p, row, true, fault);
        if (thread_index() == 0 && index % 1024 == 1023 && !last) {
            tell(stretches, stretch_slot + stretch, combine(p, row, prefix.state, aggregate, true, fault));
        }
        tile.store(p, row, first, prefix, shared, fault);
    } else {
        for (long long number = block_index(); number < p.rows; number += block_count()) {
            Row row = row_of(p, number);
            Prefix carry;
            for (Step first = 0; first < (Step)p.length; first += TILE) {
                tile.load(p, row, first, fault);
                tile.fold(p, row, first, shared, fault);
                tile.store(p, row, first, carry, shared, fault);
                append(carry, shared.inclusive[ENTRIES - 1], p, row, first + TILE <= (Step)p.length, fault);
            }
        }
    }
    report(fault, p.fault, p.first_site);
}
