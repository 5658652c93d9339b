//! What a kernel is given beside its text: one struct of eight-byte fields.
//!
//! Whatever changes with lengths, strides or a user's numbers is a field here and no literal in the text, so
//! that no kernel is compiled again for a new length.

use tilewright_ir::{DType, Scalar};
use tilewright_plan::{BufferId, Table, View};

use super::types::element;

/// One eight-byte word of a kernel's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// The address of a place in one of the plan's buffers.
    Buffer {
        /// The buffer.
        buffer: BufferId,
        /// Bytes from its start.
        bytes: isize,
    },
    /// The address of a byte of the run's scratch memory.
    Scratch(usize),
    /// The address of the run's fault word.
    Fault,
    /// A number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// Nothing: a null pointer.
    Null,
}

/// The parameters of a launch: the fields of its struct `Parameters`, called `p` in the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    declarations: Vec<String>,
    constants: Vec<(Scalar, String)>,
    /// The fields' values, in order.
    pub arguments: Vec<Argument>,
}

impl Parameters {
    /// A field of any C++ type of eight bytes.
    pub fn field(&mut self, declaration: impl Into<String>, argument: Argument) {
        self.declarations.push(declaration.into());
        self.arguments.push(argument);
    }

    /// A number.
    pub fn integer(&mut self, name: &str, value: i64) {
        self.field(format!("long long {name}"), Argument::Integer(value));
    }

    /// Some numbers, an array even where there is only one; at least one field is made.
    pub fn integers(&mut self, name: &str, values: impl IntoIterator<Item = i64>) {
        let before = self.arguments.len();
        self.arguments.extend(values.into_iter().map(Argument::Integer));
        if self.arguments.len() == before {
            self.arguments.push(Argument::Integer(0));
        }
        self.declarations.push(format!("long long {name}[{}]", self.arguments.len() - before));
    }

    /// The pointer to a view's origin, and its strides as `{name}_strides`.
    pub fn view(&mut self, name: &str, view: &View, dtype: DType, writable: bool) {
        let constant = if writable { "" } else { "const " };
        let bytes = view.offset * dtype.size() as isize;
        self.field(
            format!("{constant}{}* {name}", element(dtype)),
            Argument::Buffer { buffer: view.buffer, bytes },
        );
        self.integers(&format!("{name}_strides"), view.strides.iter().map(|&stride| stride as i64));
    }

    /// A pointer into scratch memory.
    pub fn scratch(&mut self, ty: &str, name: &str, place: usize) {
        self.field(format!("{ty}* {name}"), Argument::Scratch(place));
    }

    /// The tables that programs read: `table_i`, `table_i_strides`, `table_i_extents`.
    pub fn tables(&mut self, tables: &[Table]) {
        for (number, table) in tables.iter().enumerate() {
            let name = format!("table_{number}");
            self.view(&name, &table.view, table.dtype, false);
            self.integers(&format!("{name}_extents"), table.shape.iter().map(|&extent| extent as i64));
        }
    }

    /// What programs that read tables need to report an index out of range: see [`super::region`].
    pub fn faults(&mut self, first_site: usize) {
        self.field("unsigned long long* fault", Argument::Fault);
        self.integer("first_site", first_site as i64);
    }

    /// The name of a field that holds a program's constant.
    pub fn constant(&mut self, value: Scalar, ty: &str) -> String {
        if let Some((_, name)) = self.constants.iter().find(|(known, _)| same(*known, value)) {
            return name.clone();
        }
        let name = format!("constant_{}", self.constants.len());
        match value {
            Scalar::Float(x) => self.field(format!("double {name}"), Argument::Float(x)),
            Scalar::Integer(x) => self.integer(&name, x),
            Scalar::Bool(x) => self.integer(&name, x.into()),
        }
        let read = format!("({ty})p.{name}");
        self.constants.push((value, read.clone()));
        read
    }

    /// The struct's declaration.
    pub fn declaration(&self) -> String {
        let fields: String = self.declarations.iter().map(|field| format!("    {field};\n")).collect();
        format!("struct Parameters {{\n{fields}}};\n")
    }
}

fn same(x: Scalar, y: Scalar) -> bool {
    match (x, y) {
        (Scalar::Float(x), Scalar::Float(y)) => x.to_bits() == y.to_bits(),
        (x, y) => x == y,
    }
}
