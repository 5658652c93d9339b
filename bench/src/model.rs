//! A training step of the language model example: forward, loss, gradient, clipping, AdamW.

use serde_json::json;
use tilewright::optimizers::{AdamState, adamw, clip_by_global_norm};
use tilewright::prelude::*;
use tilewright_examples::Splitmix;
use tilewright_examples::gpt::{Config, Gpt, Kind};

use crate::peer::Peers;
use crate::report::{Limit, Report, Row};
use crate::{Arguments, timed};

const BATCH: usize = 8;

/// Measures the step with and without learned biases.
pub fn measure(
    arguments: &Arguments,
    peers: &mut Peers,
    report: &mut Report,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    for biases in [false, true] {
        let config = Config { layers: vec![Kind::Attention; 4], heads: 4, width: 128, context: 256, biases };
        let times = time(&config, arguments)?;
        let question = json!({
            "kind": "model", "dtype": "f32", "layers": config.layers.len(), "heads": config.heads, "width": config.width,
            "context": config.context, "batch": BATCH, "biases": biases, "repeats": arguments.repeats,
            "threads": arguments.threads,
        });
        report.add(
            Limit::Arithmetic,
            Row {
                chart: "training step".into(),
                case: if biases { "4 layers, relative biases".into() } else { "4 layers, no biases".into() },
                dtype: "f32",
                direction: "step",
                work: operations(&config),
                times,
                baseline: None,
                peers: peers.ask(&[("torch", "eager"), ("torch", "compiled")], &question),
            },
        );
    }
    Ok(())
}

/// Multiply-adds, counted twice, of the products of one step: forward and twice that backward; the attention counts
/// half, being causal.
fn operations(config: &Config) -> f64 {
    let tokens = (BATCH * config.context) as f64;
    let width = config.width as f64;
    let weights = config.layers.len() as f64 * 12.0 * width * width + 256.0 * width;
    let attention = config.layers.len() as f64 * 2.0 * config.context as f64 * width;
    6.0 * tokens * weights + 3.0 * tokens * attention
}

fn time(config: &Config, arguments: &Arguments) -> Result<Vec<f64>> {
    let heads = config.heads;
    let initialise = compile(|seed: Tensor| Gpt::new(config, &Key::new(seed)));
    let model = initialise.call(&Array::scalar(1i64))?;
    let adam = AdamState::new(&model)?;
    let mut random = Splitmix(1);
    let windows: Vec<i32> = (0..BATCH * (config.context + 1)).map(|_| random.below(256) as i32).collect();
    let windows = Array::new([BATCH, config.context + 1], &windows)?;
    let step = compile(|(model, adam, windows): (Gpt<Tensor>, AdamState<Tensor>, Tensor)| {
        let (loss, gradient) =
            value_and_grad(|model: &Gpt<Tensor>| model.bits(&windows, heads).mean(..))(&model);
        let (gradient, _) = clip_by_global_norm(gradient, 1.0);
        let (model, adam) = adamw(1e-3).update(model, adam, gradient);
        (loss, model, adam)
    })
    .threads(arguments.threads);
    timed(arguments.repeats, || step.call((&model, &adam, &windows)).map(drop))
}
