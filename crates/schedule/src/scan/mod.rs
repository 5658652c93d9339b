//! Lowering of scans.
//!
//! A scan of arrays becomes scans of scalars: axes along which the combine function does the same at each
//! position ([`axes`]) become parallel axes of a kernel, and every element along the others one scalar of
//! its state. A leaf that lacks a parallel axis (it is broadcast along it inside) is read with stride 0.
//!
//! Leaves that are not wanted and that no wanted one needs are dropped, and wanted leaves that do not depend
//! on each other, or that have other parallel axes, become kernels of their own.

mod axes;
mod fuse;

pub(crate) use self::fuse::fuse;

use tilewright_ir::{AssociativeScan, DType, Error, ErrorKind, Origin, Result, Value};
use tilewright_plan::loops::{Sink, Source};
use tilewright_plan::{Kind, Operation, Program, Register, Scan, Table, View};

use self::axes::{Axes, Class};
use crate::access::Valid;
use crate::builder::{Builder, Push};
use crate::operand::{Operand, line_of_read};
use crate::region::{Argument, Lowering, positions};

/// How many scalars the state of a scan may have.
const STATE_LIMIT: usize = 256;

/// Captured arrays of up to this many elements, at one position of the parallel axes, are loaded one by
/// one; larger ones are read at computed indices.
const LOADED_CAPTURE: usize = 16;

/// Lowers a scan to kernels. `operands` are the leaves and the captures, `windows` says for each which part of
/// it is there where not all is, `results` where each wanted leaf's result goes.
///
/// # Errors
/// [`ErrorKind::Limit`] where the state of one position has too many scalars, or the combine function is
/// too large.
pub(crate) fn lower(
    scan: &AssociativeScan,
    operands: &[Operand],
    windows: &[Option<Valid>],
    results: &[Option<View>],
    origin: &Option<Origin>,
) -> Result<Vec<Scan>> {
    let lowering = Leaves::new(scan, operands, windows);
    let mut kernels = Vec::new();
    for group in lowering.groups(results) {
        let kernel = lowering
            .kernel(&group, results)
            .map_err(|error| error.in_operation("associative_scan").at(origin.clone()))?;
        kernels.push(kernel);
    }
    Ok(kernels)
}

/// A scan's leaves and what is known of them.
struct Leaves<'a> {
    scan: &'a AssociativeScan,
    operands: &'a [Operand],
    windows: &'a [Option<Valid>],
    axes: Axes<'a>,
    /// For each leaf, the leaves that its result depends on, itself included.
    needs: Vec<Vec<bool>>,
}

/// Leaves that are scanned together.
struct Group {
    /// The leaves, ascending.
    leaves: Vec<usize>,
    /// The parallel axes' classes, outermost first.
    classes: Vec<Class>,
}

impl<'a> Leaves<'a> {
    fn new(scan: &'a AssociativeScan, operands: &'a [Operand], windows: &'a [Option<Valid>]) -> Leaves<'a> {
        let axes = Axes::new(&scan.combine, scan.leaves);
        let needs = (0..scan.leaves).map(|leaf| needs(scan, leaf)).collect();
        Leaves { scan, operands, windows, axes, needs }
    }

    /// The parameter that stands for a leaf on the left.
    fn parameter(&self, leaf: usize) -> Value {
        self.scan.combine.parameters()[leaf]
    }

    fn slice(&self, leaf: usize) -> &'a [usize] {
        &self.scan.combine.ty(self.scan.combine.parameters()[leaf]).shape
    }

    fn classes(&self, leaf: usize) -> Vec<Class> {
        (0..self.slice(leaf).len())
            .filter_map(|axis| self.axes.parallel(self.parameter(leaf), axis))
            .collect()
    }

    /// The wanted leaves in groups that need nothing of each other and have the same parallel axes, each
    /// with all leaves that it needs.
    fn groups(&self, results: &[Option<View>]) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for leaf in (0..self.scan.leaves).filter(|&leaf| results[leaf].is_some()) {
            let needed: Vec<usize> = (0..self.scan.leaves).filter(|&other| self.needs[leaf][other]).collect();
            let mut joined = Group { leaves: needed, classes: self.classes(leaf) };
            let same = |classes: &[Class]| {
                classes.len() == joined.classes.len() && classes.iter().all(|c| joined.classes.contains(c))
            };
            let (meets, apart): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(|group| {
                same(&group.classes) && group.leaves.iter().any(|leaf| joined.leaves.contains(leaf))
            });
            groups = apart;
            for group in meets {
                joined.leaves.extend(group.leaves);
            }
            joined.leaves.sort_unstable();
            joined.leaves.dedup();
            groups.push(joined);
        }
        groups
    }

    /// The axes of a leaf's slice that are there element by element.
    fn scalar_axes(&self, leaf: usize) -> Vec<usize> {
        let parameter = self.parameter(leaf);
        (0..self.slice(leaf).len()).filter(|&axis| self.axes.parallel(parameter, axis).is_none()).collect()
    }

    /// How each scalar of a leaf's state at one position is seen in an array of the leaf's type: a stride
    /// for each parallel axis, then the scan axis.
    fn views(&self, group: &Group, leaf: usize, view: &View) -> Vec<View> {
        let scalar_axes = self.scalar_axes(leaf);
        let axis_of = |axis: usize| if axis < self.scan.axis { axis } else { axis + 1 };
        let parameter = self.parameter(leaf);
        let strides: Vec<isize> = group
            .classes
            .iter()
            .map(|&class| {
                let axis = (0..self.slice(leaf).len())
                    .find(|&axis| self.axes.parallel(parameter, axis) == Some(class));
                axis.map_or(0, |axis| view.strides[axis_of(axis)])
            })
            .chain([view.strides[self.scan.axis]])
            .collect();
        let shape: Vec<usize> = scalar_axes.iter().map(|&axis| self.slice(leaf)[axis]).collect();
        positions(&shape)
            .map(|position| {
                let steps = scalar_axes.iter().zip(&position);
                let moved: isize = steps.map(|(&axis, &i)| view.strides[axis_of(axis)] * i as isize).sum();
                View { buffer: view.buffer, offset: view.offset + moved, strides: strides.clone() }
            })
            .collect()
    }

    /// For each scalar of a leaf's state, which part is there along the axes that [`Leaves::views`] gives
    /// strides for, where not all is.
    fn valid(&self, group: &Group, leaf: usize) -> Vec<Option<Valid>> {
        let scalar_axes = self.scalar_axes(leaf);
        let shape: Vec<usize> = scalar_axes.iter().map(|&axis| self.slice(leaf)[axis]).collect();
        let Some((ranges, fill)) = &self.windows[leaf] else { return vec![None; shape.iter().product()] };
        let axis_of = |axis: usize| if axis < self.scan.axis { axis } else { axis + 1 };
        let along = group.classes.iter().map(|&class| {
            let parallel = |&axis: &usize| self.axes.parallel(self.parameter(leaf), axis) == Some(class);
            let axis = (0..self.slice(leaf).len()).find(parallel);
            axis.map_or((0, self.extent(group, class)), |axis| ranges[axis_of(axis)])
        });
        let along: Vec<(usize, usize)> = along.chain([ranges[self.scan.axis]]).collect();
        positions(&shape)
            .map(|position| {
                let there = scalar_axes.iter().zip(&position).all(|(&axis, &i)| {
                    let (low, high) = ranges[axis_of(axis)];
                    (low..high).contains(&i)
                });
                // A scalar that lies outside is there nowhere.
                let ranges = if there { along.clone() } else { vec![(0, 0); along.len()] };
                Some((ranges, *fill))
            })
            .collect()
    }

    fn kernel(&self, group: &Group, results: &[Option<View>]) -> Result<Scan> {
        let mut elements = Program::default();
        let mut store = Program::default();
        let (mut sources, mut sinks, mut live) = (Vec::new(), Vec::new(), Vec::new());
        // For each leaf of the group, its first scalar.
        let mut first = vec![usize::MAX; self.scan.leaves];
        for &leaf in &group.leaves {
            let Operand { view, ty, .. } = &self.operands[leaf];
            let kind = Kind::of(ty.dtype);
            first[leaf] = sources.len();
            let loads = self.views(group, leaf, view).into_iter().zip(self.valid(group, leaf));
            for (i, (view, valid)) in loads.enumerate() {
                let state = first[leaf] + i;
                if state >= STATE_LIMIT {
                    return Err(Error::new(ErrorKind::Limit {
                        what: "the number of scalars that a scan carries from position to position".into(),
                        limit: STATE_LIMIT,
                    })
                    .help("leave an axis alone in the combine function, and it is scanned in parallel"));
                }
                sources.push(Source::Load { view, dtype: ty.dtype, valid });
                let element = elements.push(Operation::Input(state), kind);
                elements.results.push(element);
            }
            live.resize(sources.len(), results[leaf].is_some());
            for (i, view) in results[leaf].iter().flat_map(|view| self.views(group, leaf, view)).enumerate() {
                let result = store.push(Operation::Input(first[leaf] + i), kind);
                store.results.push(result);
                sinks.push(Sink::Store { view, dtype: ty.dtype });
            }
        }
        let state = sources.len();
        let (combine, captured, tables) = self.combine(group, &first, state)?;
        Ok(Scan {
            parallel: group.classes.iter().map(|&class| self.extent(group, class)).collect(),
            length: self.operands[0].ty.shape[self.scan.axis],
            reverse: self.scan.reverse,
            state,
            elements,
            sources,
            combine,
            captured,
            live,
            results: store,
            result_sources: Vec::new(),
            sinks,
            tables,
        })
    }

    fn extent(&self, group: &Group, class: Class) -> usize {
        let of = |leaf: usize| {
            let axis = (0..self.slice(leaf).len())
                .find(|&axis| self.axes.parallel(self.parameter(leaf), axis) == Some(class));
            axis.map(|axis| self.slice(leaf)[axis])
        };
        group.leaves.iter().find_map(|&leaf| of(leaf)).expect("a class of the group is one of its leaves'")
    }

    /// The combine program at one position, what feeds it beside the state, and the tables it reads.
    fn combine(
        &self,
        group: &Group,
        first: &[usize],
        state: usize,
    ) -> Result<(Program, Vec<Source>, Vec<Table>)> {
        let region = &self.scan.combine;
        let (mut captured, mut tables) = (Vec::new(), Vec::new());
        let mut arguments = Vec::new();
        for side in 0..2 {
            for (leaf, &first) in first.iter().enumerate() {
                let axes = self.scalar_axes(leaf);
                let count: usize = axes.iter().map(|&axis| self.slice(leaf)[axis]).product();
                // A leaf outside the group is read by nothing that is asked for below.
                let start = if group.leaves.contains(&leaf) { side * state + first } else { 0 };
                arguments.push(Argument::Part { axes, inputs: (start..start + count).collect() });
            }
        }
        for (capture, operand) in self.operands[self.scan.leaves..].iter().enumerate() {
            let parameter = region.parameters()[2 * self.scan.leaves + capture];
            arguments.push(self.capture(group, parameter, operand, state, &mut captured, &mut tables));
        }
        let index_inputs = 2 * state + captured.len();
        let wanted = group.leaves.iter().map(|&leaf| region.results()[leaf]);
        let mut lowering = Lowering::new(region, &arguments)?;
        let at: Vec<Register> = (0..group.classes.len())
            .map(|axis| lowering.builder.push(Operation::Input(index_inputs + axis), Kind::I64))
            .collect();
        captured.extend((0..group.classes.len()).map(Source::Index));
        let mut results = Vec::new();
        for (result, &leaf) in wanted.zip(&group.leaves) {
            let scalar_axes = self.scalar_axes(leaf);
            let shape: Vec<usize> = scalar_axes.iter().map(|&axis| self.slice(leaf)[axis]).collect();
            for position in positions(&shape) {
                let mut index = Vec::new();
                for axis in 0..self.slice(leaf).len() {
                    index.push(match self.axes.parallel(self.parameter(leaf), axis) {
                        Some(class) => match group.classes.iter().position(|&c| c == class) {
                            Some(place) => at[place],
                            // An axis of extent 1 that is repeated inside.
                            None => lowering.builder.constant(Kind::I64, 0),
                        },
                        None => {
                            let place =
                                scalar_axes.iter().position(|&a| a == axis).expect("one or the other");
                            lowering.builder.constant(Kind::I64, position[place] as i64)
                        }
                    });
                }
                results.push(lowering.element(result, &index)?);
            }
        }
        let program = unrounded(&lowering.builder.program(&results));
        Ok((program, captured, tables))
    }

    /// What stands for a captured array: loads at the position of the parallel axes, or a table.
    fn capture(
        &self,
        group: &Group,
        parameter: Value,
        operand: &Operand,
        state: usize,
        captured: &mut Vec<Source>,
        tables: &mut Vec<Table>,
    ) -> Argument {
        let shape = &operand.ty.shape;
        let place = |axis: usize| {
            let class = self.axes.parallel(parameter, axis)?;
            group.classes.iter().position(|&c| c == class)
        };
        let axes: Vec<usize> = (0..shape.len()).filter(|&axis| place(axis).is_none()).collect();
        let scalars: Vec<usize> = axes.iter().map(|&axis| shape[axis]).collect();
        let count: usize = scalars.iter().product();
        if count > LOADED_CAPTURE {
            let line = line_of_read(&self.scan.combine, parameter).or_else(|| operand.origin.clone());
            tables.push(operand.table(line));
            return Argument::Table(tables.len() - 1);
        }
        let mut strides = vec![0; group.classes.len() + 1];
        for axis in 0..shape.len() {
            if let Some(place) = place(axis) {
                strides[place] = operand.view.strides[axis];
            }
        }
        let start = 2 * state + captured.len();
        for position in positions(&scalars) {
            let steps = axes.iter().zip(&position);
            let moved: isize = steps.map(|(&axis, &i)| operand.view.strides[axis] * i as isize).sum();
            let view = View {
                buffer: operand.view.buffer,
                offset: operand.view.offset + moved,
                strides: strides.clone(),
            };
            captured.push(Source::Load { view, dtype: operand.ty.dtype, valid: None });
        }
        Argument::Part { axes, inputs: (start..start + count).collect() }
    }
}

/// The leaves that a leaf's result depends on, through any number of steps.
fn needs(scan: &AssociativeScan, leaf: usize) -> Vec<bool> {
    let region = &scan.combine;
    let mut needed = vec![false; scan.leaves];
    let mut open = vec![leaf];
    while let Some(leaf) = open.pop() {
        if std::mem::replace(&mut needed[leaf], true) {
            continue;
        }
        let mut reached = vec![false; region.value_count()];
        reached[region.results()[leaf].index()] = true;
        for node in region.nodes().iter().rev() {
            if node.results.iter().any(|result| reached[result.index()]) {
                node.operands.iter().for_each(|operand| reached[operand.index()] = true);
            }
        }
        let parameters = region.parameters()[..2 * scan.leaves].iter().enumerate();
        open.extend(parameters.filter(|(_, p)| reached[p.index()]).map(|(i, _)| i % scan.leaves));
    }
    needed
}

/// The program without roundings to narrow floats: a scan keeps its state in `f32` from position to
/// position, and rounds what it stores.
fn unrounded(program: &Program) -> Program {
    let mut builder = Builder::new();
    let mut map: Vec<Register> = Vec::with_capacity(program.instructions.len());
    for instruction in &program.instructions {
        let register = match &instruction.operation {
            Operation::Round(DType::BF16 | DType::F16, x) => map[x.index()],
            operation => builder.push(operation.renamed(|r| map[r.index()]), instruction.kind),
        };
        map.push(register);
    }
    let results: Vec<Register> = program.results.iter().map(|r| map[r.index()]).collect();
    builder.program(&results)
}
