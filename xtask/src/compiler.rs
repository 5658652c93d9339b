//! NVIDIA's run-time compiler, with which the GPU engine's tests compile kernels without a GPU.

use std::path::PathBuf;

use crate::{command, execute, root};

const NVRTC: &str = "nvidia-cuda-nvrtc==13.2.86";

/// The folder of its library: that of the Python tests if it is there, else one that is fetched now. None where
/// neither can be had.
pub fn library_folder() -> Option<PathBuf> {
    let library = |environment: &str| {
        let packages = std::fs::read_dir(root().join(environment).join("lib")).ok()?;
        let folders = packages.flatten().map(|entry| entry.path().join("site-packages/nvidia/cu13/lib"));
        folders.into_iter().find(|folder| folder.join("libnvrtc.so.13").exists())
    };
    let found = library("target/venv").or_else(|| library("target/nvrtc"));
    found.or_else(|| {
        let path = root().join("target/nvrtc");
        execute(&mut command("python3", &["-m", "venv", &path.to_string_lossy()])).ok()?;
        let install = ["-m", "pip", "install", "--quiet", "--no-deps", NVRTC];
        execute(&mut command(path.join("bin/python"), &install)).ok()?;
        library("target/nvrtc")
    })
}
