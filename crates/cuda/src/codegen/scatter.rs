//! Scattered sums.

use tilewright_ir::{DType, Result};
use tilewright_plan::{ScatterAdd, Table};

use super::launch::{Launch, Lowering, Source, unsupported};
use super::parameters::Parameters;
use super::region::Site;
use super::types::{element, loaded, stored};

const ENGINE: &str = include_str!("../engines/scatter.cuh");

/// Rows and columns that a block owns, and updates that it has room for.
const ROWS: usize = 32;
const COLUMNS: usize = 256;
const LIST: usize = 2048;

/// So many blocks keep a GPU busy: where there are fewer, updates are cut into parts. A number of the engine's, not of
/// a GPU's, so that results do not depend on which it is.
const ENOUGH_BLOCKS: usize = 528;

/// Bytes that the sums of parts may take.
const PARTS: usize = 64 << 20;

pub(super) fn lower(scatter: &ScatterAdd, lowering: &mut Lowering) -> Result<()> {
    let ScatterAdd { space, indexed, tail, indices, dtype, updates, output, origin } = scatter;
    let sum = match dtype {
        DType::F64 => "double",
        DType::F32 | DType::BF16 | DType::F16 => "float",
        DType::I64 | DType::I32 | DType::U8 => "unsigned long long",
        DType::Bool => return Err(unsupported("a sum of truth values")),
    };
    let [count, rows, columns] = [space, indexed, tail].map(|extents| extents.iter().product::<usize>());
    let blocks = rows.div_ceil(ROWS) * columns.div_ceil(COLUMNS);
    let parts =
        (ENOUGH_BLOCKS / blocks.max(1)).min(count / LIST).min(PARTS / (8 * rows * columns).max(1)).max(1);
    let targets = lowering.scratch(8 * count);
    let sums = lowering.scratch(if parts > 1 { 8 * parts * rows * columns } else { 0 });
    let mut parameters = Parameters::default();
    for (name, value) in [("updates_count", count), ("rows", rows), ("columns", columns), ("parts", parts)] {
        parameters.integer(name, value as i64);
    }
    for (name, extents) in [("space", space), ("indexed", indexed), ("tail", tail)] {
        parameters.integers(name, extents.iter().map(|&extent| extent as i64));
    }
    parameters.view("updates", updates, *dtype, false);
    parameters.view("output", output, *dtype, true);
    parameters.scratch("long long", "targets", targets);
    parameters.scratch("unsigned char", "sums", sums);
    parameters.faults(lowering.program.sites.len());
    let mut target = String::new();
    for (axis, (view, dtype)) in indices.iter().enumerate() {
        let name = format!("index_{axis}");
        parameters.view(&name, view, *dtype, false);
        let places: String =
            (0..space.len()).map(|i| format!(" + position_{i} * p.{name}_strides[{i}]")).collect();
        let read = loaded(*dtype, &format!("p.{name}[0{places}]"));
        target += &format!(
            "    at = 0;\n    locate({read}, p.indexed[{axis}], 1, {axis}, inside, at, fault);\n    \
             row = row * p.indexed[{axis}] + at;\n"
        );
        let name = "the array that is read".into();
        let table =
            Table { view: view.clone(), dtype: *dtype, shape: indexed.clone(), name, origin: origin.clone() };
        lowering.program.sites.push(Site { table, axis });
    }
    let positions = |number: &str, extents: &str, count: usize| -> String {
        (0..count)
            .rev()
            .map(|axis| match axis {
                0 => format!("    long long position_0 = {number};\n"),
                _ => format!(
                    "    long long position_{axis} = {number} % p.{extents}[{axis}];\n    \
                     {number} /= p.{extents}[{axis}];\n"
                ),
            })
            .collect()
    };
    let place = |axes: std::ops::Range<usize>| -> String {
        let terms = axes.enumerate().map(|(i, axis)| format!(" + position_{i} * p.updates_strides[{axis}]"));
        format!("    return 0{};\n}}\n", terms.collect::<String>())
    };
    let ty = element(*dtype);
    let text = format!(
        "typedef {sum} Sum;\ntypedef {ty} Word;\n\
         DEVICE Sum value_of({ty} x) {{ return {}; }}\n\
         DEVICE {ty} rounded(Sum x) {{ return {}; }}\n\
         // The row that an update goes to.\n\
         DEVICE long long target_of(const Parameters& p, long long update, bool& inside, Fault& fault) {{\n\
         {}    long long at = 0, row = 0;\n{target}    return row;\n}}\n\
         // Where an update's row of elements begins, and where a column lies in it.\n\
         DEVICE long long update_place(const Parameters& p, long long update) {{\n{}{}\
         DEVICE long long column_place(const Parameters& p, long long column) {{\n{}{}",
        loaded(*dtype, "x"),
        stored(*dtype, "x"),
        positions("update", "space", space.len()),
        positions("update", "space", space.len()),
        place(0..space.len()),
        positions("column", "tail", tail.len()),
        place(space.len()..space.len() + tail.len()),
    );
    let comment = "sums of updates at computed rows.";
    let mut launches = vec![("scatter_targets", count.div_ceil(256), 0)];
    if count < blocks {
        // Each update looks at all updates once, where each block of rows would.
        launches.push(("scatter_clear", (rows * columns).div_ceil(1024).min(1 << 16), 0));
        launches.push(("scatter_few", count.div_ceil(8), 0));
    } else {
        launches.push(("scatter_add", blocks * parts, 5 * LIST + 64));
    }
    if parts > 1 {
        launches.push(("scatter_parts", (rows * columns).div_ceil(256), 0));
    }
    for (entry, blocks, shared_bytes) in launches {
        let source = Source::new(entry, comment, &parameters, &text, &[ENGINE]);
        let arguments = parameters.arguments.clone();
        lowering.launch(Launch { source, blocks, threads: 256, shared_bytes, arguments });
    }
    Ok(())
}
