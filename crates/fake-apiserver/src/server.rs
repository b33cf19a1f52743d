//! The server as tests hold it.
#![allow(clippy::panic, reason = "a mistake in a test ends that test, where it was made")]

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::fault::{Fault, On};
use crate::listen::{Order, reserve, serve};
use crate::request::{Request, Verb};
use crate::resource::Resource;
use crate::shared::{Shared, State, WatchList};
use crate::status::Refusal;
use crate::watch::Notice;

/// How often conditions are looked at that tests wait for.
const LOOK: Duration = Duration::from_millis(2);

/// An API server on `127.0.0.1`, with a thread of its own. It ends, and cuts all connections, when this is dropped.
///
/// Resources are named as kubectl names them: `pods`, or with their group, `events.events.k8s.io`. Methods panic when a name
/// is not served, or when an object is none: that is a mistake in the test.
#[derive(Debug)]
pub struct FakeApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    folder: TempDir,
    orders: Option<UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
    /// Keeps the port while the server plays dead.
    _port: TcpSocket,
}

impl FakeApiServer {
    /// Starts a server that holds nothing.
    ///
    /// # Errors
    ///
    /// There is no port, no thread or no temporary folder to be had.
    pub fn start() -> io::Result<FakeApiServer> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (port, address) = reserve()?;
        let shared = Arc::new(Shared::new());
        let (orders, receiver) = unbounded_channel();
        let (started, outcome) = sync_channel(1);
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("fake-apiserver".to_owned())
            .spawn(move || runtime.block_on(serve(served, address, receiver, started)))?;
        outcome.recv().map_err(io::Error::other)??;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig(address))?;
        Ok(FakeApiServer { shared, address, folder, orders: Some(orders), thread: Some(thread), _port: port })
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig file that leads here. It is removed with the server.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A folder that is removed with the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.shared.lock())
    }

    // Objects

    /// Creates or replaces an object, status and all. Gives its `resourceVersion`, which stays the same if nothing changed.
    #[track_caller]
    pub fn apply(&self, object: &Value) -> u64 {
        let (resource, namespace, name) = identify(object);
        let value = object.as_object().cloned().unwrap_or_default();
        let stored = self.state(|state| state.change(|store| store.put(resource, &namespace, &name, value)));
        stored.version()
    }

    /// Changes an object that is there, in one step.
    #[track_caller]
    pub fn modify(&self, resource: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) -> u64 {
        let known = named(resource);
        let stored = self.state(|state| {
            let mut value = state.store.objects(known).get(&known.key(namespace, name))?.value(known);
            change(&mut value);
            let value = value.as_object()?.clone();
            Some(state.change(|store| store.put(known, namespace, name, value)))
        });
        match stored {
            Some(stored) => stored.version(),
            None => panic!("{resource} {namespace}/{name} is not there"),
        }
    }

    /// Puts anything at all in the place of an object: what is served there is this value as it is, in lists, watches and by
    /// itself. Selectors by label or field do not match it.
    #[track_caller]
    pub fn apply_unsound(&self, resource: &str, namespace: &str, name: &str, value: &Value) {
        let resource = named(resource);
        self.state(|state| state.change(|store| store.put_unsound(resource, namespace, name, value)));
    }

    /// Removes an object at once. False if it was not there. The namespace of what has none is empty.
    #[track_caller]
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> bool {
        let resource = named(resource);
        self.state(|state| state.change(|store| store.remove(resource, namespace, name))).is_some()
    }

    /// An object as it is stored.
    #[track_caller]
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = named(resource);
        self.state(|state| state.store.objects(resource).get(&resource.key(namespace, name)).cloned())
            .map(|object| object.value(resource))
    }

    /// All objects of a resource, in the order of lists.
    #[track_caller]
    pub fn objects(&self, resource: &str) -> Vec<Value> {
        let resource = named(resource);
        let objects: Vec<_> = self.state(|state| state.store.objects(resource).values().cloned().collect());
        objects.iter().map(|object| object.value(resource)).collect()
    }

    /// The version of the newest change.
    pub fn version(&self) -> u64 {
        self.state(|state| state.store.version())
    }

    /// Forgets all changes so far: older versions can neither be listed nor watched from. Open watches go on.
    pub fn compact(&self) {
        self.state(|state| state.store.compact());
    }

    /// How many changes of each resource are remembered from now on; older ones are forgotten. 10,000 at first.
    pub fn remember(&self, changes: usize) {
        self.state(|state| state.store.window = changes.max(1));
    }

    // What was asked

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Request> {
        self.state(|state| state.requests.clone())
    }

    /// All requests so far of one verb and resource.
    pub fn requests_of(&self, verb: Verb, resource: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.verb == Some(verb) && request.is_of(resource));
        requests
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        self.state(|state| state.requests.clear());
    }

    /// How many watches of a resource are open.
    #[track_caller]
    pub fn watchers(&self, resource: &str) -> usize {
        let resource = named(resource);
        self.state(|state| state.watchers(resource))
    }

    /// Waits until something holds. False if it does not within this time.
    pub fn wait_until(&self, patience: Duration, condition: impl Fn(&FakeApiServer) -> bool) -> bool {
        let end = Instant::now() + patience;
        loop {
            if condition(self) {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            thread::sleep(LOOK);
        }
    }

    // Faults

    /// Lets something go wrong with the next `times` requests that `on` describes; [`crate::ALWAYS`] for all to come. Of
    /// several faults for one request the first that was injected counts.
    pub fn inject(&self, on: On, times: usize, fault: Fault) {
        self.state(|state| state.faults.add(on, times, fault));
    }

    /// Takes all faults back that no request has met yet.
    pub fn heal(&self) {
        self.state(|state| state.faults.clear());
    }

    /// How many requests will still meet a fault.
    pub fn faults_left(&self) -> usize {
        self.state(|state| state.faults.left())
    }

    /// What becomes of `sendInitialEvents` in watches to come.
    pub fn set_watch_list(&self, watch_list: WatchList) {
        self.state(|state| state.watch_list = watch_list);
    }

    /// What `/readyz` says.
    pub fn set_ready(&self, ready: bool) {
        self.state(|state| state.ready = ready);
    }

    /// Lets reviews of access say no to a verb on a resource, each `*` for any. It is what reviews say and nothing else: to
    /// refuse requests, inject a 403.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.state(|state| state.denied.push((verb.to_owned(), resource.to_owned())));
    }

    // Open watches

    #[track_caller]
    fn notify(&self, resource: &str, notice: &Notice) {
        let resource = named(resource);
        self.state(|state| state.notify(resource, notice));
    }

    /// Ends all watches of a resource in good order, as a server does that is about to stop.
    #[track_caller]
    pub fn end_watches(&self, resource: &str) {
        self.notify(resource, &Notice::End);
    }

    /// Breaks the connections of all watches of a resource.
    #[track_caller]
    pub fn cut_watches(&self, resource: &str) {
        self.notify(resource, &Notice::Cut);
    }

    /// Lets all open watches of a resource go silent: they stay open and tell nothing any more.
    #[track_caller]
    pub fn stall_watches(&self, resource: &str) {
        self.notify(resource, &Notice::Stall);
    }

    /// Ends all watches of a resource with an event of type `ERROR` and a `Status` of this code.
    #[track_caller]
    pub fn fail_watches(&self, resource: &str, code: u16) {
        let refusal = Refusal::new(code, "an error that was asked for");
        self.notify(resource, &Notice::Error(refusal.status));
    }

    /// Sends a bookmark to all watches of a resource that allow bookmarks.
    #[track_caller]
    pub fn send_bookmarks(&self, resource: &str) {
        let resource = named(resource);
        self.state(|state| state.notify(resource, &Notice::Bookmark(state.store.version())));
    }

    /// How often watches get bookmarks from now on, each after its next one. A minute at first.
    pub fn bookmark_every(&self, interval: Duration) {
        self.state(|state| state.bookmark_every = interval);
    }

    /// Sends the last `count` changes of a resource to its watches once more.
    #[track_caller]
    pub fn replay(&self, resource: &str, count: usize) {
        let resource = named(resource);
        self.state(|state| state.notify(resource, &Notice::Again(state.store.last(resource, count))));
    }

    /// Writes a line to all watches of a resource, whatever it says. The end of the line is added.
    #[track_caller]
    pub fn send_line(&self, resource: &str, line: &str) {
        self.notify(resource, &Notice::Line(format!("{line}\n")));
    }

    // Outages

    /// Cuts all connections and refuses new ones until [`FakeApiServer::come_back`]. What it holds can be changed meanwhile.
    pub fn go_away(&self) {
        self.order(Order::Close);
    }

    /// Listens again, at the same address.
    pub fn come_back(&self) {
        self.order(Order::Open);
    }

    fn order(&self, order: impl FnOnce(SyncSender<io::Result<()>>) -> Order) {
        let (done, outcome) = sync_channel(1);
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order(done)).is_ok());
        match outcome.recv() {
            Ok(Ok(())) if sent => {}
            Ok(Err(error)) => panic!("cannot listen at {}: {error}", self.address),
            _ => panic!("the thread of the fake API server has ended"),
        }
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the server's thread has been printed already.
            let _ = thread.join();
        }
    }
}

#[track_caller]
fn named(resource: &str) -> &'static Resource {
    match Resource::named(resource) {
        Some(resource) => resource,
        None => panic!("{resource} is not served"),
    }
}

#[track_caller]
fn identify(object: &Value) -> (&'static Resource, String, String) {
    let metadata = &object["metadata"];
    match (Resource::of(object), metadata["namespace"].as_str(), metadata["name"].as_str()) {
        (Some(resource), Some(namespace), Some(name)) if resource.namespaced => {
            (resource, namespace.to_owned(), name.to_owned())
        }
        (Some(resource), _, Some(name)) if !resource.namespaced => (resource, String::new(), name.to_owned()),
        _ => panic!(
            "not an object of a resource that is served, with a name and a namespace where it needs one: {object}"
        ),
    }
}

fn kubeconfig(address: SocketAddr) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters: [{{name: fake, cluster: {{server: \"http://{address}\"}}}}]\n\
         users: [{{name: fake, user: {{token: fake-token}}}}]\n\
         contexts: [{{name: fake, context: {{cluster: fake, user: fake}}}}]\n\
         current-context: fake\n"
    )
}
