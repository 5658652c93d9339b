//! Cotangents of captured arrays: terms, one value for each pair, summed by a key while the panel that holds
//! them is in the cache.
//!
//! Three kinds of sums, by how the capture's indices depend on the pair:
//! - *keyed*: one number for each key of a head, by vector additions of rows, columns or diagonals; the
//!   indices are evaluated once a key, at the end ([`keyed`]);
//! - *owned*: each pair's element of the capture has one owner at a time, which adds to it in place, or stores it
//!   where it has one pair only;
//! - *scattered*: each lane of work adds to its own copy of the capture, and the copies are added up.
//!
//! Sums are made in an order that depends on sizes only.

mod indices;
mod keyed;
mod scattered;

use tilewright_ir::Result;
use tilewright_plan::AttentionBackward;
use tilewright_plan::attention::{AttentionShape, CaptureReduction, ReductionKey};

use self::indices::Reach;
use self::keyed::Keyed;
use self::scattered::{Place, Scattered};
use super::pack::Strided;
use super::regions::{Admitted, Pairs, Panel, Regions};
use super::vector::{Dispatch, Scalar, Vector};
use crate::Context;
use crate::memory::{Aligned, Memory};
use crate::tile::Scratch;

/// Bytes that the copies of one scattered capture may take, unless one copy takes more.
const COPIES: usize = 64 << 20;

/// Elements that a task clears.
const CLEARED: usize = 1 << 18;

/// How a backward's work is divided. A function of sizes and of the plan only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Division {
    /// Each key head's blocks of keys are dealt to so many units.
    pub splits: usize,
    /// Lanes of work: what runs one after the other. Where heads share owned elements, there are as many as
    /// splits, and all heads' units of one split are in one lane.
    pub lanes: usize,
}

impl Division {
    /// Divides the work of `key_heads` key heads (over all batch elements) with `blocks` blocks of keys into
    /// about `units` lanes.
    pub(super) fn new(kernel: &AttentionBackward, key_heads: usize, blocks: usize, units: usize) -> Division {
        let kinds = || kernel.reductions.iter().map(|reduction| (reduction, kind(reduction, kernel)));
        let shared = kinds().any(|(_, kind)| kind == Kind::Owned { heads_apart: false });
        let splits = if shared { units / 2 } else { units.div_ceil(key_heads.max(1)) };
        let mut splits = splits.clamp(1, blocks.max(1));
        let mut lanes = if shared { splits } else { splits * key_heads };
        for (reduction, kind) in kinds() {
            let bytes = kernel.captures[reduction.capture].shape.iter().product::<usize>() * 8;
            if kind == Kind::Scattered {
                lanes = lanes.min((COPIES / bytes.max(1)).max(1));
            }
        }
        lanes = lanes.max(1);
        if shared {
            splits = lanes;
        }
        Division { splits, lanes }
    }

    /// The units of a lane, each a key head and a split.
    pub(super) fn units(self, lane: usize, key_heads: usize) -> impl Iterator<Item = (usize, usize)> {
        let Division { splits, lanes } = self;
        (lane..key_heads * splits).step_by(lanes).map(move |unit| (unit / splits, unit % splits))
    }
}

/// How a reduction is done.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Keyed,
    Owned { heads_apart: bool },
    Scattered,
}

fn kind(reduction: &CaptureReduction, kernel: &AttentionBackward) -> Kind {
    match reduction.key {
        ReductionKey::Head
        | ReductionKey::Query
        | ReductionKey::Key
        | ReductionKey::Difference
        | ReductionKey::Sum => Kind::Keyed,
        ReductionKey::Pair => match indices::reach(&reduction.indices, &kernel.attention.shape) {
            Reach::Apart => Kind::Owned { heads_apart: true },
            Reach::SamePair => Kind::Owned { heads_apart: false },
            Reach::Anywhere => Kind::Scattered,
        },
        ReductionKey::Bucket { .. } | ReductionKey::Any => Kind::Scattered,
    }
}

/// All reductions of a backward.
pub(super) struct Reductions<'a, S: Scalar> {
    kernel: &'a AttentionBackward,
    sums: Vec<(&'a CaptureReduction, Sums<S>)>,
}

enum Sums<S: Scalar> {
    Keyed(Keyed<S>),
    Scattered(Box<Scattered<S>>),
}

/// What a unit hands over of one tile.
pub(super) struct Terms<'a, S> {
    pub pairs: Pairs,
    pub lane: usize,
    pub split: usize,
    /// Queries to the tile that comes next.
    pub ahead: usize,
    /// Which pairs count; all if absent. The others' terms are 0.
    pub admitted: Option<Admitted<'a>>,
    /// The raw scores.
    pub scores: Panel,
    /// Of each result of the joint program from the second on: its values. Rows are padded with zeros to
    /// whole vectors.
    pub panels: &'a [*const S],
    /// Elements between rows of a panel.
    pub stride: usize,
}

impl<'a, S: Dispatch> Reductions<'a, S> {
    pub(super) fn new(
        kernel: &'a AttentionBackward,
        division: Division,
        memory: &Memory,
        context: &Context,
    ) -> Result<Reductions<'a, S>> {
        let masked = kernel.attention.mask.is_some();
        let sums = kernel.reductions.iter().map(|reduction| {
            let capture = &kernel.captures[reduction.capture];
            let place = match kind(reduction, kernel) {
                Kind::Keyed => {
                    let shape = &kernel.attention.shape;
                    let sums = Keyed::new(reduction.key, shape, division.splits, masked)?;
                    return Ok((reduction, Sums::Keyed(sums)));
                }
                Kind::Owned { heads_apart } => {
                    match owned_place(kernel, reduction, heads_apart, memory, context)? {
                        Some(place) => place,
                        None => Place::copies(capture, 1)?,
                    }
                }
                Kind::Scattered => Place::copies(capture, division.lanes)?,
            };
            let sums = Scattered::new(kernel, reduction, place, context)?;
            Ok((reduction, Sums::Scattered(Box::new(sums))))
        });
        Ok(Reductions { kernel, sums: sums.collect::<Result<_>>()? })
    }

    /// Whether there is nothing to sum.
    pub(super) fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Takes in the terms of a tile.
    ///
    /// # Errors
    /// `ErrorKind::Index` for an admitted pair's index out of range.
    ///
    /// # Safety
    /// The machine has the vectors; units of one lane or split do not run at the same time.
    #[inline(always)]
    pub(super) unsafe fn add<V: Vector<Scalar = S>>(
        &self,
        terms: &Terms<S>,
        regions: &Regions,
        scratch: &mut Scratch,
    ) -> Result<()> {
        for (reduction, sums) in &self.sums {
            let panel = terms.panels[reduction.result - 1];
            // SAFETY: as the caller vouches.
            unsafe {
                match sums {
                    Sums::Keyed(sums) => sums.add::<V>(terms, panel),
                    Sums::Scattered(sums) => sums.add::<V>(terms, panel, &regions.tables, scratch)?,
                }
            }
        }
        Ok(())
    }

    /// Adds the sums up and stores the cotangents.
    pub(super) fn finish(self, regions: &Regions, memory: &Memory, context: &Context) -> Result<()> {
        let mut totals: Vec<Option<Aligned<S>>> = self.kernel.captures.iter().map(|_| None).collect();
        let mut done = vec![false; totals.len()];
        for (reduction, sums) in self.sums {
            let capture = &self.kernel.captures[reduction.capture];
            let total = &mut totals[reduction.capture];
            match sums {
                Sums::Scattered(sums) => done[reduction.capture] = !sums.add_to(total),
                Sums::Keyed(mut sums) => {
                    if total.is_none() {
                        *total = Some(Aligned::new(capture.shape.iter().product())?);
                    }
                    let total = total.as_mut().expect("just made");
                    sums.add_to(total, self.kernel, reduction, &regions.tables, context)?;
                }
            }
        }
        for ((capture, total), done) in self.kernel.captures.iter().zip(totals).zip(done) {
            if done {
                continue;
            }
            let array = memory.write(&capture.view, capture.dtype, &capture.shape)?;
            let elements = capture.shape.iter().product();
            let total = match total {
                Some(total) => total,
                None => Aligned::new(elements)?,
            };
            let strided = Strided { data: array.data, dtype: capture.dtype, strides: [0, 0, 0, 1] };
            // SAFETY: a packed array of so many elements, checked by `Memory`; no other thread is at work.
            unsafe { strided.write_row([0; 3], &total[..elements]) };
        }
        Ok(())
    }
}

/// The cotangent of an owned capture, made ready for its pairs; none where the sums have to be made elsewhere: in
/// another type, or together with those of another read.
fn owned_place<S: Dispatch>(
    kernel: &AttentionBackward,
    reduction: &CaptureReduction,
    heads_apart: bool,
    memory: &Memory,
    context: &Context,
) -> Result<Option<Place<S>>> {
    let capture = &kernel.captures[reduction.capture];
    let reads = kernel.reductions.iter().filter(|other| other.capture == reduction.capture).count();
    if reads > 1 || capture.dtype != S::DTYPE {
        return Ok(None);
    }
    let data: *mut S = memory.write(&capture.view, capture.dtype, &capture.shape)?.data.cast();
    let AttentionShape { batch, heads, queries, keys, .. } = kernel.attention.shape;
    let elements: usize = capture.shape.iter().product();
    let once = heads_apart && kernel.attention.mask.is_none() && elements == batch * heads * queries * keys;
    let cotangent = Strided { data: data.cast(), dtype: capture.dtype, strides: [0, 0, 0, 1] };
    let chunks = if once { 0 } else { elements.div_ceil(CLEARED) };
    context.parallel(chunks, |chunk| {
        let (array, first): (&Strided, usize) = (&cotangent, chunk * CLEARED);
        // SAFETY: the view is packed, of so many elements, and only this task writes these.
        unsafe { array.data.cast::<S>().add(first).write_bytes(0, CLEARED.min(elements - first)) };
        Ok(())
    })?;
    Ok(Some(Place::Cotangent { data, once }))
}

/// The (query, key) extents of a call.
fn lengths(shape: &AttentionShape) -> (usize, usize) {
    (shape.queries, shape.keys)
}
