//! An API server as the source: lists and watches Pods, Namespaces, Nodes and NetworkPolicies, and where connections that
//! enter are judged, Services and EndpointSlices.
//!
//! `server` is HTTP, `follower` the life of one kind, `book` what is known of it, `collector` puts the kinds together to what
//! the loop hears, `failure` says what can go wrong. `events` is the way back: troubles of policies as Kubernetes Events.
//! `announce` tells other nodes of this one.

mod announce;
mod book;
mod collector;
mod connect;
mod events;
mod failure;
mod follower;
mod server;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ringfence_k8s::api::{Kind, Reader};
use ringfence_model::EnforceAt;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::backoff::Backoff;
use crate::source::{Event, SourceError};
pub use announce::{Addresses, Announcer};
use collector::Collector;
pub use connect::ConnectError;
pub use events::Publisher;
use follower::{Follower, Turn};
use server::Server;

/// How many pieces of news of one kind may wait for the collector.
const WAITING: usize = 32;

/// How long things take and may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long an answer to a request, or the next bytes of a list, may take.
    pub answer: Duration,
    /// How long a watch is asked for; up to a fifth less, by chance. The server ends it, and it is resumed.
    pub watch: Duration,
    /// A watch without a word for so long, not even a bookmark, is replaced. Servers send bookmarks about every minute.
    pub silence: Duration,
    /// The pause after a first failure. Up to half of it, and of those that follow, is taken away by chance.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How much of a server's Retry-After is honoured.
    pub longest_wish: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            answer: Duration::from_secs(60),
            // kube refuses more than 294 s.
            watch: Duration::from_secs(290),
            silence: Duration::from_secs(150),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            longest_wish: Duration::from_secs(120),
        }
    }
}

/// An API server that is followed.
#[derive(Debug)]
pub struct KubeSource {
    config: kube::Config,
    timing: Timing,
    enforce_at: EnforceAt,
    announcer: Option<Announcer>,
}

impl KubeSource {
    /// The server that a kubeconfig names, in its current context or in `context`; without a kubeconfig, the server of the
    /// cluster this process is a pod of. Nothing is asked yet. Not for use inside an asynchronous context.
    ///
    /// # Errors
    /// The configuration cannot be read, or there is none.
    pub fn open(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<KubeSource, ConnectError> {
        Ok(KubeSource {
            config: connect::config(kubeconfig, context)?,
            timing: Timing::default(),
            enforce_at: EnforceAt::default(),
            announcer: None,
        })
    }

    /// The same with other times.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> KubeSource {
        KubeSource { timing, ..self }
    }

    /// The same for an agent that enforces there: what it needs not know is neither listed nor watched.
    #[must_use]
    pub fn for_enforcing(self, enforce_at: EnforceAt) -> KubeSource {
        KubeSource { enforce_at, ..self }
    }

    /// The same, which also tells the server about the agent's node.
    #[must_use]
    pub fn announcing(self, announcer: Announcer) -> KubeSource {
        KubeSource { announcer: Some(announcer), ..self }
    }

    /// The server's address.
    pub fn server(&self) -> String {
        self.config.cluster_url.to_string().trim_end_matches('/').to_owned()
    }

    /// Reports the cluster's state once all kinds have been listed, then what changes in it, from a thread of its own that
    /// ends when nobody listens any more. With a publisher, troubles of policies are told to the server as well.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn follow(self, events: Sender<Event>, publisher: Option<Publisher>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("kube".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = events.closed() => {}
                    () = self.run(&events, publisher) => {}
                }
            });
        })?;
        Ok(())
    }

    async fn run(mut self, events: &Sender<Event>, publisher: Option<Publisher>) {
        let server: Arc<str> = self.server().into();
        let Some(client) = self.client(&server, events).await else { return };
        let mut collector = Collector::new(server.clone(), events, Kind::needed(self.enforce_at));
        let mut inputs = Vec::new();
        let mut followers = Vec::new();
        // A label that policies mention tells pods apart: those that are known by then are looked at again.
        let (policies, after_policies) = oneshot::channel();
        let (mut policies, mut after_policies) = (Some(policies), Some(after_policies));
        for kind in Kind::needed(self.enforce_at) {
            let turn = match kind {
                Kind::NetworkPolicy => Turn { before: policies.take(), after: None },
                Kind::Pod => Turn { before: None, after: after_policies.take() },
                Kind::Namespace | Kind::Node | Kind::Service | Kind::EndpointSlice => Turn::default(),
            };
            let (sender, receiver) = channel(WAITING);
            let server = Server { client: client.clone(), kind, timing: self.timing };
            followers.push(Follower::new(server, Reader::new(&self.server()), sender, turn).follow());
            inputs.push((kind, receiver));
        }
        let publish = async {
            if let Some(publisher) = publisher {
                publisher.publish(client.clone()).await;
            }
            std::future::pending::<()>().await;
        };
        let announcer = self.announcer.take();
        let announce = async {
            if let Some(announcer) = announcer {
                announcer.announce(client.clone()).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = collector.collect(inputs) => {}
            _ = futures::future::join_all(followers) => {}
            () = publish => {}
            () = announce => {}
        }
    }

    /// A client, as soon as there is one: credential plugins and files may fail and recover.
    async fn client(&self, server: &Arc<str>, events: &Sender<Event>) -> Option<kube::Client> {
        let mut backoff = Backoff::new(self.timing.first_pause, self.timing.longest_pause);
        loop {
            // Runs credential plugins, which may hang.
            let config = self.config.clone();
            let making = tokio::task::spawn_blocking(|| kube::Client::try_from(config));
            let why = match timeout(self.timing.answer, making).await {
                Ok(Ok(Ok(client))) => return Some(client),
                Ok(Ok(Err(error))) => failure::causes(&error),
                Ok(Err(panic)) => panic.to_string(),
                Err(_) => format!("no result within {} s", self.timing.answer.as_secs()),
            };
            let failed = SourceError::Server { server: server.clone(), doing: "use the credentials".to_owned(), why };
            events.send(Event::Failed(failed)).await.ok()?;
            sleep(backoff.pause(fastrand::f64())).await;
        }
    }
}
