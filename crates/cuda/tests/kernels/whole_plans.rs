//! Whole plans on the GPU engine's kernels, against the interpreter: generated programs of every operation in
//! every type, and scans, forward and backward. So the text of every instruction is run.

use tilewright_generate::{Config, Random, random_attention_of, random_graph, random_inputs, random_scan_of};
use tilewright_interp::Array;
use tilewright_ir::DType;

use crate::case::{Case, with_gradients};
use crate::host;

/// Runs cases and checks their results.
fn check(cases: &[Case]) {
    let bytes = |case: &Case| case.inputs.iter().map(Array::to_bytes).collect();
    let Some(found) = host::run(cases.iter().map(|case| (&case.plan, &case.program, bytes(case)))) else {
        return;
    };
    for (case, (found, fault)) in cases.iter().zip(found) {
        assert_eq!(case.program.fault(fault), None, "{}", case.label);
        case.check(&found);
    }
}

pub fn ordinary() -> Vec<Case> {
    let mut cases = Vec::new();
    for seed in 0..16 {
        let dtype = Random::new(seed ^ 0x9a).pick(&[DType::F64, DType::F32, DType::BF16, DType::F16]);
        let config = Config { dtype, operations: 8 + seed as usize % 16, ..Config::default() };
        let graph = random_graph(seed, &config);
        let inputs = random_inputs(&graph, seed);
        cases.push(Case::new(format!("graph {seed}"), graph, inputs));
    }
    cases
}

pub fn gradients() -> Vec<Case> {
    let mut cases = Vec::new();
    for seed in 100..106 {
        let dtype = Random::new(seed).pick(&[DType::F64, DType::F32, DType::F32]);
        let config = Config { dtype, differentiable: true, operations: 8, ..Config::default() };
        let graph = random_graph(seed, &config);
        let inputs = random_inputs(&graph, seed);
        let (graph, inputs) = with_gradients(graph, inputs, &mut Random::new(seed));
        cases.push(Case::new(format!("gradient {seed}"), graph, inputs));
    }
    cases
}

pub fn scans() -> Vec<Case> {
    let mut cases = Vec::new();
    for seed in 0..8 {
        let dtype = if seed % 2 == 0 { DType::F32 } else { DType::F64 };
        let (graph, inputs) = random_scan_of(dtype, seed);
        let (graph, inputs) = with_gradients(graph, inputs, &mut Random::new(seed));
        cases.push(Case::new(format!("scan {seed}"), graph, inputs));
    }
    cases
}

pub fn attention() -> Vec<Case> {
    let mut cases = Vec::new();
    for seed in 40..44 {
        let (graph, inputs) = random_attention_of(DType::F32, seed);
        let (graph, inputs) = with_gradients(graph, inputs, &mut Random::new(seed));
        cases.push(Case::new(format!("attention {seed}"), graph, inputs));
    }
    cases
}

#[test]
fn ordinary_operations() {
    check(&ordinary());
}

#[test]
fn gradients_of_ordinary_operations() {
    check(&gradients());
}

#[test]
fn generated_scans() {
    check(&scans());
}

#[test]
fn attention_between_other_operations() {
    check(&attention());
}
