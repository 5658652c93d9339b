//! How far `f32` functions are from the truth, in units of the last place.

/// Numbers at which functions have limits.
pub(crate) const SPECIAL: [f32; 17] = [
    0.0,
    -0.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    1.0,
    -1.0,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    -1e-45,
    0.5,
    -0.5,
    2.0,
    -3.0,
    16_777_217.0,
    -2.5,
];

/// The distance between a result and the true value, in units of the last place of the latter.
fn error(found: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    if found == rounded || (found.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    let magnitude = rounded.abs().max(f32::MIN_POSITIVE);
    let place = (magnitude as f64).log2().floor().exp2() * 2f64.powi(-23);
    (found as f64 - exact).abs() / place
}

/// Every so many of all floats, infinities, NaNs and denormals among them, and a grid of ordinary numbers.
fn samples(step: usize, grid: i32) -> impl Iterator<Item = f32> {
    let all = (0..=u32::MAX).step_by(step).map(f32::from_bits);
    all.chain(SPECIAL).chain((-grid..grid).map(move |i| i as f32 * 105.0 / grid as f32))
}

/// Checks the greatest error of a function.
pub(crate) fn check(name: &str, bound: f64, found: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) {
    let errors = samples(9973, 50_000).map(|x| (error(found(x), exact(x as f64)), x));
    let (worst, at) = errors.max_by(|a, b| a.0.total_cmp(&b.0)).expect("not empty");
    let (found, exact) = (found(at), exact(at as f64));
    assert!(worst <= bound, "{name}({at:e}) is {worst} units off: {found:e} for {exact:e}");
}

/// Checks the greatest error of a function of two numbers.
pub(crate) fn check2(
    name: &str,
    bound: f64,
    found: impl Fn(f32, f32) -> f32,
    exact: impl Fn(f64, f64) -> f64,
) {
    let pairs = || {
        let wide = samples(8_500_001, 40).flat_map(|x| samples(9_700_001, 30).map(move |y| (x, y)));
        // Powers that are neither 0 nor infinite.
        let close = (0..40_000).map(|i| {
            let x = 1.0 + (i % 199 - 99) as f32 * 9.7e-3;
            (x, (i / 199 - 100) as f32 * 0.83)
        });
        wide.chain(close)
    };
    let errors = pairs().map(|(x, y)| (error(found(x, y), exact(x as f64, y as f64)), x, y));
    let (worst, x, y) = errors.max_by(|a, b| a.0.total_cmp(&b.0)).expect("not empty");
    let (found, exact) = (found(x, y), exact(x as f64, y as f64));
    assert!(worst <= bound, "{name}({x:e}, {y:e}) is {worst} units off: {found:e} for {exact:e}");
}
