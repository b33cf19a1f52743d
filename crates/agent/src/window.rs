//! How long to collect changes before they are written.

use std::time::Duration;

use tokio::time::Instant;

/// Bounds the share of time that goes into writing, without holding back single changes and short bursts.
///
/// Each batch is paid for by time in which nothing is written, many times as long as it took. What is still to be paid may
/// grow to a limit before the next batch waits. So changes that come one by one never wait; in a storm of changes that are
/// cheap to write, some milliseconds are collected, and of those that are dear, up to the longest wait, in which only the
/// last of several states matters.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Until when what was written is paid for.
    paid: Option<Instant>,
}

impl Window {
    /// In the long run, writing takes one part of so many of the time, as long as no change has to wait too long for that.
    const PARTS: u32 = 20;
    /// A batch counts as at least so long: there is more to it than writing.
    const LEAST: Duration = Duration::from_micros(250);
    /// So much may be unpaid when the next batch begins.
    const CREDIT: Duration = Duration::from_millis(100);
    /// No change waits longer for others.
    pub(crate) const LONGEST: Duration = Duration::from_millis(100);

    /// The first change of a batch has come: when to write.
    pub(crate) fn opens(&self, now: Instant) -> Instant {
        let unpaid = self.paid.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now));
        now + unpaid.saturating_sub(Window::CREDIT).min(Window::LONGEST)
    }

    /// A batch was written, which began at `start` and took so long.
    pub(crate) fn close(&mut self, start: Instant, took: Duration) {
        let from = self.paid.map_or(start, |paid| paid.max(start));
        // What is beyond the longest wait holds nothing back, and would only be paid later.
        let most = start + took + Window::CREDIT + Window::LONGEST;
        self.paid = Some((from + took.max(Window::LEAST) * Window::PARTS).min(most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The waits, in milliseconds, of changes of which each comes when the one before has been written, as they all take
    /// so many microseconds.
    fn waits(took: u64, changes: usize) -> Vec<u128> {
        let took = Duration::from_micros(took);
        let mut now = Instant::now();
        let mut window = Window::default();
        let mut waits = Vec::new();
        for _ in 0..changes {
            let opens = window.opens(now);
            waits.push((opens - now).as_millis());
            window.close(opens, took);
            now = opens + took;
        }
        waits
    }

    #[test]
    fn short_bursts_do_not_wait_and_storms_take_their_share() {
        let cheap = waits(500, 100);
        assert!(cheap[..10].iter().all(|wait| *wait == 0), "{cheap:?}");
        assert!(cheap[20..].iter().all(|wait| *wait == 9), "{cheap:?}");
        let dear = waits(50_000, 10);
        assert_eq!(dear, [0, 100, 100, 100, 100, 100, 100, 100, 100, 100]);
    }

    #[test]
    fn a_change_after_a_quiet_spell_does_not_wait() {
        let mut now = Instant::now();
        let mut window = Window::default();
        for _ in 0..100 {
            window.close(now, Duration::from_secs(10));
            now += Duration::from_secs(10);
            assert_eq!(window.opens(now), now + Window::LONGEST);
            now += Window::LONGEST;
            assert_eq!(window.opens(now), now);
            now += Window::CREDIT;
        }
        assert_eq!(window.opens(now), now);
    }

    #[test]
    fn changes_one_by_one_do_not_wait() {
        let took = Duration::from_millis(3);
        let mut now = Instant::now();
        let mut window = Window::default();
        for _ in 0..100 {
            assert_eq!(window.opens(now), now);
            window.close(now, took);
            now += took * Window::PARTS;
        }
    }
}
