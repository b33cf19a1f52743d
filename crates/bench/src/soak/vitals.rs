//! How the agent is while it is soaked, and whether its memory stays flat.

use std::time::Duration;

use serde::Serialize;

use crate::report::median;

/// The part of a run, at its beginning, that is warm-up: stores grow to their size.
const WARM_UP: f64 = 0.2;
/// The part of a run that each of the two windows has that are compared.
const WINDOW: f64 = 0.2;
/// By how much the median of the last window may exceed that of the first: this part of it, and so many MB. Allocators
/// return memory when they like, and a relist needs some for a moment.
const MARGIN: (f64, f64) = (0.05, 5.0);
/// So many samples a window has at least.
const FEWEST: usize = 4;

/// One look.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sample {
    /// Since the churn began, in seconds.
    pub(super) at: f64,
    /// Resident, in MB of a million bytes.
    pub(super) resident: f64,
    /// Elements of all sets and maps in the kernel; nothing where they are not counted.
    pub(super) elements: Option<usize>,
}

/// Resident memory, after the warm-up and in the end, in MB: medians of windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Memory {
    pub(super) first: f64,
    pub(super) last: f64,
}

impl Memory {
    /// Nothing, if the run was too short to tell.
    pub(super) fn of(samples: &[Sample]) -> Option<Memory> {
        let part = |part: f64| -> usize {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a length")]
            #[allow(clippy::cast_precision_loss, reason = "no run has so many samples")]
            let count = (samples.len() as f64 * part) as usize;
            count
        };
        let window = part(WINDOW);
        if window < FEWEST {
            return None;
        }
        let middle = |samples: &[Sample]| median(samples.iter().map(|sample| sample.resident).collect());
        let start = part(WARM_UP);
        let first = middle(samples.get(start..start + window)?);
        let last = middle(samples.get(samples.len() - window..)?);
        Some(Memory { first, last })
    }

    /// An error when it has grown beyond the margin.
    pub(super) fn check(self) -> Result<(), String> {
        let Memory { first, last } = self;
        let most = first * (1.0 + MARGIN.0) + MARGIN.1;
        if last <= most {
            return Ok(());
        }
        Err(format!(
            "the agent's memory grows: {first:.1} MB resident after the warm-up, {last:.1} MB in the end, at most {most:.1} MB expected"
        ))
    }
}

/// The longest and the sum of some waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waits {
    pub(super) longest: Duration,
    pub(super) sum: Duration,
}

impl Waits {
    pub(super) fn add(&mut self, wait: Duration) {
        self.longest = self.longest.max(wait);
        self.sum += wait;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(resident: impl Fn(f64) -> f64) -> Option<Memory> {
        let samples: Vec<Sample> =
            (0..100u32).map(f64::from).map(|at| Sample { at, resident: resident(at), elements: None }).collect();
        Memory::of(&samples)
    }

    #[test]
    fn a_leak_is_told_from_warming_up_and_from_noise() {
        let flat = run(|at| 100.0 - 40.0 * (-at / 5.0).exp() + at % 3.0).unwrap();
        assert!(flat.check().is_ok(), "{flat:?}");
        let leaking = run(|at| 100.0 + at * 0.2).unwrap();
        assert!(leaking.check().is_err(), "{leaking:?}");
        let relisting = run(|at| if at % 10.0 == 0.0 { 160.0 } else { 100.0 }).unwrap();
        assert_eq!(relisting, Memory { first: 100.0, last: 100.0 });
    }

    #[test]
    fn a_short_run_tells_nothing() {
        assert_eq!(Memory::of(&[Sample { at: 0.0, resident: 1.0, elements: None }; 10]), None);
    }
}
