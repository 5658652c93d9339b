//! From drawing to file: pixels in memory, written as PNG.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::{Result, error, prepare};

type Failure = Box<dyn std::error::Error>;

/// What a picture is drawn on.
pub(crate) type Canvas<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Calls `draw` with a white canvas of so many pixels, and writes what it drew.
pub(crate) fn picture(
    path: &Path,
    (width, height): (u32, u32),
    draw: impl FnOnce(&Canvas<'_>) -> std::result::Result<(), Failure>,
) -> Result<()> {
    prepare();
    let mut pixels = vec![u8::MAX; width as usize * height as usize * 3];
    let drawn = || -> std::result::Result<(), Failure> {
        let canvas = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        draw(&canvas)?;
        canvas.present()?;
        drop(canvas);
        let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), width, height);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()?;
        Ok(())
    };
    drawn().map_err(|failure| error(path, failure))
}
