//! Every example and every trap: the written-down expectation, the compiled program and real packets must agree, with every
//! packet filter and, on two nodes, over every path. RINGFENCE_PACKETS=all adds all filters in all networks.
//!
//! An expectation is a list of lines `allow|deny FROM -> TO PROTOCOL/PORT`; the first that matches a cell counts, and some
//! line must. `*` stands for any characters. A case with several steps lists its files in [`steps`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut trials = Vec::new();
    for expectation in expectations(&tests.join("examples")) {
        let name = stem(&expectation);
        let paths: Vec<PathBuf> = steps(&name).iter().map(|path| examples.join(path)).collect();
        trials.extend(all(&format!("examples/{name}"), &paths, &expectation));
    }
    for expectation in expectations(&tests.join("traps")) {
        let paths = vec![expectation.with_extension("yaml")];
        trials.extend(all(&format!("traps/{}", stem(&expectation)), &paths, &expectation));
    }
    trials.push(Trial::test("every_example_has_an_expectation", move || {
        for entry in fs::read_dir(&examples)?.flatten().filter(|entry| entry.path().is_dir()) {
            let expectation = tests.join("examples").join(entry.file_name()).with_extension("txt");
            if !expectation.exists() {
                return Err(format!("{} is missing", expectation.display()).into());
            }
            if !entry.path().join("README.md").exists() {
                return Err(format!("{} has no README.md", entry.path().display()).into());
            }
        }
        Ok(())
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The files of an example: its folder, or the first files of one that is told step by step.
fn steps(name: &str) -> Vec<String> {
    let files = ["0-cluster", "1-default-deny", "2-access-nginx", "3-everyone-port-80"];
    match name.strip_prefix("nginx-step-").and_then(|step| step.parse::<usize>().ok()) {
        Some(step) => files[..=step].iter().map(|file| format!("nginx/{file}.yaml")).collect(),
        // The other cluster has a test of its own.
        None if name == "two-clusters" => vec![format!("{name}/cluster-1")],
        None => vec![name.to_owned()],
    }
}

fn expectations(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no expectations in {}", folder.display());
    paths
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The packet filters, each with the arguments that choose it.
const FILTERS: [(&str, &[&str]); 3] = [
    ("nftables", &["--backend", "nftables"]),
    ("iptables-nft", &["--backend", "iptables", "--iptables", "nft"]),
    ("iptables-legacy", &["--backend", "iptables", "--iptables", "legacy"]),
];

/// By the compiled program, and by the oracle and packets: on the nodes of the input with every filter, and on two nodes.
fn all(name: &str, paths: &[PathBuf], expectation: &Path) -> Vec<Trial> {
    let trial = |how: &str, command: Vec<&'static str>, expectation: Option<PathBuf>| {
        let (paths, measured) = (paths.to_vec(), command.first() == Some(&"lab"));
        Trial::test(format!("{name} {how}"), move || check(&command, &paths, expectation.as_deref(), measured))
    };
    let mut trials = vec![trial("compiled", vec!["matrix"], Some(expectation.to_owned()))];
    for (filter, arguments) in FILTERS {
        let command = [&["lab", "run"], arguments].concat();
        trials.push(trial(filter, command, Some(expectation.to_owned())));
    }
    let everything = std::env::var_os("RINGFENCE_PACKETS").is_some_and(|value| value == "all");
    let networks: &[&str] = if everything { &["routed", "bridge", "vxlan"] } else { &["vxlan"] };
    let filters = if everything { &FILTERS[..] } else { &FILTERS[..2] };
    for network in networks {
        for (filter, arguments) in filters {
            let command = [&["lab", "run", "--nodes", "2", "--topology", network], *arguments].concat();
            // Where a node is does matter to pods on its network, so the expectation is left to the oracle.
            trials.push(trial(&format!("{filter} {network} on two nodes"), command, None));
        }
    }
    trials
}

fn check(command: &[&str], paths: &[PathBuf], expectation: Option<&Path>, measured: bool) -> Result<(), Failed> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_ringfence")).args(command).args(paths).args(["-o", "json"]).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    // A lab exits with 1 when packets differ from the oracle; the cells say where.
    if !matches!(output.status.code(), Some(0 | 1)) {
        return Err(format!("{}: {errors}", output.status).into());
    }
    let document: Value = serde_json::from_slice(&output.stdout)?;
    let rules = expectation.map(|path| rules(&fs::read_to_string(path)?)).transpose()?;
    let cells = document["cells"].as_array().ok_or("no cells")?;
    if cells.is_empty() {
        return Err("no cells".into());
    }
    let mut wrong = Vec::new();
    let mut used = vec![false; rules.as_ref().map_or(0, Vec::len)];
    for cell in cells {
        let text = |field: &str| cell[field].as_str().unwrap_or_default();
        let (from, to) = (text("from"), text("to"));
        let port = format!("{}/{}", text("protocol"), cell["port"]);
        let expected = match &rules {
            None => cell["allowed"].clone(),
            Some(rules) => {
                let rule = rules.iter().position(|rule| rule.matches(from, to, &port));
                let rule = rule.ok_or_else(|| format!("no line for {from} -> {to} {port}"))?;
                used[rule] = true;
                Value::Bool(rules[rule].allow)
            }
        };
        let seen = if measured { &cell["measured"] } else { &cell["allowed"] };
        if cell["allowed"] != expected || *seen != expected {
            wrong.push(format!("{from} -> {to} {port}: expected {expected}, got {cell}"));
        }
    }
    for path in document["paths"].as_array().into_iter().flatten() {
        if path["carried"] != true || path["measured"] != path["expected"] {
            wrong.push(format!("path: {path}"));
        }
    }
    if let (Some(unused), Some(rules)) = (used.iter().position(|used| !used), &rules) {
        wrong.push(format!("line {:?} matches nothing", rules[unused].line));
    }
    if !wrong.is_empty() || output.status.code() != Some(0) {
        return Err(format!("{}: {}\n{errors}", output.status, wrong.join("\n")).into());
    }
    Ok(())
}

struct Rule {
    line: String,
    allow: bool,
    from: String,
    to: String,
    port: String,
}

impl Rule {
    fn matches(&self, from: &str, to: &str, port: &str) -> bool {
        glob(&self.from, from) && glob(&self.to, to) && glob(&self.port, port)
    }
}

fn rules(text: &str) -> Result<Vec<Rule>, Failed> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [verb @ ("allow" | "deny"), from, "->", to, port] => Ok(Rule {
                    line: line.to_owned(),
                    allow: *verb == "allow",
                    from: (*from).to_owned(),
                    to: (*to).to_owned(),
                    port: (*port).to_owned(),
                }),
                _ => Err(format!("not a line of an expectation: {line}").into()),
            }
        })
        .collect()
}

/// Whether `text` is `pattern`, in which `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).filter(|&at| rest.is_char_boundary(at)).any(|at| glob(after, &rest[at..]))
        }),
    }
}
