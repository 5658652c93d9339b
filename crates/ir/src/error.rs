//! The one error type of the compiler, with the facts a user needs to mend the call.

use std::fmt;

use crate::{DType, Origin};

/// A result whose error is [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong: a typed variant with the two facts that disagree.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Two extents, or a rank, disagree.
    #[error("{argument}: {}{expected} expected, {found} found", axis_label(*.axis))]
    Shape {
        /// The argument that is at fault.
        argument: String,
        /// Its axis, where one axis is at fault.
        axis: Option<usize>,
        /// What the other facts ask for.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An element type that does not fit.
    #[error("{argument}: {expected} expected, {found} found")]
    DType {
        /// The argument that is at fault.
        argument: String,
        /// The types that would do.
        expected: String,
        /// The type that was given.
        found: DType,
    },
    /// A user's function did something that cannot be traced.
    #[error("{message}")]
    Trace {
        /// What it did.
        message: String,
    },
    /// A gather's index was out of range for a pair that is not masked out.
    #[error("index {index} is out of range for axis {axis} of {buffer}, which has size {size}")]
    Index {
        /// The array that was read.
        buffer: String,
        /// The axis that the index is for.
        axis: usize,
        /// The index.
        index: i64,
        /// The extent of that axis.
        size: usize,
    },
    /// Strides or alignment that an operation cannot take.
    #[error("{argument}: {message}")]
    Layout {
        /// The argument that is at fault.
        argument: String,
        /// What is wrong with its layout.
        message: String,
    },
    /// A size that overflows or exceeds what the machine can address.
    #[error("{what} exceeds {limit}")]
    TooLarge {
        /// The thing that is too large.
        what: String,
        /// The limit it exceeds.
        limit: String,
    },
    /// A limit of the compiler.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// The thing that grew too large.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// The text form could not be read.
    #[error("line {line}, column {column}: {message}")]
    Parse {
        /// Line of the text, from 1.
        line: usize,
        /// Column of the text, from 1.
        column: usize,
        /// What was expected.
        message: String,
    },
    /// A graph breaks an invariant: a fault of the compiler or of a hand-written text.
    #[error("invariant {invariant} is broken: {message}")]
    Invariant {
        /// The invariant's number, as [`crate::verify`] lists them.
        invariant: u32,
        /// The value at fault and why.
        message: String,
    },
    /// An argument whose value, not shape or type, is wrong.
    #[error("{argument}: {message}")]
    Argument {
        /// The argument that is at fault.
        argument: String,
        /// What is wrong with it.
        message: String,
    },
    /// Memory could not be had.
    #[error("out of memory: {bytes} bytes asked for on {device}")]
    OutOfMemory {
        /// The bytes asked for.
        bytes: usize,
        /// Where.
        device: String,
    },
    /// A device that is not there or not able.
    #[error("device {device} is unavailable: {found} found, {required} required")]
    DeviceUnavailable {
        /// The device asked for.
        device: String,
        /// What the machine has.
        found: String,
        /// What is needed.
        required: String,
    },
    /// A device was opened before the process forked: the child's part of it is void.
    #[error("{device} was opened by process {opened_by}, of which process {found} is a fork")]
    Fork {
        /// The device.
        device: String,
        /// The process that may use it.
        opened_by: u32,
        /// The process that asks.
        found: u32,
    },
    /// A file could not be read or written.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        message: String,
    },
}

fn axis_label(axis: Option<usize>) -> String {
    axis.map(|axis| format!("axis {axis}: ")).unwrap_or_default()
}

impl ErrorKind {
    /// A stable short code, for programs that tell errors apart.
    pub fn code(&self) -> &'static str {
        match self {
            ErrorKind::Shape { .. } => "shape",
            ErrorKind::DType { .. } => "dtype",
            ErrorKind::Trace { .. } => "trace",
            ErrorKind::Index { .. } => "index",
            ErrorKind::Layout { .. } => "layout",
            ErrorKind::TooLarge { .. } => "too_large",
            ErrorKind::Limit { .. } => "limit",
            ErrorKind::Parse { .. } => "parse",
            ErrorKind::Invariant { .. } => "invariant",
            ErrorKind::Argument { .. } => "argument",
            ErrorKind::OutOfMemory { .. } => "out_of_memory",
            ErrorKind::DeviceUnavailable { .. } => "device_unavailable",
            ErrorKind::Fork { .. } => "fork",
            ErrorKind::File { .. } => "file",
        }
    }
}

/// An error: what went wrong, where in the user's code, and what would mend it.
#[derive(Clone, Debug, PartialEq)]
pub struct Error(Box<Details>);

#[derive(Clone, Debug, PartialEq)]
struct Details {
    kind: ErrorKind,
    operation: Option<String>,
    origin: Option<Origin>,
    notes: Vec<String>,
    help: Option<String>,
}

impl Error {
    /// An error with no place yet.
    pub fn new(kind: ErrorKind) -> Error {
        Error(Box::new(Details { kind, operation: None, origin: None, notes: Vec::new(), help: None }))
    }

    /// A shape error about a whole shape or rank.
    pub fn shape(
        argument: impl Into<String>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Error {
        Error::new(ErrorKind::Shape {
            argument: argument.into(),
            axis: None,
            expected: expected.to_string(),
            found: found.to_string(),
        })
    }

    /// A shape error about one axis.
    pub fn axis(
        argument: impl Into<String>,
        axis: usize,
        expected: impl fmt::Display,
        found: usize,
    ) -> Error {
        Error::new(ErrorKind::Shape {
            argument: argument.into(),
            axis: Some(axis),
            expected: expected.to_string(),
            found: found.to_string(),
        })
    }

    /// An element type error.
    pub fn dtype(argument: impl Into<String>, expected: impl fmt::Display, found: DType) -> Error {
        Error::new(ErrorKind::DType { argument: argument.into(), expected: expected.to_string(), found })
    }

    /// An error about an argument's value.
    pub fn argument(argument: impl Into<String>, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Argument { argument: argument.into(), message: message.into() })
    }

    /// A tracing error.
    pub fn trace(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Trace { message: message.into() })
    }

    /// Names the operation, where none is named yet.
    #[must_use]
    pub fn in_operation(mut self, operation: impl Into<String>) -> Error {
        self.0.operation.get_or_insert_with(|| operation.into());
        self
    }

    /// Sets the user's line, where none is set yet.
    #[must_use]
    pub fn at(mut self, origin: Option<Origin>) -> Error {
        if self.0.origin.is_none() {
            self.0.origin = origin;
        }
        self
    }

    /// Adds a line of further facts.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Error {
        self.0.notes.push(note.into());
        self
    }

    /// Says what would mend it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Error {
        self.0.help = Some(help.into());
        self
    }

    /// The typed variant.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// A stable short code: `shape`, `dtype`, `trace`, …
    pub fn code(&self) -> &'static str {
        self.0.kind.code()
    }

    /// The user's line, where known.
    pub fn origin(&self) -> Option<&Origin> {
        self.0.origin.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details { kind, operation, origin, notes, help } = &*self.0;
        write!(f, "error[{}]: ", kind.code())?;
        if let Some(operation) = operation {
            write!(f, "{operation}: ")?;
        }
        write!(f, "{kind}")?;
        if let Some(origin) = origin {
            write!(f, "\n  --> {origin}")?;
        }
        for note in notes {
            write!(f, "\n   = {note}")?;
        }
        if let Some(help) = help {
            write!(f, "\n   = help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
