//! `corpus/schedule`: programs, and the plan that they become.

use std::fs;
use std::path::Path;

use tilewright_ir::parse;
use tilewright_plan::{Plan, verify};
use tilewright_schedule::{Layout, lower, simplify};

const PLAN: &str = "//- plan\n";

fn plan(program: &str) -> Plan {
    let graph = parse(program).unwrap_or_else(|error| panic!("{error}\n{program}"));
    let layouts: Vec<Layout> = graph.parameter_types().iter().map(|ty| Layout::packed(&ty.shape)).collect();
    let graph = simplify(&graph).unwrap_or_else(|error| panic!("{error}\n{program}"));
    let plan = lower(&graph, &layouts).unwrap_or_else(|error| panic!("{error}\n{program}"));
    verify(&plan).unwrap_or_else(|error| panic!("{error}\n{plan}"));
    plan
}

#[test]
fn every_program_becomes_its_plan() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpus/schedule");
    let bless = std::env::var_os("TILEWRIGHT_BLESS").is_some();
    let mut failures = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let file = fs::read_to_string(&path).unwrap();
        let (program, expected) = file.split_once(PLAN).unwrap_or((&file, ""));
        let found = format!("{}\n", plan(program));
        if found != expected && bless {
            fs::write(&path, format!("{program}{PLAN}{found}")).unwrap();
        } else if found != expected {
            failures.push(format!("{}\nexpected {expected}\nfound {found}", path.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
