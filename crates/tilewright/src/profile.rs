//! Where the time of a run went, kernel by kernel.

use std::fmt;
use std::time::Duration;

use tilewright_plan::Plan;

use crate::explain::{describe, duration};

/// The kernels of one run, in order, with their times. Displays as a table, equal kernels added up, the dearest
/// first; [`Profile::to_chrome_trace`] is for a trace viewer.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// One for each kernel.
    pub spans: Vec<Span>,
}

/// One kernel of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What it is, as `explain` says it.
    pub kernel: String,
    /// When it began, after the run did.
    pub start: Duration,
    /// How long it ran.
    pub time: Duration,
}

impl Profile {
    pub(crate) fn new(plan: &Plan, spans: &[(Duration, Duration)]) -> Profile {
        let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let span = |(kernel, &(start, time))| Span { kernel: first_line(describe(kernel)), start, time };
        Profile { spans: plan.kernels.iter().zip(spans).map(span).collect() }
    }

    /// Of the steps of a run on a GPU: each plan's kernel, the GPU's kernel that ran for it, and milliseconds.
    pub(crate) fn on_gpu(plan: &Plan, steps: Vec<(usize, String, f32)>) -> Profile {
        let mut start = Duration::ZERO;
        let span = |(kernel, name, milliseconds): (usize, String, f32)| {
            let time = Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3);
            let described = plan.kernels.get(kernel).map(describe).unwrap_or_default();
            let kernel = format!("{}: {name}", described.lines().next().unwrap_or_default());
            let span = Span { kernel, start, time };
            start += time;
            span
        };
        Profile { spans: steps.into_iter().map(span).collect() }
    }

    /// Time in all kernels.
    pub fn total(&self) -> Duration {
        self.spans.iter().map(|span| span.time).sum()
    }

    /// The run in the format of Chrome's and Perfetto's trace viewers.
    pub fn to_chrome_trace(&self) -> String {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let events: Vec<String> = self
            .spans
            .iter()
            .map(|span| {
                let name = span.kernel.replace('\\', "\\\\").replace('"', "\\\"");
                let (start, time) = (micros(span.start), micros(span.time));
                format!(r#"{{"name":"{name}","ph":"X","ts":{start:.3},"dur":{time:.3},"pid":1,"tid":1}}"#)
            })
            .collect();
        format!("{{\"traceEvents\":[{}]}}\n", events.join(",\n"))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: Vec<(&str, usize, Duration)> = Vec::new();
        for span in &self.spans {
            match kinds.iter_mut().find(|(kernel, ..)| *kernel == span.kernel) {
                Some((_, count, time)) => {
                    *count += 1;
                    *time += span.time;
                }
                None => kinds.push((&span.kernel, 1, span.time)),
            }
        }
        kinds.sort_by_key(|&(_, _, time)| std::cmp::Reverse(time));
        let total = self.total().as_secs_f64().max(1e-12);
        writeln!(f, "{} kernels, {}", self.spans.len(), duration(self.total()))?;
        for (kernel, count, time) in kinds {
            let share = 100.0 * time.as_secs_f64() / total;
            writeln!(f, "{share:5.1} %  {:>9}  ×{count:<3} {kernel}", duration(time))?;
        }
        Ok(())
    }
}
