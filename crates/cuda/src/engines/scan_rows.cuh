// Scans whose steps lie next to each other, of many rows: a block does whole rows, tile after tile. Its threads take runs
// of steps, WARPS × 32 × ROUNDS of them a tile.

constexpr int ENTRIES = ROUNDS * WARPS, TILE = ENTRIES * 32 * RUN;

struct Shared {
    State totals[ENTRIES];     // of each warp's part of each round
    State inclusive[ENTRIES];  // the same, scanned
};

// Scans a tile that begins at a step.
struct Tile {
    State runs[ROUNDS][RUN];
    State before[ROUNDS];  // what the lanes before have, for lanes but the first

    DEVICE static Step step_of(Step first, int round) {
        return first + (Step)((round * WARPS * 32 + thread_index()) * RUN);
    }

    // WHOLE: the tile is as most are, all steps are there, and all that is read for them.
    template <bool WHOLE>
    DEVICE void load(const Parameters& p, const Row& row, Step first, Fault& fault) {
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            Loaded loaded;
            load_sources<WHOLE>(p, row, step_of(first, r), loaded);
            elements_of<WHOLE>(p, row, step_of(first, r), loaded, runs[r], fault);
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

    template <bool WHOLE>
    DEVICE void store(const Parameters& p, const Row& row, Step first, const Prefix& carry, const Shared& shared,
                      Fault& fault) {
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            Step step = step_of(first, r);
            if (!WHOLE && step >= (Step)p.length) break;
            Prefix prefix = carry;
            int entry = r * WARPS + warp_index();
            if (entry > 0) append(prefix, shared.inclusive[entry - 1], p, row, true, fault);
            if (lane_index() > 0) append(prefix, before[r], p, row, true, fault);
            if (prefix.any) {
#pragma unroll
                for (int j = 0; j < RUN; ++j) {
                    runs[r][j] = combine(p, row, prefix.state, runs[r][j], WHOLE || step + j < (Step)p.length, fault);
                }
            }
            LoadedResults loaded;
            load_result_sources<WHOLE>(p, row, step, loaded);
            store_results<WHOLE>(p, row, step, loaded, runs[r], fault);
        }
    }
};

KERNEL void __launch_bounds__(32 * WARPS) scan(const __grid_constant__ Parameters p) {
    Shared& shared = *(Shared*)shared_memory();
    Fault fault;
    Tile tile;
    for (long long number = block_index(); number < p.rows; number += block_count()) {
        Row row = row_of(p, number);
        Prefix carry;
        for (Step first = 0; first < (Step)p.length; first += TILE) {
            Step begin = REVERSE ? (Step)p.length - TILE - first : first;
            bool whole = first + TILE <= (Step)p.length && all_there(p, row, begin, begin + TILE);
            if (whole) tile.load<true>(p, row, first, fault);
            else tile.load<false>(p, row, first, fault);
            tile.fold(p, row, first, shared, fault);
            if (whole) tile.store<true>(p, row, first, carry, shared, fault);
            else tile.store<false>(p, row, first, carry, shared, fault);
            append(carry, shared.inclusive[ENTRIES - 1], p, row, first + TILE <= (Step)p.length, fault);
        }
    }
    report(fault, p.fault, p.first_site);
}
