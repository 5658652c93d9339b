//! The house rules that a program can check.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Outcome, cargo, command, execute, root};

const LONGEST_FILE: usize = 1000;

/// Formatting, lints, licences of dependencies, and the rules below.
pub fn run() -> Outcome {
    cargo(&["fmt", "--all", "--check"])?;
    house_rules()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"])?;
    match command("cargo", &["deny", "--version"]).output() {
        Ok(output) if output.status.success() => {
            execute(&mut command("cargo", &["deny", "check", "licenses", "bans", "sources"]))
        }
        _ => {
            eprintln!("cargo-deny is not installed: licences of dependencies are not checked");
            Ok(())
        }
    }
}

fn house_rules() -> Outcome {
    let mut faults = Vec::new();
    for path in tracked_files()? {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let shown = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        if extension == "rs" {
            check_rust(&shown, &text, &mut faults);
        }
        if matches!(extension, "rs" | "py" | "pyi") && text.lines().count() > LONGEST_FILE {
            faults.push(format!("{shown}: over {LONGEST_FILE} lines; one file has one subject"));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

fn check_rust(shown: &str, text: &str, faults: &mut Vec<String>) {
    if !text.starts_with("//!") && !text.starts_with("#!") {
        faults.push(format!("{shown}: opens with no `//!` that says what it is for"));
    }
    // Spelt in halves, so that this file keeps the rule.
    for word in [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[", "ignore")] {
        if text.contains(word) {
            faults.push(format!("{shown}: holds `{word}`"));
        }
    }
    let unsafe_may_stand = ["crates/cpu/", "crates/cuda/src/driver/", "bindings/python/"]
        .iter()
        .any(|corner| shown.starts_with(corner));
    let holds_unsafe = text.lines().any(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
    if holds_unsafe && !unsafe_may_stand && !shown.starts_with("xtask/") {
        faults.push(format!("{shown}: unsafe code outside its named corners"));
    }
}

fn tracked_files() -> Result<Vec<PathBuf>, String> {
    let output = command("git", &["ls-files"]).output().map_err(|error| format!("git ls-files: {error}"))?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names.lines().map(|name| root().join(Path::new(name))).collect())
}
