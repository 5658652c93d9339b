//! What a machine with a GPU needs to run the tests and benchmarks of the GPU engine: binaries and one script,
//! in one folder.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Outcome, cargo, command, root};

/// What the folder may take, in bytes.
const LIMIT: u64 = 60 << 20;

/// Packs the folder `target/device`.
pub fn pack() -> Outcome {
    let folder = root().join("target/device");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let package = ["--release", "--package", "tilewright-cuda"];
    cargo(&[&["build", "--quiet", "--example", "device_bench"], &package[..]].concat())?;
    let tests = built(&[&["test", "--no-run", "--test", "kernels"], &package[..]].concat())?;
    let devices = ["test", "--no-run", "--test", "devices", "--release", "--package", "tilewright"];
    let devices = built(&devices)?;
    cargo(&["build", "--quiet", "--release", "--package", "tilewright-bench", "--bin", "device"])?;
    let release = tests.parent().and_then(Path::parent).ok_or("the test binary is in no folder")?;
    let (bench, models) = (release.join("examples/device_bench"), release.join("device"));
    let files = [
        (tests, "kernels"),
        (devices, "devices"),
        (bench, "device_bench"),
        (models, "device"),
        (root().join("bench/peers/device_peer.py"), "device_peer.py"),
        (root().join("bench/device.sh"), "device.sh"),
    ];
    let mut bytes = 0;
    for (from, name) in files {
        let to = folder.join(name);
        fs::copy(&from, &to).map_err(|error| format!("{}: {error}", from.display()))?;
        if !name.contains('.') {
            // Names of functions stay; where they are in the source is not asked there.
            let stripped = command("strip", &["--strip-debug", &to.to_string_lossy()]).status();
            if !stripped.is_ok_and(|status| status.success()) {
                eprintln!("`strip` does not work here: {name} keeps its debug information");
            }
        }
        bytes += fs::metadata(&to).map_err(|error| error.to_string())?.len();
    }
    if bytes > LIMIT {
        return Err(format!("{} holds {bytes} bytes, {LIMIT} may be", folder.display()));
    }
    println!("{} ({} MB): run `sh device.sh` there", folder.display(), bytes >> 20);
    Ok(())
}

/// The test binary that cargo says it built.
fn built(arguments: &[&str]) -> Result<PathBuf, String> {
    let output = command("cargo", &[arguments, &["--message-format=json"]].concat())
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable =
        |line: &str| line.split("\"executable\":\"").nth(1)?.split('"').next().map(PathBuf::from);
    text.lines().rev().find_map(executable).ok_or_else(|| "cargo built no test binary".into())
}
