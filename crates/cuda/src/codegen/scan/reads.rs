//! Which arrays a scan reads a run of steps of, and where an element of a source is among what was read.
//!
//! Where a lane takes a row, each element takes an access of its own, and registers from the time that it is asked for
//! until the results are stored. So an array that several sources read, maybe a step apart, is read once: as a run with a
//! step more at an end.

use tilewright_ir::DType;
use tilewright_plan::loops::Source;
use tilewright_plan::{Scan, View};

/// A run of an array.
pub(super) struct Read<'a> {
    /// What it is called: as the first of its sources.
    pub name: String,
    pub view: &'a View,
    pub dtype: DType,
    /// Whether only the scan's results need it.
    pub late: bool,
    /// The sources that it serves, and at which of its elements each begins.
    pub sources: Vec<(String, usize)>,
    /// How many elements it has beside those of a run.
    pub more: usize,
    /// By how many steps it begins before the first source's run.
    pub ahead: usize,
}

/// The runs that a scan reads; where sources do not `share`, one for each.
pub(super) fn of(scan: &Scan, share: bool) -> Vec<Read<'_>> {
    // Of each run the sources with the steps by which they follow the first.
    let mut runs: Vec<(Read, Vec<isize>)> = Vec::new();
    let along = scan.parallel.len();
    for (prefix, sources) in [("source", &scan.sources), ("result", &scan.result_sources)] {
        for (i, source) in sources.iter().enumerate() {
            let Source::Load { view, dtype, .. } = source else { continue };
            let name = format!("{prefix}_{i}");
            let stride = view.strides[along] * if scan.reverse { -1 } else { 1 };
            let steps_after = |first: &View| -> Option<isize> {
                let apart = view.offset - first.offset;
                let same = view.buffer == first.buffer && view.strides == first.strides;
                match (share && same, apart, stride) {
                    (false, ..) => None,
                    (true, 0, _) => Some(0),
                    (true, apart, stride) => {
                        (stride != 0 && apart.abs() == stride.abs()).then(|| apart / stride)
                    }
                }
            };
            let known = runs.iter_mut().find_map(|(run, steps)| {
                let after = steps_after(run.view).filter(|_| run.dtype == *dtype)?;
                Some((run, steps, after))
            });
            match known {
                Some((run, steps, after)) => {
                    run.sources.push((name, 0));
                    steps.push(after);
                }
                None => {
                    let sources = vec![(name.clone(), 0)];
                    let late = prefix == "result";
                    runs.push((
                        Read { name, view, dtype: *dtype, late, sources, more: 0, ahead: 0 },
                        vec![0],
                    ));
                }
            }
        }
    }
    let settled = runs.into_iter().map(|(mut run, steps)| {
        let (first, last) = steps.iter().fold((0, 0), |(first, last), &s| (first.min(s), last.max(s)));
        (run.more, run.ahead) = ((last - first) as usize, -first as usize);
        for ((_, begin), step) in run.sources.iter_mut().zip(steps) {
            *begin = (step - first) as usize;
        }
        run
    });
    settled.collect()
}
