//! Peers: Python processes that write a line when they are ready, and then answer one case a line, so that project and peer
//! are measured in turn.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// The peers that were asked for.
pub struct Peers(Vec<Peer>);

struct Peer {
    name: String,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a peer says to a case: its times in seconds, or why it has none.
pub type Answer = Result<Vec<f64>, String>;

impl Peers {
    /// Starts `torch`, `jax`, … each with the Python of `target/venv-NAME`, the one that the tests use, or the one on
    /// the path.
    pub fn start(names: &[String]) -> std::io::Result<Peers> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let start = |name: &String| {
            let own = root.join(format!("../target/venv-{name}/bin/python"));
            let kept = root.join("../target/venv/bin/python");
            let found = [own, kept].into_iter().find(|python| python.exists());
            let python = found.unwrap_or_else(|| PathBuf::from("python3"));
            let script = root.join(format!("peers/{name}_peer.py"));
            let mut process =
                Command::new(&python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let input = process.stdin.take().expect("the input is piped");
            let output = BufReader::new(process.stdout.take().expect("the output is piped"));
            Ok(Peer { name: name.clone(), process, input, output })
        };
        let mut peers: Vec<Peer> = names.iter().map(start).collect::<std::io::Result<_>>()?;
        // A peer that is still importing its library would take a core from what is measured first. One that fails
        // closes its output, and says so when it is asked.
        for peer in &mut peers {
            peer.output.read_line(&mut String::new())?;
        }
        Ok(Peers(peers))
    }

    /// Puts a case to each peer that may have an implementation of it.
    pub fn ask(&mut self, implementations: &[(&str, &str)], case: &Value) -> Vec<(String, Answer)> {
        let mut answers = Vec::new();
        for (name, implementation) in implementations {
            let Some(peer) = self.0.iter_mut().find(|peer| peer.name == *name) else { continue };
            let mut case = case.clone();
            case["implementation"] = (*implementation).into();
            answers.push((format!("{name} {implementation}"), peer.answer(&case)));
        }
        answers
    }
}

impl Peer {
    fn answer(&mut self, case: &Value) -> Answer {
        let mut line = String::new();
        writeln!(self.input, "{case}")
            .and_then(|()| self.input.flush())
            .map_err(|error| error.to_string())?;
        self.output.read_line(&mut line).map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_str(&line).map_err(|_| "the peer stopped".to_string())?;
        match answer["times"].as_array() {
            Some(times) => Ok(times.iter().filter_map(Value::as_f64).collect()),
            None => Err(answer["error"].as_str().unwrap_or("no answer").to_owned()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A peer that has ended already is what we want.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
