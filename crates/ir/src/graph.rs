//! The arena that holds a program or a region.

use std::fmt;
use std::sync::Arc;

use crate::{DType, Error, ErrorKind, Literal, Op, Result, Scalar, Type, infer};

/// A value of a [`Graph`]: an index into its arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(u32);

impl Value {
    /// Its position in the arena; a value's operands have smaller ones.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// An operation's place in a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// Its position in the arena.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The place in the user's code that a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The file, as the user's compiler names it.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1; 0 where it is not known.
    pub column: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        if self.column > 0 { write!(f, ":{}", self.column) } else { Ok(()) }
    }
}

/// One operation with its operands and results.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// What it reads; each is defined before the node.
    pub operands: Vec<Value>,
    /// What it defines, at least one.
    pub results: Vec<Value>,
    /// The user's line.
    pub origin: Option<Origin>,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueDefinition {
    /// The graph's parameter of this number.
    Parameter(usize),
    /// A node's result of this number.
    Result(NodeId, usize),
}

/// A program or a region: parameters, operations, results. See the crate's opening.
///
/// Nodes can only be added at the end and values only be made by nodes and parameters, so operands come
/// before users by construction. Parameters may be added at any time.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    values: Vec<(Type, ValueDefinition)>,
    nodes: Vec<Node>,
    parameters: Vec<Value>,
    results: Vec<Value>,
}

impl Graph {
    /// A graph with nothing in it.
    pub fn new() -> Graph {
        Graph::default()
    }

    /// Adds a parameter.
    pub fn parameter(&mut self, ty: Type) -> Value {
        let value = self.define(ty, ValueDefinition::Parameter(self.parameters.len()));
        self.parameters.push(value);
        value
    }

    /// Adds an operation, and gives its results.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], … where the operands do not fit the operation, with
    /// the operation's name and `origin`.
    pub fn add(&mut self, op: Op, operands: &[Value], origin: Option<Origin>) -> Result<Vec<Value>> {
        let types: Vec<&Type> = operands.iter().map(|&value| self.ty(value)).collect();
        let types = infer(&op, &types).map_err(|error| error.in_operation(op.name()).at(origin.clone()))?;
        if self.values.len() + types.len() > u32::MAX as usize {
            return Err(Error::new(ErrorKind::Limit {
                what: "the program".into(),
                limit: u32::MAX as usize,
            }));
        }
        let node = NodeId(self.nodes.len() as u32);
        let results: Vec<Value> = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| self.define(ty, ValueDefinition::Result(node, i)))
            .collect();
        self.nodes.push(Node { op, operands: operands.to_vec(), results: results.clone(), origin });
        Ok(results)
    }

    /// [`Graph::add`] for an operation with one result.
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn add1(&mut self, op: Op, operands: &[Value], origin: Option<Origin>) -> Result<Value> {
        Ok(self.add(op, operands, origin)?[0])
    }

    /// Adds a rank-0 constant.
    pub fn scalar(&mut self, dtype: DType, value: impl Into<Scalar>) -> Value {
        self.add1(Op::Constant(Literal::scalar(dtype, value)), &[], None).expect("a constant is well-formed")
    }

    /// Adds a constant of `ty` whose elements are all `value`.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`].
    pub fn splat(&mut self, ty: &Type, value: impl Into<Scalar>) -> Result<Value> {
        let scalar = self.scalar(ty.dtype, value);
        if ty.shape.is_empty() {
            return Ok(scalar);
        }
        self.add1(Op::Broadcast { shape: ty.shape.clone(), axes: vec![] }, &[scalar], None)
    }

    /// Sets the results. They may repeat, and may be parameters.
    pub fn set_results(&mut self, results: Vec<Value>) {
        self.results = results;
    }

    fn define(&mut self, ty: Type, definition: ValueDefinition) -> Value {
        let value = Value(self.values.len() as u32);
        self.values.push((ty, definition));
        value
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> &Type {
        &self.values[value.index()].0
    }

    /// Where a value comes from.
    pub fn definition(&self, value: Value) -> ValueDefinition {
        self.values[value.index()].1
    }

    /// The node that defines a value, unless it is a parameter.
    pub fn producer(&self, value: Value) -> Option<&Node> {
        match self.definition(value) {
            ValueDefinition::Parameter(_) => None,
            ValueDefinition::Result(node, _) => Some(&self.nodes[node.index()]),
        }
    }

    /// The literal that a value is, if a constant defines it.
    pub fn constant(&self, value: Value) -> Option<&Literal> {
        match self.producer(value).map(|node| &node.op) {
            Some(Op::Constant(literal)) => Some(literal),
            _ => None,
        }
    }

    /// The nodes, each after those it depends on.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    pub fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.index()]
    }

    /// The parameters, in order.
    pub fn parameters(&self) -> &[Value] {
        &self.parameters
    }

    /// The results, in order.
    pub fn results(&self) -> &[Value] {
        &self.results
    }

    /// How many values there are; [`Value::index`] is below it.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// The parameters' types, in order.
    pub fn parameter_types(&self) -> Vec<&Type> {
        self.parameters.iter().map(|&value| self.ty(value)).collect()
    }

    /// The results' types, in order.
    pub fn result_types(&self) -> Vec<&Type> {
        self.results.iter().map(|&value| self.ty(value)).collect()
    }

    /// Copies the body of `other` to the end of this graph with `arguments` in place of its parameters,
    /// and gives the values that stand for its results.
    ///
    /// # Errors
    /// Where an argument's type is not its parameter's.
    pub fn inline(&mut self, other: &Graph, arguments: &[Value]) -> Result<Vec<Value>> {
        if arguments.len() != other.parameters.len() {
            return Err(Error::shape("arguments", other.parameters.len(), arguments.len()));
        }
        let mut map: Vec<Option<Value>> = vec![None; other.values.len()];
        for (i, (&parameter, &argument)) in other.parameters.iter().zip(arguments).enumerate() {
            if other.ty(parameter) != self.ty(argument) {
                return Err(Error::shape(format!("argument {i}"), other.ty(parameter), self.ty(argument)));
            }
            map[parameter.index()] = Some(argument);
        }
        let lookup = |map: &[Option<Value>], value: Value| map[value.index()].expect("operands come first");
        for node in &other.nodes {
            let operands: Vec<Value> = node.operands.iter().map(|&value| lookup(&map, value)).collect();
            let results = self.add(node.op.clone(), &operands, node.origin.clone())?;
            for (&old, new) in node.results.iter().zip(results) {
                map[old.index()] = Some(new);
            }
        }
        Ok(other.results.iter().map(|&value| lookup(&map, value)).collect())
    }
}

/// Graphs are equal when they have the same parameters, nodes and results; origins do not count.
impl PartialEq for Graph {
    fn eq(&self, other: &Graph) -> bool {
        self.values == other.values
            && self.parameters == other.parameters
            && self.results == other.results
            && self.nodes.len() == other.nodes.len()
            && self.nodes.iter().zip(&other.nodes).all(|(a, b)| a.op == b.op && a.operands == b.operands)
    }
}

#[cfg(test)]
mod tests {
    //! Graphs that only a fault in rewriting could make: the verifier must find each.

    use super::*;
    use crate::{AssociativeScan, Unary, verify};

    fn exponential() -> Graph {
        let mut graph = Graph::new();
        let x = graph.parameter(Type::new(DType::F32, vec![2]));
        let y = graph.add1(Op::Unary(Unary::Exp), &[x], None).unwrap();
        let z = graph.add1(Op::Unary(Unary::Neg), &[y], None).unwrap();
        graph.set_results(vec![z]);
        graph
    }

    fn broken(graph: &Graph) -> Option<u32> {
        match verify(graph).expect_err("the graph is broken").kind() {
            ErrorKind::Invariant { invariant, .. } => Some(*invariant),
            _ => None,
        }
    }

    #[test]
    fn an_operand_defined_later_breaks_the_first_invariant() {
        let mut graph = exponential();
        verify(&graph).unwrap();
        graph.nodes[0].operands[0] = graph.nodes[1].results[0];
        assert_eq!(broken(&graph), Some(1));
    }

    #[test]
    fn a_wrong_type_and_a_wrong_name_break_the_second() {
        let mut graph = exponential();
        graph.values[1].0 = Type::new(DType::F64, vec![2]);
        assert_eq!(broken(&graph), Some(2));
        let mut graph = exponential();
        graph.values[1].1 = ValueDefinition::Result(NodeId(1), 0);
        assert_eq!(broken(&graph), Some(2));
    }

    #[test]
    fn a_result_of_another_graph_breaks_the_third() {
        let mut graph = exponential();
        let mut larger = exponential();
        let foreign = larger.parameter(Type::scalar(DType::F32));
        graph.set_results(vec![foreign]);
        assert_eq!(broken(&graph), Some(3));
    }

    #[test]
    fn a_broken_region_breaks_its_graph() {
        let mut combine = Graph::new();
        let [left, right] = [0, 1].map(|_| combine.parameter(Type::scalar(DType::F32)));
        let sum = combine.add1(Op::Binary(crate::Binary::Add), &[left, right], None).unwrap();
        combine.set_results(vec![sum]);
        combine.nodes[0].operands[0] = sum;
        let mut graph = Graph::new();
        let x = graph.parameter(Type::new(DType::F32, vec![4]));
        let scan = AssociativeScan { leaves: 1, axis: 0, reverse: false, combine };
        let y = graph.add1(Op::AssociativeScan(Box::new(scan)), &[x], None).unwrap();
        graph.set_results(vec![y]);
        assert_eq!(broken(&graph), Some(1));
    }
}
