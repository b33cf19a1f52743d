//! No input, however broken, makes the parser panic or hang; and it says the same thing twice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_k8s::{Source, parse};

fuzz_target!(|data: &[u8]| {
    let read = || parse(&[Source { name: "fuzz.yaml", text: data }]);
    let (first, second) = (read(), read());
    assert_eq!(first.objects, second.objects);
    for diagnostic in &first.diagnostics {
        let _ = diagnostic.to_string();
    }
});
