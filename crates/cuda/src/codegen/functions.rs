//! The user's functions as device functions of a kernel's text.

use tilewright_plan::attention::{Attention, AttentionShape};
use tilewright_plan::{Program, Register, Table};

use super::parameters::Parameters;
use super::ranges::{self, Fact};
use super::region::{self, Scope, Site};

/// Writes the device functions of one kernel.
pub(super) struct Functions<'a> {
    pub text: String,
    pub parameters: &'a mut Parameters,
    pub sites: &'a mut Vec<Site>,
    pub tables: &'a [Table],
    pub pairs: Pairs,
}

/// The pairs that functions are evaluated at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pairs {
    /// How many batches, heads, queries and keys there are.
    pub sizes: [usize; 4],
    /// Whether what comes of a score is rounded to a half type, so that approximate functions serve.
    pub approximate: bool,
}

impl Pairs {
    /// Of an attention.
    pub fn of(attention: &Attention) -> Pairs {
        let AttentionShape { batch, heads, queries, keys, .. } = attention.shape;
        Pairs { sizes: [batch, heads, queries, keys], approximate: attention.dtype.size() == 2 }
    }
}

/// The inputs of a mask, and then the score and its cotangent.
const INPUTS: [&str; 6] = ["b", "h", "q", "k", "s", "cotangent"];

impl Functions<'_> {
    fn body(&mut self, program: &Program, wanted: &[Register], live: &str) -> region::Text {
        let facts = ranges::facts(program, &ranges::of_pairs(self.pairs.sizes), self.tables);
        self.body_knowing(program, wanted, live, &facts, &[])
    }

    pub fn body_knowing(
        &mut self,
        program: &Program,
        wanted: &[Register],
        live: &str,
        facts: &[Fact],
        given: &[Option<String>],
    ) -> region::Text {
        let inputs = INPUTS.map(String::from);
        let scope = Scope {
            inputs: &inputs,
            tables: self.tables,
            live,
            indent: "    ",
            prefix: "r",
            facts,
            given,
            approximate: self.pairs.approximate,
        };
        region::write(program, wanted, scope, self.parameters, self.sites)
    }

    /// `admits`: whether a pair within the lengths is admitted.
    pub fn mask(&mut self, attention: &Attention) {
        let Some(mask) = &attention.mask else {
            self.text.push_str(
                "DEVICE bool admits(const Parameters&, int, int, int, int, Fault&) { return true; }\n",
            );
            return;
        };
        self.mask_program(mask);
    }

    pub fn mask_program(&mut self, mask: &Program) {
        let body = self.body(mask, &mask.results, "true");
        self.text.push_str(&format!(
            "// The mask.\nDEVICE bool admits(const Parameters& p, int b, int h, int q, int k, Fault& fault) {{\n\
             {}    return {};\n}}\n",
            body.statements, body.results[0]
        ));
    }

    /// `score`: the score function, of a program whose first result it is.
    pub fn score(&mut self, program: Option<&Program>) {
        let signature = "DEVICE float score(const Parameters& p, int b, int h, int q, int k, float s, bool live, \
                         Fault& fault)";
        match program {
            None => self.text.push_str(&format!("{signature} {{ return s; }}\n")),
            Some(program) => {
                let body = self.body(program, &program.results[..1], "live");
                self.text.push_str(&format!(
                    "// The score function.\n{signature} {{\n{}    return {};\n}}\n",
                    body.statements, body.results[0]
                ));
            }
        }
    }

    /// `gradient`: the raw score's cotangent, and these results of the joint program as terms.
    pub fn gradient(&mut self, joint: Option<&Program>, terms: &[usize]) {
        let signature = "DEVICE float gradient(const Parameters& p, int b, int h, int q, int k, float s, \
                         float cotangent, bool live, Fault& fault, float (&terms)[at_least_one(TERMS)])";
        let Some(joint) = joint else {
            self.text.push_str(&format!("{signature} {{ return cotangent; }}\n"));
            return;
        };
        let results = [1].iter().chain(terms).map(|&result| joint.results[result]).collect::<Vec<_>>();
        let body = self.body(joint, &results, "live");
        let (slope, terms) = body.results.split_first().expect("a slope");
        let terms: String =
            terms.iter().enumerate().map(|(i, term)| format!("    terms[{i}] = {term};\n")).collect();
        self.text.push_str(&format!(
            "// The score function's derivative, and the terms of captured arrays.\n\
             {signature} {{\n{}{terms}    return {slope};\n}}\n",
            body.statements
        ));
    }

    /// `scatter_place`: the flat element of a captured array that a pair's term goes to, or −1. One array, its
    /// extents and first element for each program.
    pub fn places(&mut self, programs: &[(&Program, &[usize], usize)]) {
        let mut text = String::from(
            "// Where the terms of captured arrays go: a flat index, −1 for none.\n\
             DEVICE int scatter_place(const Parameters& p, int number, int b, int h, int q, int k, float s, \
             bool live) {\n",
        );
        if !programs.is_empty() {
            text.push_str("    Fault fault;\n    if (!live) return -1;\n");
        }
        for (number, (program, shape, offset)) in programs.iter().enumerate() {
            // Evaluated at coordinates that stand for a key, which need not be within the lengths.
            let body = self.body_knowing(program, &program.results, "true", &[], &[]);
            let extents = format!("extents_{number}");
            self.parameters.integers(&extents, shape.iter().map(|&extent| extent as i64));
            self.parameters.integer(&format!("offset_{number}"), *offset as i64);
            text.push_str(&format!("    if (number == {number}) {{\n{}", body.statements));
            text.push_str(&format!(
                "    bool inside = true;\n    long long at = 0, flat = p.offset_{number};\n"
            ));
            for (axis, index) in body.results.iter().enumerate() {
                let stride: String =
                    (axis + 1..shape.len()).map(|later| format!(" * p.{extents}[{later}]")).collect();
                text.push_str(&format!(
                    "    at = 0;\n    locate({index}, p.{extents}[{axis}], 1, 0, inside, at, fault);\n    \
                     flat += at{stride};\n"
                ));
            }
            text.push_str("    return inside ? (int)flat : -1;\n    }\n");
        }
        text.push_str("    return -1;\n}\n");
        self.text.push_str(&text);
    }
}
