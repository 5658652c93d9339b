//! `corpus/run`: programs with their inputs, and the outputs or the error of the run.

use std::fs;
use std::path::Path;

use tilewright_interp::{Array, Precision, run};
use tilewright_ir::{Graph, Op, parse, verify};

const INPUTS: &str = "//- inputs\n";
const OUTPUTS: &str = "//- outputs\n";
const ERROR: &str = "//- error\n";

/// The arrays that a program of constants gives.
fn arrays(text: &str) -> Vec<Array> {
    let graph = parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    run(&graph, &[], Precision::Exact).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The inverse of [`arrays`].
fn constants(arrays: &[Array]) -> Graph {
    let mut graph = Graph::new();
    let constant = |array: &Array| graph.add1(Op::Constant(array.to_literal()), &[], None).unwrap();
    let results = arrays.iter().map(constant).collect();
    graph.set_results(results);
    graph
}

/// What a file's last section should be.
fn outcome(program: &str, inputs: &str) -> String {
    let graph = parse(program).unwrap_or_else(|error| panic!("{error}\n{program}"));
    verify(&graph).unwrap_or_else(|error| panic!("{error}\n{program}"));
    match run(&graph, &arrays(inputs), Precision::Exact) {
        Ok(results) => format!("{OUTPUTS}{}\n", constants(&results)),
        Err(error) => format!("{ERROR}// {}\n", error.to_string().replace('\n', "\n// ")),
    }
}

#[test]
fn every_program_gives_its_outputs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpus/run");
    let bless = std::env::var_os("TILEWRIGHT_BLESS").is_some();
    let mut failures = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let file = fs::read_to_string(&path).unwrap();
        let (program, rest) = file.split_once(INPUTS).expect("each file has inputs");
        let end = rest.find("//- ").unwrap_or(rest.len());
        let (inputs, expected) = rest.split_at(end);
        let found = outcome(program, inputs);
        if bless && found != expected {
            let gap = if inputs.ends_with("\n\n") { "" } else { "\n" };
            fs::write(&path, format!("{program}{INPUTS}{inputs}{gap}{found}")).unwrap();
        } else if found != expected {
            failures.push(format!("{}\nexpected {expected}\nfound {found}", path.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn damaged_programs_run_or_are_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpus/run");
    let mut runs = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let file = fs::read_to_string(entry.unwrap().path()).unwrap();
        let (program, _) = file.split_once(INPUTS).expect("each file has inputs");
        for (position, _) in program.char_indices().filter(|(_, c)| c.is_ascii_digit()) {
            for digits in ["0", "1", "2", "3", "9", "18446744073709551615"] {
                let damaged = format!("{}{digits}{}", &program[..position], &program[position + 1..]);
                let Ok(graph) = parse(&damaged) else { continue };
                let types = graph.parameter_types();
                if verify(&graph).is_err() || types.iter().any(|ty| ty.elements() > 1000) {
                    continue;
                }
                let inputs: Vec<Array> = types.into_iter().map(|ty| Array::zeros(ty.clone())).collect();
                runs += run(&graph, &inputs, Precision::Typed).is_ok() as usize;
            }
        }
    }
    assert!(runs > 100, "{runs} damaged programs ran");
}
