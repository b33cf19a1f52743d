//! A Kubernetes API server for tests: plain HTTP on a port of its own, objects in memory, faults on request.
//!
//! It serves what a node agent asks for (lists with pages, watches with bookmarks, single objects, writes, events, access
//! reviews) as the API concepts of Kubernetes document it, and nothing behind it: no controllers, no admission, no validation
//! of specs, no defaults but those a watcher can see (`uid`, `creationTimestamp`, `resourceVersion`, `generation`, the name
//! label of namespaces). It answers in JSON whatever `Accept` asks for.
//!
//! ```
//! use ringfence_fake_apiserver::{FakeApiServer, Fault, On, sample};
//!
//! let server = FakeApiServer::start()?;
//! server.apply(&sample::namespace("shop", &[]));
//! server.apply(&sample::pod("shop", "web", &[("app", "web")], "node-1", &["10.244.0.7"]));
//! // The next two lists of pods are refused; the client shall come back after a second each time.
//! server.inject(On::list("pods"), 2, Fault::retry_after(429, 1));
//! # Ok::<(), std::io::Error>(())
//! ```

mod any;
mod api;
mod body;
mod client;
mod discovery;
mod fault;
mod list;
mod listen;
mod object;
mod real;
mod request;
mod resource;
pub mod sample;
mod selector;
mod server;
mod shared;
mod status;
mod store;
mod watch;
mod write;

pub use any::ApiServer;
pub use client::{Answer, Client, Events, version_of};
pub use fault::{ALWAYS, Fault, On};
pub use real::{ASSETS, RealApiServer, SKIPPED};
pub use request::{Request, Verb};
pub use server::FakeApiServer;
pub use shared::WatchList;
