//! Fewer axes: neighbours that every array walks as if they were one become one, so that a kernel has less to divide.

use tilewright_plan::Loops;
use tilewright_plan::loops::{Phase, Sink, Source};

/// Along an axis and the next, every view's strides, and the valid range of each load.
fn mergeable(loops: &Loops, extents: &[usize], axis: usize) -> bool {
    let (outer, inner) = (extents[axis], extents[axis + 1]);
    let even =
        |strides: &[isize]| inner == 1 || outer == 1 || strides[axis] == strides[axis + 1] * inner as isize;
    let source = |source: &Source| match source {
        // A position is only known along an axis of its own; the other's is then always 0.
        Source::Index(of) => *of != axis && *of != axis + 1,
        Source::RowScalar(_) | Source::RowValue(_) => true,
        Source::Load { view, valid, .. } => {
            let whole = valid.as_ref().is_none_or(|(ranges, _)| {
                ranges[axis + 1] == (0, inner) || (outer == 1 && ranges[axis] == (0, 1))
            });
            even(&view.strides) && whole
        }
    };
    let sink = |sink: &Sink| match sink {
        Sink::Store { view, .. } => even(&view.strides),
        Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => true,
    };
    let phase = |phase: &Phase| phase.sources.iter().all(source) && phase.sinks.iter().all(sink);
    loops.phases.iter().all(phase)
}

/// Makes an axis and the next one axis.
fn merge(loops: &mut Loops, extents: &[usize], axis: usize) {
    let (outer, inner) = (extents[axis], extents[axis + 1]);
    // The stride that is left is that of the axis which has more than one position.
    let gone = if inner == 1 { axis + 1 } else { axis };
    for phase in &mut loops.phases {
        for source in &mut phase.sources {
            match source {
                Source::Index(of) if *of > axis => *of -= 1,
                Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => {}
                Source::Load { view, valid, .. } => {
                    view.strides.remove(gone);
                    if let Some((ranges, _)) = valid {
                        let (low, high) = ranges.remove(axis);
                        if outer > 1 || (low, high) != (0, 1) {
                            ranges[axis] = (low * inner, high * inner);
                        }
                    }
                }
            }
        }
        for sink in &mut phase.sinks {
            match sink {
                Sink::Store { view, .. } => {
                    view.strides.remove(gone);
                }
                Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => {}
            }
        }
    }
}

/// The same nest with as few axes as its arrays allow. Where `flat`, the row's axes become parallel ones first.
pub(super) fn merged(loops: &Loops, flat: bool) -> Loops {
    let mut loops = loops.clone();
    if flat {
        loops.parallel.append(&mut loops.row);
    }
    // A view of a phase that runs once stays at the row's beginning, whatever its strides along the row.
    let rows = loops.parallel.len();
    for phase in loops.phases.iter_mut().filter(|phase| phase.once) {
        for source in &mut phase.sources {
            if let Source::Load { view, .. } = source {
                view.strides[rows..].fill(0);
            }
        }
        for sink in &mut phase.sinks {
            if let Sink::Store { view, .. } = sink {
                view.strides[rows..].fill(0);
            }
        }
    }
    let mut axis = 0;
    loop {
        let extents = [&loops.parallel[..], &loops.row].concat();
        let parallel = loops.parallel.len();
        if axis + 1 >= extents.len() {
            return loops;
        }
        // Parallel axes and the row's stay apart.
        if axis + 1 != parallel && mergeable(&loops, &extents, axis) {
            merge(&mut loops, &extents, axis);
            let (axes, axis) = match axis < parallel {
                true => (&mut loops.parallel, axis),
                false => (&mut loops.row, axis - parallel),
            };
            axes[axis] *= axes.remove(axis + 1);
        } else {
            axis += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use tilewright_ir::{DType, Scalar};
    use tilewright_plan::loops::{Lanes, Phase};
    use tilewright_plan::{BufferId, Program, View};

    use super::*;

    type Valid = Option<Vec<(usize, usize)>>;

    fn nest(parallel: &[usize], row: &[usize], loads: &[(&[isize], Valid)], indices: &[usize]) -> Loops {
        let load = |(strides, valid): &(&[isize], Valid)| Source::Load {
            view: View { buffer: BufferId(0), offset: 0, strides: strides.to_vec() },
            dtype: DType::F32,
            valid: valid.clone().map(|ranges| (ranges, Scalar::Float(0.0))),
        };
        let sources = loads.iter().map(load).chain(indices.iter().map(|&axis| Source::Index(axis)));
        let phase =
            Phase { once: false, program: Program::default(), sources: sources.collect(), sinks: vec![] };
        Loops {
            parallel: parallel.to_vec(),
            row: row.to_vec(),
            phases: vec![phase],
            row_scalars: 0,
            row_values: 0,
            tables: vec![],
            lanes: Lanes::Row,
        }
    }

    /// The places and whether they are read, in order, with what indices say.
    fn walk(loops: &Loops) -> Vec<Vec<(isize, bool)>> {
        let extents = [&loops.parallel[..], &loops.row].concat();
        let count: usize = extents.iter().product();
        let position = |mut number: usize| {
            let mut position = vec![0; extents.len()];
            for axis in (0..extents.len()).rev() {
                position[axis] = number % extents[axis];
                number /= extents[axis];
            }
            position
        };
        let of = |source: &Source, at: &[usize]| match source {
            Source::Index(axis) => (at[*axis] as isize, true),
            Source::Load { view, valid, .. } => {
                let place = view.strides.iter().zip(at).map(|(&stride, &i)| stride * i as isize).sum();
                let there = valid.as_ref().is_none_or(|(ranges, _)| {
                    ranges.iter().zip(at).all(|(&(low, high), i)| (low..high).contains(i))
                });
                (place, there)
            }
            Source::RowScalar(_) | Source::RowValue(_) => (0, true),
        };
        let sources = &loops.phases[0].sources;
        (0..count)
            .map(|number| sources.iter().map(|source| of(source, &position(number))).collect())
            .collect()
    }

    #[track_caller]
    fn check(loops: &Loops, flat: bool, parallel: &[usize], row: &[usize]) {
        let found = merged(loops, flat);
        assert_eq!((&found.parallel[..], &found.row[..]), (parallel, row));
        assert_eq!(walk(&found), walk(loops));
    }

    #[test]
    fn packed_arrays_have_one_axis() {
        check(&nest(&[2, 3], &[4], &[(&[12, 4, 1], None), (&[12, 4, 1], None)], &[]), true, &[24], &[]);
        check(&nest(&[2, 3], &[4, 5], &[(&[60, 20, 5, 1], None)], &[]), false, &[6], &[20]);
        check(&nest(&[2, 3], &[4], &[(&[12, 4, 1], None), (&[0, 0, 1], None)], &[]), true, &[6, 4], &[]);
        check(&nest(&[2, 3], &[4], &[(&[12, 4, 1], None), (&[3, 1, 0], None)], &[]), true, &[6, 4], &[]);
        check(&nest(&[2, 3], &[4], &[(&[1, 2, 6], None)], &[]), true, &[2, 3, 4], &[]);
    }

    #[test]
    fn axes_of_one_position_go() {
        check(&nest(&[2, 1], &[4], &[(&[4, 99, 1], None)], &[]), true, &[8], &[]);
        check(&nest(&[1, 2], &[1, 4], &[(&[99, 4, 77, 1], None)], &[]), false, &[2], &[4]);
        check(&nest(&[2], &[4, 1], &[(&[4, 1, 55], None)], &[]), false, &[2], &[4]);
    }

    #[test]
    fn positions_and_bounds_keep_their_axes() {
        check(&nest(&[2, 3], &[4], &[(&[12, 4, 1], None)], &[1]), true, &[2, 3, 4], &[]);
        check(&nest(&[2, 3], &[4], &[(&[12, 4, 1], None)], &[2]), true, &[6, 4], &[]);
        let bounds = |ranges: [(usize, usize); 3]| Some(ranges.to_vec());
        let padded = bounds([(0, 2), (1, 3), (0, 4)]);
        check(&nest(&[2, 3], &[4], &[(&[12, 4, 1], padded)], &[]), true, &[2, 12], &[]);
        let padded = bounds([(1, 2), (0, 3), (0, 4)]);
        check(&nest(&[2, 3], &[4], &[(&[12, 4, 1], padded)], &[]), true, &[24], &[]);
        let padded = bounds([(0, 1), (1, 2), (0, 4)]);
        check(&nest(&[1, 3], &[4], &[(&[12, 4, 1], padded)], &[]), true, &[12], &[]);
    }
}
