//! Grouped bars: a few measurements of several things.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::canvas::picture;
use crate::{FONT, Result, colour};

/// Bars that belong together.
#[derive(Clone, Debug)]
pub struct Group {
    /// What stands below them.
    pub name: String,
    /// One height for each name of the legend; absent bars are left out.
    pub values: Vec<Option<f64>>,
}

/// Draws groups of bars, one colour for each of `names`, with each height written above its bar.
///
/// # Errors
/// Where the file cannot be written.
pub fn bar_chart(path: &Path, title: &str, y: &str, names: &[&str], groups: &[Group]) -> Result<()> {
    let highest = groups.iter().flat_map(|group| &group.values).flatten().fold(0.0f64, |a, &b| a.max(b));
    let top = if highest > 0.0 { highest * 1.15 } else { 1.0 };
    let width = (160 + groups.len() as u32 * (40 + 44 * names.len() as u32)).max(640);
    picture(path, (width, 560), |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 20))
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..groups.len().max(1) as f64, 0.0..top)?;
        chart.configure_mesh().disable_x_mesh().disable_x_axis().y_desc(y).label_style((FONT, 13)).draw()?;
        let step = 0.84 / names.len().max(1) as f64;
        let centred =
            |size: i32| TextStyle::from((FONT, size).into_font()).pos(Pos::new(HPos::Center, VPos::Bottom));
        for (i, name) in names.iter().enumerate() {
            let bars = groups.iter().enumerate().filter_map(|(g, group)| {
                let height = group.values.get(i).copied().flatten()?;
                let left = g as f64 + 0.08 + i as f64 * step;
                Some((left, height))
            });
            let bars: Vec<(f64, f64)> = bars.collect();
            chart
                .draw_series(bars.iter().map(|&(left, height)| {
                    Rectangle::new([(left, 0.0), (left + step * 0.94, height)], colour(i).filled())
                }))?
                .label(*name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 16, y + 5)], colour(i).filled()));
            chart.draw_series(bars.iter().map(|&(left, height)| {
                let label = if height >= 100.0 { format!("{height:.0}") } else { format!("{height:.2}") };
                Text::new(label, (left + step * 0.47, height), centred(12))
            }))?;
        }
        for (g, group) in groups.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(g as f64 + 0.5, 0.0));
            area.draw_text(&group.name, &centred(13), (x, y + 22))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font((FONT, 13))
            .draw()?;
        Ok(())
    })
}
