// Scattered sums without atomics: a block owns some rows of the output and 256 columns of them. It collects the updates
// that go there, in their order, and its warps add up those of a row each. Where there are many updates for few rows,
// a block takes a part of the updates only, and the parts' sums are added in their order.

constexpr int ROWS = 32, THREADS = 256, WARPS = THREADS / 32, LANE_COLUMNS = 8, LIST = 2048, LOOKS = 8, AT_ONCE = 4;

KERNEL void __launch_bounds__(256) scatter_targets(const __grid_constant__ Parameters p) {
    long long update = block_index() * 256 + thread_index();
    if (update >= p.updates_count) return;
    Fault fault;
    bool inside = true;
    long long row = target_of(p, update, inside, fault);
    p.targets[update] = inside ? row : -1;
    report(fault, p.fault, p.first_site);
}

struct alignas(16) Clear {
    unsigned long long words[2];
};

struct Shared {
    int counts[WARPS];
    int update[LIST];
    unsigned char row[LIST];
};

// The columns of a lane: where each lies in an update. A column that there is not is read as the last one.
struct Columns {
    long long first, places[LANE_COLUMNS];

    DEVICE static Columns of(const Parameters& p, long long first) {
        Columns columns = {first};
#pragma unroll
        for (int j = 0; j < LANE_COLUMNS; ++j) columns.places[j] = column_place(p, min_of(first + 32 * j, p.columns - 1));
        return columns;
    }
};

// Adds the updates of some lanes, in the lanes' order. Several are read before the first is added, without a condition,
// which would have the compiler wait for one read after the other: where none is left, the last is read again.
DEVICE void add_updates(const Parameters& p, Sum (&sums)[LANE_COLUMNS], unsigned lanes, long long mine,
                        const Columns& columns) {
    if (lanes == 0) return;
    long long start = update_place(p, mine);
    while (lanes != 0) {
        Word values[AT_ONCE][LANE_COLUMNS];
        unsigned left = lanes;
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const Word* from = p.updates + shuffle(start, count_bits((left & -left) - 1));
#pragma unroll
            for (int j = 0; j < LANE_COLUMNS; ++j) values[i][j] = from[columns.places[j]];
            unsigned others = left & (left - 1);
            if (others != 0) left = others;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            if (lanes == 0) break;
#pragma unroll
            for (int j = 0; j < LANE_COLUMNS; ++j) sums[j] += value_of(values[i][j]);
            lanes &= lanes - 1;
        }
    }
}

KERNEL void __launch_bounds__(THREADS) scatter_add(const __grid_constant__ Parameters p) {
    Shared& shared = *(Shared*)shared_memory();
    long long chunks = (p.columns + 32 * LANE_COLUMNS - 1) / (32 * LANE_COLUMNS);
    long long part = block_index() % p.parts, unit = block_index() / p.parts;
    long long first_column = unit % chunks * 32 * LANE_COLUMNS + lane_index(), first_row = unit / chunks * ROWS;
    long long length = (p.updates_count + p.parts - 1) / p.parts;
    long long begin = part * length, end = min_of(begin + length, p.updates_count);
    // The updates that are the block's own, as many as there is room for. A thread looks at some that follow each other.
    int total = 0;
    for (long long base = begin; base < end; base += THREADS * LOOKS) {
        long long mine = base + thread_index() * LOOKS;
        int rows[LOOKS], hits = 0;
#pragma unroll
        for (int j = 0; j < LOOKS; ++j) {
            long long row = mine + j < end ? p.targets[mine + j] - first_row : -1;
            rows[j] = row >= 0 && row < ROWS ? (int)row : -1;
            hits += rows[j] >= 0;
        }
        if (!any_thread(hits != 0)) continue;
        int before = hits;
        for (int lanes = 1; lanes < 32; lanes *= 2) {
            int others = shuffle(before, max_of(lane_index() - lanes, 0));
            if (lane_index() >= lanes) before += others;
        }
        if (lane_index() == 31) shared.counts[warp_index()] = before;
        sync_threads();
        int place = total + before - hits;
        for (int warp = 0; warp < WARPS; ++warp) {
            if (warp < warp_index()) place += shared.counts[warp];
            total += shared.counts[warp];
        }
#pragma unroll
        for (int j = 0; j < LOOKS; ++j) {
            if (rows[j] < 0) continue;
            if (place < LIST) {
                shared.update[place] = (int)(mine + j - begin);
                shared.row[place] = (unsigned char)rows[j];
            }
            ++place;
        }
        sync_threads();
    }
    sync_threads();
    const Columns columns = Columns::of(p, first_column);
    for (int i = warp_index(); i < ROWS; i += WARPS) {
        long long row = first_row + i;
        if (row >= p.rows) break;
        Sum sums[LANE_COLUMNS] = {};
        if (total <= LIST) {
            for (int base = 0; base < total; base += 32) {
                int mine = base + lane_index();
                unsigned hits = ballot(mine < total && shared.row[min_of(mine, LIST - 1)] == i);
                long long update = begin + (mine < total ? shared.update[mine] : 0);
                add_updates(p, sums, hits, update, columns);
            }
        } else {
            for (long long base = begin; base < end; base += 32) {
                long long mine = base + lane_index();
                unsigned hits = ballot(mine < end && p.targets[min_of(mine, end - 1)] == row);
                add_updates(p, sums, hits, min_of(mine, end - 1), columns);
            }
        }
#pragma unroll
        for (int j = 0; j < LANE_COLUMNS; ++j) {
            long long column = first_column + 32 * j, place = row * p.columns + column;
            if (column >= p.columns) continue;
            if (p.parts == 1) p.output[place] = rounded(sums[j]);
            else ((Sum*)p.sums)[part * p.rows * p.columns + place] = sums[j];
        }
    }
}

KERNEL void __launch_bounds__(256) scatter_parts(const __grid_constant__ Parameters p) {
    long long place = block_index() * 256 + thread_index(), elements = p.rows * p.columns;
    if (place >= elements) return;
    Sum sum = 0;
    for (long long part = 0; part < p.parts; ++part) sum += ((const Sum*)p.sums)[part * elements + place];
    p.output[place] = rounded(sum);
}

// Where there are many more rows than updates: the output is cleared, and then the first update of a row adds up all of
// its row's, in their order; a warp for each update.
KERNEL void __launch_bounds__(256) scatter_clear(const __grid_constant__ Parameters p) {
    long long elements = p.rows * p.columns, threads = block_count() * 256;
    long long bytes = elements * (long long)sizeof(Word), place = block_index() * 256 + thread_index();
    unsigned char* start = (unsigned char*)p.output;
    if ((unsigned long long)start % 16 == 0) {
        Clear clear = {};
        for (long long i = place; i < bytes / 16; i += threads) ((Clear*)start)[i] = clear;
        if (place < bytes % 16) start[bytes - 1 - place] = 0;
    } else {
        for (long long i = place; i < bytes; i += threads) start[i] = 0;
    }
}

KERNEL void __launch_bounds__(256) scatter_few(const __grid_constant__ Parameters p) {
    long long update = block_index() * WARPS + warp_index();
    if (update >= p.updates_count) return;
    long long row = p.targets[update];
    if (row < 0) return;
    for (long long base = 0; base < update; base += 32) {
        long long mine = base + lane_index();
        if (ballot(mine < update && p.targets[min_of(mine, update)] == row) != 0) return;
    }
    for (long long first = lane_index(); first - lane_index() < p.columns; first += 32 * LANE_COLUMNS) {
        const Columns columns = Columns::of(p, first);
        Sum sums[LANE_COLUMNS] = {};
        for (long long base = update; base < p.updates_count; base += 32) {
            long long mine = base + lane_index();
            unsigned hits = ballot(mine < p.updates_count && p.targets[min_of(mine, p.updates_count - 1)] == row);
            add_updates(p, sums, hits, min_of(mine, p.updates_count - 1), columns);
        }
#pragma unroll
        for (int j = 0; j < LANE_COLUMNS; ++j) {
            long long column = first + 32 * j;
            if (column < p.columns) p.output[row * p.columns + column] = rounded(sums[j]);
        }
    }
}
