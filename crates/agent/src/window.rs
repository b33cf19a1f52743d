//! How long to collect changes before they are written.

use std::time::Duration;

use tokio::time::Instant;

/// Grows with the rate of changes: nothing for one that comes after a quiet spell, more for each batch that follows at once.
///
/// A single change must not wait. In a storm, each program costs more than collecting for it, and only the last one matters.
#[derive(Debug, Default)]
pub(crate) struct Window {
    width: Duration,
    /// When the last batch was finished.
    last: Option<Instant>,
}

impl Window {
    const SHORTEST: Duration = Duration::from_millis(5);
    /// No change waits longer for others; and so long nothing must happen until the next one does not wait at all.
    pub(crate) const LONGEST: Duration = Duration::from_millis(100);

    /// The first change of a batch has come: how long to wait for others.
    pub(crate) fn open(&mut self, now: Instant) -> Duration {
        let quiet = self.last.is_none_or(|last| now.duration_since(last) >= Window::LONGEST);
        self.width = if quiet { Duration::ZERO } else { (self.width * 2).clamp(Window::SHORTEST, Window::LONGEST) };
        self.width
    }

    /// The batch is written.
    pub(crate) fn close(&mut self, now: Instant) {
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_when_idle_and_never_more_than_the_longest() {
        let mut now = Instant::now();
        let mut window = Window::default();
        let mut widths = Vec::new();
        for _ in 0..8 {
            let width = window.open(now);
            widths.push(width.as_millis());
            now += width + Duration::from_millis(3);
            window.close(now);
            now += Duration::from_millis(1);
        }
        assert_eq!(widths, [0, 5, 10, 20, 40, 80, 100, 100]);
        assert_eq!(window.open(now + Window::LONGEST), Duration::ZERO);
    }

    #[test]
    fn a_slow_apply_is_no_quiet_spell() {
        let now = Instant::now();
        let mut window = Window::default();
        assert_eq!(window.open(now), Duration::ZERO);
        let done = now + Duration::from_secs(10);
        window.close(done);
        assert_eq!(window.open(done), Window::SHORTEST);
    }
}
