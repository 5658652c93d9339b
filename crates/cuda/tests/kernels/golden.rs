//! The generated part of kernels' text, as golden files: what stands above an engine. `TILEWRIGHT_BLESS=1`
//! rewrites them.

use std::fs;
use std::path::Path;

use tilewright_cuda::codegen::{Source, Step};
use tilewright_ir::DType;

use crate::case::{Case, SMALL};
use crate::table::{MASKS, SCORES};

/// The text between the arithmetic that every kernel begins with and the engine by hand.
fn generated(source: &Source) -> &str {
    let comment = source.body.find("\n// What this kernel does:").map_or(0, |at| at + 1);
    let rest = &source.body[comment..];
    rest.split("\n// Engine.\n").next().unwrap_or(rest)
}

#[test]
fn generated_text() {
    for (file, dtype, score, mask) in [
        ("relative_causal_bf16", DType::BF16, "relative", Some(0)),
        ("window_table_documents_f32", DType::F32, "window table", Some(3)),
        ("pair_f16", DType::F16, "pair", None),
    ] {
        let score = SCORES.iter().find(|known| known.name == score).expect("a score function of the table");
        let case = Case::of(dtype, SMALL, score, mask.map(|mask: usize| &MASKS[mask]));
        let mut text = String::new();
        for (_, step) in &case.program.steps {
            match step {
                Step::Zero { bytes, .. } => text += &format!("zero {bytes} bytes\n\n"),
                Step::Launch(launch) => {
                    text += &format!(
                        "launch {} on {} blocks of {} threads, {} bytes of shared memory\n\n{}\n",
                        launch.source.entry,
                        launch.blocks,
                        launch.threads,
                        launch.shared_bytes,
                        generated(&launch.source)
                    );
                }
            }
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{file}.cu"));
        if std::env::var_os("TILEWRIGHT_BLESS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert!(golden == text, "{} differs from what is generated:\n{text}", path.display());
    }
}

/// Lengths, strides and a user's numbers are parameters: no kernel is compiled again for another length.
#[test]
fn text_does_not_change_with_lengths() {
    for score in SCORES.iter().filter(|score| score.name != "graph distance" && score.name != "large table") {
        let bodies = |queries, keys| -> Vec<String> {
            let sizes = crate::case::Sizes { batch: 3, queries, keys, ..SMALL };
            let sizes = crate::case::Sizes { key_batch: 3, ..sizes };
            let case = Case::of(DType::BF16, sizes, score, Some(&MASKS[1]));
            let launches = case.program.steps.iter().filter_map(|(_, step)| match step {
                Step::Launch(launch) => Some(launch.source.body.clone()),
                Step::Zero { .. } => None,
            });
            launches.collect()
        };
        assert!(bodies(64, 128) == bodies(96, 80), "{}", score.name);
    }
}
