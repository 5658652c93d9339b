//! A program's steps as graphs: captured once for the addresses that a run uses, and launched by one call when a run
//! uses them again, as a training loop does whose memory comes from the pool.

use std::sync::Mutex;

use cudarc::driver::{result, sys};
use tilewright_ir::Result;

use super::Device;
use super::device::{Stream, failed, lock};

/// Addresses that are remembered for each program. More alternate only where a caller holds on to results in some
/// longer pattern.
const KEPT: usize = 8;

/// The graphs of one program, by the addresses of inputs, outputs and scratch memory; the last used is the last.
#[derive(Debug, Default)]
pub(super) struct Graphs(Mutex<Vec<(Vec<u64>, Option<Graph>)>>);

/// A graph, ready to be launched.
#[derive(Debug)]
struct Graph(sys::CUgraphExec);

// SAFETY: a handle of the driver, used under the lock of `Graphs`.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // The driver keeps what is still running; a failure to free leaves nothing to be done.
        // SAFETY: instantiated by `capture`, not used again.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

impl Graphs {
    /// Does what `enqueue` asks a stream for: at first by asking the device's stream, and by a graph from the second
    /// time on that the addresses are the same. The device's context is current.
    pub fn run(
        &self,
        device: &Device,
        addresses: Vec<u64>,
        enqueue: impl Fn(Stream) -> Result<()>,
    ) -> Result<()> {
        let mut kept = lock(&self.0);
        let found = kept.iter().position(|(known, _)| *known == addresses).map(|place| kept.remove(place));
        let graph = match found {
            None => {
                enqueue(device.stream())?;
                None
            }
            Some((_, graph)) => {
                let graph = graph.map_or_else(|| capture(device, &enqueue), Ok)?;
                // SAFETY: both live; the addresses that the graph uses are those of this run.
                unsafe { result::graph::launch(graph.0, device.stream().0) }.map_err(failed)?;
                Some(graph)
            }
        };
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((addresses, graph));
        Ok(())
    }
}

fn capture(device: &Device, enqueue: &impl Fn(Stream) -> Result<()>) -> Result<Graph> {
    // A stream of its own, so that nothing which other threads ask for becomes part of the graph.
    let stream = lock(&device.capturing);
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the device's own stream, which the lock guards.
    unsafe { result::stream::begin_capture(stream.0, mode) }.map_err(failed)?;
    let asked = enqueue(*stream);
    // SAFETY: as above; the capture is ended also where it failed.
    let graph = unsafe { result::stream::end_capture(stream.0) }.map_err(failed);
    asked?;
    let graph = graph?;
    // SAFETY: the graph is whole; it is not needed once there is an executable one.
    let ready = unsafe {
        let ready = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
        let _ = result::graph::destroy(graph);
        ready
    };
    ready.map(Graph).map_err(failed)
}
