//! The gradient of attention on Hopper, in one pass of five products: queries' cotangents are added up from block to
//! block in a fixed order.

use tilewright_plan::Program;

use crate::codegen::region::Site;
use crate::codegen::tiles::OnePassNeeds;

use super::gains::{Gain, Per};
use super::*;

const PANELS: &str = include_str!("../../../engines/attention/panels.cuh");
const TERM_SUMS: &str = include_str!("../../../engines/attention/terms_hopper.cuh");
const TURNS_HOPPER: &str = include_str!("../../../engines/attention/turns_hopper.cuh");
const ONE_PASS: &str = include_str!("../../../engines/attention/backward_hopper.cuh");
const ROWS: &str = include_str!("../../../engines/attention/rows_hopper.cuh");
const STORE_PAIRS: &str = include_str!("../../../engines/attention/store_pairs.cuh");
const STORE_QUERIES: &str = include_str!("../../../engines/attention/store_queries.cuh");
const QUERY_GAINS: &str = include_str!("../../../engines/attention/query_gains.cuh");

/// Keys of a block, as in `turns_hopper.cuh`.
const KEYS: usize = 128;

/// How the pass sums a term; in the order of its terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Term {
    Key,
    Row,
    Head,
    /// By head, or by query, where it is one of the gain's.
    Gain,
    Difference,
    Sum,
    Pair,
}

/// What the pass does, and how.
pub(super) struct OnePass<'a> {
    tiles: tiles::OnePassTiles,
    terms: Vec<(Term, &'a CaptureReduction)>,
    gain: Option<Gain>,
    /// Which heads share the elements that pairs own, if there is such a term.
    apart: Option<Apart>,
}

impl OnePass<'_> {
    /// Rows of scores of a head, padded to whole tiles.
    pub fn rows(&self, queries: usize) -> usize {
        queries.next_multiple_of(self.tiles.columns)
    }

    /// Whether there is a gain of each query.
    fn by_rows(&self) -> bool {
        self.gain.as_ref().is_some_and(|gain| gain.per == Per::Row)
    }

    fn count(&self, term: Term) -> usize {
        self.terms.iter().filter(|(of, _)| *of == term).count()
    }
}

/// The tiles of the pass, where it serves; takes the reductions that it does.
pub(super) fn tiles<'a>(
    backward: &AttentionBackward,
    lowering: &Lowering,
    by_keys: &mut Vec<&'a CaptureReduction>,
    by_queries: &mut Vec<(Class, &'a CaptureReduction)>,
    owned: &mut Vec<(&'a CaptureReduction, Apart)>,
) -> Option<OnePass<'a>> {
    let target = lowering.target;
    let attention = &backward.attention;
    let AttentionShape { queries, keys, head_size, value_size, .. } = attention.shape;
    let read = [
        (&attention.query, head_size),
        (&attention.key, head_size),
        (&attention.value, value_size),
        (&backward.output_cotangent, value_size),
    ];
    let written = [
        (&backward.query_cotangent, head_size),
        (&backward.key_cotangent, head_size),
        (&backward.value_cotangent, value_size),
    ];
    let written = written.into_iter().filter_map(|(view, size)| Some((view.as_ref()?, size)));
    let whole = read.into_iter().chain(written).all(|(view, size)| vectors(view, size, attention.dtype));
    let wanted = backward.query_cotangent.is_some()
        || backward.key_cotangent.is_some()
        || backward.value_cotangent.is_some();
    if target.capability != 90 || attention.dtype.size() != 2 || !whole || !wanted || queries.min(keys) < 64 {
        return None;
    }
    let term = |class| match class {
        Class::Row => Some(Term::Row),
        Class::Head => Some(Term::Head),
        Class::Difference => Some(Term::Difference),
        Class::Sum => Some(Term::Sum),
        Class::Table => None,
    };
    let mut gain = Gain::of(backward);
    let mut gains = Vec::new();
    let mut candidates: Vec<_> = by_keys.iter().map(|reduction| (Term::Key, *reduction)).collect();
    for &(class, reduction) in by_queries.iter() {
        let Some(term) = term(class) else { continue };
        let per = match term {
            Term::Head => Some(Per::Head),
            Term::Row => Some(Per::Row),
            Term::Key | Term::Gain | Term::Difference | Term::Sum | Term::Pair => None,
        };
        let mut of_term = gain.as_mut().filter(|gain| Some(gain.per) == per);
        if of_term.as_mut().is_some_and(|gain| gain.take(backward, reduction)) {
            gains.push((Term::Gain, reduction));
        } else {
            candidates.push((term, reduction));
        }
    }
    // Heads that share elements wait for one another at each tile, so that all must have the same tiles.
    let map = attention.block_map.and_then(|slot| lowering.block_maps[slot]);
    let same_tiles = map.is_none_or(|(map, _)| map.batch == 1 && map.heads == 1);
    let pair = owned
        .iter()
        .copied()
        .find(|(_, apart)| (apart.in_batch && apart.in_heads) || (apart.shared_by_all && same_tiles));
    let with_pair = [pair, None].into_iter().skip(usize::from(pair.is_none()));
    // As many terms as fit.
    let choices = with_pair.flat_map(|pair| {
        let most = candidates.len().min(TERMS - usize::from(pair.is_some()));
        (0..=most).rev().map(move |count| (pair, count))
    });
    let found = choices.into_iter().find_map(|(pair, count)| {
        let mut terms = candidates[..count].to_vec();
        terms.extend(pair.map(|(reduction, _)| (Term::Pair, reduction)));
        let of = |wanted: Term| terms.iter().filter(|(term, _)| *term == wanted).count();
        let needs = OnePassNeeds {
            head_size,
            value_size,
            rows: of(Term::Row),
            heads: of(Term::Head),
            diagonals: of(Term::Difference) + of(Term::Sum),
            pairs: of(Term::Pair),
            row_gains: gain.as_ref().is_some_and(|gain| gain.per == Per::Row),
        };
        let tiles = tiles::one_pass_tiles(needs, target.shared_bytes)?;
        terms.extend(&gains);
        terms.sort_by_key(|(term, _)| *term);
        Some(OnePass { tiles, terms, gain: gain.clone(), apart: pair.map(|(_, apart)| apart) })
    })?;
    let taken = |reduction: &CaptureReduction| found.terms.iter().any(|(_, of)| std::ptr::eq(*of, reduction));
    by_keys.retain(|reduction| !taken(reduction));
    by_queries.retain(|(_, reduction)| !taken(reduction));
    owned.retain(|(reduction, _)| !taken(reduction));
    Some(found)
}

impl Gradient<'_, '_> {
    /// All of the gradient but the reductions that were left.
    pub(super) fn in_one_pass(&mut self, pass: &OnePass, totals: &[Total]) {
        let backward = self.backward;
        let attention = &backward.attention;
        let AttentionShape { batch, heads, key_batch, key_heads, queries, keys, .. } = attention.shape;
        let tiles = &pass.tiles;
        let slices = batch * heads;
        let query_tiles = queries.div_ceil(tiles.columns);
        let key_tiles = keys.div_ceil(KEYS);
        let log2_sum_exp = self.lowering.scratch(4 * slices * self.delta_rows);
        let row_gains = self.lowering.scratch(if pass.by_rows() { 4 * slices * self.delta_rows } else { 0 });
        self.rows(pass, log2_sum_exp, row_gains);

        let turns = self.lowering.scratch(4 * (1 + slices * query_tiles));
        self.lowering.zero(turns, 4 * (1 + slices * query_tiles));
        let query_sums = self.lowering.scratch(4 * slices * query_tiles * tiles.columns * tiles.head);
        let line = query_tiles * tiles.columns + KEYS - 1;
        let size = |term| match term {
            Term::Key => slices * keys,
            Term::Row => key_tiles * slices * queries,
            Term::Gain if pass.by_rows() => slices * queries,
            Term::Head | Term::Gain => slices * key_tiles,
            Term::Difference | Term::Sum => slices * key_tiles * line,
            Term::Pair => 0,
        };
        let mut place = |terms: &[Term]| {
            let bytes: usize = terms.iter().map(|term| 4 * size(*term) * pass.count(*term)).sum();
            let place = self.lowering.scratch(bytes);
            if bytes > 0 {
                // What the mask leaves nothing of has no sums.
                self.lowering.zero(place, bytes);
            }
            place
        };
        let key_sums = place(&[Term::Key]);
        let row_sums = place(&[Term::Row]);
        let head_sums = place(&[Term::Head]);
        let gain_sums = place(&[Term::Gain]);
        let diagonals = place(&[Term::Difference, Term::Sum]);

        let apart = pass.apart;
        let share = |apart: Apart| {
            (if apart.in_batch { batch } else { 1 }) * (if apart.in_heads { heads } else { 1 })
        };
        let pair_tiles = apart.map_or(0, share) * query_tiles * key_tiles;
        let pair_sums = self.lowering.scratch(4 * pair_tiles * tiles.columns * KEYS);
        let pair_turns = self.lowering.scratch(4 * pair_tiles);
        if pair_tiles > 0 {
            self.lowering.zero(pair_turns, 4 * pair_tiles);
        }

        let mut parameters = common_parameters(attention, self.lowering);
        parameters.view("output_cotangent", &backward.output_cotangent, attention.dtype, false);
        parameters.scratch("const float", "delta", self.delta);
        parameters.scratch("const float", "log2_sum_exp", log2_sum_exp);
        parameters.scratch("int", "turns", turns);
        for (name, place) in [
            ("query_sums", query_sums),
            ("key_sums", key_sums),
            ("row_sums", row_sums),
            ("head_sums", head_sums),
            ("gain_sums", gain_sums),
            ("row_gains", row_gains),
            ("diagonals", diagonals),
            ("pair_sums", pair_sums),
        ] {
            parameters.scratch("float", name, place);
        }
        parameters.scratch("int", "pair_turns", pair_turns);
        let mut constants = String::new();
        for (name, view) in
            [("key_cotangent", &backward.key_cotangent), ("value_cotangent", &backward.value_cotangent)]
        {
            constants += &constant("bool", &name.to_uppercase(), view.is_some());
            self.cotangent(&mut parameters, name, view.as_ref());
        }
        constants += &constant("bool", "SCORED", backward.joint.is_some());
        // Whether the score function's derivative, or a term, is other for another score.
        let of_pairs =
            || pass.terms.iter().filter(|(term, _)| *term != Term::Gain).map(|(_, reduction)| *reduction);
        let again = backward.joint.as_ref().is_some_and(|joint| {
            let slope = pass.gain.is_none().then_some(1);
            let wanted = of_pairs().map(|reduction| reduction.result).chain(slope);
            indices::read(joint, &wanted.map(|result| joint.results[result]).collect::<Vec<_>>(), 4)
        });
        constants += &constant("bool", "GAINED", pass.gain.is_some());
        constants += &constant("bool", "ROW_GAINS", pass.by_rows());
        constants += &constant("bool", "SCORE_IS_GAIN", pass.gain.as_ref().is_some_and(|gain| gain.alone));
        constants += &constant("bool", "AGAIN", again);
        constants += &apart_constants(apart);
        for (name, value) in [
            ("KEY_SUMS", pass.count(Term::Key)),
            ("ROW_SUMS", pass.count(Term::Row)),
            ("HEAD_SUMS", pass.count(Term::Head)),
            ("GAINS", pass.count(Term::Gain)),
            ("DIFFERENCES", pass.count(Term::Difference)),
            ("SUMS", pass.count(Term::Sum)),
            ("PAIRS", pass.count(Term::Pair)),
            ("TERM_FLOATS", tiles.term_floats),
            ("SUM_TILES", tiles.sum_tiles),
            ("PRODUCER_REGISTERS", tiles.producer_registers),
            ("CONSUMER_REGISTERS", tiles.consumer_registers),
        ] {
            constants += &constant("int", name, value);
        }
        let text =
            self.functions(&tiles.common(), constants, &of_pairs().collect::<Vec<_>>(), &[], &mut parameters);
        let (text, sites) = self.gain(pass, text, &mut parameters);
        self.lowering.program.sites.extend(sites);
        let comment = format!(
            "the gradient of attention of {} in one pass, in tiles of {KEYS} keys and {} queries.",
            attention.dtype, tiles.columns
        );
        let engine = [FRAGMENTS, TILES, FINITE, PANELS, TERM_SUMS, TURNS_HOPPER, ONE_PASS];
        let source = Source::new("attention_backward_hopper", &comment, &parameters, &text, &engine);
        let share = if tiles.columns == 128 { tiles.head } else { tiles.head / 2 };
        let products = wgmma::products(attention.dtype, &[tiles.columns, tiles.head, tiles.value, share]);
        self.lowering.launch(Launch {
            source: source.with_instructions(format!("{MACHINE_BARRIERS}\n{MACHINE_HOPPER}\n{products}")),
            blocks: key_batch * key_heads * key_tiles,
            threads: 384,
            shared_bytes: tiles.shared_bytes,
            arguments: parameters.arguments,
        });
        self.store_queries(pass, turns, query_sums);
        if pass.by_rows() && pass.count(Term::Gain) > 0 {
            self.query_gains(pass, turns, query_sums, gain_sums);
        }

        if let (Some(apart), Some((Term::Pair, reduction))) = (apart, pass.terms.last()) {
            self.store_pairs(tiles, (apart, pair_tiles), reduction, (pair_turns, pair_sums), totals);
        }
        let mut numbers = [0; 7];
        for (term, reduction) in &pass.terms {
            let number = numbers[*term as usize];
            let (start, number) = match term {
                Term::Key => (key_sums, number),
                Term::Row => (row_sums, number),
                Term::Head => (head_sums, number),
                Term::Gain => (gain_sums, number),
                Term::Difference => (diagonals, number),
                // Of two that lie in one array, these come second.
                Term::Sum => (diagonals, pass.count(Term::Difference) + number),
                Term::Pair => continue,
            };
            numbers[*term as usize] += 1;
            let shape = &attention.shape;
            let order = match term {
                Term::Key => Order::row(keys),
                Term::Row => Order::rows_of_tiles(queries, slices, key_tiles),
                Term::Gain if pass.by_rows() => Order::row(queries),
                Term::Head | Term::Gain => Order::head(key_tiles),
                Term::Difference => {
                    let base = (KEYS as i64 - keys as i64, -(KEYS as i64));
                    Order::diagonals(By::Difference, shape, key_tiles, line, base)
                }
                Term::Sum => Order::diagonals(By::Sum, shape, key_tiles, line, (0, KEYS as i64)),
                Term::Pair => continue,
            };
            let start = start + 4 * size(*term) * number;
            captures::scatter(backward, reduction, order, start, totals, self.lowering);
        }
    }

    /// A text with the gain's function, 1 where there is no gain, and the reads in it that may fail.
    fn gain(&self, pass: &OnePass, text: String, parameters: &mut Parameters) -> (String, Vec<Site>) {
        let attention = &self.backward.attention;
        let mut sites = Vec::new();
        let (tables, pairs) = (&attention.tables[..], Pairs::of(attention));
        let mut functions = Functions { text, parameters, sites: &mut sites, tables, pairs };
        let none = (&Gain::default(), &Program::default());
        let (gain, joint) = pass.gain.as_ref().zip(self.backward.joint.as_ref()).unwrap_or(none);
        gain.write(joint, &mut functions);
        (functions.text, sites)
    }

    /// What belongs to the rows of scores.
    fn rows(&mut self, pass: &OnePass, log2_sum_exp: usize, row_gains: usize) {
        let attention = &self.backward.attention;
        let AttentionShape { batch, heads, queries, value_size, .. } = attention.shape;
        let mut parameters = Parameters::default();
        for (name, value) in [("batch", batch), ("heads", heads), ("queries", queries)] {
            parameters.integer(name, value as i64);
        }
        parameters.view("output", &self.backward.output, DType::F32, false);
        parameters.view("output_cotangent", &self.backward.output_cotangent, attention.dtype, false);
        parameters.view("log_sum_exp", &self.backward.log_sum_exp, DType::F32, false);
        let cotangent = self.backward.log_sum_exp_cotangent.as_ref();
        optional(&mut parameters, "log_sum_exp_cotangent", cotangent, 3, false);
        parameters.scratch("float", "delta", self.delta);
        parameters.scratch("float", "log2_sum_exp", log2_sum_exp);
        let text = format!("typedef {} Element;\n", element(attention.dtype))
            + &constant("int", "VALUE_SIZE", value_size)
            + &constant("int", "COLUMNS", pass.tiles.columns)
            + &constant("bool", "ROW_GAINS", pass.by_rows())
            + &constant("bool", "OUTPUT_VECTOR", vectors(&self.backward.output, value_size, DType::F32))
            + &constant("bool", "LOG_SUM_EXP_COTANGENT", cotangent.is_some());
        parameters.scratch("float", "row_gains", row_gains);
        parameters.tables(&attention.tables);
        // The forward has reported what may fail.
        let (text, _) = self.gain(pass, text, &mut parameters);
        let lanes = match value_size {
            0..=32 => 8,
            33..=64 => 16,
            _ => 32,
        };
        let comment = "what belongs to each row of scores of an attention's gradient.";
        let source = Source::new("attention_rows", comment, &parameters, &text, &[ROWS]);
        self.lowering.launch(Launch {
            source,
            blocks: (batch * heads * self.delta_rows).div_ceil(128 / lanes),
            threads: 128,
            shared_bytes: 0,
            arguments: parameters.arguments,
        });
    }

    fn store_pairs(
        &mut self,
        tiles: &tiles::OnePassTiles,
        (apart, pair_tiles): (Apart, usize),
        reduction: &CaptureReduction,
        (turns, sums): (usize, usize),
        totals: &[Total],
    ) {
        let backward = self.backward;
        let attention = &backward.attention;
        let total = &totals[reduction.capture];
        total.clear(self.lowering);
        let AttentionShape { heads, queries, keys, .. } = attention.shape;
        let mut parameters = Parameters::default();
        for (name, value) in [("heads", heads), ("queries", queries), ("keys", keys)] {
            parameters.integer(name, value as i64);
        }
        parameters.scratch("const int", "turns", turns);
        parameters.scratch("const float", "sums", sums);
        parameters.scratch("float", "total", total.place);
        parameters.tables(&attention.tables);
        let mut sites = Vec::new();
        let text = constant("int", "COLUMNS", tiles.columns) + &apart_constants(Some(apart));
        let tables = &attention.tables;
        let pairs = Pairs::of(attention);
        let mut functions = Functions { text, parameters: &mut parameters, sites: &mut sites, tables, pairs };
        functions.places(&[(&reduction.indices, &captures::indexed(backward, reduction), 0)]);
        let text = functions.text;
        let comment = "brings the sums of a captured array that pairs own to their places.";
        let source = Source::new("store_pairs", comment, &parameters, &text, &[STORE_PAIRS]);
        self.lowering.launch(Launch {
            source,
            blocks: pair_tiles * tiles.columns / 8,
            threads: 256,
            shared_bytes: 0,
            arguments: parameters.arguments,
        });
    }

    /// The parameters and constants of what reads the queries' sums.
    fn of_query_sums(&self, pass: &OnePass, turns: usize, query_sums: usize) -> (Parameters, String) {
        let attention = &self.backward.attention;
        let AttentionShape { batch, heads, queries, head_size, .. } = attention.shape;
        let mut parameters = Parameters::default();
        for (name, value) in [("batch", batch), ("heads", heads), ("queries", queries)] {
            parameters.integer(name, value as i64);
        }
        parameters.field("double scale", Argument::Float(attention.scale));
        parameters.scratch("const int", "turns", turns);
        parameters.scratch("const float", "query_sums", query_sums);
        parameters.tables(&attention.tables);
        let mut text = format!("typedef {} Element;\n", element(attention.dtype));
        for (name, value) in
            [("COLUMNS", pass.tiles.columns), ("HEAD", pass.tiles.head), ("HEAD_SIZE", head_size)]
        {
            text += &constant("int", name, value);
        }
        (parameters, text)
    }

    fn store_queries(&mut self, pass: &OnePass, turns: usize, query_sums: usize) {
        let tiles = &pass.tiles;
        let attention = &self.backward.attention;
        let AttentionShape { batch, heads, queries, .. } = attention.shape;
        let Some(view) = &self.backward.query_cotangent else { return };
        let (mut parameters, text) = self.of_query_sums(pass, turns, query_sums);
        parameters.view("query_cotangent", view, attention.dtype, true);
        let text = text + &constant("bool", "GAINED", pass.gain.is_some());
        // The pass has reported what may fail.
        let (text, _) = self.gain(pass, text, &mut parameters);
        let comment = "rounds the queries' cotangents.";
        let source = Source::new("store_queries", comment, &parameters, &text, &[STORE_QUERIES])
            .with_instructions(format!("{MACHINE_BARRIERS}\n{MACHINE_HOPPER}"));
        // A thread does 16 numbers.
        let of_tile = tiles.columns * tiles.head / (16 * 256);
        self.lowering.launch(Launch {
            source,
            blocks: batch * heads * queries.div_ceil(tiles.columns) * of_tile,
            threads: 256,
            shared_bytes: 0,
            arguments: parameters.arguments,
        });
    }

    /// The terms of what gains of queries are learned by.
    fn query_gains(&mut self, pass: &OnePass, turns: usize, query_sums: usize, gain_sums: usize) {
        let attention = &self.backward.attention;
        let AttentionShape { batch, heads, queries, .. } = attention.shape;
        let (mut parameters, text) = self.of_query_sums(pass, turns, query_sums);
        parameters.view("query", &attention.query, attention.dtype, false);
        parameters.scratch("float", "gain_sums", gain_sums);
        let text = text + &constant("int", "GAINS", pass.count(Term::Gain));
        let (text, _) = self.gain(pass, text, &mut parameters);
        let comment = "the terms of arrays that gains of queries are learned by.";
        let source = Source::new("query_gains", comment, &parameters, &text, &[QUERY_GAINS]);
        self.lowering.launch(Launch {
            source,
            blocks: batch * heads * queries.div_ceil(pass.tiles.columns),
            threads: 128,
            shared_bytes: 0,
            arguments: parameters.arguments,
        });
    }
}

fn apart_constants(apart: Option<Apart>) -> String {
    constant("bool", "APART_IN_BATCH", apart.is_some_and(|apart| apart.in_batch))
        + &constant("bool", "APART_IN_HEADS", apart.is_some_and(|apart| apart.in_heads))
}
