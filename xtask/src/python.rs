//! The Python half of the tests: the wheel is built into a virtual environment that is kept between runs.

use std::path::PathBuf;

use crate::{Outcome, command, execute, root};

/// PyTorch as a CPU machine needs it: the package alone, what it imports, and the CUDA libraries that it links.
/// Its full list of requirements would fetch many times as much.
const TORCH: &[&str] = &["torch==2.15.0"];
const TORCH_IMPORTS: &[&str] = &[
    "filelock",
    "typing-extensions",
    "sympy",
    "networkx",
    "jinja2",
    "fsspec",
    "numpy",
    "setuptools>=77.0.3",
];
const TORCH_LIBRARIES: &[&str] = &[
    "nvidia-cublas==13.4.1.3",
    "nvidia-cuda-nvrtc==13.2.86",
    "nvidia-cuda-runtime==13.2.86",
    "nvidia-cuda-cupti==13.2.86",
    "nvidia-cufft==12.2.0.57",
    "nvidia-nvjitlink==13.2.86",
    "nvidia-cufile==1.17.1.22",
    "nvidia-cusparse==12.7.10.12",
    "nvidia-cudnn-cu13==9.26.0.51",
    "nvidia-cusparselt-cu13==0.8.1",
    "nvidia-nccl-cu13==2.30.7",
    "nvidia-nvshmem-cu13==3.7.2",
];
const TOOLS: &[&str] = &["maturin>=1.9,<2", "pytest", "mypy", "pyright"];

/// Builds the binding and runs its tests and type checkers.
pub fn test() -> Outcome {
    let environment = environment()?;
    let python = |arguments: &[&str]| {
        let mut command = command(environment.join("bin/python"), arguments);
        command.current_dir(root().join("bindings/python"));
        command
    };
    execute(&mut python(&["-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", "."]))?;
    execute(&mut python(&["-m", "pytest"]))?;
    let tests = ["tests", "../../examples/python", "../../bench/python_overhead.py"];
    execute(&mut python(&[&["-m", "mypy", "--strict", "--package", "tilewright"][..]].concat()))?;
    execute(&mut python(&[&["-m", "mypy", "--strict"][..], &tests].concat()))?;
    execute(&mut python(&["-m", "pyright"]))
}

/// The virtual environment, made at its first use.
fn environment() -> Result<PathBuf, String> {
    let path = root().join("target/venv");
    let shown = path.to_string_lossy().into_owned();
    if !path.join("bin/python").exists() {
        execute(&mut command("python3", &["-m", "venv", &shown]))?;
    }
    let python = path.join("bin/python");
    let present = |module: &str| {
        let import = format!("import {module}");
        let output = command(&python, &["-c", &import]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let install = |packages: &[&str], options: &[&str]| {
        let arguments = [&["-m", "pip", "install", "--quiet"][..], options, packages].concat();
        execute(&mut command(&python, &arguments))
    };
    if !present("torch") {
        install(TORCH_IMPORTS, &[])?;
        install(TORCH, &["--no-deps"])?;
        install(TORCH_LIBRARIES, &["--no-deps"])?;
    }
    if !["maturin", "pytest", "mypy", "pyright"].iter().all(|module| present(module)) {
        install(TOOLS, &[])?;
    }
    Ok(path)
}
