//! Pictures of a run: how the loss fell, and what the biases became.

use std::path::Path;

use tilewright_pictures::{Matrix, Series, heat_maps, line_chart};

use crate::training::Outcome;
use tilewright::Array;
use tilewright_examples::gpt::{Layer, Mixer};

/// Writes `loss.png` and, for a model with biases, `biases.png` and `distances.png`.
pub fn draw(outcomes: &[Outcome], folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let curves: Vec<Series> = outcomes
        .iter()
        .map(|outcome| Series { name: outcome.name.replace('_', " "), points: smoothed(&outcome.losses) })
        .collect();
    line_chart(&folder.join("loss.png"), "Training loss", "step", "bits per byte", &curves)?;

    let Some(with) =
        outcomes.iter().find(|outcome| outcome.model.layers.iter().any(|layer| bias(layer).is_some()))
    else {
        return Ok(());
    };
    let (mut maps, mut curves) = (Vec::new(), Vec::new());
    let mut heads = 1;
    for (l, layer) in with.model.layers.iter().enumerate() {
        let Some(bias) = bias(layer) else { continue };
        let context = bias.shape()[1];
        heads = bias.shape()[0];
        let values = bias.to_vec::<f32>()?;
        for (h, row) in values.chunks_exact(context).enumerate() {
            let name = format!("layer {l}, head {h}");
            maps.push(as_pairs(&name, row));
            let points = row.iter().enumerate().take(64).map(|(d, &b)| (d as f64, b as f64)).collect();
            curves.push(Series { name, points });
        }
    }
    heat_maps(&folder.join("biases.png"), "Learned biases", "key", "query", heads, &maps)?;
    let (title, x) = ("Learned biases of the first attention layer by distance", "positions back");
    line_chart(
        &folder.join("distances.png"),
        title,
        x,
        "added to the score",
        &curves[..heads.min(curves.len())],
    )?;
    Ok(())
}

fn bias(layer: &Layer<Array>) -> Option<&Array> {
    match &layer.mixer {
        Mixer::Attention { bias, .. } => bias.as_ref(),
        Mixer::Scan { .. } => None,
    }
}

/// The bias of each pair of the last 64 positions; pairs that the mask hides are left out.
fn as_pairs(name: &str, by_distance: &[f32]) -> Matrix {
    let size = by_distance.len().min(64);
    let at = |query: usize, key: usize| {
        query.checked_sub(key).map_or(f64::NEG_INFINITY, |distance| by_distance[distance] as f64)
    };
    let values = (0..size * size).map(|i| at(i / size, i % size)).collect();
    Matrix { name: name.into(), rows: size, columns: size, values }
}

/// A running mean, so that the curve shows and not the noise of single batches.
fn smoothed(losses: &[f32]) -> Vec<(f64, f64)> {
    let mut mean = f64::NAN;
    let step = |(i, &loss): (usize, &f32)| {
        mean = if mean.is_nan() { loss as f64 } else { 0.93 * mean + 0.07 * loss as f64 };
        (i as f64, mean)
    };
    losses.iter().enumerate().map(step).collect()
}
