//! The Python half of the tests: the wheel is built into a virtual environment that is kept between runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;

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

/// What is typed beside the package.
const TYPED: &[&str] =
    &["tests", "../../examples/python", "../../bench/python_overhead.py", "../../bench/python_gpu.py"];

/// The Python half in a process of its own, beside other work: what it prints goes to a file, and is shown at its end.
pub struct Beside {
    process: Child,
    log: PathBuf,
}

impl Beside {
    pub fn begin() -> Result<Beside, String> {
        let log = root().join("target/python-tests.log");
        let begun = || {
            let file = File::create(&log)?;
            let mut task = command(std::env::current_exe()?, &["test", "--python"]);
            task.stdout(file.try_clone()?).stderr(file).spawn()
        };
        let process = begun().map_err(|error| format!("the Python half: {error}"))?;
        eprintln!("the Python half runs beside what follows; it is shown after that ({})", log.display());
        Ok(Beside { process, log })
    }

    pub fn end(mut self) -> Outcome {
        let status = self.process.wait().map_err(|error| format!("the Python half: {error}"))?;
        let log = fs::read(&self.log).map_err(|error| format!("{}: {error}", self.log.display()))?;
        let log = String::from_utf8_lossy(&log);
        eprintln!("the Python half:\n{log}");
        let last = log.lines().last().unwrap_or_default();
        if status.success() { Ok(()) } else { Err(format!("the Python half failed ({status}): {last}")) }
    }
}

/// Builds the binding and runs its tests and type checkers.
pub fn test() -> Outcome {
    let environment = environment()?;
    install_package(&environment)?;
    let python = |arguments: &[&str]| {
        let mut command = command(environment.join("bin/python"), arguments);
        command.current_dir(root().join("bindings/python"));
        // PyTorch's idle threads would spin, and take a core from the tests that run beside.
        command.env("OMP_WAIT_POLICY", "passive");
        command
    };
    execute(&mut python(&["-m", "pytest"]))?;
    execute(&mut python(&["-m", "pytest", "--doctest-modules", "--pyargs", "tilewright"]))?;

    let previous = previous_mypy(&environment)?;
    for folder in [None, Some(&previous)] {
        for what in [&["--package", "tilewright"][..], TYPED] {
            let mut mypy = python(&[&["-m", "mypy", "--strict"], what].concat());
            if let Some(folder) = folder {
                // The two versions would each think the other's cache stale.
                mypy.env("PYTHONPATH", folder).env("MYPY_CACHE_DIR", folder.join("cache"));
            }
            execute(&mut mypy)?;
        }
    }
    let interpreter = environment.join("bin/python");
    execute(&mut python(&["-m", "pyright", "--pythonpath", &interpreter.to_string_lossy()]))
}

/// Builds the wheel and installs it. It is built in the profile of the Rust tests, so that it takes over their build of
/// the engine.
fn install_package(environment: &Path) -> Outcome {
    let wheels = root().join("target/wheels/dev");
    if wheels.exists() {
        fs::remove_dir_all(&wheels).map_err(|error| format!("{}: {error}", wheels.display()))?;
    }
    let python = environment.join("bin/python");
    let out = wheels.to_string_lossy();
    let manifest = "bindings/python/Cargo.toml";
    let build = ["-m", "maturin", "build", "--quiet", "--profile", "dev", "--compatibility", "linux"];
    execute(&mut command(&python, &[&build[..], &["--manifest-path", manifest, "--out", &out]].concat()))?;
    let made = fs::read_dir(&wheels).map_err(|error| format!("{}: {error}", wheels.display()))?;
    let wheel = made.flatten().next().ok_or("maturin left no wheel")?.path();
    let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall"];
    execute(&mut command(&python, &[&install[..], &[&wheel.to_string_lossy()]].concat()))
}

/// The virtual environment, made at its first use.
pub fn environment() -> Result<PathBuf, String> {
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

/// The minor release of mypy before the one installed, in a folder of its own, so that an upgrade of the checker
/// surprises nobody who stays behind.
fn previous_mypy(environment: &Path) -> Result<PathBuf, String> {
    let python = environment.join("bin/python");
    let print = "import mypy.version; print('.'.join(mypy.version.__version__.split('.')[:2]))";
    let output = command(&python, &["-c", print]).output().map_err(|error| format!("mypy: {error}"))?;
    let newest = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let folder = root().join("target").join(format!("mypy-before-{newest}"));
    if !folder.exists() {
        let wanted = format!("mypy<{newest}");
        let target = folder.to_string_lossy();
        let install = ["-m", "pip", "install", "--quiet", "--target", &target, &wanted];
        execute(&mut command(&python, &install))?;
    }
    Ok(folder)
}
