//! Follows the objects of one kind: list, watch from there on, and what to do when either fails.
//!
//! Until a new list is complete, all that was known counts. A watch that ends or breaks is resumed where it was; only when the
//! server has forgotten that place (410), has been silent for too long, or has sent what cannot be, is everything listed
//! again.

use std::time::Duration;

use ringfence_k8s::api::{ListMeta, PageError, Reader};
use ringfence_model::Object;
use serde::Deserialize;
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::book::{Book, Diagnostics, List, Listed};
use super::failure::{Failure, causes};
use super::server::{Line, Server};
use crate::Change;
use crate::backoff::Backoff;

/// So many objects a page of a list has.
const PAGE: u32 = 500;
/// No kind waits longer for another one to be listed first.
const LONGEST_TURN: Duration = Duration::from_secs(5);
/// A watch that ends sooner, without a word, is one that did not work.
const SHORT: Duration = Duration::from_secs(1);

/// What there is to tell about one kind.
#[derive(Debug)]
pub(super) enum News {
    /// Objects of the first list, which is not complete yet. What was told of them before is different now.
    Begun(Vec<Object>),
    /// The first list is complete, or another one is.
    Listed(Listed, Option<Diagnostics>),
    /// These came together. All diagnostics of the kind, if they changed.
    Changed(Vec<Change>, Option<Diagnostics>),
    /// What was tried, such as `list`, and why it failed.
    Failed(&'static str, Failure),
    /// It works again.
    Works,
}

/// Nobody listens any more.
pub(super) struct Unheard;

/// How a watch ended, if it did not fail.
enum Ended {
    /// The server closed it after it had brought something, or had lived for a while.
    Used,
    /// The server closed it at once.
    Unused,
    /// It was given up, because nothing came for so long, not even a bookmark. That is no failure: a server may have nothing to
    /// say about a kind that never changes. But a server that was restored from a backup is as silent about all it does
    /// until it comes to the version that is asked for. Only a list tells.
    Silent(Duration),
}

/// The state of one kind, between the server and those who listen.
pub(super) struct Follower {
    server: Server,
    reader: Reader,
    book: Book,
    backoff: Backoff,
    /// Where to resume; empty until a list is complete.
    version: String,
    news: Sender<News>,
    turn: Turn,
}

/// In which order kinds are listed for the first time. That spares work and decides nothing: what was listed last counts
/// all the same, and who is never done is not waited for without end.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Dropped by another follower after its first attempt.
    pub(super) after: Option<oneshot::Receiver<()>>,
    /// Dropped after the own first attempt.
    pub(super) before: Option<oneshot::Sender<()>>,
}

impl Follower {
    pub(super) fn new(server: Server, reader: Reader, news: Sender<News>, turn: Turn) -> Follower {
        let backoff = Backoff::new(server.timing.first_pause, server.timing.longest_pause);
        Follower { server, reader, book: Book::default(), backoff, version: String::new(), news, turn }
    }

    /// Tells what there is to tell, as long as somebody listens.
    pub(super) async fn follow(mut self) -> Unheard {
        if let Some(turn) = self.turn.after.take() {
            let _ = timeout(LONGEST_TURN, turn).await;
        }
        loop {
            let Err(unheard) = self.list_and_watch().await else { continue };
            return unheard;
        }
    }

    /// Until everything has to be listed again.
    async fn list_and_watch(&mut self) -> Result<(), Unheard> {
        let mut limit = Some(PAGE);
        let mut has_expired = false;
        while let Err(failure) = self.list(limit).await? {
            self.turn.before = None;
            // The server forgets the moment that a list in pages is about. In one piece it has no time to; but all objects of
            // a large cluster in one piece are hundreds of megabytes, so pages are tried once more.
            limit = if failure.is_expired() && has_expired { None } else { Some(PAGE) };
            has_expired = failure.is_expired();
            self.failed("list", failure).await?;
        }
        self.turn.before = None;
        loop {
            match self.watch().await? {
                Ok(Ended::Used) => self.backoff.reset(),
                Ok(Ended::Unused) => {
                    let failure = Failure::Connection("the watch ends as soon as it begins".to_owned());
                    self.failed("watch", failure).await?;
                }
                Ok(Ended::Silent(silence)) => {
                    debug!("no word about {} for {} s: listed again", self.server.kind.resource(), silence.as_secs());
                    return Ok(());
                }
                Err(failure) => {
                    let again = failure.needs_list();
                    self.failed("watch", failure).await?;
                    if again {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Tells of a failure and waits for the next attempt.
    async fn failed(&mut self, doing: &'static str, failure: Failure) -> Result<(), Unheard> {
        let wanted = failure.retry_after().unwrap_or_default().min(self.server.timing.longest_wish);
        // A version that is forgotten is an ordinary end of a watch, unless it happens again at once.
        if failure.is_expired() && self.backoff.is_fresh() {
            debug!("{doing} {}: {failure}", self.server.kind.resource());
        } else {
            self.tell(News::Failed(doing, failure)).await?;
        }
        // On top of what the server wants, so that not all come back at the same moment.
        let pause = self.backoff.pause(fastrand::f64());
        sleep(wanted + pause).await;
        Ok(())
    }

    async fn tell(&self, news: News) -> Result<(), Unheard> {
        self.news.send(news).await.map_err(|_| Unheard)
    }

    /// Lists everything, page by page. What there is on the pages of the first list is told at once, so that nobody has to
    /// hold all of it; what differs on the pages of a later one belongs together.
    async fn list(&mut self, limit: Option<u32>) -> Result<Result<(), Failure>, Unheard> {
        let is_first = self.version.is_empty();
        let mut list = List::default();
        let mut text = Vec::new();
        let mut continue_token = None;
        let mut version: Option<String> = None;
        loop {
            let page = match self.page(limit, continue_token.as_deref(), &mut text, &mut list).await {
                Ok(page) => page,
                Err(failure) => {
                    if is_first {
                        self.book.abandon(list);
                    }
                    return Ok(Err(failure));
                }
            };
            if is_first {
                self.tell(News::Begun(list.begun())).await?;
            }
            // All pages are about the same moment. If they were not, the first one has missed nothing that is still to come.
            let version = version.get_or_insert(page.resource_version);
            continue_token = page.continue_token.filter(|token| !token.is_empty());
            if continue_token.is_none() {
                let listed = self.book.complete(list, version);
                self.version = std::mem::take(version);
                let diagnostics = self.book.new_diagnostics();
                self.tell(News::Listed(listed, diagnostics)).await?;
                return Ok(Ok(()));
            }
        }
    }

    /// Collects one page, all of it or nothing.
    async fn page(
        &mut self,
        limit: Option<u32>,
        continue_token: Option<&str>,
        text: &mut Vec<u8>,
        list: &mut List,
    ) -> Result<ListMeta, Failure> {
        self.server.page(limit, continue_token, text).await?;
        let (page, readings) = self.reader.page(self.server.kind, text).map_err(|error| match error {
            PageError::Malformed(error) => malformed(&error),
            PageError::Object(diagnostic) => Failure::Unreadable(diagnostic),
        })?;
        if page.resource_version.is_empty() {
            return Err(Failure::Malformed("the list has no metadata.resourceVersion".to_owned()));
        }
        for reading in readings {
            self.book.collect(list, reading);
        }
        Ok(page)
    }

    /// Watches until the watch ends.
    async fn watch(&mut self) -> Result<Result<Ended, Failure>, Unheard> {
        let mut watch = match self.server.watch(&self.version).await {
            Ok(watch) => watch,
            Err(failure) => return Ok(Err(failure)),
        };
        self.tell(News::Works).await?;
        let began = Instant::now();
        let mut worked = false;
        loop {
            let text = match watch.lines().await {
                Ok(Some(text)) => text,
                Ok(None) if worked || began.elapsed() >= SHORT => return Ok(Ok(Ended::Used)),
                Ok(None) => return Ok(Ok(Ended::Unused)),
                Err(Failure::Silent(silence)) => return Ok(Ok(Ended::Silent(silence))),
                Err(failure) => {
                    if began.elapsed() >= self.server.timing.longest_pause {
                        self.backoff.reset();
                    }
                    return Ok(Err(failure));
                }
            };
            let mut changes = Vec::new();
            let result = self.lines(&text, &mut changes);
            // What came before the line that is wrong was right.
            let diagnostics = self.book.new_diagnostics();
            if !changes.is_empty() || diagnostics.is_some() {
                self.tell(News::Changed(changes, diagnostics)).await?;
            }
            if let Err(failure) = result {
                return Ok(Err(failure));
            }
            worked = true;
            self.backoff.reset();
        }
    }

    fn lines(&mut self, text: &[u8], changes: &mut Vec<Change>) -> Result<(), Failure> {
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            changes.extend(self.line(&read(line)?)?);
        }
        Ok(())
    }

    fn line(&mut self, line: &Line<'_>) -> Result<Option<Change>, Failure> {
        let (kind, json) = (self.server.kind, line.object.get());
        match &*line.kind {
            "ADDED" | "MODIFIED" => {
                let reading = self.reader.read(kind, json).map_err(Failure::Unreadable)?;
                let version = reading.version.clone();
                let change = self.book.apply(reading).map_err(|_| Failure::Disorder)?;
                self.passed(version);
                Ok(change)
            }
            "DELETED" => {
                let (key, version) = self.reader.key(kind, json).map_err(Failure::Unreadable)?;
                let change = self.book.delete(key, &version).map_err(|_| Failure::Disorder)?;
                self.passed(version);
                Ok(change)
            }
            "BOOKMARK" => {
                let bookmark: Bookmark = read(json.as_bytes())?;
                self.passed(bookmark.metadata.resource_version);
                Ok(None)
            }
            "ERROR" => Err(Failure::refused(read(json.as_bytes())?, None)),
            other => Err(Failure::Malformed(format!("a watch event of type \"{}\"", other.escape_debug()))),
        }
    }

    /// Notes how far the watch has come. It never goes back.
    fn passed(&mut self, version: String) {
        let number = |version: &str| version.parse::<u64>().ok();
        let is_older = matches!((number(&version), number(&self.version)), (Some(new), Some(known)) if new < known);
        if !version.is_empty() && !is_older {
            self.version = version;
        }
    }
}

/// The object of a BOOKMARK event.
#[derive(Deserialize)]
struct Bookmark {
    metadata: ListMeta,
}

fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(text).map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> Failure {
    Failure::Malformed(format!("not what was asked for: {}", causes(error)))
}
