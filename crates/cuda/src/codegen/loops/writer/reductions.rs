//! The text of a phase's reductions: what each begins with, how threads and parts combine theirs, and what comes of it.

use tilewright_ir::Binary;

use super::*;

impl Writer<'_> {
    /// What each reduction of a phase begins with.
    pub(super) fn partials(&mut self, phase: &Phase) {
        for (number, kind, result) in reductions(phase) {
            let of = phase.program.kind(result);
            let ty = partial_type(kind, of);
            let start = match kind {
                RowReduction::Sum => "0",
                RowReduction::Prod => "1",
                RowReduction::Max => least(of),
                RowReduction::Min => greatest(of),
                RowReduction::ArgMax => "{0, -1}",
            };
            if self.is_across() {
                self.line(3, format!("{ty} partial_{number}[RUN];"));
                self.line(0, "#pragma unroll");
                let start = if kind == RowReduction::ArgMax { format!("{ty}{start}") } else { start.into() };
                self.line(3, format!("for (int j = 0; j < RUN; ++j) partial_{number}[j] = {start};"));
            } else {
                self.line(3, format!("{ty} partial_{number} = {start};"));
            }
        }
    }

    /// Where the reduction of a part of a row, or of a run of rows, is kept.
    fn part(&self, number: usize, ty: &str, part: &str) -> String {
        match self.cut.style {
            Style::Across { .. } => {
                format!("(({ty}*)p.part_{number})[((long long){part} * p.units + unit) * RUN + j]")
            }
            Style::Along { .. } => format!("(({ty}*)p.part_{number})[(long long)unit * p.parts + {part}]"),
        }
    }

    /// The first phase's reductions, from those of the parts.
    pub(super) fn parts(&mut self, phase: &Phase, ranks: usize) {
        self.line(0, "#pragma unroll 8");
        self.line(3, format!("for (Index part = rank; part < p.parts; part += {ranks}) {{"));
        for (number, kind, result) in reductions(phase) {
            let of = phase.program.kind(result);
            if self.is_across() {
                self.line(0, "#pragma unroll");
                self.line(4, "for (int j = 0; j < RUN; ++j) {");
                let partial = format!("partial_{number}[j]");
                let part = self.part(number, &partial_type(kind, of), "part");
                self.line(5, format!("{partial} = {};", combined(kind, of, &partial, &part)));
                self.line(4, "}");
            } else {
                let partial = format!("partial_{number}");
                let part = self.part(number, &partial_type(kind, of), "part");
                self.line(4, format!("{partial} = {};", combined(kind, of, &partial, &part)));
            }
        }
        self.line(3, "}");
    }

    /// What the partial results of a phase's reductions come to.
    pub(super) fn reduced(&mut self, phase: &Phase) {
        for (i, kind, result) in reductions(phase) {
            let of = phase.program.kind(result);
            let ty = partial_type(kind, of);
            let part = self.part(i, &ty, "part");
            let function =
                format!("[]({ty} x, {ty} y) -> {ty} {{ return {}; }}", combined(kind, of, "x", "y"));
            let Sink::Reduce { scalar, .. } = &phase.sinks[i] else { continue };
            let position = if kind == RowReduction::ArgMax { ".position" } else { "" };
            match self.cut.style {
                Style::Along { team } => {
                    self.line(3, format!("{ty} total_{i} = reduce_team<{team}>(partial_{i}, {function});"));
                    if self.stage == Stage::Parts {
                        self.line(3, format!("if (there && rank == 0) {part} = total_{i};"));
                    } else {
                        self.line(3, format!("scalar_{scalar} = total_{i}{position};"));
                    }
                }
                Style::Across { warps } => {
                    self.line(0, "#pragma unroll");
                    self.line(3, "for (int j = 0; j < RUN; ++j) {");
                    self.line(4, format!("{ty} total = reduce_warps<{warps}>(partial_{i}[j], {function});"));
                    if self.stage == Stage::Parts {
                        self.line(4, format!("if (there && rank == 0) {part} = total;"));
                    } else {
                        self.line(4, format!("scalar_{scalar}[j] = total{position};"));
                    }
                    self.line(3, "}");
                }
            }
        }
        // Rows may be read where other threads of the team wrote them.
        if self.cut.held.is_none()
            && self.team() > 1
            && phase.sinks.iter().any(|sink| matches!(sink, Sink::RowValue(_)))
        {
            self.line(3, "sync_threads();");
        }
    }
}

/// The reductions of a phase: the sink's number, how, and of which result.
fn reductions(phase: &Phase) -> Vec<(usize, RowReduction, Register)> {
    let sinks = phase.sinks.iter().zip(&phase.program.results).enumerate();
    sinks
        .filter_map(|(number, (sink, &result))| match sink {
            Sink::Reduce { kind, .. } => Some((number, *kind, result)),
            Sink::Store { .. } | Sink::RowScalar(_) | Sink::RowValue(_) => None,
        })
        .collect()
}

/// The type of a reduction while it is made.
fn partial_type(kind: RowReduction, of: Kind) -> String {
    match kind {
        RowReduction::ArgMax => format!("Greatest<{}>", register(of)),
        RowReduction::Sum | RowReduction::Prod | RowReduction::Max | RowReduction::Min => register(of).into(),
    }
}

/// Two partial results as one.
pub(super) fn combined(kind: RowReduction, of: Kind, x: &str, y: &str) -> String {
    let function = match kind {
        RowReduction::Sum => Binary::Add,
        RowReduction::Prod => Binary::Mul,
        RowReduction::Max => Binary::Max,
        RowReduction::Min => Binary::Min,
        RowReduction::ArgMax => return format!("greater({x}, {y})"),
    };
    region::binary(function, of, x, y)
}

fn least(kind: Kind) -> &'static str {
    match kind {
        Kind::F64 => "-infinity<double>()",
        Kind::F32 => "-infinity<float>()",
        Kind::I64 => "-9223372036854775807ll - 1",
        Kind::I32 => "-2147483647 - 1",
        Kind::Bool => "false",
    }
}

fn greatest(kind: Kind) -> &'static str {
    match kind {
        Kind::F64 => "infinity<double>()",
        Kind::F32 => "infinity<float>()",
        Kind::I64 => "9223372036854775807ll",
        Kind::I32 => "2147483647",
        Kind::Bool => "true",
    }
}
