//! Charts and heat maps as PNG files.
//!
//! The font comes with the crate, so a picture looks the same on every machine and nothing of the system is needed.

#![forbid(unsafe_code)]

mod bars;
mod canvas;
mod heat;
mod lines;

pub use bars::{Group, bar_chart};
pub use heat::{Matrix, heat_maps};
pub use lines::{Series, line_chart, scatter_chart};

use std::path::Path;
use std::sync::Once;

use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

/// Why a picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Error {
    path: String,
    message: String,
}

/// A result whose error is [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

fn error(path: &Path, message: impl std::fmt::Display) -> Error {
    Error { path: path.display().to_string(), message: message.to_string() }
}

const FONT: &str = "sans-serif";

/// Colours that stay apart for readers with any colour vision (Wong 2011), darkest first.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

fn colour(i: usize) -> RGBColor {
    PALETTE[i % PALETTE.len()]
}

/// Makes the font known; a picture without its labels would be worse than none.
fn prepare() {
    static FONTS: Once = Once::new();
    FONTS.call_once(|| {
        for style in [FontStyle::Normal, FontStyle::Bold] {
            let known = register_font(FONT, style, dejavu::sans::regular());
            assert!(known.is_ok(), "the built-in font is sound");
        }
    });
}

/// The least and greatest finite number, a little apart; 0 and 1 where there is none.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|x| x.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if low > high {
        return (0.0, 1.0);
    }
    let margin = if high > low { 0.0 } else { high.abs().max(1.0) * 1e-3 };
    (low - margin, high + margin)
}
