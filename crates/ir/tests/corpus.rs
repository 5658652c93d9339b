//! `corpus/verify`: texts that must be refused, each followed by its error on `//!` lines.

use std::fs;
use std::path::Path;

use tilewright_ir::{Graph, Result, parse, verify};

/// A text, and the error that follows it, without `//! `.
struct Case {
    text: String,
    expected: String,
}

fn cases(file: &str) -> Vec<Case> {
    let mut cases = vec![Case { text: String::new(), expected: String::new() }];
    for line in file.lines() {
        let last = cases.last_mut().expect("there is a first case");
        match line.strip_prefix("//!") {
            Some(message) => last.expected += &format!("{}\n", message.strip_prefix(' ').unwrap_or(message)),
            None if last.expected.is_empty() => last.text += &format!("{line}\n"),
            None => cases.push(Case { text: format!("{line}\n"), expected: String::new() }),
        }
    }
    cases
}

fn check(text: &str) -> Result<Graph> {
    let graph = parse(text)?;
    verify(&graph)?;
    Ok(graph)
}

#[test]
fn every_text_is_refused_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpus/verify");
    let bless = std::env::var_os("TILEWRIGHT_BLESS").is_some();
    let mut count = 0;
    let mut failures = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let file = fs::read_to_string(&path).unwrap();
        let mut written = String::new();
        for case in cases(&file) {
            count += 1;
            let found = match check(&case.text) {
                Err(error) => format!("{error}\n"),
                Ok(graph) => format!("nothing is wrong with {graph}\n"),
            };
            if found != case.expected {
                failures.push(format!(
                    "{}\n{}expected {}found {found}",
                    path.display(),
                    case.text,
                    case.expected
                ));
            }
            written += &case.text;
            found.lines().for_each(|line| written += &format!("//! {line}\n"));
        }
        if bless && written != file {
            fs::write(&path, written).unwrap();
        }
    }
    assert!(count > 0);
    assert!(bless || failures.is_empty(), "{}", failures.join("\n"));
}
