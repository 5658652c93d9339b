//! The words of the text form.

use crate::{Error, ErrorKind};

/// One word of the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// `%name`, without the `%`.
    Value(&'a str),
    /// A name.
    Word(&'a str),
    /// A number, or `-inf`.
    Number(&'a str),
    /// A quoted string, between the quotes, with its escapes.
    Quoted(&'a str),
    /// `->`
    Arrow,
    /// One of `( ) [ ] { } , : = @`.
    Mark(char),
    /// The end of the text.
    End,
}

impl std::fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Value(name) => write!(f, "%{name}"),
            Token::Word(text) | Token::Number(text) => f.write_str(text),
            Token::Quoted(text) => write!(f, "\"{text}\""),
            Token::Arrow => f.write_str("->"),
            Token::Mark(mark) => write!(f, "{mark}"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

/// The token at or after byte `start`, with where it starts and ends.
pub(crate) fn next_token(text: &str, start: usize) -> Result<(Token<'_>, usize, usize), Error> {
    let start = skip_blanks(text, start);
    let rest = &text[start..];
    let Some(first) = rest.chars().next() else { return Ok((Token::End, start, start)) };
    let word = |from: usize| -> usize {
        rest[from..].find(|c: char| !is_word(c)).map_or(rest.len(), |length| from + length)
    };
    let (token, length) = match first {
        '%' => match word(1) {
            1 => return Err(error_at(text, start, "a value's name expected after %")),
            end => (Token::Value(&rest[1..end]), end),
        },
        '-' if rest.starts_with("->") => (Token::Arrow, 2),
        '-' | '0'..='9' => {
            let end = number(rest);
            (Token::Number(&rest[..end]), end)
        }
        '"' => match closing_quote(rest) {
            Some(end) => (Token::Quoted(&rest[1..end]), end + 1),
            None => return Err(error_at(text, start, "a string that is not closed")),
        },
        '(' | ')' | '[' | ']' | '{' | '}' | ',' | ':' | '=' | '@' => (Token::Mark(first), 1),
        c if is_word(c) => (Token::Word(&rest[..word(0)]), word(0)),
        c => return Err(error_at(text, start, format!("{c:?} has no meaning here"))),
    };
    Ok((token, start, start + length))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// Blanks and comments, which run from `;` or `//` to the end of the line.
fn skip_blanks(text: &str, mut position: usize) -> usize {
    loop {
        let rest = &text[position..];
        let blanks = rest.len() - rest.trim_start().len();
        if blanks > 0 {
            position += blanks;
        } else if rest.starts_with(';') || rest.starts_with("//") {
            position += rest.find('\n').unwrap_or(rest.len());
        } else {
            return position;
        }
    }
}

/// The length of the number that `text` starts with: a sign may stand first and after an exponent's e.
fn number(text: &str) -> usize {
    let bytes = text.as_bytes();
    let hexadecimal = text.starts_with("0x");
    let mut end = 1;
    while let Some(&byte) = bytes.get(end) {
        let exponent = !hexadecimal && matches!(bytes[end - 1], b'e' | b'E');
        let inside = is_word(byte as char) || exponent && matches!(byte, b'+' | b'-');
        if !inside {
            break;
        }
        end += 1;
    }
    end
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().skip(1).find_map(|(position, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(position)
    })
}

/// The line and column of a byte of `text`, from 1.
pub(crate) fn line_and_column(text: &str, position: usize) -> (usize, usize) {
    let before = &text[..position];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// A parse error at a byte of `text`.
pub(crate) fn error_at(text: &str, position: usize, message: impl Into<String>) -> Error {
    let (line, column) = line_and_column(text, position);
    Error::new(ErrorKind::Parse { line, column, message: message.into() })
}
