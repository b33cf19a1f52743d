//! Puts the kinds together: one first state, then updates, and whether all of it can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{SelectAll, unfold};
use ringfence_k8s::api::Kind;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::Instant;

use super::book::Diagnostics;
use super::follower::News;
use crate::Change;
use crate::source::{Event, SourceError, Update};

/// How many pieces of news become one update at most.
const BATCH: usize = 1024;

/// What the kinds have told, on its way to the loop.
pub(super) struct Collector<'a> {
    server: Arc<str>,
    events: &'a Sender<Event>,
    /// Until every kind has been listed: those that have not been.
    first: Option<BTreeSet<Kind>>,
    /// The kinds that cannot be read, and what was said about it.
    failing: BTreeMap<Kind, String>,
    diagnostics: BTreeMap<Kind, Diagnostics>,
}

/// What becomes of pieces of news that came together.
#[derive(Default)]
struct Batch {
    /// What was told before the first state was complete.
    begun: Vec<Change>,
    changes: Vec<Change>,
    has_diagnostics: bool,
    /// It holds the first state.
    is_first: bool,
    has_recovered: bool,
    failures: Vec<SourceError>,
}

impl Collector<'_> {
    pub(super) fn new(server: Arc<str>, events: &Sender<Event>, kinds: impl Iterator<Item = Kind>) -> Collector<'_> {
        Collector {
            server,
            events,
            first: Some(kinds.collect()),
            failing: BTreeMap::new(),
            diagnostics: BTreeMap::new(),
        }
    }

    /// Hands over what the kinds tell, until nobody listens or nobody tells.
    pub(super) async fn collect(&mut self, inputs: Vec<(Kind, Receiver<News>)>) {
        let mut news = SelectAll::new();
        for (kind, input) in inputs {
            let stream = unfold(input, move |mut input| async move { Some(((kind, input.recv().await?), input)) });
            news.push(Box::pin(stream));
        }
        let mut news = news.ready_chunks(BATCH);
        while let Some(chunk) = news.next().await {
            for event in self.take(chunk) {
                if self.events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }

    /// What the loop hears of news that came together.
    fn take(&mut self, news: Vec<(Kind, News)>) -> Vec<Event> {
        let mut batch = Batch::default();
        for (kind, news) in news {
            match news {
                News::Begun(objects) => {
                    self.changed(&mut batch, objects.into_iter().map(Change::Apply), kind, None);
                }
                News::Listed(listed, diagnostics) => {
                    let objects = listed.objects.into_iter().map(Change::Apply);
                    let changes = listed.gone.into_iter().map(Change::Delete).chain(objects);
                    self.changed(&mut batch, changes, kind, diagnostics);
                    self.works(&mut batch, kind);
                    self.listed(&mut batch, kind);
                }
                News::Changed(changes, diagnostics) => self.changed(&mut batch, changes, kind, diagnostics),
                News::Works => self.works(&mut batch, kind),
                News::Failed(doing, failure) => {
                    let why = failure.explained(kind);
                    // Kinds fail by turns. What is no news is not repeated.
                    if self.failing.get(&kind) != Some(&why) {
                        self.failing.insert(kind, why.clone());
                        let doing = format!("{doing} {}", kind.resource());
                        batch.failures.push(SourceError::Server { server: self.server.clone(), doing, why });
                    }
                }
            }
        }
        self.events(batch)
    }

    fn changed(
        &mut self,
        batch: &mut Batch,
        changes: impl IntoIterator<Item = Change>,
        kind: Kind,
        diagnostics: Option<Diagnostics>,
    ) {
        if self.first.is_some() {
            batch.begun.extend(changes);
        } else {
            batch.changes.extend(changes);
        }
        if let Some(diagnostics) = diagnostics {
            self.diagnostics.insert(kind, diagnostics);
            batch.has_diagnostics = true;
        }
    }

    fn works(&mut self, batch: &mut Batch, kind: Kind) {
        batch.has_recovered |= self.failing.remove(&kind).is_some();
    }

    /// With the last kind, the first state is complete.
    fn listed(&mut self, batch: &mut Batch, kind: Kind) {
        let Some(first) = &mut self.first else { return };
        first.remove(&kind);
        if first.is_empty() {
            self.first = None;
            batch.changes.push(Change::Complete);
            batch.is_first = true;
        }
    }

    fn events(&self, batch: Batch) -> Vec<Event> {
        // Failures first: what has recovered since is told by the update.
        let mut events: Vec<Event> = batch.failures.into_iter().map(Event::Failed).collect();
        if !batch.begun.is_empty() {
            events.push(Event::Begun(batch.begun));
        }
        let works = self.failing.is_empty();
        let tells = !batch.changes.is_empty() || batch.has_diagnostics || (batch.has_recovered && works);
        if tells && self.first.is_none() {
            let diagnostics = || self.diagnostics.values().flat_map(BTreeMap::values).flatten().cloned().collect();
            let diagnostics = (batch.has_diagnostics || batch.is_first).then(diagnostics);
            let update = Update { received: Instant::now(), changes: batch.changes, diagnostics };
            events.push(if works { Event::Update(update) } else { Event::Partial(update) });
        }
        events
    }
}
