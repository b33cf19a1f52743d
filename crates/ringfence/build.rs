//! Tells the source what is only known while it is built: the target, and the commit if there is one to be known.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=RINGFENCE_COMMIT");
    if let Ok(target) = std::env::var("TARGET") {
        println!("cargo::rustc-env=RINGFENCE_TARGET={target}");
    }
    // Who builds from a source archive or in a container without .git can still say what it was.
    let named = std::env::var("RINGFENCE_COMMIT").ok().filter(|commit| !commit.is_empty());
    if let Some(commit) = named.or_else(checked_out) {
        println!("cargo::rustc-env=RINGFENCE_COMMIT={commit}");
    }
}

/// The commit that is checked out, if this is a checkout and git is there.
fn checked_out() -> Option<String> {
    // A source archive that was unpacked inside of another repository is not of that one's commit.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    // HEAD's log changes with every commit and checkout; HEAD alone only when the branch does.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        // Cargo takes a file that does not exist for one that has changed.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
