//! The text: bytes of real files, split in a part to learn from and a part that is held out.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use tilewright_examples::Splitmix;

/// A text as bytes, in two parts.
pub struct Text {
    pub training: Vec<u8>,
    pub held_out: Vec<u8>,
}

/// Endings of the files that are read where a folder is given.
const ENDINGS: [&str; 6] = ["rs", "md", "py", "toml", "txt", "ir"];

impl Text {
    /// Reads a file, or every source file below a folder in the order of their names. Every tenth stretch of 4096
    /// bytes is held out, so that both parts hold all kinds of files.
    pub fn read(path: &Path) -> io::Result<Text> {
        let mut files = Vec::new();
        collect(path, &mut files)?;
        files.sort();
        let mut bytes = Vec::new();
        for file in &files {
            bytes.extend(std::fs::read(file)?);
        }
        let (mut training, mut held_out) = (Vec::new(), Vec::new());
        for (i, stretch) in bytes.chunks(4096).enumerate() {
            if i % 10 == 9 { held_out.extend(stretch) } else { training.extend(stretch) }
        }
        Ok(Text { training, held_out })
    }

    /// The training windows of a step: they depend on the seed and the step only, so that a resumed run sees the same.
    pub fn batch(&self, seed: u64, step: usize, windows: usize, length: usize) -> Vec<i32> {
        let mut random = Splitmix(seed ^ (step as u64).wrapping_mul(0xD134_2543_DE82_EF95));
        let last = self.training.len() - length;
        (0..windows)
            .flat_map(|_| {
                let start = random.below(last + 1);
                self.training[start..start + length].iter().map(|&byte| byte as i32)
            })
            .collect()
    }

    /// Held-out windows, evenly spread, that together measure about `windows · length` bytes.
    pub fn held_out_windows(&self, windows: usize, length: usize) -> Vec<Vec<i32>> {
        let last = self.held_out.len() - length;
        (0..windows)
            .map(|i| {
                let start = last * i / windows.max(1);
                self.held_out[start..start + length].iter().map(|&byte| byte as i32).collect()
            })
            .collect()
    }
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let source = path.extension().and_then(|e| e.to_str()).is_some_and(|e| ENDINGS.contains(&e));
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "runs" {
            collect(&path, files)?;
        } else if path.is_file() && source {
            files.push(path);
        }
    }
    Ok(())
}

/// Bits per byte of the held-out text under a byte-trigram model of the training text, interpolated with bigrams,
/// unigrams and the uniform distribution after Witten and Bell (1991).
pub fn trigram_bits_per_byte(text: &Text) -> f64 {
    let mut counts: [HashMap<u32, HashMap<u8, u32>>; 3] = Default::default();
    let context = |bytes: &[u8], i: usize, order: usize| {
        bytes[i - order..i].iter().fold(order as u32, |key, &byte| key << 8 | byte as u32)
    };
    for i in 2..text.training.len() {
        for (order, table) in counts.iter_mut().enumerate() {
            *table
                .entry(context(&text.training, i, order))
                .or_default()
                .entry(text.training[i])
                .or_default() += 1;
        }
    }
    let mut bits = 0.0;
    for i in 2..text.held_out.len() {
        let mut probability = 1.0 / 256.0;
        for (order, table) in counts.iter().enumerate() {
            if let Some(seen) = table.get(&context(&text.held_out, i, order)) {
                let total: u32 = seen.values().sum();
                let kinds = seen.len() as f64;
                let count = seen.get(&text.held_out[i]).copied().unwrap_or(0) as f64;
                probability = (count + kinds * probability) / (total as f64 + kinds);
            }
        }
        bits -= probability.log2();
    }
    bits / (text.held_out.len() - 2) as f64
}
