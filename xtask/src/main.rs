//! The project's own tasks: `cargo xtask test | bench | bless | device-test | tidy`.

#![forbid(unsafe_code)]

mod bench;
mod compiler;
mod device;
mod python;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask <task>

  test                     all of the tests: tidy, Rust tests, doc tests, examples, Python
  test --rust | --python   one half of them
  bench <what> [--peer torch,jax] [--json]
                           measure attention, scan or model beside a peer, in one run
  bless                    rewrite the golden files; read the difference before you commit it
  device-test              packs target/device: tests and benchmarks for a machine with a GPU
  tidy                     formatting, lints, licences and house rules";

/// The result of a task: what failed, in words.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["test"] => all_tests(),
        ["test", "--rust"] => tidy::run().and_then(|()| rust_tests()),
        ["test", "--python"] => python::test(),
        ["bench", rest @ ..] => bench::run(rest),
        ["bless"] => bless(),
        ["device-test"] => device::pack(),
        ["tidy"] => tidy::run(),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Both halves, side by side: either has work for one core most of the time.
fn all_tests() -> Outcome {
    std::thread::scope(|scope| {
        let environment = scope.spawn(python::environment);
        tidy::run().and(environment.join().expect("no panic").map(|_| ()))
    })?;
    let python = python::Beside::begin()?;
    let rust = rust_tests();
    if let Err(message) = &rust {
        eprintln!("{message}");
    }
    match (rust, python.end()) {
        (Ok(()), python) => python,
        (rust, Ok(())) => rust,
        (Err(rust), Err(python)) => Err(format!("both halves failed:\n{rust}\n{python}")),
    }
}

fn rust_tests() -> Outcome {
    let mut tests = command("cargo", &["test", "--workspace", "--all-targets", "--quiet"]);
    match compiler::library_folder() {
        // The variable promises a compiler, so that tests that need one fail rather than skip.
        Some(folder) => tests.env("TILEWRIGHT_NVRTC", "1").env("LD_LIBRARY_PATH", folder),
        None => {
            eprintln!("NVIDIA's run-time compiler is not to be had: kernels are not compiled for a GPU");
            &mut tests
        }
    };
    execute(&mut tests)?;
    cargo(&["test", "--workspace", "--doc", "--quiet"])?;
    // In the profile of the tests: a second build of everything would take longer than the run.
    let language_model = ["run", "--quiet", "--example", "language_model", "--"];
    let out = root().join("target/smoke");
    let out = out.to_string_lossy();
    cargo(
        &[&language_model[..], &["--steps", "3", "--quick", "--layers", "attention,scan", "--out", &out]]
            .concat(),
    )
}

fn bless() -> Outcome {
    execute(command("cargo", &["test", "--workspace", "--quiet"]).env("TILEWRIGHT_BLESS", "1"))
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the repository").to_path_buf()
}

fn cargo(arguments: &[&str]) -> Outcome {
    execute(&mut command("cargo", arguments))
}

/// A command that will run in the repository's root.
fn command(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command to its end, showing what it prints.
fn execute(command: &mut Command) -> Outcome {
    let shown = format!("{command:?}").replace('"', "");
    eprintln!("$ {shown}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{shown}` failed: {status}")),
        Err(error) => Err(format!("`{shown}` could not be started: {error}")),
    }
}
