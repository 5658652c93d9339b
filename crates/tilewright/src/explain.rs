//! What a compiled program consists of, for people.

use std::fmt::Write;
use std::time::Duration;

use tilewright_plan::attention::{Attention, AttentionBackward};
use tilewright_plan::{BlockMap, Kernel, Place, Plan, Scan};

use crate::pipeline::Program;

/// Passes with their times, kernels in order (equal neighbours counted), memory, and captured gradients.
pub(crate) fn explain(program: &Program) -> String {
    let Program { traced, simplified, plan, passes, .. } = program;
    let mut text = String::new();
    let counts = (traced.nodes().len(), simplified.nodes().len(), plan.kernels.len());
    line(&mut text, format!("{} ops, {} simplified → {} kernels", counts.0, counts.1, counts.2));
    let inputs: usize = plan.buffers.iter().filter(|b| matches!(b.place, Place::Input(_))).map(bytes).sum();
    let outputs: usize = plan.buffers.iter().filter(|b| matches!(b.place, Place::Output(_))).map(bytes).sum();
    line(
        &mut text,
        format!(
            "memory: {} between kernels, inputs {}, outputs {}",
            size(plan.arena_bytes),
            size(inputs),
            size(outputs)
        ),
    );
    let times: Vec<String> =
        passes.iter().map(|(name, time)| format!("{name} {}", duration(*time))).collect();
    line(&mut text, times.join(", "));
    for (executable, time) in program.executables() {
        let device = executable.device();
        let steps = executable.steps().count();
        let scratch = size(executable.scratch_bytes());
        let (number, name, time) = (device.number, &device.name, duration(time));
        line(
            &mut text,
            format!(
                "cuda:{number} ({name}): {steps} launches, {scratch} of scratch memory, compiled in {time}"
            ),
        );
    }
    let mut kernels: Vec<(String, usize)> = Vec::new();
    for kernel in &plan.kernels {
        let described = describe(kernel);
        match kernels.iter_mut().find(|(earlier, _)| *earlier == described) {
            Some((_, count)) => *count += 1,
            None => kernels.push((described, 1)),
        }
    }
    for (described, count) in kernels {
        let (first, rest) = described.split_once('\n').unwrap_or((&described, ""));
        let times = if count > 1 { format!(" ×{count}") } else { String::new() };
        line(&mut text, format!("{first}{times}"));
        rest.lines().for_each(|reduction| line(&mut text, reduction));
    }
    text
}

fn line(text: &mut String, line: impl AsRef<str>) {
    text.push_str(line.as_ref());
    text.push('\n');
}

fn bytes(buffer: &tilewright_plan::Buffer) -> usize {
    buffer.elements * buffer.dtype.size()
}

fn size(bytes: usize) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1e-3 { format!("{:.0} µs", seconds * 1e6) } else { format!("{:.1} ms", seconds * 1e3) }
}

fn extents(extents: &[usize]) -> String {
    let extents: Vec<String> = extents.iter().map(usize::to_string).collect();
    if extents.is_empty() { "1".into() } else { extents.join("×") }
}

/// One kernel in a line, with a line for each captured gradient.
pub(crate) fn describe(kernel: &Kernel) -> String {
    match kernel {
        Kernel::Loops(loops) => {
            let instructions: usize = loops.phases.iter().map(|phase| phase.program.instructions.len()).sum();
            format!(
                "loop nest {} rows of {}: {} phases, {instructions} instructions",
                extents(&loops.parallel),
                extents(&loops.row),
                loops.phases.len()
            )
        }
        Kernel::MatMul(product) => format!(
            "matrix product {} {} of {}×{}×{}",
            product.dtype,
            extents(&product.batch),
            product.rows,
            product.depth,
            product.columns
        ),
        Kernel::ScatterAdd(scatter) => format!(
            "scatter-add {} updates into {} {}",
            extents(&scatter.space),
            scatter.dtype,
            extents(&[&scatter.indexed[..], &scatter.tail].concat())
        ),
        Kernel::BlockMap(map) => block_map(map),
        Kernel::AttentionForward(forward) => {
            format!("attention {}", attention(&forward.attention, forward.score.is_some()))
        }
        Kernel::AttentionBackward(backward) => attention_backward(backward),
        Kernel::Scan(scan) => describe_scan(scan),
    }
}

/// A mask that reads no captured array has the same blocks in every call, so they can be counted beforehand.
fn block_map(map: &BlockMap) -> String {
    let text = format!(
        "block map of a mask, {}×{} queries × keys in blocks of {}×{}, for {} batch elements and {} heads",
        map.queries, map.keys, map.query_block, map.key_block, map.batch, map.heads
    );
    if !map.tables.is_empty() {
        return format!("{text}: its live blocks depend on what it captures");
    }
    let kernels = vec![Kernel::BlockMap(BlockMap { slot: 0, ..map.clone() })];
    let plan = Plan { buffers: vec![], kernels, block_maps: 1, arena_bytes: 0 };
    match tilewright_cpu::block_map(&plan, &[]) {
        Ok(blocks) => {
            let (full, partial) = blocks.counts();
            let all = blocks.batch * blocks.heads * blocks.query_blocks * blocks.key_blocks;
            format!("{text}: {} of {all} live ({full} full, {partial} partial)", full + partial)
        }
        Err(error) => format!("{text}: {error}"),
    }
}

fn attention(attention: &Attention, scored: bool) -> String {
    let shape = attention.shape;
    let score = if scored { ", score function" } else { "" };
    let mask = if attention.mask.is_some() { ", mask" } else { "" };
    format!(
        "{} B{} H{} Q{} K{} D{} V{}{score}{mask}",
        attention.dtype,
        shape.batch,
        shape.heads,
        shape.queries,
        shape.keys,
        shape.head_size,
        shape.value_size
    )
}

fn attention_backward(backward: &AttentionBackward) -> String {
    let mut text = format!("attention gradient {}", attention(&backward.attention, backward.joint.is_some()));
    for reduction in &backward.reductions {
        let place = reduction.origin.as_ref().map(|origin| format!(" at {origin}")).unwrap_or_default();
        write!(text, "\n  learned capture read{place} → {}", reduction.reason)
            .expect("writing to a string does not fail");
    }
    for term in &backward.zero_terms {
        let place = term.origin.as_ref().map(|origin| format!(" at {origin}")).unwrap_or_default();
        write!(text, "\n  learned capture read{place} → zero: {}", term.reason)
            .expect("writing to a string does not fail");
    }
    text
}

fn describe_scan(scan: &Scan) -> String {
    let direction = if scan.reverse { ", from the end" } else { "" };
    format!(
        "scan of {} over {}, {} numbers of state{direction}",
        extents(&scan.parallel),
        scan.length,
        scan.state
    )
}
