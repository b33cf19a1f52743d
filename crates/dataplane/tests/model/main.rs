//! Tests that need no kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod fake;
mod golden;
mod meaning;
mod random;
