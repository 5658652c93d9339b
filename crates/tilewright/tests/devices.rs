//! Arrays and programs on a device: the CPU, or a GPU where the environment variable `TILEWRIGHT_TEST_DEVICE` is
//! `cuda`.

use tilewright::prelude::*;

/// The device that is tested.
fn device() -> Device {
    match std::env::var("TILEWRIGHT_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::Cuda(0),
        _ => Device::Cpu,
    }
}

fn wave(shape: &[usize]) -> Array {
    Array::from_fn(shape, |index| {
        let place = index.iter().enumerate().map(|(axis, &i)| (axis * 5 + 3) * i).sum::<usize>();
        (place as f32 * 0.37).sin()
    })
    .unwrap()
}

fn attend(x: &Tensor, bias: &Tensor) -> Tensor {
    let last = x.dim(2) as i64 - 1;
    flex_attention(x, x, x)
        .score(|s, at| s + bias.at([at.head, at.query - at.key + last]))
        .mask(|at| at.query.ge(at.key))
        .call()
}

/// One step of a small model with attention, a scan, products, norms, a gather and its scattered gradient.
fn step(
    (weights, windows): ((Tensor, Tensor, Tensor, Tensor), Tensor),
) -> (Tensor, (Tensor, Tensor, Tensor, Tensor)) {
    let loss = |(embedding, project, bias, keep): &(Tensor, Tensor, Tensor, Tensor)| {
        let x = embedding.at([windows.narrow(1, 0, 16)]);
        let heads = x.matmul(project).reshape([2, 16, 2, 8]).swap_axes(1, 2);
        let mixed = attend(&heads, bias).swap_axes(1, 2).reshape([2, 16, 16]);
        let gate = keep.sigmoid();
        let decayed =
            associative_scan((mixed.sigmoid(), mixed), 1, |l: (Tensor, Tensor), r: (Tensor, Tensor)| {
                (gate * l.0 * r.0, gate * r.0 * l.1 + r.1)
            });
        let hidden = (x + decayed.call().1).layer_norm(ones([16], DType::F32), zeros([16], DType::F32), 1e-5);
        cross_entropy(hidden.matmul(embedding.transpose()), windows.narrow(1, 1, 16)).mean(..)
    };
    let (loss, gradient) = value_and_grad(loss)(&weights);
    let moved = |weight: Tensor, gradient: Tensor| weight - 0.5 * gradient;
    let moved = (
        moved(weights.0, gradient.0),
        moved(weights.1, gradient.1),
        moved(weights.2, gradient.2),
        moved(weights.3, gradient.3),
    );
    (loss, moved)
}

fn weights() -> (Array, Array, Array, Array) {
    (wave(&[11, 16]), wave(&[16, 16]), wave(&[2, 31]), wave(&[16]))
}

fn windows() -> Array {
    Array::from_fn([2, 17], |i| ((i[0] * 7 + i[1] * 3) % 11) as i32).unwrap()
}

/// Losses of some steps, and the bytes of the weights at the end.
fn train(device: Device, steps: usize) -> (Vec<f32>, Vec<u8>) {
    let step = compile(step).on(device);
    let mut weights = to_device(&weights(), device).unwrap();
    let mut losses = Vec::new();
    for _ in 0..steps {
        let (loss, moved) = step.call((&weights, &windows())).unwrap();
        assert_eq!((loss.device(), moved.1.device()), (device, device));
        losses.push(loss);
        weights = moved;
    }
    (losses.iter().map(|loss| loss.item().unwrap()).collect(), weights.2.to_bytes().unwrap())
}

/// The greatest difference of two arrays, relative to the greatest element.
fn difference(found: &Array, expected: &Array) -> f32 {
    let (found, expected) = (found.to_vec::<f32>().unwrap(), expected.to_vec::<f32>().unwrap());
    let size = expected.iter().fold(0.0f32, |size, x| size.max(x.abs()));
    found.iter().zip(&expected).fold(0.0f32, |most, (x, y)| most.max((x - y).abs())) / size
}

#[test]
fn a_training_step_is_the_same_on_every_device() {
    let (here, there) = (compile(step).on(Device::Cpu), compile(step).on(device()));
    let mut weights = weights();
    for _ in 0..4 {
        let (expected_loss, expected) = here.call((&weights, &windows())).unwrap();
        let (loss, found) = there.call((&weights, &windows())).unwrap();
        let pairs = [(&loss, &expected_loss), (&found.0, &expected.0), (&found.1, &expected.1)];
        for (found, expected) in pairs.into_iter().chain([(&found.2, &expected.2), (&found.3, &expected.3)]) {
            let difference = difference(found, expected);
            assert!(difference < 2e-5, "{difference:e} of {:?}", expected.ty());
        }
        weights = expected;
    }
}

#[test]
fn training_on_a_device_learns_and_repeats() {
    let (losses, bits) = train(device(), 12);
    assert!(losses[11] < 0.8 * losses[0], "{losses:?}");
    assert_eq!(train(device(), 12), (losses, bits), "another run has other bits");
}

#[test]
fn a_program_runs_where_its_arrays_are() {
    let add = compile(|(x, y): (Tensor, Tensor)| x + y);
    let x = wave(&[3, 4]);
    let there = x.to_device(device()).unwrap();
    // One from the host, one from the device.
    let sum = add.call((&x, &there)).unwrap();
    assert_eq!(sum.device(), device());
    let doubled: Vec<f32> = x.to_vec::<f32>().unwrap().iter().map(|x| x + x).collect();
    assert_eq!(sum.to_vec::<f32>().unwrap(), doubled);
    // And where it is told to.
    let add = compile(|(x, y): (Tensor, Tensor)| x + y).on(Device::Cpu);
    assert_eq!(add.call((&there, &x)).unwrap().device(), Device::Cpu);
}

#[test]
fn arrays_keep_their_layout_when_they_move() {
    let x = wave(&[3, 4, 2]);
    let views = [
        x.transpose(),
        x.flip(1).unwrap(),
        x.slice(1, 1..3).unwrap(),
        x.slice(2, 0..1).unwrap().broadcast_to([5, 3, 4, 2]).unwrap(),
        x.slice(0, 1..1).unwrap(),
    ];
    let triple = compile(|x: Tensor| x * 3.0);
    for view in views {
        let there = view.to_device(device()).unwrap();
        assert_eq!(there.to_bytes().unwrap(), view.to_bytes().unwrap());
        assert_eq!(there.to_device(Device::Cpu).unwrap().to_bytes().unwrap(), view.to_bytes().unwrap());
        assert_eq!(there.to_packed().unwrap().device(), device());
        let elements = there.shape().iter().product::<usize>();
        assert_eq!(there.reshape([elements]).unwrap().to_bytes().unwrap(), view.to_bytes().unwrap());
        let expected: Vec<f32> = view.to_vec::<f32>().unwrap().iter().map(|x| x * 3.0).collect();
        assert_eq!(triple.call(&there).unwrap().to_vec::<f32>().unwrap(), expected);
    }
}

#[test]
fn an_index_out_of_range_is_reported_with_its_line_and_once() {
    let pick = compile(|(table, index): (Tensor, Tensor)| table.at([index]) * 2.0);
    let table = wave(&[5]).to_device(device()).unwrap();
    let index = Array::new([3], &[0i32, 7, 2]).unwrap().to_device(device()).unwrap();
    let error = pick.call((&table, &index)).and_then(|picked| picked.to_vec::<f32>()).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.code(), "index", "{text}");
    assert!(text.contains("devices.rs") && text.contains('7') && text.contains('5'), "{text}");
    // The device is as good as before.
    device().synchronize().unwrap();
    let index = Array::new([3], &[0i32, -1, 2]).unwrap();
    let picked = pick.call((&table, &index)).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(picked[1], 2.0 * table.to_vec::<f32>().unwrap()[4]);
}

#[test]
fn a_profile_names_kernels_and_draws_a_trace() {
    let step = compile(step).on(device());
    let profile = step.profile((&weights(), &windows())).unwrap();
    let text = profile.to_string();
    assert!(text.contains("attention gradient") && text.contains("matrix product"), "{text}");
    assert!(profile.total().as_nanos() > 0);
    let trace = profile.to_chrome_trace();
    assert_eq!(trace.matches("\"ph\":\"X\"").count(), profile.spans.len());
    if device() != Device::Cpu {
        assert!(step.explain().contains("cuda:0 ("), "{}", step.explain());
    }
}

#[test]
fn threads_share_a_device() {
    let step = compile(step).on(device());
    let inputs = (to_device(&weights(), device()).unwrap(), windows());
    let alone = step.call((&inputs.0, &inputs.1)).unwrap().1.1.to_bytes().unwrap();
    std::thread::scope(|scope| {
        let call = || {
            (0..5)
                .map(|_| step.call((&inputs.0, &inputs.1)).unwrap().1.1.to_bytes().unwrap())
                .collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(call)).collect();
        for thread in threads {
            assert!(thread.join().unwrap().iter().all(|bytes| *bytes == alone));
        }
    });
}

#[test]
fn a_device_that_is_not_there_says_what_is_missing() {
    let missing = Device::Cuda(99);
    assert!(!missing.is_available() && Device::Cpu.is_available());
    let x = wave(&[2]);
    let double = compile(|x: Tensor| x * 2.0).on(missing);
    let errors =
        [x.to_device(missing).unwrap_err(), double.call(&x).unwrap_err(), missing.check().unwrap_err()];
    for error in errors {
        assert_eq!(error.code(), "device_unavailable", "{error}");
        assert!(error.to_string().contains("required"), "{error}");
    }
}
