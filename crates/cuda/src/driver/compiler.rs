//! The run-time compiler, NVRTC: from CUDA C++ text to the machine code of one architecture. Needs no GPU.

use std::ffi::{CStr, CString, c_char};

use cudarc::nvrtc::{result, sys};
use tilewright_ir::{Error, ErrorKind, Result};

/// What the compiler made of a kernel's text.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// The machine code.
    pub cubin: Vec<u8>,
    /// What the compiler and the assembler had to say: registers, spills, warnings.
    pub log: String,
}

/// What every kernel is compiled with, beside the architecture.
pub const OPTIONS: [&str; 4] =
    ["--std=c++17", "--ptxas-options=-v", "--extra-device-vectorization", "-default-device"];

/// The architecture to compile for, of a compute capability: 90 has instructions of its own.
pub fn architecture(capability: u32) -> String {
    if capability == 90 { "sm_90a".into() } else { format!("sm_{capability}") }
}

/// The compiler's version.
///
/// # Errors
/// [`ErrorKind::DeviceUnavailable`] where there is no compiler.
pub fn version() -> Result<(i32, i32)> {
    present()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there; both numbers outlive the call.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(|error| failed(&error, ""))?;
    Ok((major, minor))
}

fn present() -> Result<()> {
    // SAFETY: opens the library if it is there; NVRTC's initialisers have no preconditions.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::new(ErrorKind::DeviceUnavailable {
        device: "CUDA".into(),
        found: "no libnvrtc on the library path".into(),
        required: "NVIDIA's run-time compiler (the Python package nvidia-cuda-nvrtc has it)".into(),
    }))
}

fn failed(error: &result::NvrtcError, log: &str) -> Error {
    Error::new(ErrorKind::Invariant {
        invariant: 0,
        message: format!("a kernel's text: {:?}\n{log}", error.0),
    })
}

/// A program of the compiler, until it is dropped.
struct Job(sys::nvrtcProgram);

impl Drop for Job {
    fn drop(&mut self) {
        // A failure to free leaves nothing to be done.
        // SAFETY: the program was created and is not used again.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiles a kernel's text.
///
/// # Errors
/// [`ErrorKind::DeviceUnavailable`] where there is no compiler; [`ErrorKind::Invariant`] with the compiler's
/// messages where it refuses the text, which is a fault of this crate.
pub fn compile(text: &str, architecture: &str) -> Result<Compiled> {
    present()?;
    let text = CString::new(text).map_err(|error| Error::argument("text", error.to_string()))?;
    let job = Job(result::create_program(&text, Some(c"kernel.cu")).map_err(|error| failed(&error, ""))?);
    let options: Vec<String> = std::iter::once(format!("--gpu-architecture={architecture}"))
        .chain(OPTIONS.map(String::from))
        .collect();
    // SAFETY: the program was just created.
    let compiled = unsafe { result::compile_program(job.0, &options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(job.0) }.map(|log| text_of(&log)).unwrap_or_default();
    compiled.map_err(|error| failed(&error, &log))?;
    let mut size = 0;
    // SAFETY: the program is compiled; `size` outlives the call.
    unsafe { sys::nvrtcGetCUBINSize(job.0, &mut size) }.result().map_err(|error| failed(&error, &log))?;
    let mut cubin = vec![0u8; size];
    // SAFETY: as many bytes as the compiler asked for.
    unsafe { sys::nvrtcGetCUBIN(job.0, cubin.as_mut_ptr().cast()) }
        .result()
        .map_err(|error| failed(&error, &log))?;
    Ok(Compiled { cubin, log })
}

fn text_of(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|&byte| byte as u8).collect();
    let text = CStr::from_bytes_until_nul(&bytes).map(CStr::to_string_lossy);
    text.map(|text| text.into_owned()).unwrap_or_default()
}
