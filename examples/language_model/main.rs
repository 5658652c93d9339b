//! Trains a small language model on the bytes of real text, by one compiled function, on the CPU or a GPU.
//!
//! `cargo run --release --example language_model`: by default on this repository's own source. The model has no
//! position embedding: what it knows of order is one bias for each layer, head and distance, which begins as a
//! slope and is learned. At the end it is compared, on held-out text, with a byte-trigram model and with the same
//! model without biases.

mod data;
mod pictures;
mod training;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;

use data::{Text, trigram_bits_per_byte};
use tilewright::Device;
use tilewright_examples::gpt::{Config, Kind};
use training::{Outcome, Run, train};

/// Trains a byte-level language model with learned attention biases.
#[derive(Debug, Parser)]
#[command(name = "language_model")]
pub struct Arguments {
    /// A text, or a folder whose source files are read; this repository where not given.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Training steps of each model.
    #[arg(long, default_value_t = 400)]
    steps: usize,
    /// How each layer mixes positions.
    #[arg(long, value_delimiter = ',', default_value = "attention,attention,attention,attention")]
    layers: Vec<Kind>,
    /// Trains the model without biases only.
    #[arg(long)]
    no_bias: bool,
    /// Goes on from the checkpoints in the output folder, to the same result bit for bit.
    #[arg(long)]
    resume: bool,
    /// Where weights, checkpoints and pictures go.
    #[arg(long, default_value = "runs/language_model")]
    out: PathBuf,
    /// A smaller model and less held-out text, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Windows of text in each step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Greatest learning rate.
    #[arg(long, default_value_t = 4e-3)]
    rate: f64,
    /// Seed of weights, data order and sampling.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it runs: `cpu`, `cuda`, `cuda:1`, …
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Writes where the time of a step goes, for a trace viewer (Chrome's or Perfetto).
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Prints what the training step was compiled to.
    #[arg(long)]
    explain: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;
    std::fs::create_dir_all(&arguments.out)?;
    arguments.device.check()?;

    let repository =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the examples stand in the repository");
    let path = arguments.text.clone().unwrap_or_else(|| repository.to_owned());
    let text = Text::read(&path)?;
    let config = match arguments.quick {
        false => {
            Config { layers: arguments.layers.clone(), heads: 4, width: 128, context: 256, biases: true }
        }
        true => Config { layers: arguments.layers.clone(), heads: 2, width: 32, context: 64, biases: true },
    };
    if text.training.len().min(text.held_out.len()) <= config.context + 1 {
        let size = text.training.len() + text.held_out.len();
        return Err(
            format!("{}: {size} bytes are too few to train on and to hold some out", path.display()).into()
        );
    }
    println!(
        "{}: {} bytes to learn from, {} held out",
        path.display(),
        text.training.len(),
        text.held_out.len()
    );

    let with = |biases: bool| Run {
        name: if biases { "biases" } else { "no_biases" },
        config: Config { biases, ..config.clone() },
        text: &text,
        arguments,
        stop: &stop,
    };
    let mut outcomes = Vec::new();
    for biases in if arguments.no_bias { vec![false] } else { vec![true, false] } {
        match train(&with(biases))? {
            Some(outcome) => outcomes.push(outcome),
            None => {
                println!("stopped; `--resume` goes on from the checkpoint in {}", arguments.out.display());
                return Ok(());
            }
        }
    }
    report(&outcomes, &text, arguments)
}

fn report(
    outcomes: &[Outcome],
    text: &Text,
    arguments: &Arguments,
) -> Result<(), Box<dyn std::error::Error>> {
    println!("\nheld-out text, bits per byte");
    println!("  {:<34} {:.3}", "byte trigrams (Witten-Bell)", trigram_bits_per_byte(text));
    for outcome in outcomes {
        let what =
            if outcome.name == "biases" { "learned relative biases" } else { "the same without biases" };
        println!("  {what:<34} {:.3}", outcome.held_out_bits);
    }
    pictures::draw(outcomes, &arguments.out)?;
    println!("\na sample:\n{}", outcomes[0].sample);
    println!("\nweights, checkpoints and pictures are in {}", arguments.out.display());
    Ok(())
}
