//! A client that shows answers as they are, for checks of any API server.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, Request};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

/// How long an answer or an event may take that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A blocking client: code, headers and body of each answer, and the lines of watches. It repeats nothing by itself.
///
/// Its methods give an error of the kind `UnexpectedEof` when an answer breaks off.
pub struct Client {
    runtime: Runtime,
    client: kube::Client,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP code.
    pub code: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as text.
    pub text: String,
    /// The body as JSON; null if it is none.
    pub json: Value,
}

impl Answer {
    /// The `reason` of a `Status`.
    pub fn reason(&self) -> &str {
        self.json["reason"].as_str().unwrap_or_default()
    }

    /// The `resourceVersion` of an object or list; 0 if there is none.
    pub fn version(&self) -> u64 {
        version_of(&self.json)
    }
}

/// The `resourceVersion` of an object or list; 0 if there is none.
pub fn version_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok()).unwrap_or_default()
}

impl Client {
    /// A client of the server that a kubeconfig file leads to.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or there is no runtime to be had.
    pub fn new(kubeconfig: &Path) -> io::Result<Client> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).map_err(io::Error::other)?;
        let runtime = runtime()?;
        let options = KubeConfigOptions::default();
        let config = runtime.block_on(kube::Config::from_custom_kubeconfig(kubeconfig, &options));
        Client::with(runtime, config.map_err(io::Error::other)?)
    }

    /// A client of any server that speaks HTTP and JSON.
    pub(crate) fn at(url: &str) -> io::Result<Client> {
        let url = url.parse().map_err(io::Error::other)?;
        Client::with(runtime()?, kube::Config::new(url))
    }

    fn with(runtime: Runtime, mut config: kube::Config) -> io::Result<Client> {
        config.default_retry = false;
        config.read_timeout = Some(PATIENCE);
        // The servers are on this host.
        config.proxy_url = None;
        let client = {
            let _entered = runtime.enter();
            kube::Client::try_from(config).map_err(io::Error::other)?
        };
        Ok(Client { runtime, client })
    }

    /// Asks for a path with its query.
    ///
    /// # Errors
    ///
    /// There is no answer, or only a part of one.
    pub fn get(&self, path: &str) -> io::Result<Answer> {
        self.call(&Method::GET, path, None)
    }

    /// Sends an object. What PATCH sends is a merge patch.
    ///
    /// # Errors
    ///
    /// There is no answer, or only a part of one.
    pub fn send(&self, method: &Method, path: &str, body: &Value) -> io::Result<Answer> {
        self.call(method, path, Some(body))
    }

    /// Deletes what is at a path.
    ///
    /// # Errors
    ///
    /// There is no answer, or only a part of one.
    pub fn delete(&self, path: &str) -> io::Result<Answer> {
        self.call(&Method::DELETE, path, None)
    }

    fn call(&self, method: &Method, path: &str, body: Option<&Value>) -> io::Result<Answer> {
        self.runtime.block_on(async {
            let response = self.open(method, path, body).await?;
            let (parts, body) = response.into_parts();
            let bytes = tokio::time::timeout(PATIENCE, body.collect()).await?.map_err(broken)?.to_bytes();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let json = serde_json::from_str(&text).unwrap_or_default();
            Ok(Answer { code: parts.status.as_u16(), headers: parts.headers, text, json })
        })
    }

    async fn open(&self, method: &Method, path: &str, body: Option<&Value>) -> io::Result<hyper::Response<Body>> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, kind);
        let request = request.body(Body::from(bytes)).map_err(io::Error::other)?;
        tokio::time::timeout(PATIENCE, self.client.send(request)).await?.map_err(io::Error::other)
    }

    /// Opens a watch: `path` has `watch=true` in its query.
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub fn watch(&self, path: &str) -> io::Result<Events<'_>> {
        let response = self.runtime.block_on(self.open(&Method::GET, path, None))?;
        let code = response.status().as_u16();
        Ok(Events { client: self, code, body: response.into_body(), text: Vec::new() })
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, error)
}

/// The events of a watch.
#[derive(Debug)]
pub struct Events<'a> {
    client: &'a Client,
    /// The HTTP code that the watch began with.
    pub code: u16,
    body: Body,
    text: Vec<u8>,
}

impl Events<'_> {
    /// The next event; none at the end of a watch in good order.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof`: the connection broke, or the end is in the middle of a line. `TimedOut`: nothing came for a minute.
    /// `InvalidData`: the line is no JSON.
    pub fn event(&mut self) -> io::Result<Option<Value>> {
        self.event_within(PATIENCE)
    }

    /// The next event, if it comes within this time; else an error of the kind `TimedOut`.
    ///
    /// # Errors
    ///
    /// As [`Events::event`].
    pub fn event_within(&mut self, patience: Duration) -> io::Result<Option<Value>> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let next = async { tokio::time::timeout(patience, self.body.frame()).await };
            let frame = self.client.runtime.block_on(next)?;
            match frame {
                Some(Ok(frame)) => self.text.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(broken(error)),
                None if self.text.is_empty() => return Ok(None),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the watch ends within a line")),
            }
        }
    }

    /// The next event as its type, the name of its object, and its version.
    ///
    /// # Errors
    ///
    /// As [`Events::event`]; the end is `UnexpectedEof`, too.
    pub fn in_short(&mut self) -> io::Result<(String, String, u64)> {
        let event = self.event()?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the watch has ended"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["object"];
        Ok((text(&event["type"]), text(&object["metadata"]["name"]), version_of(object)))
    }
}
