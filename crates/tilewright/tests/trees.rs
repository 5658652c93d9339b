//! Derived trees, their paths, and files of arrays.

use std::collections::{BTreeMap, HashMap};

use tilewright::prelude::*;
use tilewright::tree::{self, Entry, Path, leaves};
use tilewright::{load, save};

#[derive(Clone, Debug, Tree)]
struct Model<L> {
    embedding: L,
    layers: Vec<Layer<L>>,
    head: Option<Box<Layer<L>>>,
    extra: (L, [L; 2]),
    named: HashMap<String, L>,
    #[tree(static)]
    width: usize,
}

#[derive(Clone, Debug, Tree)]
struct Layer<L> {
    weight: L,
    activation: Activation<L>,
}

#[derive(Clone, Debug, Tree)]
enum Activation<L> {
    Relu,
    Scaled(L),
    Between { low: L, high: L },
}

#[derive(Clone, Copy, Debug, Tree)]
struct Pair<L, const N: usize>(L, [L; N]);

fn model() -> Model<Array> {
    let mut next = 0.0f32;
    let mut leaf = || {
        next += 1.0;
        Array::scalar(next)
    };
    let layers = vec![
        Layer { weight: leaf(), activation: Activation::Relu },
        Layer { weight: leaf(), activation: Activation::Scaled(leaf()) },
        Layer { weight: leaf(), activation: Activation::Between { low: leaf(), high: leaf() } },
    ];
    Model {
        embedding: leaf(),
        layers,
        head: Some(Box::new(Layer { weight: leaf(), activation: Activation::Relu })),
        extra: (leaf(), [leaf(), leaf()]),
        named: [("b".to_string(), leaf()), ("a".to_string(), leaf())].into(),
        width: 3,
    }
}

#[test]
fn paths_name_the_leaves() {
    let paths: Vec<String> = leaves(&model()).into_iter().map(|(path, _)| path.to_string()).collect();
    let expected = [
        "embedding",
        "layers.0.weight",
        "layers.1.weight",
        "layers.1.activation.0",
        "layers.2.weight",
        "layers.2.activation.low",
        "layers.2.activation.high",
        "head.weight",
        "extra.0",
        "extra.1.0",
        "extra.1.1",
        "named.a",
        "named.b",
    ];
    assert_eq!(paths, expected);
    let pair = Pair(Array::scalar(1i32), [Array::scalar(2i32), Array::scalar(3i32)]);
    let paths: Vec<String> = leaves(&pair).into_iter().map(|(path, _)| path.to_string()).collect();
    assert_eq!(paths, ["0", "1.0", "1.1"]);
}

#[test]
fn mapping_keeps_the_structure() {
    let model = model();
    let mapped = tree::map_leaves(&model, |_, leaf: &Array| Ok(Array::scalar(-leaf.item::<f32>()?))).unwrap();
    assert_eq!(mapped.width, 3);
    assert!(matches!(mapped.layers[2].activation, Activation::Between { .. }));
    let values = |model: &Model<Array>| -> Vec<f32> {
        leaves(model).iter().map(|(_, leaf)| leaf.item::<f32>().unwrap()).collect()
    };
    assert_eq!(values(&mapped), values(&model).iter().map(|x| -x).collect::<Vec<_>>());
    let refused = tree::map_leaves(&model, |path, leaf: &Array| {
        if path.as_str() == "extra.1.0" { Err(Error::argument("leaf", "no")) } else { Ok(leaf.clone()) }
    });
    assert_eq!(refused.unwrap_err().code(), "argument");
}

/// Whatever changes what a program would be, changes what a visit meets.
#[test]
fn visits_meet_the_structure() {
    let statics = |model: &Model<Array>| {
        let mut met = Vec::new();
        tilewright::tree::Tree::<Array>::visit(model, &mut Path::default(), &mut |path, entry| {
            if let Entry::Static(value) = entry {
                met.push(format!("{path}={value:?}"));
            }
        });
        met
    };
    let first = model();
    let mut others = vec![first.clone(), first.clone(), first.clone(), first.clone()];
    others[0].width = 4;
    others[1].layers[0].activation = Activation::Scaled(Array::scalar(0f32));
    others[2].head = None;
    others[3].layers.pop();
    assert!(statics(&first).contains(&"width=3".to_string()));
    for other in &others {
        assert_ne!(statics(&first), statics(other));
    }
}

#[test]
fn files_hold_trees() {
    let folder = std::env::temp_dir().join(format!("tilewright-trees-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("model.safetensors");
    let half = [tilewright::bf16::from_f32(0.5), tilewright::bf16::from_f32(-3.0)];
    let tree: BTreeMap<String, (Array, Option<Array>)> = [
        ("x".to_string(), (Array::new([2], &half).unwrap(), Some(Array::scalar(true)))),
        ("y".to_string(), (Array::new([2, 2], &[1i64, 2, 3, 4]).unwrap().transpose(), None)),
    ]
    .into();
    save(&file, &tree).unwrap();
    let loaded = load(&file, &tree).unwrap();
    assert_eq!(loaded["x"].0.to_vec::<tilewright::bf16>().unwrap(), half);
    assert!(loaded["x"].1.as_ref().unwrap().item::<bool>().unwrap());
    assert_eq!(loaded["y"].0.to_vec::<i64>().unwrap(), [1, 3, 2, 4]);

    let mut other = tree.clone();
    other.get_mut("y").unwrap().0 = Array::zeros(DType::I64, [4]).unwrap();
    let error = load(&file, &other).unwrap_err().to_string();
    assert!(error.contains("y.0") && error.contains("[4] expected, [2, 2] found"), "{error}");
    other.insert("z".into(), (Array::scalar(0i32), None));
    other.remove("y");
    let error = load(&file, &other).unwrap_err();
    assert_eq!(error.code(), "file");
    assert!(error.to_string().contains("`z.0`"), "{error}");
    assert_eq!(load(folder.join("absent"), &tree).unwrap_err().code(), "file");
    std::fs::write(&file, b"no such format").unwrap();
    assert_eq!(load(&file, &tree).unwrap_err().code(), "file");
    std::fs::remove_dir_all(&folder).unwrap();
}
