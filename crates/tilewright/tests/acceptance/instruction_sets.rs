//! What depends on the instruction set, under each that the machine has: the other tests use the best one.

use std::process::Command;

use tilewright_cpu::Isa;

#[test]
fn models_and_attention_under_every_other_set() {
    let tests = ["generated::", "models::", "scores::", "shapes::"];
    for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::preferred()) {
        let mut run = Command::new(std::env::current_exe().unwrap());
        let output = run.args(tests).env("TILEWRIGHT_ISA", isa.name()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "under {}:\n{text}", isa.name());
        assert!(text.contains("models::training_steps_with_adamw ... ok"), "{text}");
    }
}
