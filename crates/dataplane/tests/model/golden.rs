//! The scripts of small programs, as files to look at. `RINGFENCE_BLESS=1` writes them anew. `tests/kernel` loads them.

use ringfence_dataplane::nft::{NftOptions, render};
use ringfence_dataplane::notation;

fn check(name: &str, program: &str) {
    let golden = format!("{}/tests/model/scripts/{name}.nft", env!("CARGO_MANIFEST_DIR"));
    let program = notation::parse("node", program).unwrap();
    let script = render(&program, NftOptions::default());
    if std::env::var_os("RINGFENCE_BLESS").is_some() {
        std::fs::write(&golden, &script).unwrap();
    }
    assert_eq!(script, std::fs::read_to_string(&golden).unwrap_or_default());
}

#[test]
fn the_script_of_a_small_program() {
    check("small", include_str!("scripts/small.program"));
}

#[test]
fn the_script_of_a_program_that_judges_for_others() {
    check("reaching", include_str!("scripts/reaching.program"));
}

#[test]
fn the_script_of_a_program_that_guards_ranges() {
    check("guarded", include_str!("scripts/guarded.program"));
}
