//! Which parts of which buffers a kernel reads and writes.

use crate::attention::{Attention, BlockMap};
use crate::loops::{Sink, Source};
use crate::{Kernel, Table, View};

impl Kernel {
    /// The views that it reads, tables included.
    pub fn reads(&self) -> Vec<&View> {
        match self {
            Kernel::Loops(loops) => {
                let sources = loops.phases.iter().flat_map(|phase| loaded(&phase.sources));
                sources.chain(tables(&loops.tables)).collect()
            }
            Kernel::MatMul(product) => vec![&product.left, &product.right],
            Kernel::ScatterAdd(scatter) => std::iter::once(&scatter.updates)
                .chain(scatter.indices.iter().map(|(view, _)| view))
                .collect(),
            Kernel::BlockMap(BlockMap { tables: read, .. }) => tables(read).collect(),
            Kernel::AttentionForward(forward) => attention(&forward.attention).collect(),
            Kernel::AttentionBackward(backward) => attention(&backward.attention)
                .chain([&backward.output, &backward.log_sum_exp, &backward.output_cotangent])
                .chain(&backward.log_sum_exp_cotangent)
                .collect(),
            Kernel::Scan(scan) => loaded(&scan.sources)
                .chain(loaded(&scan.captured))
                .chain(loaded(&scan.result_sources))
                .chain(tables(&scan.tables))
                .collect(),
        }
    }

    /// The views that it writes.
    pub fn writes(&self) -> Vec<&View> {
        match self {
            Kernel::Loops(loops) => loops.phases.iter().flat_map(|phase| stored(&phase.sinks)).collect(),
            Kernel::MatMul(product) => vec![&product.output],
            Kernel::ScatterAdd(scatter) => vec![&scatter.output],
            Kernel::BlockMap(_) => Vec::new(),
            Kernel::AttentionForward(forward) => {
                let others = [&forward.unrounded, &forward.log_sum_exp, &forward.maximum];
                std::iter::once(&forward.output).chain(others.into_iter().flatten()).collect()
            }
            Kernel::AttentionBackward(backward) => {
                let cotangents =
                    [&backward.query_cotangent, &backward.key_cotangent, &backward.value_cotangent];
                let captures = backward.captures.iter().map(|capture| &capture.view);
                cotangents.into_iter().flatten().chain(captures).collect()
            }
            Kernel::Scan(scan) => stored(&scan.sinks).collect(),
        }
    }
}

fn loaded(sources: &[Source]) -> impl Iterator<Item = &View> {
    sources.iter().filter_map(|source| match source {
        Source::Load { view, .. } => Some(view),
        Source::Index(_) | Source::RowScalar(_) | Source::RowValue(_) => None,
    })
}

fn stored(sinks: &[Sink]) -> impl Iterator<Item = &View> {
    sinks.iter().filter_map(|sink| match sink {
        Sink::Store { view, .. } => Some(view),
        Sink::Reduce { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => None,
    })
}

fn tables(tables: &[Table]) -> impl Iterator<Item = &View> {
    tables.iter().map(|table| &table.view)
}

fn attention(attention: &Attention) -> impl Iterator<Item = &View> {
    [&attention.query, &attention.key, &attention.value].into_iter().chain(tables(&attention.tables))
}
