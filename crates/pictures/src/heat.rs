//! Matrices as colours: masks, biases, attention patterns.

use std::path::Path;

use plotters::prelude::*;

use crate::canvas::picture;
use crate::{FONT, Result, range};

/// A named matrix.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// What stands above it.
    pub name: String,
    /// How many rows it has.
    pub rows: usize,
    /// How many columns it has.
    pub columns: usize,
    /// Its elements, row by row. −∞ and NaN are drawn grey.
    pub values: Vec<f64>,
}

/// Side of one matrix in the picture, at most.
const SIDE: u32 = 300;

/// Draws matrices side by side, blue for low, white for the middle, red for high, each on its own scale, which stands
/// above it.
///
/// # Errors
/// Where the file cannot be written.
pub fn heat_maps(
    path: &Path,
    title: &str,
    x: &str,
    y: &str,
    per_row: usize,
    matrices: &[Matrix],
) -> Result<()> {
    let per_row = per_row.max(1);
    let lines = matrices.len().div_ceil(per_row).max(1);
    let size = (per_row as u32 * (SIDE + 50), 60 + lines as u32 * (SIDE + 60));
    picture(path, size, |whole| {
        let whole = whole.titled(title, (FONT, 18))?;
        for (area, matrix) in whole.split_evenly((lines, per_row)).iter().zip(matrices) {
            let (rows, columns) = (matrix.rows, matrix.columns);
            let (low, high) = range(matrix.values.iter().copied());
            let caption = format!("{}: {low:.2} to {high:.2}", matrix.name);
            let mut chart = ChartBuilder::on(area)
                .caption(&caption, (FONT, 14))
                .margin(6)
                .x_label_area_size(26)
                .y_label_area_size(34)
                .build_cartesian_2d(0.0..columns.max(1) as f64, rows.max(1) as f64..0.0)?;
            chart
                .configure_mesh()
                .disable_mesh()
                .x_labels(3)
                .y_labels(3)
                .x_label_formatter(&|x| format!("{x:.0}"))
                .y_label_formatter(&|y| format!("{y:.0}"))
                .x_desc(x)
                .y_desc(y)
                .label_style((FONT, 11))
                .draw()?;
            let plane = chart.plotting_area();
            let (width, height) = plane.dim_in_pixel();
            let plane = plane.strip_coord_spec();
            for py in 0..height {
                for px in 0..width {
                    let row = (py as usize * rows) / height.max(1) as usize;
                    let column = (px as usize * columns) / width.max(1) as usize;
                    let Some(&value) = matrix.values.get(row * columns + column) else { continue };
                    plane.draw_pixel((px as i32, py as i32), &shade(value, low, high))?;
                }
            }
        }
        Ok(())
    })
}

fn shade(value: f64, low: f64, high: f64) -> RGBColor {
    if !value.is_finite() {
        return RGBColor(190, 190, 190);
    }
    let t = ((value - low) / (high - low)).clamp(0.0, 1.0) * 2.0 - 1.0;
    let mix = |from: f64, to: f64| (from + (to - from) * t.abs()).round() as u8;
    let (r, g, b) = if t < 0.0 { (33.0, 102.0, 172.0) } else { (178.0, 24.0, 43.0) };
    RGBColor(mix(255.0, r), mix(255.0, g), mix(255.0, b))
}
