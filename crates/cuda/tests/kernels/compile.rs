//! The kernels' text, compiled to machine code by the run-time compiler, for an A100 and for Hopper: it is
//! accepted, nothing spills, and registers stay within the estimate that tiles are chosen by. Needs no GPU.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tilewright_cuda::codegen::{Source, Step, Target, lower};
use tilewright_cuda::driver::compiler;
use tilewright_ir::DType;

use crate::case::{Case, Sizes};
use crate::table::{MASKS, SCORES};
use crate::{nests, scans, whole_plans};

/// Whether there is a compiler; where there is none, says so, unless `TILEWRIGHT_NVRTC` promises one.
fn available() -> bool {
    match compiler::version() {
        Ok(_) => true,
        Err(error) => {
            assert!(std::env::var_os("TILEWRIGHT_NVRTC").is_none(), "promised, but: {error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// The numbers before each place of some words in the assembler's report.
fn numbers_before(log: &str, words: &str) -> Vec<usize> {
    let before = log.match_indices(words).map(|(at, _)| log[..at].trim_end());
    before.filter_map(|text| text.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
}

/// Bytes that a kernel may keep in local memory. In the one pass of the gradient the warps that multiply have 240
/// registers a thread, so that 24 are left for those that walk and copy, who wait for memory most of the time anyway; and
/// there is the path for rows that are not finite, which is hardly ever taken. What is allowed is for these two.
fn spilled_at_most(entry: &str) -> usize {
    if entry == "attention_backward_hopper" { 256 } else { 0 }
}

/// Compiles a kernel, sees that nothing goes by way of local memory, and gives its registers.
fn registers(source: &Source, capability: u32) -> usize {
    let architecture = compiler::architecture(capability);
    let compiled = compiler::compile(&source.text(), &architecture).unwrap();
    let log = &compiled.log;
    assert!(compiled.cubin.starts_with(b"\x7fELF"));
    for words in ["bytes stack frame", "bytes spill stores", "bytes spill loads"] {
        let found = numbers_before(log, words);
        let most = spilled_at_most(&source.entry);
        assert!(!found.is_empty() && found.iter().all(|&bytes| bytes <= most), "{}: {log}", source.entry);
    }
    // Warnings that stand for slow code: products one after the other; register counts that are not obeyed.
    assert!(!log.contains("C7515") && !log.contains("C7508"), "{}: {log}", source.entry);
    let used = log.split("Used ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    used.unwrap_or_else(|| panic!("no report: {log}"))
}

fn check(dtype: DType, size: usize, scores: &[&str], targets: &[Target]) {
    if !available() {
        return;
    }
    let sizes = Sizes {
        batch: 1,
        heads: 1,
        key_batch: 1,
        key_heads: 1,
        queries: 128,
        keys: 128,
        head_size: size,
        value_size: size,
    };
    let mut seen = HashSet::new();
    for name in scores {
        let score = SCORES.iter().find(|score| score.name == *name).expect("a score function of the table");
        let case = Case::of(dtype, sizes, score, Some(&MASKS[0]));
        for target in targets {
            for (_, step) in lower(&case.plan, *target).unwrap().steps {
                let Step::Launch(launch) = step else { continue };
                if seen.insert((launch.source.clone(), target.capability)) {
                    let registers = registers(&launch.source, target.capability);
                    println!(
                        "{dtype} {size} {name}, sm_{}: {} takes {registers}",
                        target.capability, launch.source.entry
                    );
                }
            }
        }
    }
}

#[test]
fn attention_of_common_sizes_takes_registers_only() {
    check(DType::BF16, 64, &["identity"], &[Target::A100, Target::HOPPER]);
    check(DType::BF16, 128, &["identity"], &[Target::A100, Target::HOPPER]);
    check(DType::F16, 256, &["identity"], &[Target::HOPPER]);
    check(DType::F32, 64, &["identity"], &[Target::A100]);
}

#[test]
fn learned_captures_take_registers_only() {
    let names = ["softcap", "head gain", "key bias", "relative", "window table", "pair"];
    check(DType::BF16, 128, &names, &[Target::HOPPER]);
}

#[test]
fn warpgroups_keep_to_their_registers_at_every_head_size() {
    for size in [96, 192] {
        check(DType::BF16, size, &["identity"], &[Target::HOPPER]);
    }
}

#[test]
fn scans_of_common_kinds_take_registers_only() {
    if !available() {
        return;
    }
    let mut seen = HashSet::new();
    for case in scans::tuned() {
        for (_, step) in &case.program.steps {
            let Step::Launch(launch) = step else { continue };
            if launch.source.entry == "scan" && seen.insert(launch.source.clone()) {
                let start = Instant::now();
                let registers = [80, 90].map(|capability| registers(&launch.source, capability));
                println!("{}: {registers:?} registers, in {:?}", case.label, start.elapsed());
            }
        }
    }
}

#[test]
fn held_rows_take_registers_only() {
    if !available() {
        return;
    }
    for case in nests::held() {
        for (_, step) in &case.program.steps {
            let Step::Launch(launch) = step else { continue };
            println!("{}: {} registers", case.label, registers(&launch.source, 90));
        }
    }
}

/// Every kernel of generated programs is accepted; the dearest to compile are named.
#[test]
fn kernels_of_whole_plans_are_accepted() {
    if !available() {
        return;
    }
    // Attention is by far the dearest, and compiled by itself above: two are enough here, and not the widest.
    let attention = whole_plans::attention().drain(1..3).collect();
    let cases = [whole_plans::ordinary(), whole_plans::gradients(), whole_plans::scans(), attention];
    let cases: Vec<_> = cases.into_iter().flatten().collect();
    let steps = cases.iter().flat_map(|case| &case.program.steps);
    let source = |(_, step): &(usize, Step)| match step {
        Step::Launch(launch) => Some(launch.source.clone()),
        Step::Zero { .. } => None,
    };
    let sources: HashSet<_> = steps.filter_map(source).collect();
    let mut times: Vec<_> = sources
        .iter()
        .map(|source| {
            let start = Instant::now();
            compiler::compile(&source.text(), "sm_90a")
                .unwrap_or_else(|error| panic!("{error}\n{}", source.body));
            (start.elapsed(), source.entry.as_str())
        })
        .collect();
    times.sort_unstable();
    let total: Duration = times.iter().map(|(time, _)| *time).sum();
    println!(
        "{} kernels in {total:?}; the dearest: {:?}",
        times.len(),
        &times[times.len().saturating_sub(12)..]
    );
}
