//! Choices by position: starts, shifts and the ends of a gradient are written as comparisons of the position along the
//! scan with constants. Along the longest stretch where none of them changes they are known, and its tiles need not ask.

use tilewright_ir::{Compare, Scalar};
use tilewright_plan::loops::Source;
use tilewright_plan::{Kind, Operation, Program, Register, Scan, evaluate};

use crate::codegen::parameters::Parameters;
use crate::codegen::region;

/// What is known of a scan's programs.
pub(super) struct Choices {
    /// The stretch, half-open; nothing where nothing is compared.
    pub stretch: Option<(usize, usize)>,
    /// For each register of `elements` that is known there, an expression which asks elsewhere only.
    pub elements: Vec<Option<String>>,
    /// The same of `results`.
    pub results: Vec<Option<String>>,
}

impl Choices {
    pub fn of(scan: &Scan, parameters: &mut Parameters) -> Choices {
        let elements = comparisons(&scan.elements, |input| is_position(scan, scan.sources.get(input)));
        let results = comparisons(&scan.results, |input| {
            is_position(
                scan,
                input.checked_sub(scan.state).and_then(|number| scan.result_sources.get(number)),
            )
        });
        let mut cuts = vec![0, scan.length];
        for comparison in elements.iter().chain(&results).flatten() {
            let around = [comparison.constant, comparison.constant.saturating_add(1)];
            cuts.extend(around.map(|cut| cut.clamp(0, scan.length as i64) as usize));
        }
        let compared = cuts.len() > 2;
        cuts.sort_unstable();
        let stretches = cuts.windows(2).map(|ends| (ends[0], ends[1]));
        let longest = stretches.max_by_key(|(low, high)| high - low).unwrap_or((0, 0));
        let mut expressions = |comparisons: Vec<Option<Comparison>>| {
            let mut expression = |known: Comparison| known.expression(longest.0 as i64, parameters);
            comparisons.into_iter().map(|known| known.map(&mut expression)).collect()
        };
        Choices {
            stretch: compared.then_some(longest),
            elements: expressions(elements),
            results: expressions(results),
        }
    }
}

fn is_position(scan: &Scan, source: Option<&Source>) -> bool {
    source == Some(&Source::Index(scan.parallel.len()))
}

/// A comparison of the position with a constant.
struct Comparison {
    comparison: Compare,
    constant: i64,
    /// Whether the constant stands on the left.
    mirrored: bool,
}

impl Comparison {
    fn holds(&self, position: i64) -> bool {
        let (position, constant) = (Scalar::Integer(position), Scalar::Integer(self.constant));
        let (left, right) = if self.mirrored { (constant, position) } else { (position, constant) };
        evaluate::compare(self.comparison, left, right)
    }

    /// Whether it holds; known as `at` a position for what is `WHOLE`.
    fn expression(&self, at: i64, parameters: &mut Parameters) -> String {
        let known = if self.holds(at) { "WHOLE ||" } else { "!WHOLE &&" };
        let position = "(long long)position".to_string();
        let constant = region::literal(Scalar::Integer(self.constant), Kind::I64, parameters);
        let (left, right) = if self.mirrored { (constant, position) } else { (position, constant) };
        format!("({known} {left} {} {right})", region::symbol(self.comparison))
    }
}

/// For each instruction what it compares the position with, if it does; `is_position` says which inputs are that.
fn comparisons(program: &Program, is_position: impl Fn(usize) -> bool) -> Vec<Option<Comparison>> {
    let operation = |register: Register| &program.instructions[register.index()].operation;
    let constant = |register: Register| match operation(register) {
        Operation::Constant(Scalar::Integer(constant)) => Some(*constant),
        _ => None,
    };
    let position =
        |register: Register| matches!(operation(register), Operation::Input(input) if is_position(*input));
    let comparison = |instruction: &tilewright_plan::Instruction| {
        let Operation::Compare(comparison, left, right) = instruction.operation else { return None };
        match (constant(left), constant(right)) {
            (None, Some(constant)) if position(left) => {
                Some(Comparison { comparison, constant, mirrored: false })
            }
            (Some(constant), None) if position(right) => {
                Some(Comparison { comparison, constant, mirrored: true })
            }
            _ => None,
        }
    };
    program.instructions.iter().map(comparison).collect()
}
