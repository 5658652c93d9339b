//! `corpus/differentiate`: programs, and the graph of the cotangents of their floating parameters.

use std::fs;
use std::path::Path;

use tilewright_autodiff::reverse;
use tilewright_ir::{Graph, Value, parse, verify};

const COTANGENTS: &str = "//- cotangents\n";

/// The program with a parameter for the cotangent of each result, whose results are the parameters' cotangents.
fn cotangents(program: &str) -> Graph {
    let mut graph = parse(program).unwrap_or_else(|error| panic!("{error}\n{program}"));
    let floats = |graph: &Graph, values: &[Value]| -> Vec<Value> {
        values.iter().copied().filter(|&value| graph.ty(value).dtype.is_float()).collect()
    };
    let inputs = floats(&graph, graph.parameters());
    let results = floats(&graph, graph.results());
    let seeds: Vec<(Value, Value)> = results
        .iter()
        .map(|&result| {
            let ty = graph.ty(result).clone();
            (result, graph.parameter(ty))
        })
        .collect();
    let found = reverse(&mut graph, &seeds, &inputs).unwrap_or_else(|error| panic!("{error}\n{program}"));
    graph.set_results(found.into_iter().flatten().collect());
    verify(&graph).unwrap_or_else(|error| panic!("{error}\n{graph}"));
    graph
}

#[test]
fn every_program_has_its_cotangents() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpus/differentiate");
    let bless = std::env::var_os("TILEWRIGHT_BLESS").is_some();
    let mut failures = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let file = fs::read_to_string(&path).unwrap();
        let (program, expected) = file.split_once(COTANGENTS).unwrap_or((&file, ""));
        let found = format!("{}\n", cotangents(program));
        if found != expected && bless {
            fs::write(&path, format!("{program}{COTANGENTS}{found}")).unwrap();
        } else if found != expected {
            failures.push(format!("{}\nexpected {expected}\nfound {found}", path.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
