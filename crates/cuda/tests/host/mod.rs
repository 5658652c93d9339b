//! Runs lowered plans on the CPU: the kernels' own text, compiled by the system's C++ compiler against an
//! emulation of the machine (`machine.hpp`, and `machine.cpp` on the threads of `emulator.hpp`).
//!
//! A run is done twice, with the first threads of each block ahead and then with the last, and under the address
//! sanitizer: equal bits say that no kernel has a race that the orders tell apart.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tilewright_cuda::codegen::{Argument, Program, Source, Step};
use tilewright_cuda::driver::{Device, DeviceMemory, Executable};
use tilewright_plan::{Place, Plan};

/// What the C++ compiler is called.
const COMPILER: &str = "c++";

/// What C++ leaves undefined ends a run with a signal. To report it takes a fifth of the compiler's time, and is left to
/// a second look.
const UNDEFINED_TRAPS: &str = "-fsanitize-undefined-trap-on-error";

/// Whether there is a C++ compiler; says so where there is none.
fn available() -> bool {
    let found = Command::new(COMPILER).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no `{COMPILER}` to run kernels on the CPU with");
    }
    found
}

/// The folder of the emulation's sources.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host")
}

/// Runs the compiler in a folder.
fn compile<'a>(folder: &Path, arguments: impl IntoIterator<Item = &'a OsStr>) {
    let output = Command::new(COMPILER)
        .arg(format!("-I{}", sources().display()))
        .args(["-std=c++17", "-ffp-contract=off", "-w", "--param=asan-stack=0"])
        .args(["-fsanitize=address,undefined", UNDEFINED_TRAPS])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What does the machine's work, compiled once for all programs.
fn machine() -> &'static Path {
    static MACHINE: OnceLock<PathBuf> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let source = sources().join("machine.cpp");
        // Another process may compile it now: whoever links it finds it whole.
        let made = format!("machine-{}.o", std::process::id());
        let arguments = ["-O1", "-c", "-o", &made].map(OsStr::new);
        compile(folder, arguments.into_iter().chain([source.as_os_str()]));
        let path = folder.join("machine.o");
        fs::rename(folder.join(made), &path).unwrap();
        path
    })
}

/// Programs compiled together: each kernel's text once.
struct Kernels {
    numbers: HashMap<Source, usize>,
    folder: PathBuf,
}

impl Kernels {
    /// Compiles all kernels of some programs.
    fn compile<'a>(programs: impl IntoIterator<Item = &'a Program>) -> Kernels {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
            "kernels-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&folder).unwrap();
        let mut numbers = HashMap::new();
        let mut sources = Vec::new();
        for (_, step) in programs.into_iter().flat_map(|program| &program.steps) {
            let Step::Launch(launch) = step else { continue };
            numbers.entry((*launch.source).clone()).or_insert_with(|| {
                sources.push(launch.source.clone());
                sources.len() - 1
            });
        }
        let mut text = "#include \"machine.hpp\"\n".to_string();
        for (number, source) in sources.iter().enumerate() {
            // The emulation has the further instructions, for each width and type.
            let instructions = if source.instructions.is_empty() { "" } else { "#include \"hopper.hpp\"\n" };
            text += &format!("namespace kernel_{number} {{\n{instructions}{}\n}}\n", source.body);
        }
        text += "static const host::Kernel kernels[] = {\n";
        for (number, source) in sources.iter().enumerate() {
            let entry = &source.entry;
            text += &format!(
                "    {{\"{entry}\", [](const void* p) {{ kernel_{number}::{entry}(*(const \
                 kernel_{number}::Parameters*)p); }}}},\n"
            );
        }
        text += "};\nint main(int argc, char** argv) {\n    return host::run_file(kernels, sizeof kernels / sizeof \
                 *kernels, argc, argv);\n}\n";
        fs::write(folder.join("kernels.cpp"), text).unwrap();
        let arguments = ["-O0", "-o", "kernels", "kernels.cpp"].map(OsStr::new);
        compile(&folder, arguments.into_iter().chain([machine().as_os_str()]));
        Kernels { numbers, folder }
    }

    /// Runs a program on inputs; gives the outputs, and the fault word.
    fn run(&self, plan: &Plan, program: &Program, inputs: &[Vec<u8>]) -> (Vec<Vec<u8>>, u64) {
        let runs = ["first", "last"].map(|ahead| self.run_ordered(plan, program, inputs, ahead));
        assert!(runs[0] == runs[1], "the result depends on the order of threads");
        let [run, _] = runs;
        run
    }

    fn run_ordered(
        &self,
        plan: &Plan,
        program: &Program,
        inputs: &[Vec<u8>],
        ahead: &str,
    ) -> (Vec<Vec<u8>>, u64) {
        let mut outputs: Vec<usize> = Vec::new();
        let mut buffers: Vec<Vec<u8>> = Vec::new();
        for buffer in &plan.buffers {
            let bytes = buffer.elements * buffer.dtype.size();
            buffers.push(match &buffer.place {
                Place::Input(input) => inputs[*input][..bytes].to_vec(),
                Place::Constant(literal) => literal.bytes().to_vec(),
                // Garbage, which must not survive.
                Place::Output(_) | Place::Arena(_) => vec![0xff; bytes],
            });
            if let Place::Output(output) = buffer.place {
                outputs.resize(outputs.len().max(output + 1), 0);
                outputs[output] = buffers.len() - 1;
            }
        }
        let scratch = buffers.len() as i64;
        buffers.push(vec![0xff; program.scratch_bytes]);
        let fault = scratch + 1;
        buffers.push(vec![0xff; 8]);

        let mut file: Vec<u8> = Vec::new();
        let word = |x: i64, file: &mut Vec<u8>| file.extend(x.to_le_bytes());
        word(buffers.len() as i64, &mut file);
        for buffer in &buffers {
            word(buffer.len() as i64, &mut file);
            file.extend(buffer);
        }
        word(program.steps.len() as i64, &mut file);
        for (_, step) in &program.steps {
            match step {
                Step::Zero { place, bytes } => {
                    for x in [-1, scratch, *place as i64, *bytes as i64] {
                        word(x, &mut file);
                    }
                }
                Step::Launch(launch) => {
                    let kernel = self.numbers[&*launch.source];
                    // The emulation runs block after block: it has room for one.
                    let blocks = if launch.source.all_at_once { 1 } else { launch.blocks };
                    let sizes = [kernel, blocks, launch.threads, launch.shared_bytes];
                    for x in sizes {
                        word(x as i64, &mut file);
                    }
                    word(launch.arguments.len() as i64, &mut file);
                    for argument in &launch.arguments {
                        let (buffer, value) = match *argument {
                            Argument::Buffer { buffer, bytes } => (buffer.0 as i64, bytes as i64),
                            Argument::Scratch(place) => (scratch, place as i64),
                            Argument::Fault => (fault, 0),
                            Argument::Integer(x) => (-1, x),
                            Argument::Float(x) => (-1, x.to_bits() as i64),
                            Argument::Null => (-1, 0),
                        };
                        word(buffer, &mut file);
                        word(value, &mut file);
                    }
                }
            }
        }
        let [input, output] = ["input", "output"].map(|name| self.folder.join(format!("{name}-{ahead}")));
        fs::write(&input, file).unwrap();
        let run = Command::new(self.folder.join("kernels"))
            .args([&input, &output])
            .arg(ahead)
            .env("ASAN_OPTIONS", "detect_stack_use_after_return=0:detect_leaks=0")
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{}\n{} (if it is an illegal instruction: compile {} without {UNDEFINED_TRAPS} to see what is undefined)",
            String::from_utf8_lossy(&run.stderr),
            run.status,
            self.folder.join("kernels.cpp").display(),
        );
        let bytes = fs::read(&output).unwrap();
        let mut found = Vec::new();
        let mut start = 0;
        for buffer in &buffers {
            found.push(bytes[start..start + buffer.len()].to_vec());
            start += buffer.len();
        }
        let fault = u64::from_le_bytes(found.pop().unwrap().try_into().unwrap());
        (outputs.iter().map(|&buffer| found[buffer].clone()).collect(), fault)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // What cannot be removed is overwritten or left: it is in the build's own folder.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Outputs, and the fault word.
pub type Found = (Vec<Vec<u8>>, u64);

/// Runs programs on their inputs: on a GPU where `TILEWRIGHT_TEST_DEVICE` is `cuda`, else on the CPU. Nothing
/// where there is no compiler for the latter.
pub fn run<'a>(cases: impl Iterator<Item = (&'a Plan, &'a Program, Vec<Vec<u8>>)>) -> Option<Vec<Found>> {
    let cases: Vec<_> = cases.collect();
    if std::env::var("TILEWRIGHT_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        return Some(cases.iter().map(|(plan, _, inputs)| on_device(plan, inputs)).collect());
    }
    if !available() {
        return None;
    }
    let kernels = Kernels::compile(cases.iter().map(|(_, program, _)| *program));
    Some(cases.iter().map(|(plan, program, inputs)| kernels.run(plan, program, inputs)).collect())
}

/// Runs a plan twice on the GPU: the same bits both times.
fn on_device(plan: &Plan, inputs: &[Vec<u8>]) -> Found {
    static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| Device::open(0).unwrap());
    let executable = Executable::new(device, plan.clone()).unwrap();
    let inputs: Vec<DeviceMemory> =
        inputs.iter().map(|bytes| DeviceMemory::of(device, bytes).unwrap()).collect();
    let inputs: Vec<&DeviceMemory> = inputs.iter().collect();
    let [first, second] = [(); 2].map(|()| {
        let (outputs, fault) = executable.run_to_fault(&inputs).unwrap();
        let read = |memory: &DeviceMemory| {
            let mut bytes = vec![0; memory.bytes()];
            memory.read(&mut bytes).unwrap();
            bytes
        };
        (outputs.iter().map(read).collect::<Vec<_>>(), fault)
    });
    assert!(first == second, "two runs differ");
    first
}
