//! Measurements as a table, as JSON lines, and as bar charts.

use std::path::Path;

use serde_json::json;
use tilewright_cpu::{Isa, ceiling};
use tilewright_pictures::{Group, bar_chart};

use crate::peer::Answer;

/// One case, measured.
pub struct Row {
    /// Which chart it belongs to.
    pub chart: String,
    /// What was measured.
    pub case: String,
    /// Element type.
    pub dtype: &'static str,
    /// `forward`, `backward` or both.
    pub direction: &'static str,
    /// What one call does, in the unit of the limit: floating-point operations, or bytes.
    pub work: f64,
    /// Seconds of each repeat.
    pub times: Vec<f64>,
    /// Against which other case of the project it is held, with that case's median seconds.
    pub baseline: Option<f64>,
    /// What the peers took.
    pub peers: Vec<(String, Answer)>,
}

/// Which limit of the machine the rows are held against.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Multiply-adds.
    Arithmetic,
    /// Copying memory.
    Memory,
}

/// Rows as they come in.
pub struct Report {
    json: bool,
    arithmetic: f64,
    memory: f64,
    rows: Vec<(Limit, Row)>,
}

/// The middle one of some times.
pub fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Greatest over least time.
fn spread(times: &[f64]) -> f64 {
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    times.iter().copied().fold(0.0, f64::max) / least
}

impl Report {
    /// Measures the machine's limits and prints them.
    pub fn new(json: bool, threads: usize) -> Report {
        let arithmetic = ceiling::multiply_add_rate(Isa::preferred(), threads);
        let memory = ceiling::copy_rate(threads);
        if !json {
            println!(
                "{} threads, {}: multiply-adds {:.0} GFLOP/s, copy {:.1} GB/s (read and written)\n",
                threads,
                Isa::preferred().name(),
                arithmetic / 1e9,
                memory / 1e9
            );
        }
        Report { json, arithmetic, memory, rows: Vec::new() }
    }

    /// Prints a row and keeps it for the charts.
    pub fn add(&mut self, limit: Limit, row: Row) {
        let seconds = median(&row.times);
        let rate = row.work / seconds;
        let peak = if limit == Limit::Arithmetic { self.arithmetic } else { self.memory };
        let overhead = row.baseline.map(|baseline| seconds / baseline);
        if self.json {
            let mut line = json!({
                "case": row.case, "dtype": row.dtype, "direction": row.direction, "ms": seconds * 1e3,
                "peak_fraction": rate / peak, "overhead": overhead, "spread": spread(&row.times),
            });
            line[if limit == Limit::Arithmetic { "gflops" } else { "gbps" }] = (rate / 1e9).into();
            if row.peers.is_empty() {
                println!("{line}");
            }
            for (peer, answer) in &row.peers {
                let mut line = line.clone();
                line["peer"] = peer.as_str().into();
                match answer {
                    Ok(times) => {
                        line["ratio"] = (median(times) / seconds).into();
                        line["peer_ms"] = (median(times) * 1e3).into();
                        line["peer_spread"] = spread(times).into();
                    }
                    Err(error) => line["peer_error"] = error.as_str().into(),
                }
                println!("{line}");
            }
        } else {
            let unit = if limit == Limit::Arithmetic { "GFLOP/s" } else { "GB/s" };
            print!(
                "{:<38} {:>4} {:<8} {:>9.3} ms {:>7.1} {unit} {:>4.0} % of limit  spread {:.2}",
                row.case,
                row.dtype,
                row.direction,
                seconds * 1e3,
                rate / 1e9,
                100.0 * rate / peak,
                spread(&row.times)
            );
            if let Some(overhead) = overhead {
                print!("  x{overhead:.3} of plain");
            }
            for (peer, answer) in &row.peers {
                match answer {
                    Ok(times) => print!(
                        "  | {peer} {:.3} ms: {:.2}x (spread {:.2})",
                        median(times) * 1e3,
                        median(times) / seconds,
                        spread(times)
                    ),
                    Err(error) => print!("  | {peer}: {error}"),
                }
            }
            println!();
        }
        self.rows.push((limit, row));
    }

    /// Writes a bar chart for each group of rows.
    pub fn finish(self, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
        std::fs::create_dir_all(folder)?;
        let mut charts: Vec<&str> = self.rows.iter().map(|(_, row)| row.chart.as_str()).collect();
        charts.dedup();
        for chart in charts {
            let rows: Vec<&(Limit, Row)> = self.rows.iter().filter(|(_, row)| row.chart == chart).collect();
            let mut names = vec!["tilewright".to_owned()];
            for (peer, _) in rows.iter().flat_map(|(_, row)| &row.peers) {
                if !names.contains(peer) {
                    names.push(peer.clone());
                }
            }
            let groups: Vec<Group> = rows
                .iter()
                .map(|(_, row)| {
                    let rate = |times: &[f64]| row.work / median(times) / 1e9;
                    let of = |name: &String| {
                        let answer = row.peers.iter().find(|(peer, _)| peer == name);
                        answer.and_then(|(_, answer)| answer.as_ref().ok()).map(|times| rate(times))
                    };
                    let values =
                        std::iter::once(Some(rate(&row.times))).chain(names[1..].iter().map(of)).collect();
                    Group { name: row.case.clone(), values }
                })
                .collect();
            let unit = if rows[0].0 == Limit::Arithmetic { "GFLOP/s" } else { "GB/s" };
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let file = folder.join(format!("{}.png", chart.replace([' ', ','], "_")));
            bar_chart(&file, chart, unit, &names, &groups)?;
        }
        if !self.json {
            println!("\ncharts are in {}", folder.display());
        }
        Ok(())
    }
}
