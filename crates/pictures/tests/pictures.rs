//! Each kind of picture is written as a PNG that is not blank.

use tilewright_pictures::{Group, Matrix, Series, bar_chart, heat_maps, line_chart};

fn check(name: &str, draw: impl Fn(&std::path::Path)) {
    let path = std::env::temp_dir().join(format!("tilewright-{}-{name}.png", std::process::id()));
    draw(&path);
    let bytes = std::fs::read(&path).expect("the picture was written");
    std::fs::remove_file(&path).expect("the picture can be removed");
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    assert!(bytes.len() > 3000, "{name} has only {} bytes: a blank page compresses to less", bytes.len());
}

#[test]
fn draws_lines_bars_and_heat() {
    let curve = |f: fn(f64) -> f64| (0..200).map(|i| (i as f64, f(i as f64 / 30.0))).collect::<Vec<_>>();
    check("lines", |path| {
        let series = [
            Series { name: "with biases".into(), points: curve(|x| 5.0 * (-x).exp() + 2.0) },
            Series { name: "without".into(), points: curve(|x| 5.0 * (-x * 0.8).exp() + 2.2) },
        ];
        line_chart(path, "loss", "step", "bits per byte", &series).expect("drawn");
    });
    check("bars", |path| {
        let groups = [
            Group { name: "f32".into(), values: vec![Some(120.0), Some(61.5)] },
            Group { name: "bf16".into(), values: vec![Some(140.0), None] },
        ];
        bar_chart(path, "attention", "GFLOP/s", &["tilewright", "torch"], &groups).expect("drawn");
    });
    check("heat", |path| {
        let values = (0..64 * 64).map(|i| ((i % 64) as f64 - (i / 64) as f64) / 64.0).collect();
        let matrix = Matrix { name: "head 0".into(), rows: 64, columns: 64, values };
        let mask = Matrix {
            name: "head 1".into(),
            rows: 2,
            columns: 2,
            values: vec![0.0, f64::NEG_INFINITY, 1.0, 0.5],
        };
        heat_maps(path, "learned biases", "key", "query", 2, &[matrix, mask]).expect("drawn");
    });
}

#[test]
fn says_where_it_could_not_write() {
    let path = std::path::Path::new("/nowhere/at/all.png");
    let failure = line_chart(path, "t", "x", "y", &[]).expect_err("the folder does not exist");
    assert!(failure.to_string().contains("nowhere"), "{failure}");
}
