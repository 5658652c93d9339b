//! Runs plans of loop nests, matrix products and scatters one scalar at a time, straight from the
//! definitions in `tilewright_plan`: so that what fails here is the schedule, not an engine.

use tilewright_interp::Array;
use tilewright_ir::{Graph, Scalar};
use tilewright_plan::loops::{Phase, RowReduction, Sink, Source};
use tilewright_plan::{Kernel, Kind, Loops, Operation, Place, Plan, Program, Table, View, evaluate};

/// The memory of a run, one list of elements for each buffer, that of arena buffers shared as planned.
struct Memory<'a> {
    plan: &'a Plan,
    outside: Vec<Vec<Option<Scalar>>>,
    arena: Vec<Option<(usize, Vec<u8>)>>,
}

impl Memory<'_> {
    fn read(&self, view: &View, element: isize) -> Scalar {
        let buffer = &self.plan.buffers[view.buffer.0];
        let element = usize::try_from(element).expect("an element of the buffer");
        assert!(element < buffer.elements, "element {element} of {} in {view:?}", buffer.elements);
        match buffer.place {
            Place::Arena(offset) => {
                let at = offset + element * buffer.dtype.size();
                let (size, bytes) = self.arena[at].as_ref().expect("what is read has been written");
                assert_eq!(*size, buffer.dtype.size(), "what is read has not been overwritten in part");
                Scalar::from_bytes(buffer.dtype, bytes)
            }
            _ => self.outside[view.buffer.0][element].expect("what is read has been written"),
        }
    }

    fn write(&mut self, view: &View, element: isize, value: Scalar) {
        let buffer = &self.plan.buffers[view.buffer.0];
        let element = usize::try_from(element).expect("an element of the buffer");
        assert!(element < buffer.elements, "element {element} of {} in {view:?}", buffer.elements);
        match buffer.place {
            Place::Arena(offset) => {
                let at = offset + element * buffer.dtype.size();
                let size = buffer.dtype.size();
                for byte in at..at + size {
                    self.arena[byte] = None;
                }
                self.arena[at] = Some((size, value.cast(buffer.dtype).to_bytes(buffer.dtype)));
            }
            Place::Output(_) => self.outside[view.buffer.0][element] = Some(value.cast(buffer.dtype)),
            Place::Input(_) | Place::Constant(_) => panic!("inputs and constants are never written"),
        }
    }
}

/// The results of a plan for inputs that lie in memory as they are.
pub fn run(plan: &Plan, graph: &Graph, inputs: &[Vec<Scalar>]) -> Vec<Array> {
    let outside = plan
        .buffers
        .iter()
        .map(|buffer| match &buffer.place {
            Place::Input(number) => inputs[*number].iter().map(|&x| Some(x)).collect(),
            Place::Constant(literal) => literal.elements().map(Some).collect(),
            Place::Output(_) => vec![None; buffer.elements],
            Place::Arena(_) => Vec::new(),
        })
        .collect();
    let mut memory = Memory { plan, outside, arena: vec![None; plan.arena_bytes] };
    for kernel in &plan.kernels {
        match kernel {
            Kernel::Loops(loops) => run_loops(&mut memory, loops),
            Kernel::MatMul(product) => {
                let space = [&product.batch[..], &[product.rows, product.columns]].concat();
                let batch = product.batch.len();
                let kind = Kind::of(product.dtype);
                for index in indices(&space) {
                    let mut sum = evaluate::hold(Scalar::Integer(0), kind);
                    for k in 0..product.depth {
                        let left = [&index[..batch], &[index[batch], k]].concat();
                        let right = [&index[..batch], &[k, index[batch + 1]]].concat();
                        let left = memory.read(&product.left, place(&product.left, &left));
                        let right = memory.read(&product.right, place(&product.right, &right));
                        let term = evaluate::binary(tilewright_ir::Binary::Mul, kind, left, right);
                        sum = evaluate::binary(tilewright_ir::Binary::Add, kind, sum, term);
                    }
                    memory.write(&product.output, place(&product.output, &index), sum);
                }
            }
            Kernel::ScatterAdd(scatter) => {
                let kind = Kind::of(scatter.dtype);
                for index in indices(&[&scatter.indexed[..], &scatter.tail].concat()) {
                    let zero = evaluate::hold(Scalar::Integer(0), kind);
                    memory.write(&scatter.output, place(&scatter.output, &index), zero);
                }
                for index in indices(&[&scatter.space[..], &scatter.tail].concat()) {
                    let (space, tail) = index.split_at(scatter.space.len());
                    let mut target = Vec::new();
                    for ((view, _), &extent) in scatter.indices.iter().zip(&scatter.indexed) {
                        let i = memory.read(view, place(view, space)).to_i64();
                        target.push(evaluate::position(i, extent).expect("an index in range"));
                    }
                    target.extend(tail);
                    let update = memory.read(&scatter.updates, place(&scatter.updates, &index));
                    let at = place(&scatter.output, &target);
                    let sum = memory.read(&scatter.output, at);
                    let sum = evaluate::binary(tilewright_ir::Binary::Add, kind, sum, update);
                    memory.write(&scatter.output, at, sum);
                }
            }
            other => panic!("not run here: {other:?}"),
        }
    }
    let mut outputs: Vec<Option<Array>> = vec![None; graph.results().len()];
    for (buffer, elements) in plan.buffers.iter().zip(&memory.outside) {
        if let Place::Output(number) = buffer.place {
            let ty = graph.ty(graph.results()[number]).clone();
            let elements = elements.iter().map(|x| x.expect("every output is written"));
            let bytes: Vec<u8> = elements.flat_map(|x| x.to_bytes(ty.dtype)).collect();
            outputs[number] = Some(Array::from_bytes(ty, &bytes));
        }
    }
    outputs.into_iter().map(|output| output.expect("every result has a buffer")).collect()
}

/// Every index of a space, in row-major order.
fn indices(extents: &[usize]) -> Vec<Vec<usize>> {
    extents.iter().fold(vec![vec![]], |all, &extent| {
        let extend = |index: Vec<usize>| (0..extent).map(move |i| [&index[..], &[i]].concat());
        all.into_iter().flat_map(extend).collect()
    })
}

fn place(view: &View, index: &[usize]) -> isize {
    assert_eq!(view.strides.len(), index.len());
    view.offset + view.strides.iter().zip(index).map(|(s, &i)| s * i as isize).sum::<isize>()
}

fn run_loops(memory: &mut Memory, loops: &Loops) {
    for outer in indices(&loops.parallel) {
        let mut scalars: Vec<Option<Scalar>> = vec![None; loops.row_scalars];
        let rows = indices(&loops.row);
        let mut values = vec![vec![None; loops.row_values]; rows.len()];
        for phase in &loops.phases {
            let reduced: Vec<(usize, RowReduction, usize, Kind)> = phase
                .sinks
                .iter()
                .enumerate()
                .filter_map(|(i, sink)| match sink {
                    Sink::Reduce { kind, scalar } => {
                        Some((i, *kind, *scalar, phase.program.kind(phase.program.results[i])))
                    }
                    _ => None,
                })
                .collect();
            let mut state: Vec<(Option<Scalar>, i64)> = vec![(None, 0); reduced.len()];
            let origin = vec![vec![0; loops.row.len()]];
            let positions = if phase.once { &origin } else { &rows };
            for (number, inner) in positions.iter().enumerate() {
                let index = [&outer[..], inner].concat();
                let row = if phase.once { None } else { Some(&values[number]) };
                let results = evaluate_phase(memory, phase, &loops.tables, &index, &scalars, row);
                for (sink, &value) in phase.sinks.iter().zip(&results) {
                    match sink {
                        Sink::Store { view, dtype } => {
                            let rounded = value.cast(*dtype);
                            memory.write(view, place(view, &index), rounded);
                        }
                        Sink::RowScalar(slot) => {
                            assert!(phase.once);
                            scalars[*slot] = Some(value);
                        }
                        Sink::RowValue(slot) => values[number][*slot] = Some(value),
                        Sink::Reduce { .. } => {}
                    }
                }
                for ((i, kind, _, held), state) in reduced.iter().zip(&mut state) {
                    let value = results[*i];
                    let better = |old: Scalar| {
                        let nan = |x: Scalar| matches!(x, Scalar::Float(x) if x.is_nan());
                        !nan(old) && (nan(value) || evaluate::compare(tilewright_ir::Compare::Gt, value, old))
                    };
                    let combine =
                        |function| state.0.map_or(value, |old| evaluate::binary(function, *held, old, value));
                    *state = match kind {
                        RowReduction::Sum => (Some(combine(tilewright_ir::Binary::Add)), 0),
                        RowReduction::Prod => (Some(combine(tilewright_ir::Binary::Mul)), 0),
                        RowReduction::Max => (Some(combine(tilewright_ir::Binary::Max)), 0),
                        RowReduction::Min => (Some(combine(tilewright_ir::Binary::Min)), 0),
                        RowReduction::ArgMax if state.0.is_none_or(better) => (Some(value), number as i64),
                        RowReduction::ArgMax => *state,
                    };
                }
            }
            for ((_, kind, scalar, held), (value, position)) in reduced.iter().zip(state) {
                let nothing = match kind {
                    RowReduction::Prod => Scalar::Integer(1),
                    RowReduction::Sum | RowReduction::ArgMax => Scalar::Integer(0),
                    RowReduction::Max => Scalar::Float(f64::NEG_INFINITY),
                    RowReduction::Min => Scalar::Float(f64::INFINITY),
                };
                scalars[*scalar] = Some(match kind {
                    RowReduction::ArgMax => Scalar::Integer(position),
                    _ => value.unwrap_or(evaluate::hold(nothing, *held)),
                });
            }
        }
    }
}

fn evaluate_phase(
    memory: &Memory,
    phase: &Phase,
    tables: &[Table],
    index: &[usize],
    scalars: &[Option<Scalar>],
    row: Option<&Vec<Option<Scalar>>>,
) -> Vec<Scalar> {
    let inputs: Vec<Scalar> = phase
        .sources
        .iter()
        .map(|source| match source {
            Source::Load { view, valid, .. } => match valid {
                Some((ranges, fill)) if !ranges.iter().zip(index).all(|(r, i)| (r.0..r.1).contains(i)) => {
                    *fill
                }
                _ => memory.read(view, place(view, index)),
            },
            Source::Index(axis) => Scalar::Integer(index[*axis] as i64),
            Source::RowScalar(slot) => scalars[*slot].expect("a number of an earlier phase"),
            Source::RowValue(slot) => row.expect("not once")[*slot].expect("a value of an earlier phase"),
        })
        .collect();
    run_program(memory, &phase.program, &inputs, tables)
}

fn run_program(memory: &Memory, program: &Program, inputs: &[Scalar], tables: &[Table]) -> Vec<Scalar> {
    let mut registers: Vec<Scalar> = Vec::new();
    for instruction in &program.instructions {
        let kind = instruction.kind;
        let at = |register: &tilewright_plan::Register| registers[register.index()];
        let of = |register: &tilewright_plan::Register| program.kind(*register);
        let value = match &instruction.operation {
            Operation::Input(number) => evaluate::hold(inputs[*number], kind),
            Operation::Constant(value) => evaluate::hold(*value, kind),
            Operation::Unary(function, x) => evaluate::unary(*function, kind, at(x)),
            Operation::Binary(function, x, y) => {
                assert_eq!((of(x), of(y)), (kind, kind));
                evaluate::binary(*function, kind, at(x), at(y))
            }
            Operation::Compare(comparison, x, y) => {
                assert_eq!(of(x), of(y));
                Scalar::Bool(evaluate::compare(*comparison, at(x), at(y)))
            }
            Operation::Select(condition, x, y) => {
                if at(condition).to_bool() {
                    at(x)
                } else {
                    at(y)
                }
            }
            Operation::Cast(x) => evaluate::hold(at(x), kind),
            Operation::Round(dtype, x) => evaluate::round(*dtype, at(x)),
            Operation::Load(number, indices) => {
                let table = &tables[*number];
                let index: Vec<usize> = indices
                    .iter()
                    .zip(&table.shape)
                    .map(|(i, &extent)| {
                        evaluate::position(at(i).to_i64(), extent).expect("an index in range")
                    })
                    .collect();
                memory.read(&table.view, place(&table.view, &index))
            }
            Operation::RandomBits(key, counter) => {
                let (key, counter) = (at(key).to_i64() as u64, at(counter).to_i64() as u64);
                let counter = [counter as u32, (counter >> 32) as u32, 0, 0];
                let key = [key as u32, (key >> 32) as u32];
                Scalar::Integer(tilewright_interp::philox(counter, key)[0] as i32 as i64)
            }
        };
        registers.push(value);
    }
    program.results.iter().map(|r| registers[r.index()]).collect()
}
