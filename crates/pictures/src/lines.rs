//! Curves and points over common axes.

use std::path::Path;

use plotters::prelude::*;

use crate::canvas::picture;
use crate::{FONT, Result, colour, range};

/// A curve with its name.
#[derive(Clone, Debug)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// Points (x, y), in order of x.
    pub points: Vec<(f64, f64)>,
}

/// Draws curves with a legend.
///
/// # Errors
/// Where the file cannot be written.
pub fn line_chart(path: &Path, title: &str, x: &str, y: &str, series: &[Series]) -> Result<()> {
    chart(path, title, x, y, series, Mark::Line)
}

/// Draws points with a legend.
///
/// # Errors
/// Where the file cannot be written.
pub fn scatter_chart(path: &Path, title: &str, x: &str, y: &str, series: &[Series]) -> Result<()> {
    chart(path, title, x, y, series, Mark::Point)
}

/// How a point of a series is drawn.
#[derive(Clone, Copy, PartialEq)]
enum Mark {
    Line,
    Point,
}

fn chart(path: &Path, title: &str, x: &str, y: &str, series: &[Series], mark: Mark) -> Result<()> {
    let points = || series.iter().flat_map(|series| &series.points);
    let (x_low, x_high) = range(points().map(|point| point.0));
    let (y_low, y_high) = range(points().map(|point| point.1));
    let room = 0.05 * (y_high - y_low);
    picture(path, (960, 600), |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 22))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x_low..x_high, (y_low - room)..(y_high + room))?;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&|x| number(*x, x_high - x_low))
            .y_label_formatter(&|y| number(*y, y_high - y_low))
            .label_style((FONT, 14))
            .axis_desc_style((FONT, 15))
            .light_line_style(RGBColor(240, 240, 240))
            .bold_line_style(RGBColor(220, 220, 220))
            .draw()?;
        for (i, series) in series.iter().enumerate() {
            let drawn = match mark {
                Mark::Line => {
                    let style = colour(i).stroke_width(2);
                    chart.draw_series(LineSeries::new(series.points.iter().copied(), style))?
                }
                Mark::Point => {
                    let dot = |&point: &(f64, f64)| Circle::new(point, 4, colour(i).mix(0.7).filled());
                    chart.draw_series(series.points.iter().map(dot))?
                }
            };
            let sample = move |(x, y)| PathElement::new(vec![(x, y), (x + 24, y)], colour(i).stroke_width(3));
            drawn.label(&series.name).legend(sample);
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font((FONT, 14))
            .draw()?;
        Ok(())
    })
}

/// A number on an axis that spans so much.
fn number(value: f64, span: f64) -> String {
    let decimals = if span >= 20.0 {
        0
    } else if span >= 2.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}
