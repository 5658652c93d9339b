//! The gradients of the examples' models, as the public functions trace them, against the interpreter.

use tilewright::prelude::{Array, DType, Key, Tensor, compile, value_and_grad};
use tilewright::tree::{MapLeaves, Tree, leaves};
use tilewright_examples::gpt::{Config, Gpt, Kind};

use crate::case::Case;
use crate::host;

#[path = "../../../../examples/state_space/model.rs"]
#[allow(dead_code, reason = "the test takes the model, and not its baseline")]
mod state_space;

/// The traced graph of a function of arrays, as a case.
fn case<T, O, A>(label: &str, inputs: A, function: impl Fn(T) -> O) -> Case
where
    A: MapLeaves<Array, Tensor, Output = T> + Tree<Array>,
    O: MapLeaves<Tensor, Array>,
{
    let arrays = leaves(&inputs).into_iter().map(|(_, array)| {
        let ty = tilewright_ir::Type::new(array.dtype(), array.shape());
        tilewright_interp::Array::from_bytes(ty, &array.to_bytes().unwrap())
    });
    let arrays = arrays.collect();
    let program = compile(function).program(inputs).unwrap();
    Case::new(label.into(), program.traced.clone(), arrays)
}

fn check(cases: &[Case]) {
    let bytes = |case: &Case| case.inputs.iter().map(tilewright_interp::Array::to_bytes).collect();
    let Some(found) = host::run(cases.iter().map(|case| (&case.plan, &case.program, bytes(case)))) else {
        return;
    };
    for (case, (found, fault)) in cases.iter().zip(found) {
        assert_eq!(case.program.fault(fault), None, "{}", case.label);
        case.check(&found);
    }
}

#[test]
fn language_model() {
    let config =
        Config { layers: vec![Kind::Attention, Kind::Scan], heads: 2, width: 16, context: 20, biases: true };
    let model =
        compile(|seed: Tensor| Gpt::new(&config, &Key::new(seed))).call(&Array::scalar(3i64)).unwrap();
    let windows = Array::from_fn([2, 21], |i| ((i[0] * 31 + i[1] * i[1] * 7) % 256) as i32).unwrap();
    check(&[case("language model", (model, windows), |(model, windows): (Gpt<Tensor>, Tensor)| {
        value_and_grad(|model: &Gpt<Tensor>| model.bits(&windows, 2).mean(..))(&model)
    })]);
}

#[test]
fn state_space() {
    use state_space::{Config, Model};
    let config = Config { layers: 2, width: 12, state: 6 };
    let model =
        compile(|seed: Tensor| Model::new(&config, &Key::new(seed))).call(&Array::scalar(3i64)).unwrap();
    let pixels = Array::from_fn([3, 64], |i| ((i[0] * 5 + i[1] * 3) % 16) as f32 / 16.0).unwrap();
    let digits = Array::from_fn([3], |i| (3 * i[0]) as i32).unwrap();
    assert_eq!(pixels.dtype(), DType::F32);
    let step = |(model, pixels, digits): (Model<Tensor>, Tensor, Tensor)| {
        value_and_grad(|model: &Model<Tensor>| model.loss(&pixels, &digits))(&model)
    };
    check(&[case("state space", (model, pixels, digits), step)]);
}
