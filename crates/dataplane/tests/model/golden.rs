//! The script of a small program, as a file to look at. `RINGFENCE_BLESS=1` writes it anew. `tests/kernel` loads it.

use ringfence_dataplane::nft::{NftOptions, render};
use ringfence_dataplane::notation;

#[test]
fn the_script_of_a_small_program() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/scripts/small.nft");
    let program = notation::parse("node", include_str!("scripts/small.program")).unwrap();
    let script = render(&program, NftOptions::default());
    if std::env::var_os("RINGFENCE_BLESS").is_some() {
        std::fs::write(golden, &script).unwrap();
    }
    assert_eq!(script, std::fs::read_to_string(golden).unwrap_or_default());
}
