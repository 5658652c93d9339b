//! The training run: one compiled step, a progress bar, checkpoints, evaluation, a sample.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tilewright::optimizers::{AdamState, adamw, clip_by_global_norm, cosine};
use tilewright::prelude::*;
use tilewright::{load, save};
use tilewright_examples::Splitmix;

use crate::Arguments;
use crate::data::Text;
use tilewright_examples::gpt::{Config, Gpt};

/// What is to be trained.
pub struct Run<'a> {
    pub name: &'static str,
    pub config: Config,
    pub text: &'a Text,
    pub arguments: &'a Arguments,
    pub stop: &'a AtomicBool,
}

/// What came of it.
pub struct Outcome {
    pub name: &'static str,
    pub losses: Vec<f32>,
    pub held_out_bits: f64,
    pub model: Gpt<Array>,
    pub sample: String,
}

/// All that a run needs to go on where it stopped.
#[derive(Clone, Tree)]
struct Checkpoint<L> {
    model: Gpt<L>,
    adam: AdamState<L>,
    /// The loss of each step; NaN for those still to come.
    losses: L,
}

/// Trains to the end; `None` where the user stopped it before, with a checkpoint written.
pub fn train(run: &Run) -> Result<Option<Outcome>> {
    let Run { name, config, text, arguments, stop } = run;
    let (heads, steps, rate) = (config.heads, arguments.steps, arguments.rate);
    let file = arguments.out.join(format!("{name}.checkpoint.safetensors"));

    let step = compile(|(model, adam, windows): (Gpt<Tensor>, AdamState<Tensor>, Tensor)| {
        let (loss, gradient) =
            value_and_grad(|model: &Gpt<Tensor>| model.bits(&windows, heads).mean(..))(&model);
        let (gradient, _) = clip_by_global_norm(gradient, 1.0);
        let rate = cosine(adam.step, rate, steps / 20 + 1, steps);
        let (model, adam) = adamw(rate).betas(0.9, 0.95).weight_decay(0.05).update(model, adam, gradient);
        (loss, model, adam)
    })
    .on(arguments.device);

    let mut state = start(run, &file)?;
    let mut losses = state.losses.to_vec::<f32>()?;
    let done = losses.iter().take_while(|loss| !loss.is_nan()).count();
    let bar = ProgressBar::new(steps as u64).with_position(done as u64);
    let style = "{prefix:>9} [{bar:32}] {pos}/{len}  {msg}  {eta} left";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is sound").progress_chars("=> "));
    bar.set_prefix(*name);
    let length = config.context + 1;
    let begun = Instant::now();
    let mut saved = Instant::now();
    for number in done..steps {
        let windows = Array::new(
            [arguments.batch, length],
            &text.batch(arguments.seed, number, arguments.batch, length),
        )?;
        let (loss, model, adam) = step.call((&state.model, &state.adam, &windows))?;
        losses[number] = loss.item::<f32>()?;
        state = Checkpoint { model, adam, losses: state.losses };
        let tokens = (number + 1 - done) * arguments.batch * config.context;
        let speed = tokens as f64 / begun.elapsed().as_secs_f64();
        let nats = losses[number] * std::f32::consts::LN_2;
        bar.set_message(format!("loss {nats:.3}  {:.3} bits/byte  {speed:.0} tokens/s", losses[number]));
        bar.inc(1);
        let stopping = stop.load(Ordering::Relaxed);
        if stopping || number + 1 == steps || saved.elapsed() > Duration::from_secs(60) {
            state.losses = Array::new([steps], &losses)?;
            save(&file, &state)?;
            saved = Instant::now();
        }
        if stopping && number + 1 < steps {
            bar.abandon();
            return Ok(None);
        }
    }
    bar.finish();
    let seconds = begun.elapsed().as_secs_f64();
    let tokens = (steps - done) * arguments.batch * config.context;
    println!("{name}: {} steps in {seconds:.1} s, {:.0} tokens/s", steps - done, tokens as f64 / seconds);
    if arguments.explain || arguments.trace.is_some() {
        let windows =
            Array::new([arguments.batch, length], &text.batch(arguments.seed, 0, arguments.batch, length))?;
        let profile = step.profile((&state.model, &state.adam, &windows))?;
        if arguments.explain {
            println!("{}\n{profile}", step.explain());
        }
        if let Some(path) = &arguments.trace {
            let failed = |error: std::io::Error| tilewright::ErrorKind::File {
                path: path.display().to_string(),
                message: error.to_string(),
            };
            std::fs::write(path, profile.to_chrome_trace()).map_err(|error| Error::new(failed(error)))?;
        }
    }

    save(arguments.out.join(format!("{name}.safetensors")), &state.model)?;
    let held_out_bits = evaluate(run, &state.model)?;
    let sample = sample(run, &state.model)?;
    Ok(Some(Outcome { name, losses, held_out_bits, model: state.model, sample }))
}

/// Fresh weights, or those of the checkpoint.
fn start(run: &Run, file: &PathBuf) -> Result<Checkpoint<Array>> {
    let Run { config, arguments, .. } = run;
    let initialise = compile(|seed: Tensor| Gpt::new(config, &Key::new(seed))).on(arguments.device);
    let model = initialise.call(&Array::scalar(arguments.seed as i64))?;
    let adam = AdamState::new(&model)?;
    let losses = Array::new([arguments.steps], &vec![f32::NAN; arguments.steps])?;
    let fresh = Checkpoint { model, adam, losses };
    let state = if arguments.resume && file.exists() { load(file, &fresh)? } else { fresh };
    to_device(&state, arguments.device)
}

/// Mean bits per byte of the held-out text, on windows that do not overlap.
fn evaluate(run: &Run, model: &Gpt<Array>) -> Result<f64> {
    let Run { config, text, arguments, .. } = run;
    let heads = config.heads;
    let length = config.context + 1;
    let bits = compile(|(model, windows): (Gpt<Tensor>, Tensor)| model.bits(&windows, heads).mean(..))
        .on(arguments.device);
    let count = (text.held_out.len() / length).clamp(1, if arguments.quick { 16 } else { 160 });
    let windows = text.held_out_windows(count, length);
    let (mut total, mut measured) = (0.0, 0);
    for group in windows.chunks(arguments.batch) {
        let elements: Vec<i32> = group.iter().flatten().copied().collect();
        let loss = bits.call((model, &Array::new([group.len(), length], &elements)?))?;
        total += loss.item::<f32>()? as f64 * group.len() as f64;
        measured += group.len();
    }
    Ok(total / measured as f64)
}

/// Text that the model writes on: each byte drawn from its distribution, a little sharpened.
fn sample(run: &Run, model: &Gpt<Array>) -> Result<String> {
    let Run { config, arguments, .. } = run;
    let (heads, context) = (config.heads, config.context);
    let next = compile(|(model, window, last): (Gpt<Tensor>, Tensor, Tensor)| {
        let logits = model.logits(&window, heads);
        (logits.index(0, 0).at([last]) / 0.7).softmax(-1)
    })
    .on(arguments.device);
    let mut random = Splitmix(arguments.seed);
    let mut bytes: Vec<i32> = "/// Returns the ".bytes().map(i32::from).collect();
    let wanted = bytes.len() + if arguments.quick { 16 } else { 240 };
    while bytes.len() < wanted {
        let used = bytes.len().min(context);
        let mut window = bytes[bytes.len() - used..].to_vec();
        // What stands after the last byte is never seen: the mask is causal.
        window.resize(context, 0);
        let last = Array::scalar(used as i32 - 1);
        let shares = next.call((model, &Array::new([1, context], &window)?, &last))?.to_vec::<f32>()?;
        let mut left = random.unit() as f32;
        let byte = shares.iter().position(|&share| {
            left -= share;
            left <= 0.0
        });
        bytes.push(byte.unwrap_or(b' ' as usize) as i32);
    }
    let bytes: Vec<u8> = bytes.into_iter().map(|byte| byte as u8).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
