//! Evaluation of one graph, many times over.
//!
//! A region runs for each pair of an attention or each step of a scan, mostly with the same arguments. So an
//! evaluator keeps its values between runs, and its nodes are divided into *stages*: each parameter is given
//! a stage, and a node belongs to the latest stage among what it reads. Stage 0 is for what never changes
//! (captures); a gather is never in it if there is a later one, since an index out of range is only an
//! error where some pair reads there.

use tilewright_ir::{Graph, Op, Result, Value};

use crate::Precision;
use crate::array::{Array, Data};
use crate::operation::evaluate;

/// The values of a graph, and the order to compute them in.
pub(crate) struct Evaluator<'g> {
    graph: &'g Graph,
    precision: Precision,
    values: Vec<Array>,
    /// The nodes of each stage, by position.
    stages: Vec<Vec<usize>>,
}

impl<'g> Evaluator<'g> {
    /// An evaluator of `graph`, whose parameters have the given stages; constants are computed in stage 0.
    pub(crate) fn new(graph: &'g Graph, precision: Precision, stages: &[usize]) -> Result<Evaluator<'g>> {
        let last = stages.iter().copied().max().unwrap_or(0);
        let mut stage_of = vec![0; graph.value_count()];
        let mut types = vec![None; graph.value_count()];
        for (&parameter, &stage) in graph.parameters().iter().zip(stages) {
            stage_of[parameter.index()] = stage;
            types[parameter.index()] = Some(graph.ty(parameter));
        }
        let mut nodes = vec![Vec::new(); last + 1];
        for (i, node) in graph.nodes().iter().enumerate() {
            let earliest = if matches!(node.op, Op::Gather) { last.min(1) } else { 0 };
            let operands = node.operands.iter().map(|operand| stage_of[operand.index()]);
            let stage = operands.fold(earliest, usize::max);
            nodes[stage].push(i);
            for &result in &node.results {
                stage_of[result.index()] = stage;
                types[result.index()] = Some(graph.ty(result));
            }
        }
        let types = types.into_iter().map(|ty| ty.expect("each value is defined"));
        let values = types.map(|ty| Array::unfilled(ty.clone())).collect();
        Ok(Evaluator { graph, precision, values, stages: nodes })
    }

    /// Computes the nodes of one stage.
    pub(crate) fn run(&mut self, stage: usize) -> Result<()> {
        for &i in &self.stages[stage] {
            let node = &self.graph.nodes()[i];
            let (earlier, later) = self.values.split_at_mut(node.results[0].index());
            let results = &mut later[..node.results.len()];
            let operands = Operands { values: earlier, ids: &node.operands };
            results
                .iter_mut()
                .try_for_each(Array::reserve)
                .and_then(|()| evaluate(&node.op, operands, results, self.precision))
                .map_err(|error| error.in_operation(node.op.name()).at(node.origin.clone()))?;
        }
        Ok(())
    }

    /// The array that a parameter is to hold.
    pub(crate) fn parameter(&mut self, number: usize) -> &mut Array {
        &mut self.values[self.graph.parameters()[number].index()]
    }

    /// Sets a parameter.
    pub(crate) fn set(&mut self, number: usize, array: &Array) {
        match &array.data {
            Data::Float(elements) => self.parameter(number).fill(elements.iter().copied()),
            Data::Integer(elements) => self.parameter(number).fill_integers(elements.iter().copied()),
        }
    }

    /// A result of the graph.
    pub(crate) fn result(&self, number: usize) -> &Array {
        &self.values[self.graph.results()[number].index()]
    }
}

/// The operands of a node.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    values: &'a [Array],
    ids: &'a [Value],
}

impl<'a> Operands<'a> {
    pub(crate) fn get(self, number: usize) -> &'a Array {
        &self.values[self.ids[number].index()]
    }

    pub(crate) fn len(self) -> usize {
        self.ids.len()
    }

    /// The operands from one on.
    pub(crate) fn from(self, number: usize) -> impl Iterator<Item = &'a Array> {
        (number..self.len()).map(move |i| self.get(i))
    }
}
