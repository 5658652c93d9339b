//! The state of a scan: its type, and how it is handed from lane to lane and from block to block.

use std::fmt::Write;

use tilewright_plan::{Kind, Scan};

use super::kinds;
use crate::codegen::types::register;

/// The state's type, and how it is handed around: by lanes, and as words in memory.
pub(super) fn state_type(scan: &Scan, flagged: bool) -> String {
    let mut text = String::from("struct State {\n");
    let kinds = kinds(scan);
    let line = |text: &mut String, line: String| writeln!(text, "{line}").expect("a string takes any text");
    for (i, kind) in kinds.iter().enumerate() {
        line(&mut text, format!("    {} part_{i};", register(*kind)));
    }
    let (mut shuffles, mut reads, mut writes) = (String::new(), String::new(), String::new());
    for (i, kind) in kinds.iter().enumerate() {
        let part = format!("state.part_{i}");
        line(&mut shuffles, format!("    other.part_{i} = shuffle({part}, lane);"));
        let word = format!("words.word_{i}");
        let (from, to) = match kind {
            Kind::F64 => (format!("double_of_bits({word})"), format!("bits_of_double({part})")),
            Kind::F32 => (format!("float_of_bits((unsigned){word})"), format!("bits_of_float({part})")),
            Kind::I64 => (format!("(long long){word}"), format!("(unsigned long long){part}")),
            Kind::I32 => (format!("(int)(unsigned){word}"), format!("(unsigned){part}")),
            Kind::Bool => (format!("(unsigned){word} != 0"), part.clone()),
        };
        line(&mut reads, format!("    {part} = {from};"));
        let flag = if flagged { "1ull << 32 | " } else { "" };
        line(&mut writes, format!("    store_word(words + {i} * LANES, {flag}{to});"));
    }
    text += "};\n";
    let words = |each: &dyn Fn(usize) -> String, between: &str| -> String {
        (0..kinds.len()).map(each).collect::<Vec<_>>().join(between)
    };
    let load = words(&|i| format!("load_word(from + {i} * LANES)"), ", ");
    let told = match flagged {
        true => format!("is_told({})", words(&|i| format!("words.word_{i}"), " & ")),
        false => "true".into(),
    };
    let fields = words(&|i| format!("    unsigned long long word_{i};\n"), "");
    text += &format!(
        "// A state, as words in memory.\nstruct Words {{\n{fields}}};\n\
         DEVICE State shuffle_state(const State& state, int lane) {{\n    State other;\n{shuffles}    return other;\n}}\n\
         DEVICE Words load_words(const unsigned long long* from) {{\n    return {{{load}}};\n}}\n\
         DEVICE bool are_told(const Words& words) {{ return {told}; }}\n\
         DEVICE State state_of(const Words& words) {{\n    State state;\n{reads}    return state;\n}}\n\
         DEVICE void write_words(const State& state, unsigned long long* words) {{\n{writes}}}\n"
    );
    text
}
