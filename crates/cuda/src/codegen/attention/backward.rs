//! The gradient of attention: which passes there are, and what each sums.

mod gains;
mod one_pass;

use tilewright_ir::Result;
use tilewright_plan::AttentionBackward;
use tilewright_plan::attention::{AttentionShape, CaptureReduction, ReductionKey};

use super::captures::{self, By, Order, Total};
use super::indices::{Apart, apart};
use super::*;

const DELTA: &str = include_str!("../../engines/attention/delta.cuh");
const PAIRS: &str = include_str!("../../engines/attention/pairs.cuh");
const TURNS: &str = include_str!("../../engines/attention/turns.cuh");
const SUMS: &str = include_str!("../../engines/attention/sums.cuh");
const BY_KEYS: &str = include_str!("../../engines/attention/backward_keys.cuh");
const BY_QUERIES: &str = include_str!("../../engines/attention/backward_queries.cuh");
const BY_PAIRS: &str = include_str!("../../engines/attention/backward_pairs.cuh");

/// Elements of a table that each warp of the pass over queries keeps a copy of.
const TABLE_ELEMENTS: usize = 1024;

/// Bytes that the copies of one array may take, unless one copy takes more.
const COPIES: usize = 64 << 20;

/// Lanes of work at most, where each has a copy of an array.
const LANES: usize = 264;

/// Terms of one pass: each takes registers.
const TERMS: usize = 4;

/// Where a reduction is summed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    /// In the pass over keys, by row.
    Keys,
    /// In the pass over queries: by row, by head, along diagonals, in a table.
    Queries(Class),
    /// In a pass of its own, in place.
    Owned(Apart),
    /// In a pass of its own, in copies.
    Copies,
}

/// How the pass over queries sums a term; in the order of its terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Row,
    Head,
    Difference,
    Sum,
    Table,
}

fn place_of(reduction: &CaptureReduction, backward: &AttentionBackward) -> Where {
    match reduction.key {
        ReductionKey::Head => Where::Queries(Class::Head),
        ReductionKey::Query => Where::Queries(Class::Row),
        ReductionKey::Key => Where::Keys,
        ReductionKey::Difference => Where::Queries(Class::Difference),
        ReductionKey::Sum => Where::Queries(Class::Sum),
        ReductionKey::Bucket { size } if size <= TABLE_ELEMENTS => Where::Queries(Class::Table),
        ReductionKey::Pair => match apart(&reduction.indices, &backward.attention.shape) {
            Some(apart) => Where::Owned(apart),
            None => Where::Copies,
        },
        ReductionKey::Bucket { .. } | ReductionKey::Any => Where::Copies,
    }
}

/// A gradient in the making.
struct Gradient<'a, 'b> {
    backward: &'a AttentionBackward,
    lowering: &'a mut Lowering<'b>,
    /// Scratch memory: the sum of each row of scores.
    delta: usize,
    /// How many rows there are of each head.
    delta_rows: usize,
}

/// Lowers the gradient of an attention.
pub(in crate::codegen) fn lower(backward: &AttentionBackward, lowering: &mut Lowering) -> Result<()> {
    let AttentionShape { batch, heads, queries, .. } = backward.attention.shape;
    let found: Vec<(&CaptureReduction, Where)> =
        backward.reductions.iter().map(|reduction| (reduction, place_of(reduction, backward))).collect();
    let mut by_keys: Vec<&CaptureReduction> =
        found.iter().filter(|(_, place)| *place == Where::Keys).map(|(reduction, _)| *reduction).collect();
    let mut by_queries: Vec<(Class, &CaptureReduction)> = found
        .iter()
        .filter_map(|(reduction, place)| match place {
            Where::Queries(class) => Some((*class, *reduction)),
            Where::Keys | Where::Owned(_) | Where::Copies => None,
        })
        .collect();
    by_queries.sort_by_key(|(class, _)| *class);

    let mut keys_wanted = backward.key_cotangent.is_some() || backward.value_cotangent.is_some();
    let mut queries_wanted = backward.query_cotangent.is_some();
    let mut owned: Vec<(&CaptureReduction, Apart)> = found
        .iter()
        .filter_map(|(reduction, place)| match place {
            Where::Owned(apart) => Some((*reduction, *apart)),
            Where::Keys | Where::Queries(_) | Where::Copies => None,
        })
        .collect();
    let tiles = one_pass::tiles(backward, lowering, &mut by_keys, &mut by_queries, &mut owned);
    let delta_rows = tiles.as_ref().map_or(queries, |tiles| tiles.rows(queries));
    let delta = lowering.scratch(4 * batch * heads * delta_rows);
    let totals: Vec<Total> = captures::totals(backward, lowering)?;
    let mut gradient = Gradient { backward, lowering, delta, delta_rows };
    match tiles {
        Some(tiles) => {
            gradient.in_one_pass(&tiles, &totals);
            (keys_wanted, queries_wanted) = (false, false);
        }
        None => gradient.delta(),
    }
    let mut rest = &by_keys[..];
    while keys_wanted || !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(TERMS));
        gradient.keys(now, keys_wanted, &totals)?;
        (keys_wanted, rest) = (false, later);
    }
    let mut rest = &by_queries[..];
    while queries_wanted || !rest.is_empty() {
        let mut elements = 0;
        let fits = rest.iter().take(TERMS).take_while(|(class, reduction)| {
            elements += if *class == Class::Table { captures::elements(backward, reduction) } else { 0 };
            elements <= TABLE_ELEMENTS
        });
        let (now, later) = rest.split_at(fits.count());
        gradient.queries(now, queries_wanted, &totals)?;
        (queries_wanted, rest) = (false, later);
    }
    for (reduction, apart) in owned {
        gradient.owned(reduction, apart, &totals)?;
    }
    for (reduction, place) in &found {
        match place {
            Where::Copies => gradient.copies(reduction, &totals)?,
            Where::Keys | Where::Queries(_) | Where::Owned(_) => {}
        }
    }
    captures::store(backward, &totals, gradient.lowering);
    Ok(())
}

impl Gradient<'_, '_> {
    fn delta(&mut self) {
        let attention = &self.backward.attention;
        let AttentionShape { batch, heads, queries, value_size, .. } = attention.shape;
        let mut parameters = Parameters::default();
        for (name, value) in [("batch", batch), ("heads", heads), ("queries", queries)] {
            parameters.integer(name, value as i64);
        }
        parameters.view("output", &self.backward.output, DType::F32, false);
        parameters.view("output_cotangent", &self.backward.output_cotangent, attention.dtype, false);
        let cotangent = self.backward.log_sum_exp_cotangent.as_ref();
        optional(&mut parameters, "log_sum_exp_cotangent", cotangent, 3, false);
        parameters.scratch("float", "delta", self.delta);
        let text = format!("typedef {} Element;\n", element(attention.dtype))
            + &constant("int", "VALUE_SIZE", value_size)
            + &constant("bool", "LOG_SUM_EXP_COTANGENT", cotangent.is_some());
        let comment = "row sums of an attention's output times its cotangent.";
        let source = Source::new("attention_delta", comment, &parameters, &text, &[DELTA]);
        self.lowering.launch(Launch {
            source,
            blocks: (batch * heads * queries).div_ceil(4),
            threads: 128,
            shared_bytes: 0,
            arguments: parameters.arguments,
        });
    }

    /// The parameters that all passes have.
    fn parameters(&self) -> Parameters {
        let backward = self.backward;
        let mut parameters = common_parameters(&backward.attention, self.lowering);
        parameters.view("log_sum_exp", &backward.log_sum_exp, DType::F32, false);
        parameters.view("output_cotangent", &backward.output_cotangent, backward.attention.dtype, false);
        parameters.scratch("const float", "delta", self.delta);
        parameters.integer("delta_rows", self.delta_rows as i64);
        parameters
    }

    /// The constants and functions that all passes have.
    fn functions(
        &mut self,
        tiles: &Tiles,
        constants: String,
        terms: &[&CaptureReduction],
        places: &[(&CaptureReduction, usize)],
        parameters: &mut Parameters,
    ) -> String {
        let backward = self.backward;
        let attention = &backward.attention;
        let mut text = common_constants(attention, tiles);
        let vector = vectors(&backward.output_cotangent, attention.shape.value_size, attention.dtype);
        text += &constant("bool", "COTANGENT_VECTOR", vector);
        text += &constant("int", "TERMS", terms.len());
        text += &constants;
        let mut sites = Vec::new();
        let mut functions = Functions {
            text,
            parameters,
            sites: &mut sites,
            tables: &attention.tables,
            pairs: Pairs::of(attention),
        };
        functions.mask(attention);
        functions.score(backward.joint.as_ref());
        let results: Vec<usize> = terms.iter().map(|term| term.result).collect();
        functions.gradient(backward.joint.as_ref(), &results);
        let shapes: Vec<Vec<usize>> =
            places.iter().map(|(reduction, _)| captures::indexed(backward, reduction)).collect();
        let programs: Vec<_> = places
            .iter()
            .zip(&shapes)
            .map(|((reduction, offset), shape)| (&reduction.indices, &shape[..], *offset))
            .collect();
        functions.places(&programs);
        let text = functions.text;
        self.lowering.program.sites.extend(sites);
        text
    }

    fn numbers(&self, terms: usize) -> usize {
        if self.backward.joint.is_some() { 2 + terms } else { 1 }
    }

    fn keys(&mut self, terms: &[&CaptureReduction], wanted: bool, totals: &[Total]) -> Result<()> {
        let backward = self.backward;
        let attention = &backward.attention;
        let AttentionShape { batch, heads, key_batch, key_heads, keys, .. } = attention.shape;
        let tiles = choose(Pass::Keys, needs(attention, self.numbers(terms.len()))?, self.lowering)?;
        let mut parameters = self.parameters();
        let views =
            [("key_cotangent", &backward.key_cotangent), ("value_cotangent", &backward.value_cotangent)];
        let mut constants = constant("bool", "KEY_ROWS", true)
            + &constant("int", "SLICES", tiles.slices)
            + &constant("int", "HEAD_SLICE", tiles.head / tiles.slices)
            + &constant("int", "VALUE_SLICE", tiles.value / tiles.slices)
            + &constant("int", "ROW_SUMS", terms.len());
        for (name, view) in views {
            let view = view.as_ref().filter(|_| wanted);
            constants += &constant("bool", &name.to_uppercase(), view.is_some());
            self.cotangent(&mut parameters, name, view);
        }
        let count = batch * heads * keys;
        let sums = self.lowering.scratch(4 * count * terms.len());
        parameters.scratch("float", "row_sums", sums);
        let text = self.functions(&tiles, constants, terms, &[], &mut parameters);
        let comment = "the gradient of attention with respect to keys and values.";
        let engine = [FRAGMENTS, TILES, PAIRS, BY_KEYS];
        let source = Source::new("attention_backward_keys", comment, &parameters, &text, &engine);
        self.lowering.launch(Launch {
            source,
            blocks: key_batch * key_heads * keys.div_ceil(16 * tiles.warps) * tiles.slices,
            threads: 32 * tiles.warps,
            shared_bytes: tiles.shared_bytes,
            arguments: parameters.arguments,
        });
        for (number, reduction) in terms.iter().enumerate() {
            let order = Order::row(keys);
            captures::scatter(backward, reduction, order, sums + 4 * count * number, totals, self.lowering);
        }
        Ok(())
    }

    fn cotangent(&self, parameters: &mut Parameters, name: &str, view: Option<&View>) {
        let dtype = self.backward.attention.dtype;
        match view {
            Some(view) => parameters.view(name, view, dtype, true),
            None => {
                parameters.field(format!("{}* {name}", element(dtype)), Argument::Null);
                parameters.integers(&format!("{name}_strides"), [0; 4]);
            }
        }
    }

    fn queries(
        &mut self,
        terms: &[(Class, &CaptureReduction)],
        wanted: bool,
        totals: &[Total],
    ) -> Result<()> {
        let backward = self.backward;
        let attention = &backward.attention;
        let AttentionShape { batch, heads, queries, keys, .. } = attention.shape;
        let count = |class| terms.iter().filter(|(of, _)| *of == class).count();
        let mut table_elements = 0;
        let mut places = Vec::new();
        for (_, reduction) in terms.iter().filter(|(class, _)| *class == Class::Table) {
            places.push((*reduction, table_elements));
            table_elements += captures::elements(backward, reduction);
        }
        let needs = Needs {
            diagonals: count(Class::Difference) + count(Class::Sum) > 0,
            table_elements,
            ..needs(attention, self.numbers(terms.len()))?
        };
        let tiles = choose(Pass::Queries, needs, self.lowering)?;
        let rows = 16 * tiles.warps;
        let blocks = queries.div_ceil(rows);
        let mut parameters = self.parameters();
        let view = backward.query_cotangent.as_ref().filter(|_| wanted);
        self.cotangent(&mut parameters, "query_cotangent", view);
        let mut constants = constant("bool", "KEY_ROWS", false);
        constants += &constant("bool", "QUERY_COTANGENT", view.is_some());
        for (name, value) in [
            ("ROW_SUMS", count(Class::Row)),
            ("HEAD_SUMS", count(Class::Head)),
            ("DIFFERENCES", count(Class::Difference)),
            ("SUMS", count(Class::Sum)),
            ("TABLES", count(Class::Table)),
            // Changes with the arrays' sizes, but so does shared memory.
            ("TABLE_ELEMENTS", table_elements),
        ] {
            constants += &constant("int", name, value);
        }
        let slices = batch * heads;
        // Numbers of one term of each class.
        let size = |class| match class {
            Class::Row => slices * queries,
            Class::Head => slices * blocks,
            Class::Difference | Class::Sum => slices * blocks * (rows + keys).saturating_sub(1),
            Class::Table => slices * blocks * table_elements,
        };
        let row_sums = self.lowering.scratch(4 * size(Class::Row) * count(Class::Row));
        let head_sums = self.lowering.scratch(4 * size(Class::Head) * count(Class::Head));
        let lines = count(Class::Difference) + count(Class::Sum);
        let diagonals = self.lowering.scratch(4 * size(Class::Difference) * lines);
        let tables = self.lowering.scratch(4 * size(Class::Table));
        for (name, place) in
            [("row_sums", row_sums), ("head_sums", head_sums), ("diagonals", diagonals), ("tables", tables)]
        {
            parameters.scratch("float", name, place);
        }
        let of_pass: Vec<&CaptureReduction> = terms.iter().map(|(_, reduction)| *reduction).collect();
        let text = self.functions(&tiles, constants, &of_pass, &places, &mut parameters);
        let comment = "the gradient of attention with respect to queries.";
        let engine = [FRAGMENTS, TILES, PAIRS, TURNS, SUMS, BY_QUERIES];
        let source = Source::new("attention_backward_queries", comment, &parameters, &text, &engine);
        self.lowering.launch(Launch {
            source,
            blocks: slices * blocks,
            threads: 32 * tiles.warps,
            shared_bytes: tiles.shared_bytes,
            arguments: parameters.arguments,
        });

        let mut numbers = [0; 5];
        let mut offset = 0;
        for (class, reduction) in terms {
            // Differences and sums lie in one array, the differences first.
            let (start, number) = match class {
                Class::Row => (row_sums, numbers[0]),
                Class::Head => (head_sums, numbers[1]),
                Class::Difference => (diagonals, numbers[2]),
                Class::Sum => (diagonals, count(Class::Difference) + numbers[3]),
                Class::Table => (tables, 0),
            };
            numbers[*class as usize] += 1;
            let start = start + 4 * size(*class) * number;
            let diagonals = |by| {
                let line = (rows + keys).saturating_sub(1);
                Order::diagonals(by, &attention.shape, blocks, line, (0, rows as i64))
            };
            let order = match class {
                Class::Row => Order::row(queries),
                Class::Head => Order::head(blocks),
                Class::Difference => diagonals(By::Difference),
                Class::Sum => diagonals(By::Sum),
                Class::Table => {
                    let copies = (slices * blocks, table_elements);
                    captures::copies(backward, reduction, start + 4 * offset, copies, totals, self.lowering);
                    offset += captures::elements(backward, reduction);
                    continue;
                }
            };
            captures::scatter(backward, reduction, order, start, totals, self.lowering);
        }
        Ok(())
    }

    fn owned(&mut self, reduction: &CaptureReduction, apart: Apart, totals: &[Total]) -> Result<()> {
        let total = &totals[reduction.capture];
        total.clear(self.lowering);
        self.pairs(reduction, Some(apart), (total.place, 0), usize::MAX)
    }

    fn copies(&mut self, reduction: &CaptureReduction, totals: &[Total]) -> Result<()> {
        let elements = captures::elements(self.backward, reduction);
        let lanes = (COPIES / (4 * elements.max(1))).clamp(1, LANES);
        let copies = self.lowering.scratch(4 * elements * lanes);
        self.lowering.zero(copies, 4 * elements * lanes);
        self.pairs(reduction, None, (copies, elements), lanes)?;
        captures::copies(self.backward, reduction, copies, (lanes, elements), totals, self.lowering);
        Ok(())
    }

    fn pairs(
        &mut self,
        reduction: &CaptureReduction,
        apart: Option<Apart>,
        (copies, elements): (usize, usize),
        lanes: usize,
    ) -> Result<()> {
        let attention = &self.backward.attention;
        let AttentionShape { batch, heads, queries, keys, .. } = attention.shape;
        let tiles = choose(Pass::Pairs, needs(attention, self.numbers(1))?, self.lowering)?;
        let mut parameters = self.parameters();
        parameters.scratch("float", "copies", copies);
        parameters.integer("elements", elements as i64);
        let constants = constant("bool", "KEY_ROWS", false)
            + &constant("bool", "OWNED", apart.is_some())
            + &constant("bool", "APART_IN_BATCH", apart.is_some_and(|apart| apart.in_batch))
            + &constant("bool", "APART_IN_HEADS", apart.is_some_and(|apart| apart.in_heads))
            + &constant("bool", "SHARED_BY_ALL", apart.is_some_and(|apart| apart.shared_by_all));
        let text = self.functions(&tiles, constants, &[reduction], &[(reduction, 0)], &mut parameters);
        let comment = "the cotangent of a captured array that single pairs read.";
        let engine = [FRAGMENTS, TILES, PAIRS, TURNS, BY_PAIRS];
        let source = Source::new("attention_backward_pairs", comment, &parameters, &text, &engine);
        let units = queries.div_ceil(16 * tiles.warps) * keys.div_ceil(tiles.columns) * batch * heads;
        self.lowering.launch(Launch {
            source,
            blocks: units.min(lanes),
            threads: 32 * tiles.warps,
            shared_bytes: tiles.shared_bytes,
            arguments: parameters.arguments,
        });
        Ok(())
    }
}
