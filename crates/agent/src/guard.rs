//! When to look after what others have changed: the backend's alarm, and how often to mend while somebody fights us.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tracing::warn;

/// A backend's alarm, for a task to wait for.
pub(crate) struct Bell(Option<AsyncFd<OwnedFd>>);

impl Bell {
    /// For a backend without an alarm it never rings.
    pub(crate) fn new(alarm: Option<BorrowedFd<'_>>) -> Bell {
        #[allow(
            deprecated,
            reason = "unsound for what swaps its file, which OwnedFd does not; what replaces it is unsafe"
        )]
        let watched = alarm.map(|alarm| AsyncFd::with_interest(alarm.try_clone_to_owned()?, Interest::READABLE));
        Bell(watched.transpose().unwrap_or_else(|error| {
            warn!("the packet filter cannot be watched, only looked at from time to time: {error}");
            None
        }))
    }

    /// Waits until it rings. Whoever calls this empties the alarm before the next call: it rings again only for what comes
    /// after.
    pub(crate) async fn rings(&self) {
        if let Some(alarm) = &self.0
            && let Ok(mut ready) = alarm.readable().await
        {
            ready.clear_ready();
            return;
        }
        std::future::pending::<()>().await;
    }
}

/// When to mend. The first time at once; while others go on, after pauses that grow.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    pause: Duration,
    /// When was mended last.
    last: Option<Instant>,
}

impl Pace {
    const SHORTEST: Duration = Duration::from_millis(100);
    /// So that with the work itself nothing stays broken for more than a second.
    pub(crate) const LONGEST: Duration = Duration::from_millis(800);
    /// So long nobody must have changed anything for the next time to be a first time.
    const FORGOTTEN: Duration = Duration::from_secs(10);

    /// When to mend the next time.
    pub(crate) fn earliest(&self, now: Instant) -> Instant {
        self.last.map_or(now, |last| last + self.pause)
    }

    /// It was mended. The pause until the next time, if this is to be told of.
    pub(crate) fn mended(&mut self, now: Instant) -> Option<Duration> {
        let first = self.last.is_none_or(|last| now.duration_since(last) >= Pace::FORGOTTEN);
        let before = if first { Duration::ZERO } else { self.pause };
        self.pause = (before * 2).clamp(Pace::SHORTEST, Pace::LONGEST);
        self.last = Some(now);
        (before < Pace::LONGEST).then_some(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_after_pauses_and_told_a_few_times() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        let mut told = Vec::new();
        for _ in 0..7 {
            now = pace.earliest(now);
            told.push(pace.mended(now).map(|pause| pause.as_millis()));
            assert_eq!(pace.earliest(now) - now, pace.pause);
        }
        assert_eq!(told, [Some(100), Some(200), Some(400), Some(800), None, None, None]);
        now += Pace::FORGOTTEN;
        assert!(pace.earliest(now) <= now);
        assert_eq!(pace.mended(now), Some(Pace::SHORTEST));
    }
}
