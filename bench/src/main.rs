//! Measures the project and its peers in turn, in one run, beside the limits of the machine.
//!
//! `cargo xtask bench attention | scan | model [--peer torch,jax] [--json] [--filter TEXT]`. Times are medians of several
//! repeats with the spread beside them; the machine's limits are measured in the same run.

mod attention;
mod model;
mod peer;
mod report;
mod scan;
mod sparse;

use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, Subcommand};

use crate::peer::Peers;
use crate::report::Report;

/// Measures Tilewright beside its peers.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Peers to measure beside: torch, jax.
    #[arg(long, global = true, value_delimiter = ',')]
    peer: Vec<String>,
    /// Prints one JSON object a line instead of a table.
    #[arg(long, global = true)]
    json: bool,
    /// Measures only the cases whose name holds this text.
    #[arg(long, global = true, default_value = "")]
    filter: String,
    /// How often each case is repeated.
    #[arg(long, global = true, default_value_t = 7)]
    repeats: usize,
    /// Threads of project and peers.
    #[arg(long, global = true, default_value_t = 2)]
    threads: usize,
    /// Where bar charts go.
    #[arg(long, global = true, default_value = "runs/bench")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Attention, with and without learned biases, forward and backward; long and sparse; of few queries.
    Attention,
    /// Scans over the shapes that matter.
    Scan,
    /// A training step of the language model.
    Model,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let mut peers = Peers::start(&arguments.peer)?;
    let mut report = Report::new(arguments.json, arguments.threads);
    match arguments.what {
        What::Attention => {
            attention::measure(&arguments, &mut peers, &mut report)?;
            sparse::measure(&arguments, &mut report)?;
        }
        What::Scan => scan::measure(&arguments, &mut peers, &mut report)?,
        What::Model => model::measure(&arguments, &mut peers, &mut report)?,
    }
    report.finish(&arguments.out)
}

/// Seconds of each of `repeats` calls, after one that is not counted.
fn timed<E>(repeats: usize, mut call: impl FnMut() -> Result<(), E>) -> Result<Vec<f64>, E> {
    call()?;
    (0..repeats.max(1))
        .map(|_| {
            let start = Instant::now();
            call()?;
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}
