//! Trains a small state-space model to read handwritten digits pixel by pixel, on the CPU or a GPU.
//!
//! First `python3 examples/state_space/fetch_digits.py target/digits.csv`, then
//! `cargo run --release --example state_space`. Reports the accuracy beside that of logistic regression on the same
//! split, and draws how accuracy grew and where the learned eigenvalues lie.

mod data;
mod model;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tilewright::optimizers::{AdamState, adamw, clip_by_global_norm, cosine};
use tilewright::prelude::*;
use tilewright_pictures::{Series, line_chart, scatter_chart};

use data::{Images, PIXELS};
use model::{Config, Logistic, Model};

/// Trains a state-space model on handwritten digits.
#[derive(Debug, Parser)]
#[command(name = "state_space")]
struct Arguments {
    /// The digits, as `fetch_digits.py` writes them.
    #[arg(long, default_value = "target/digits.csv")]
    data: PathBuf,
    /// Training steps.
    #[arg(long, default_value_t = 600)]
    steps: usize,
    /// Images in each step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Layers of the model.
    #[arg(long, default_value_t = 3)]
    layers: usize,
    /// Where it runs: `cpu`, `cuda`, `cuda:1`, …
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Seed of weights, split and batches.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the pictures go.
    #[arg(long, default_value = "runs/state_space")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> std::result::Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(&arguments.out)?;
    arguments.device.check()?;
    let (training, test) = data::read(&arguments.data, arguments.seed)?;
    println!("{} images to learn from, {} to test on", training.len(), test.len());

    let config = Config { layers: arguments.layers, width: 48, state: 32 };
    let initialise = compile(|seed: Tensor| Model::new(&config, &Key::new(seed))).on(arguments.device);
    let start = initialise.call(&Array::scalar(arguments.seed as i64))?;
    let initial = eigenvalues(&start)?;
    let (model, curve) =
        fit("state space", start, arguments, 6e-3, &training, &test, Model::loss, Model::logits)?;

    let logistic =
        Logistic { weight: Array::zeros(DType::F32, [PIXELS, 10])?, offset: Array::zeros(DType::F32, [10])? };
    let (logistic, baseline) =
        fit("logistic", logistic, arguments, 5e-2, &training, &test, Logistic::loss, Logistic::logits)?;

    println!("\naccuracy on {} images that were not learned from", test.len());
    println!(
        "  {:<34} {:.1} %",
        "logistic regression on the pixels",
        100.0 * accuracy(&logistic, &test, Logistic::logits)?
    );
    println!(
        "  {:<34} {:.1} %",
        "state space, pixel by pixel",
        100.0 * accuracy(&model, &test, Model::logits)?
    );
    let curves = [
        Series { name: "state space".into(), points: curve },
        Series { name: "logistic regression".into(), points: baseline },
    ];
    draw(&arguments.out, &curves, initial, eigenvalues(&model)?)?;
    println!("\npictures are in {}", arguments.out.display());
    Ok(())
}

fn draw(
    folder: &Path,
    curves: &[Series],
    before: Vec<(f64, f64)>,
    after: Vec<(f64, f64)>,
) -> tilewright_pictures::Result<()> {
    line_chart(&folder.join("accuracy.png"), "Accuracy on the test images", "step", "share right", curves)?;
    let spectrum = [
        Series { name: "before training".into(), points: before },
        Series { name: "after training".into(), points: after },
    ];
    scatter_chart(
        &folder.join("spectrum.png"),
        "Eigenvalues of the state, gate half open",
        "real",
        "imaginary",
        &spectrum,
    )
}

/// One model's training: its weights at the end, and its accuracy on the test images as it went.
#[allow(clippy::too_many_arguments, reason = "a model is its start, its rate and two functions")]
fn fit<M, A>(
    name: &'static str,
    start: A,
    arguments: &Arguments,
    rate: f64,
    training: &Images,
    test: &Images,
    loss: impl Fn(&M, &Tensor, &Tensor) -> Tensor + Copy,
    logits: impl Fn(&M, &Tensor) -> Tensor + Copy,
) -> Result<(A, Vec<(f64, f64)>)>
where
    M: tilewright::TensorTree + tilewright::tree::MapLeaves<Tensor, Array, Output = A>,
    A: tilewright::tree::MapLeaves<Array, Tensor, Output = M>
        + tilewright::tree::MapLeaves<Array, Array, Output = A>,
{
    let steps = arguments.steps;
    let step = compile(|(model, adam, pixels, digits): (M, AdamState<Tensor>, Tensor, Tensor)| {
        let (loss, gradient) = value_and_grad(|model: &M| loss(model, &pixels, &digits))(&model);
        let (gradient, _) = clip_by_global_norm(gradient, 1.0);
        let rate = cosine(adam.step, rate, steps / 20 + 1, steps);
        let (model, adam) = adamw(rate).weight_decay(0.02).update(model, adam, gradient);
        (loss, model, adam)
    })
    .on(arguments.device);
    let bar = ProgressBar::new(steps as u64);
    let style = "{prefix:>11} [{bar:32}] {pos}/{len}  {msg}  {eta} left";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is sound").progress_chars("=> "));
    bar.set_prefix(name);
    let mut state = to_device(&(AdamState::new(&start)?, start), arguments.device)?;
    let mut curve = Vec::new();
    let begun = Instant::now();
    for number in 0..steps {
        let batch = training.batch(arguments.batch, arguments.seed, number);
        let (pixels, digits) = arrays(&batch)?;
        let (loss, model, adam) = step.call((&state.1, &state.0, &pixels, &digits))?;
        state = (adam, model);
        bar.set_message(format!("loss {:.3}", loss.item::<f32>()?));
        bar.inc(1);
        if number % 25 == 24 || number + 1 == steps {
            curve.push(((number + 1) as f64, accuracy(&state.1, test, logits)?));
        }
    }
    bar.finish();
    println!("{name}: {steps} steps in {:.1} s", begun.elapsed().as_secs_f64());
    Ok((state.1, curve))
}

fn arrays(images: &Images) -> Result<(Array, Array)> {
    let count = images.len();
    Ok((Array::new([count, PIXELS], &images.pixels)?, Array::new([count], &images.digits)?))
}

/// The share of images whose digit has the greatest logit.
fn accuracy<M, A>(model: &A, images: &Images, logits: impl Fn(&M, &Tensor) -> Tensor) -> Result<f64>
where
    A: tilewright::tree::MapLeaves<Array, Tensor, Output = M>,
{
    let right = compile(|(model, pixels, digits): (M, Tensor, Tensor)| {
        logits(&model, &pixels).argmax(-1).eq(digits.cast(DType::I64)).cast(DType::F32).mean(..)
    });
    let (pixels, digits) = arrays(images)?;
    Ok(right.call((model, &pixels, &digits))?.item::<f32>()? as f64)
}

/// The eigenvalues of every layer's state where the gate is half open.
fn eigenvalues(model: &Model<Array>) -> Result<Vec<(f64, f64)>> {
    let mut values = Vec::new();
    for layer in &model.layers {
        for (fade, angle) in layer.fade.to_vec::<f32>()?.into_iter().zip(layer.angle.to_vec::<f32>()?) {
            let size = (-(fade as f64).exp()).exp();
            values.push((size * (angle as f64).cos(), size * (angle as f64).sin()));
        }
    }
    Ok(values)
}
