//! Finding the live blocks of a mask.
//!
//! A rectangle of blocks on which interval evaluation decides the mask is done at once; any other is halved
//! along its longer side, down to single blocks and then inside them, until a block is known to hold both
//! kinds of pairs. So time and memory go with the length of the boundary between what is admitted and what
//! is not, rather than with the number of pairs: where a mask's boundary is a line, that is a number of
//! steps proportional to the number of blocks on it. A block that stays undecided for long (a mask that
//! scrambles its indices) is evaluated at every pair by the tile machine instead.

use std::sync::Mutex;

use tilewright_ir::{DType, Result, Scalar};
use tilewright_plan::{BlockMap, Kernel, Plan};

use super::bounds::Bounds;
use super::range::{Mask, Range, Rectangle};
use super::{Blocks, Lists, Run};
use crate::memory::{Array, Memory, broken};
use crate::tile::{Argument, Feed, Scratch, Stage, Target, Tile, TileProgram};
use crate::{Context, Isa};

/// Blocks of queries that one task looks at.
const BAND: usize = 32;

/// Rectangles inside one block that are looked at before the block is evaluated pair by pair: about as many
/// as that costs.
const PATIENCE: usize = 64;

/// Finds the blocks that the kernel's mask leaves.
///
/// # Errors
/// `ErrorKind::Index` where the mask reads a table out of range at a pair within the lengths.
pub(crate) fn build(kernel: &BlockMap, memory: &Memory, context: &Context) -> Result<Blocks> {
    from_tables(kernel, &memory.tables(&kernel.tables)?, context)
}

/// The map that a plan of `tilewright_schedule::block_map` makes, from the bytes of what the mask captures.
///
/// # Errors
/// `Index` where the mask reads a capture out of range; `Shape` or `Layout` where the bytes do not fit the plan;
/// `Invariant` where the plan makes no block map.
pub fn block_map(plan: &Plan, captures: &[&[u8]]) -> Result<Blocks> {
    let memory = Memory::new(plan, captures, &mut [], &mut [])?;
    let context = Context { isa: Isa::preferred(), threads: 1, block_maps: Vec::new() };
    let map = plan.kernels.iter().find_map(|kernel| match kernel {
        Kernel::BlockMap(map) => Some(map),
        _ => None,
    });
    build(map.ok_or_else(|| broken("a plan without a block map"))?, &memory, &context)
}

/// [`build`], with the mask's tables found.
pub(super) fn from_tables(kernel: &BlockMap, tables: &[Array], context: &Context) -> Result<Blocks> {
    let BlockMap { batch, heads, queries, keys, query_block, key_block, .. } = *kernel;
    let (query_blocks, key_blocks) = (queries.div_ceil(query_block), keys.div_ceil(key_block));
    let mask = Mask::new(&kernel.mask, &kernel.tables, tables.iter().map(Bounds::new).collect());
    let feeds = [Feed::Uniform, Feed::Uniform, Feed::RowPosition, Feed::ColumnPosition];
    let program = TileProgram::compile(&kernel.mask, &feeds, &kernel.tables, context.isa)?;
    let bands = query_blocks.div_ceil(BAND);
    let found: Vec<Mutex<Vec<Area>>> = (0..batch * heads * bands).map(|_| Mutex::default()).collect();
    context.parallel(found.len(), |task| {
        let (slice, band) = (task / bands, task % bands);
        let mut search = Search {
            kernel,
            mask: &mask,
            program: &program,
            tables,
            slice,
            areas: Vec::new(),
            ranges: Vec::new(),
            admitted: Vec::new(),
            scratch: Scratch::new(),
        };
        let rows = (band * BAND, ((band + 1) * BAND).min(query_blocks));
        search.area(rows, (0, key_blocks))?;
        *found[task].lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = search.areas;
        Ok(())
    })?;
    let areas: Vec<Area> = found
        .into_iter()
        .flat_map(|areas| areas.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
        .collect();
    let slices = batch * heads;
    Ok(Blocks {
        batch,
        heads,
        query_block,
        key_block,
        query_blocks,
        key_blocks,
        by_query: lists(slices, query_blocks, areas.iter().map(|a| (a.slice, a.rows, a.columns, a.full))),
        by_key: lists(slices, key_blocks, areas.iter().map(|a| (a.slice, a.columns, a.rows, a.full))),
    })
}

/// A rectangle of live blocks, all full or all partial; ends not included.
struct Area {
    slice: usize,
    rows: (usize, usize),
    columns: (usize, usize),
    full: bool,
}

/// The areas cut into runs, one list for each slice and line, neighbours joined.
fn lists(
    slices: usize,
    lines: usize,
    areas: impl Iterator<Item = (usize, (usize, usize), (usize, usize), bool)> + Clone,
) -> Lists {
    let mut starts = vec![0; slices * lines + 1];
    for (slice, across, _, _) in areas.clone() {
        (across.0..across.1).for_each(|line| starts[slice * lines + line + 1] += 1);
    }
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
    let mut next = starts.clone();
    let mut unsorted = vec![Run { start: 0, end: 0, full: false }; starts[slices * lines]];
    for (slice, across, along, full) in areas {
        for line in across.0..across.1 {
            let place = &mut next[slice * lines + line];
            unsorted[*place] = Run { start: along.0 as u32, end: along.1 as u32, full };
            *place += 1;
        }
    }
    let mut lists = Lists { starts: Vec::with_capacity(starts.len()), runs: Vec::new() };
    lists.starts.push(0);
    for line in 0..slices * lines {
        let runs = &mut unsorted[starts[line]..starts[line + 1]];
        runs.sort_unstable_by_key(|run| run.start);
        let first = lists.runs.len();
        for &run in runs.iter() {
            match lists.runs[first..].last_mut() {
                Some(last) if last.end == run.start && last.full == run.full => last.end = run.end,
                Some(_) | None => lists.runs.push(run),
            }
        }
        lists.starts.push(lists.runs.len());
    }
    lists.runs.shrink_to_fit();
    lists
}

/// What a block, or a part of one, holds.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Empty,
    Full,
    Mixed,
}

/// The search in one batch element and head.
struct Search<'a> {
    kernel: &'a BlockMap,
    mask: &'a Mask<'a>,
    program: &'a TileProgram,
    tables: &'a [Array],
    slice: usize,
    areas: Vec<Area>,
    ranges: Vec<Range>,
    admitted: Vec<u8>,
    scratch: Scratch,
}

impl Search<'_> {
    fn rectangle(&self, queries: (usize, usize), keys: (usize, usize)) -> Rectangle {
        let heads = self.kernel.heads;
        Rectangle { b: self.slice / heads, h: self.slice % heads, queries, keys }
    }

    /// Finds the live blocks in a rectangle of blocks, ends not included.
    fn area(&mut self, rows: (usize, usize), columns: (usize, usize)) -> Result<()> {
        if rows.0 >= rows.1 || columns.0 >= columns.1 {
            return Ok(());
        }
        let (height, width) = (self.kernel.query_block, self.kernel.key_block);
        let queries = (rows.0 * height, (rows.1 * height).min(self.kernel.queries) - 1);
        let keys = (columns.0 * width, (columns.1 * width).min(self.kernel.keys) - 1);
        let decided = match (rows.1 - rows.0, columns.1 - columns.0) {
            (1, 1) => Some(self.block(queries, keys)?),
            _ => {
                let admitted = self.mask.decide(self.rectangle(queries, keys), &mut self.ranges)?;
                admitted.map(|all| if all { Verdict::Full } else { Verdict::Empty })
            }
        };
        match decided {
            Some(Verdict::Empty) => Ok(()),
            Some(verdict) => {
                self.areas.push(Area { slice: self.slice, rows, columns, full: verdict == Verdict::Full });
                Ok(())
            }
            None if columns.1 - columns.0 == 1
                || (rows.1 - rows.0 > 1 && queries.1 - queries.0 > keys.1 - keys.0) =>
            {
                let middle = rows.0.midpoint(rows.1);
                self.area((rows.0, middle), columns)?;
                self.area((middle, rows.1), columns)
            }
            None => {
                let middle = columns.0.midpoint(columns.1);
                self.area(rows, (columns.0, middle))?;
                self.area(rows, (middle, columns.1))
            }
        }
    }

    /// What a block holds, its ends included. Its corners first: they mostly differ where it is mixed.
    fn block(&mut self, queries: (usize, usize), keys: (usize, usize)) -> Result<Verdict> {
        if let Some(admitted) = self.mask.decide(self.rectangle(queries, keys), &mut self.ranges)? {
            return Ok(if admitted { Verdict::Full } else { Verdict::Empty });
        }
        let corners = [(queries.0, keys.0), (queries.0, keys.1), (queries.1, keys.0), (queries.1, keys.1)];
        let mut seen = None;
        for (query, key) in corners {
            let verdict = self.part((query, query), (key, key), &mut 1)?;
            if seen.is_some() && seen != verdict {
                return Ok(Verdict::Mixed);
            }
            seen = verdict;
        }
        match self.part(queries, keys, &mut { PATIENCE })? {
            Some(verdict) => Ok(verdict),
            None => self.every_pair(queries, keys),
        }
    }

    /// What part of a block holds, its ends included; none where that takes more than `patience` rectangles.
    fn part(
        &mut self,
        queries: (usize, usize),
        keys: (usize, usize),
        patience: &mut usize,
    ) -> Result<Option<Verdict>> {
        if *patience == 0 {
            return Ok(None);
        }
        *patience -= 1;
        if let Some(admitted) = self.mask.decide(self.rectangle(queries, keys), &mut self.ranges)? {
            return Ok(Some(if admitted { Verdict::Full } else { Verdict::Empty }));
        }
        if queries.0 == queries.1 && keys.0 == keys.1 {
            return Err(broken("a mask that is neither true nor false at a pair"));
        }
        let (first, second) = if queries.1 - queries.0 > keys.1 - keys.0 {
            let middle = queries.0.midpoint(queries.1);
            (((queries.0, middle), keys), ((middle + 1, queries.1), keys))
        } else {
            let middle = keys.0.midpoint(keys.1);
            ((queries, (keys.0, middle)), (queries, (middle + 1, keys.1)))
        };
        let verdict = self.part(first.0, first.1, patience)?;
        if matches!(verdict, None | Some(Verdict::Mixed)) {
            return Ok(verdict);
        }
        let other = self.part(second.0, second.1, patience)?;
        Ok(if other.is_none() || other == verdict { other } else { Some(Verdict::Mixed) })
    }

    /// What a block holds, its ends included, by evaluating the mask at every pair.
    fn every_pair(&mut self, queries: (usize, usize), keys: (usize, usize)) -> Result<Verdict> {
        let (rows, columns) = (queries.1 - queries.0 + 1, keys.1 - keys.0 + 1);
        self.admitted.resize(rows * columns, 0);
        let Rectangle { b, h, .. } = self.rectangle(queries, keys);
        let arguments =
            [b, h, queries.0, keys.0].map(|first| Argument::Scalar(Scalar::Integer(first as i64)));
        let target = Target::Array {
            data: self.admitted.as_mut_ptr(),
            dtype: DType::Bool,
            row_stride: columns as isize,
            column_stride: 1,
        };
        let targets = &[target];
        let tile = Tile { rows, columns, arguments: &arguments, targets, tables: self.tables, live: None };
        // SAFETY: the target is ours and has room for the tile; the tables can be read, as an `Array`'s
        // elements can; the program was compiled for the context's instruction set.
        unsafe { self.program.run(Stage::Early, &tile, &mut self.scratch)? };
        let live = self.admitted.iter().filter(|&&byte| byte != 0).count();
        Ok(match live {
            0 => Verdict::Empty,
            live if live == rows * columns => Verdict::Full,
            _ => Verdict::Mixed,
        })
    }
}
