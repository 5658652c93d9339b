//! Launches: what a device runs, in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use tilewright_ir::{Error, ErrorKind, Result};
use tilewright_plan::{Buffer, Kernel, Plan};

use super::matmul::Product;
use super::parameters::{Argument, Parameters};
use super::region::Site;
use super::{ARITHMETIC, MACHINE, attention, block_map, loops, matmul, scan, scatter};

/// A machine, as far as kernels depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Compute capability: 80 for 8.0.
    pub capability: u32,
    /// Bytes of shared memory that a block may use.
    pub shared_bytes: usize,
}

impl Target {
    /// The NVIDIA A100.
    pub const A100: Target = Target { capability: 80, shared_bytes: 163 << 10 };
    /// The NVIDIA H100 and H200.
    pub const HOPPER: Target = Target { capability: 90, shared_bytes: 227 << 10 };
}

/// The text of a kernel. Two launches of equal text are one compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The kernel's name.
    pub entry: String,
    /// Further functions of the machine, after [`MACHINE`].
    pub instructions: String,
    /// The text after these: what the kernel is, on any machine that has the functions.
    pub body: String,
    /// Whether its blocks stay, and share out what there is to do; they may wait for blocks of greater numbers too, since all
    /// run at once. There are as many as the machine has room for, and a launch's blocks are the most that have something
    /// to do.
    pub all_at_once: bool,
}

impl Source {
    /// A kernel's text: a comment of what it does, constants and functions, then the engine's parts.
    pub(super) fn new(
        entry: &str,
        comment: &str,
        parameters: &Parameters,
        generated: &str,
        engine: &[&str],
    ) -> Arc<Source> {
        let comment = format!("// What this kernel does: {comment}\n");
        let declaration = parameters.declaration();
        let parts = [&[ARITHMETIC, &comment, &declaration, generated, "// Engine."], engine].concat();
        Arc::new(Source {
            entry: entry.into(),
            instructions: String::new(),
            body: parts.join("\n"),
            all_at_once: false,
        })
    }

    /// The same text, with further functions of the machine.
    pub(super) fn with_instructions(self: Arc<Source>, instructions: String) -> Arc<Source> {
        Arc::new(Source { instructions, ..(*self).clone() })
    }

    /// The same text, of a kernel whose blocks all run at once.
    pub(super) fn all_at_once(self: Arc<Source>) -> Arc<Source> {
        Arc::new(Source { all_at_once: true, ..(*self).clone() })
    }

    /// All of the text.
    pub fn text(&self) -> String {
        format!("{MACHINE}\n{}\n{}", self.instructions, self.body)
    }
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel.
    pub source: Arc<Source>,
    /// Blocks of the (one-dimensional) grid.
    pub blocks: usize,
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of shared memory of a block.
    pub shared_bytes: usize,
    /// The fields of the kernel's parameters.
    pub arguments: Vec<Argument>,
}

/// What is done next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A kernel runs.
    Launch(Launch),
    /// Bytes of scratch memory become zero.
    Zero {
        /// The first.
        place: usize,
        /// How many.
        bytes: usize,
    },
}

/// A plan, as a device runs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// What is done, in order; the number says for which of the plan's kernels.
    pub steps: Vec<(usize, Step)>,
    /// For launches of matrix products, by their place in `steps`: the products that a library would do instead.
    pub products: BTreeMap<usize, Vec<Product>>,
    /// Bytes of scratch memory that the steps share.
    pub scratch_bytes: usize,
    /// What each site number in the fault word stands for.
    pub sites: Vec<Site>,
}

impl Program {
    /// The error that a run's fault word stands for, if any: the least `site << 32 | index` of all reads out of
    /// range; all ones where there was none.
    pub fn fault(&self, word: u64) -> Option<Error> {
        fault(&self.sites, word)
    }
}

/// [`Program::fault`], for a program of which only the sites are left.
pub fn fault(sites: &[Site], word: u64) -> Option<Error> {
    let Site { table, axis } = sites.get((word >> 32) as usize)?;
    let index = i64::from(word as u32 as i32);
    let kind = ErrorKind::Index { buffer: table.name.clone(), axis: *axis, index, size: table.shape[*axis] };
    Some(Error::new(kind).at(table.origin.clone()))
}

/// Writes the kernels of a plan.
///
/// # Errors
/// [`ErrorKind::DeviceUnavailable`] for what only the CPU does: attention of `f64`; [`ErrorKind::Limit`] for arrays
/// that are too large.
pub fn lower(plan: &Plan, target: Target) -> Result<Program> {
    let mut lowering = Lowering::new(plan, target);
    for (number, kernel) in plan.kernels.iter().enumerate() {
        lowering.kernel = number;
        lowering.scratch = lowering.kept;
        match kernel {
            Kernel::BlockMap(map) => block_map::lower(map, &mut lowering),
            Kernel::AttentionForward(forward) => attention::forward(forward, &mut lowering)?,
            Kernel::AttentionBackward(backward) => attention::backward(backward, &mut lowering)?,
            Kernel::Loops(nest) => loops::lower(nest, &mut lowering),
            Kernel::MatMul(product) => matmul::lower(product, &mut lowering),
            Kernel::ScatterAdd(scatter) => scatter::lower(scatter, &mut lowering)?,
            Kernel::Scan(scan) => scan::lower(scan, &mut lowering),
        }
    }
    Ok(lowering.program)
}

/// A kernel that the GPU engine has not.
pub(super) fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::DeviceUnavailable {
        device: "CUDA".into(),
        found: what.into(),
        required: "the CPU".into(),
    })
}

/// A program in the making.
pub(super) struct Lowering<'a> {
    pub program: Program,
    pub target: Target,
    /// The plan's buffers.
    pub buffers: &'a [Buffer],
    /// The maps that the plan's kernels make, with the place of each in scratch memory.
    pub block_maps: Vec<Option<(&'a tilewright_plan::BlockMap, usize)>>,
    /// Which of the plan's kernels is lowered.
    kernel: usize,
    /// Bytes of scratch memory that live from kernel to kernel: the block maps.
    kept: usize,
    /// Bytes in use.
    scratch: usize,
}

impl<'a> Lowering<'a> {
    fn new(plan: &'a Plan, target: Target) -> Lowering<'a> {
        let mut lowering = Lowering {
            program: Program::default(),
            target,
            buffers: &plan.buffers,
            block_maps: vec![None; plan.block_maps],
            kernel: 0,
            kept: 0,
            scratch: 0,
        };
        for kernel in &plan.kernels {
            if let Kernel::BlockMap(map) = kernel {
                let place = lowering.scratch(block_map::bytes(map));
                lowering.block_maps[map.slot] = Some((map, place));
            }
        }
        lowering.kept = lowering.scratch;
        lowering
    }

    /// So many bytes of scratch memory for the kernel that is lowered.
    pub fn scratch(&mut self, bytes: usize) -> usize {
        let place = self.scratch;
        self.scratch = (place + bytes).next_multiple_of(256);
        self.program.scratch_bytes = self.program.scratch_bytes.max(self.scratch);
        place
    }

    pub fn zero(&mut self, place: usize, bytes: usize) {
        self.program.steps.push((self.kernel, Step::Zero { place, bytes }));
    }

    /// Appends a launch, in place of which a library may do some products.
    pub fn product(&mut self, products: Vec<Product>, kernel: Launch) {
        if kernel.blocks > 0 && !products.is_empty() {
            self.program.products.insert(self.program.steps.len(), products);
        }
        self.launch(kernel);
    }

    /// Appends a launch, unless it has nothing to do.
    pub fn launch(&mut self, launch: Launch) {
        if launch.blocks > 0 {
            self.program.steps.push((self.kernel, Step::Launch(launch)));
        }
    }
}
