//! Places in the arena.
//!
//! A buffer lives from the kernel that first writes it to the last that touches it; two buffers may share
//! bytes where they do not live at once. Buffers are placed largest first at the lowest offset that is
//! free for their whole life (Pisarchyk and Lee, "Efficient memory management for deep neural net
//! inference", 2020). A kernel's result may take over the place of an operand that dies in it where each
//! element is written by the very iteration that read it.

use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{BufferId, Kernel, Place, Plan, View};

/// Offsets are multiples of this many bytes.
const ALIGNMENT: usize = 64;

/// First and last kernel that touch a buffer.
type Life = (usize, usize);

/// Gives every arena buffer of a plan its offset, and the plan the size of its arena.
pub(crate) fn place(plan: &mut Plan) {
    let lives = lives(plan);
    let mut owner: Vec<usize> = (0..plan.buffers.len()).collect();
    let mut joint: Vec<Option<Life>> = lives.clone();
    for (at, kernel) in plan.kernels.iter().enumerate() {
        for (result, operand) in replaceable(kernel) {
            let (result, operand) = (result.0, operand.0);
            let dying = lives[operand].is_some_and(|(_, last)| last == at);
            let born = lives[result].is_some_and(|(first, _)| first == at);
            let size = |buffer: usize| plan.buffers[buffer].elements * plan.buffers[buffer].dtype.size();
            let target = owner[operand];
            let taken = joint[target].is_some_and(|(_, last)| last > at);
            if in_arena(plan, result)
                && in_arena(plan, operand)
                && dying
                && born
                && !taken
                && owner[result] == result
                && size(result) == size(operand)
            {
                owner[result] = target;
                let (first, _) = joint[target].expect("the operand lives");
                joint[target] = Some((first, lives[result].expect("the result lives").1));
            }
        }
    }
    let mut order: Vec<(usize, usize, Life)> = (0..plan.buffers.len())
        .filter(|&buffer| owner[buffer] == buffer && in_arena(plan, buffer))
        .filter_map(|buffer| {
            let Place::Arena(_) = plan.buffers[buffer].place else { return None };
            let bytes = plan.buffers[buffer].elements * plan.buffers[buffer].dtype.size();
            Some((bytes.next_multiple_of(ALIGNMENT), buffer, joint[buffer]?))
        })
        .collect();
    order.sort_by_key(|&(bytes, buffer, _)| (std::cmp::Reverse(bytes), buffer));

    let mut arena = Arena::new(plan.kernels.len());
    let mut offsets = vec![0; plan.buffers.len()];
    for &(bytes, buffer, life) in &order {
        offsets[buffer] = arena.place(bytes, life);
    }
    plan.arena_bytes = arena.bytes;
    for (number, buffer) in plan.buffers.iter_mut().enumerate() {
        if let Place::Arena(offset) = &mut buffer.place {
            *offset = offsets[owner[number]];
            // What fusion left untouched takes no place.
            if lives[number].is_none() {
                buffer.elements = 0;
            }
        }
    }
}

fn in_arena(plan: &Plan, buffer: usize) -> bool {
    matches!(plan.buffers[buffer].place, Place::Arena(_))
}

fn lives(plan: &Plan) -> Vec<Option<Life>> {
    let mut lives: Vec<Option<Life>> = vec![None; plan.buffers.len()];
    for (at, kernel) in plan.kernels.iter().enumerate() {
        for view in kernel.reads().into_iter().chain(kernel.writes()) {
            let life = lives[view.buffer.0].get_or_insert((at, at));
            life.1 = at;
        }
    }
    lives
}

/// The places taken so far.
struct Arena {
    /// For each bucket of kernels the (offset, end, life) of what lives in it.
    buckets: Vec<Vec<(usize, usize, Life)>>,
    width: usize,
    bytes: usize,
}

impl Arena {
    fn new(kernels: usize) -> Arena {
        let width = kernels.isqrt().max(1);
        Arena { buckets: vec![Vec::new(); kernels / width + 1], width, bytes: 0 }
    }

    /// The lowest offset at which `bytes` are free during `life`.
    fn place(&mut self, bytes: usize, life: Life) -> usize {
        let buckets = life.0 / self.width..=life.1 / self.width;
        let mut taken: Vec<(usize, usize)> = self.buckets[buckets.clone()]
            .iter()
            .flatten()
            .filter(|(_, _, other)| other.0 <= life.1 && life.0 <= other.1)
            .map(|&(offset, end, _)| (offset, end))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if start >= offset + bytes {
                break;
            }
            offset = offset.max(end);
        }
        for bucket in &mut self.buckets[buckets] {
            bucket.push((offset, offset + bytes, life));
        }
        self.bytes = self.bytes.max(offset + bytes);
        offset
    }
}

/// Pairs (result, operand) of a kernel's buffers of which the result may lie where the operand does: the
/// operand is read only at the very position that the result is then stored to.
fn replaceable(kernel: &Kernel) -> Vec<(BufferId, BufferId)> {
    let Kernel::Loops(loops) = kernel else { return Vec::new() };
    let mut pairs: Vec<(BufferId, BufferId)> = Vec::new();
    for (number, phase) in loops.phases.iter().enumerate() {
        for sink in &phase.sinks {
            let Sink::Store { view: stored, dtype } = sink else { continue };
            let same = |view: &View| view.offset == stored.offset && view.strides == stored.strides;
            let size = dtype.size();
            for source in &phase.sources {
                let Source::Load { view, dtype, valid: None } = source else { continue };
                let fits = same(view) && dtype.size() == size && view.buffer != stored.buffer;
                let again =
                    pairs.iter().any(|(result, operand)| *result == stored.buffer || *operand == view.buffer);
                if fits
                    && !again
                    && !phase.once
                    && sole_read(loops, number, view)
                    && sole_write(loops, stored)
                {
                    pairs.push((stored.buffer, view.buffer));
                }
            }
        }
    }
    pairs
}

/// Whether nothing but `view` reads its buffer, and nothing after this phase.
fn sole_read(loops: &tilewright_plan::Loops, last: usize, view: &View) -> bool {
    let table = loops.tables.iter().any(|table| table.view.buffer == view.buffer);
    !table
        && loops.phases.iter().enumerate().all(|(number, phase)| {
            phase.sources.iter().all(|source| match source {
                Source::Load { view: other, .. } if other.buffer == view.buffer => {
                    number <= last && other == view
                }
                Source::Load { .. } | Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => true,
            })
        })
}

fn sole_write(loops: &tilewright_plan::Loops, stored: &View) -> bool {
    let sinks = loops.phases.iter().flat_map(|phase| &phase.sinks);
    let writes =
        sinks.filter(|sink| matches!(sink, Sink::Store { view, .. } if view.buffer == stored.buffer));
    writes.count() == 1
}
