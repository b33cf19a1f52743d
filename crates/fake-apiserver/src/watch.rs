//! Watches: each is a task that follows the log of its resource.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use crate::body::first_half;
use crate::body::{Broken, Writer};
use crate::fault::Fault;
use crate::list::{selection, version_asked};
use crate::object::Object;
use crate::request::Request;
use crate::resource::Resource;
use crate::selector::Selection;
use crate::shared::{Place, WatchList};
use crate::status::Refusal;
use crate::store::{Change, ChangeKind, Store};

/// A watch without `timeoutSeconds` ends after so long.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long before its end a watch gets its last bookmark.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// A watch that was asked for and may begin.
#[derive(Debug)]
pub(crate) struct Watch {
    resource: &'static Resource,
    selection: Selection,
    bookmarks: bool,
    length: Duration,
    fault: Option<Fault>,
    begin: Begin,
}

/// What a watch tells before the first change that comes while it is open.
#[derive(Debug)]
enum Begin {
    /// All objects, as if they had just been added; and, if wanted, a bookmark of this version that tells their end.
    Objects(Vec<Arc<Object>>, Option<u64>),
    /// The changes since the version that was asked for.
    Changes(Vec<Arc<Change>>),
    /// That it cannot: the version is too old, or a fault says so.
    Error(Refusal),
}

impl Watch {
    /// # Errors
    ///
    /// The refusal to send. A version that is too old is none: it is told by an event.
    pub(crate) fn new(
        store: &Store,
        watch_list: WatchList,
        resource: &'static Resource,
        request: &Request,
        fault: Option<Fault>,
    ) -> Result<Watch, Refusal> {
        validate(request, watch_list)?;
        let selection = selection(resource, request)?;
        let asked = version_asked(request)?;
        let bookmarks = request.flag("allowWatchBookmarks") == Some(true);
        let send_initial = match watch_list {
            WatchList::Unknown => None,
            WatchList::Disabled | WatchList::Enabled => request.flag("sendInitialEvents"),
        };
        let objects = |told| {
            let objects = store.objects(resource).values().filter(|object| selection.selects(object));
            Begin::Objects(objects.map(Arc::clone).collect(), told)
        };
        let begin = match (&fault, send_initial, asked) {
            (Some(Fault::ErrorEvent(410)), _, version) => {
                Begin::Error(Refusal::expired_watch(version.unwrap_or_default(), store.version()))
            }
            (Some(Fault::ErrorEvent(code)), _, _) => Begin::Error(Refusal::new(*code, "an error that was asked for")),
            (_, Some(true), Some(version)) if version > store.version() => {
                return Err(Refusal::from_the_future(version, store.version()));
            }
            (_, Some(true), _) => objects(bookmarks.then_some(store.version())),
            (_, None, None) => objects(None),
            (_, Some(false), None) => Begin::Changes(Vec::new()),
            (_, _, Some(version)) => store.changes_after(resource, version).map_or_else(Begin::Error, Begin::Changes),
        };
        let length = request.parameter("timeoutSeconds").parse().map_or(LONGEST, Duration::from_secs);
        let length = if length.is_zero() { LONGEST } else { length };
        Ok(Watch { resource, selection, bookmarks, length, fault, begin })
    }
}

fn validate(request: &Request, watch_list: WatchList) -> Result<(), Refusal> {
    if watch_list == WatchList::Unknown {
        return Ok(());
    }
    let matching = request.parameter("resourceVersionMatch");
    if request.query.contains_key("sendInitialEvents") {
        if matching != "NotOlderThan" {
            let problem = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(Refusal::invalid_options("resourceVersionMatch", problem));
        }
        if watch_list == WatchList::Disabled {
            let problem = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(Refusal::invalid_options("sendInitialEvents", problem));
        }
    } else if !matching.is_empty() {
        let problem = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        return Err(Refusal::invalid_options("resourceVersionMatch", problem));
    }
    Ok(())
}

/// What an open watch is told. All of it goes through one queue, so that tests know what comes before what.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    /// The log grew.
    Change(Arc<Change>),
    /// A bookmark of this version is due.
    Bookmark(u64),
    /// A line that no server would write.
    Line(String),
    /// These changes once more.
    Again(Vec<Arc<Change>>),
    /// An event of type `ERROR`, and the end.
    Error(Value),
    /// Silence from now on, on an open connection.
    Stall,
    /// The end, in good order.
    End,
    /// The end, by breaking the connection.
    Cut,
}

/// Why a watch ends.
enum End {
    /// In good order, or because the client is gone.
    Over,
    /// By breaking the connection.
    Broken,
}

/// Runs a watch until it ends or its client is gone.
pub(crate) async fn run(watch: Watch, mut place: Place, writer: Writer) {
    let mut stream = Stream { watch, writer, sent: 0, before: None };
    if let End::Broken = stream.follow(&mut place).await {
        // What was written before shall arrive before the connection breaks.
        tokio::time::sleep(Duration::from_millis(20)).await;
        // A client that is gone needs no end.
        let _ = stream.writer.send(Err(Broken)).await;
    }
}

struct Stream {
    watch: Watch,
    writer: Writer,
    /// Events so far, without bookmarks.
    sent: usize,
    /// The event before, for a watch that says everything again.
    before: Option<String>,
}

impl Stream {
    async fn follow(&mut self, place: &mut Place) -> End {
        if let Err(end) = self.begin().await {
            return end;
        }
        let end = Instant::now() + self.watch.length;
        let mut last_bookmark = (self.watch.length > LAST_BOOKMARK).then(|| end - LAST_BOOKMARK);
        let mut next_bookmark = place.shared.next_bookmark();
        loop {
            let result = tokio::select! {
                notice = place.notices.recv() => match notice {
                    Some(notice) => self.obey(notice).await,
                    None => Err(End::Over),
                },
                () = self.writer.closed() => Err(End::Over),
                // A bookmark goes through the queue: it says that all changes before it were told.
                () = until(next_bookmark) => {
                    next_bookmark = place.shared.next_bookmark();
                    place.ask_for_bookmark();
                    Ok(())
                }
                () = until(last_bookmark) => {
                    last_bookmark = None;
                    place.ask_for_bookmark();
                    Ok(())
                }
                () = sleep_until(end), if !self.is_stalled() => Err(End::Over),
            };
            if let Err(end) = result {
                return end;
            }
        }
    }

    fn is_stalled(&self) -> bool {
        matches!(self.watch.fault, Some(Fault::Stall))
    }

    /// What comes before the first change.
    async fn begin(&mut self) -> Result<(), End> {
        let begin = std::mem::replace(&mut self.watch.begin, Begin::Changes(Vec::new()));
        if self.is_stalled() {
            return Ok(());
        }
        match begin {
            Begin::Objects(objects, end) => {
                for object in objects {
                    self.tell(event("ADDED", self.watch.resource, &object)).await?;
                }
                match end {
                    Some(version) => self.write(bookmark(self.watch.resource, version, true)).await,
                    None => Ok(()),
                }
            }
            Begin::Changes(changes) => {
                for change in changes {
                    self.tell_change(&change).await?;
                }
                Ok(())
            }
            Begin::Error(refusal) => {
                self.write(error_event(&refusal.status)).await?;
                Err(End::Over)
            }
        }
    }

    async fn obey(&mut self, notice: Notice) -> Result<(), End> {
        match notice {
            Notice::End => Err(End::Over),
            Notice::Cut => Err(End::Broken),
            Notice::Stall => {
                self.watch.fault = Some(Fault::Stall);
                Ok(())
            }
            _ if self.is_stalled() => Ok(()),
            Notice::Change(change) => self.tell_change(&change).await,
            Notice::Bookmark(version) if self.watch.bookmarks => {
                self.write(bookmark(self.watch.resource, version, false)).await
            }
            Notice::Bookmark(_) => Ok(()),
            Notice::Line(line) => self.write(line).await,
            Notice::Again(changes) => {
                for change in changes {
                    if let Some(line) = self.line(&change) {
                        self.write(line).await?;
                    }
                }
                Ok(())
            }
            Notice::Error(status) => {
                self.write(error_event(&status)).await?;
                Err(End::Over)
            }
        }
    }

    async fn tell_change(&mut self, change: &Change) -> Result<(), End> {
        match self.line(change) {
            Some(line) => self.tell(line).await,
            None => Ok(()),
        }
    }

    /// The event that tells a change to this watch: an object that begins to be selected is added, one that ceases to be
    /// is deleted.
    fn line(&self, change: &Change) -> Option<String> {
        let Watch { resource, selection, .. } = &self.watch;
        let was = change.before.as_ref().filter(|before| selection.selects(before));
        let is = change.kind != ChangeKind::Deleted && selection.selects(&change.object);
        match (was, is) {
            (None, false) => None,
            (None, true) => Some(event("ADDED", resource, &change.object)),
            (Some(_), true) => Some(event("MODIFIED", resource, &change.object)),
            (Some(_), false) if change.kind == ChangeKind::Deleted => Some(event("DELETED", resource, &change.object)),
            (Some(before), false) => Some(event("DELETED", resource, &before.at_version(resource, change.version))),
        }
    }

    /// Sends an event, or what the fault of this watch makes of it.
    async fn tell(&mut self, line: String) -> Result<(), End> {
        self.sent += 1;
        match self.watch.fault {
            Some(Fault::Cut) => {
                self.write(first_half(&line).to_owned()).await?;
                Err(End::Broken)
            }
            Some(Fault::Truncate) => {
                self.write(first_half(&line).to_owned()).await?;
                Err(End::Over)
            }
            Some(Fault::Duplicate) => {
                self.write(line.clone()).await?;
                self.write(line).await
            }
            Some(Fault::Replay) => {
                let before = self.before.replace(line.clone());
                self.write(line).await?;
                match before {
                    Some(before) => self.write(before).await,
                    None => Ok(()),
                }
            }
            Some(Fault::EndAfter(count)) => {
                self.write(line).await?;
                if self.sent >= count { Err(End::Over) } else { Ok(()) }
            }
            _ => self.write(line).await,
        }
    }

    async fn write(&mut self, line: String) -> Result<(), End> {
        self.writer.send(Ok(Bytes::from(line))).await.map_err(|_| End::Over)
    }
}

/// Waits for a moment that may never come.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn event(kind: &str, resource: &Resource, object: &Object) -> String {
    let mut text = String::with_capacity(object.item().len() + 128);
    text.push_str(r#"{"type":""#);
    text.push_str(kind);
    text.push_str(r#"","object":"#);
    object.write(resource, &mut text);
    text.push_str("}\n");
    text
}

fn error_event(status: &Value) -> String {
    format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n")
}

/// An object of the resource's kind with nothing but a version, and what Go prints of a struct without values.
fn bookmark(resource: &Resource, version: u64, initial_events_end: bool) -> String {
    let rest = match resource.kind {
        "Pod" => r#","spec":{"containers":null},"status":{}"#,
        "NetworkPolicy" => r#","spec":{"podSelector":{}}"#,
        "Node" => r#","spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{}}"#,
        "Service" => r#","spec":{},"status":{"loadBalancer":{}}"#,
        "Namespace" => r#","spec":{},"status":{}"#,
        _ => "",
    };
    let end = if initial_events_end { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
    let (kind, api) = (resource.kind, resource.api_version());
    format!(
        "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"{kind}\",\"apiVersion\":\"{api}\",\"metadata\":\
         {{\"resourceVersion\":\"{version}\",\"creationTimestamp\":null{end}}}{rest}}}}}\n"
    )
}
