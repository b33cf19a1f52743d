//! Lists and watches on the wire: HTTP in, JSON texts out.
//!
//! `kube` makes the connection, the credentials and TLS. Its own lists and watches are not used: they read whole objects into
//! values, let one object that does not parse fail its list, hide Retry-After, and wait without end for a watch that stalls.

use std::borrow::Cow;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::header::RETRY_AFTER;
use hyper::{Request, Response};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::Status;
use ringfence_k8s::api::Kind;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::Timing;
use super::failure::{Failure, causes, one_line};

/// An API server, for one kind.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) kind: Kind,
    pub(super) timing: Timing,
}

/// One line of a watch.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

impl Server {
    /// The text of one page of a list, from `continue_token` on, in place of what is in `text`.
    pub(super) async fn page(
        &self,
        limit: Option<u32>,
        continue_token: Option<&str>,
        text: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let continue_token = continue_token.map(str::to_owned);
        let parameters = ListParams { limit, continue_token, ..ListParams::default() };
        let request = kube::core::Request::new(self.kind.path()).list(&parameters);
        let response = self.ask(request).await?;
        text.clear();
        read_all(response, self.timing.answer, text).await
    }

    /// A watch from `version` on.
    pub(super) async fn watch(&self, version: &str) -> Result<Watch, Failure> {
        // Not all nodes at once, for ever.
        let seconds = self.timing.watch.mul_f64(1.0 - fastrand::f64() / 5.0).as_secs();
        let parameters =
            WatchParams { timeout: u32::try_from(seconds.max(1)).ok(), bookmarks: true, ..WatchParams::default() };
        let request = kube::core::Request::new(self.kind.path()).watch(&parameters, version);
        let response = self.ask(request).await?;
        Ok(Watch { body: response.into_body(), silence: self.timing.silence, buffer: Vec::new(), scanned: 0 })
    }

    async fn ask(
        &self,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Response<Body>, Failure> {
        let request = request.map_err(|error| Failure::Client(causes(&error)))?.map(Body::from);
        let answer = timeout(self.timing.answer, self.client.send(request)).await;
        let response = answer
            .map_err(|_| Failure::Silent(self.timing.answer))?
            .map_err(|error| Failure::Connection(causes(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut text = Vec::new();
        // Half a message is better than none.
        let _ = read_all(response, self.timing.answer, &mut text).await;
        let mut status = serde_json::from_slice::<Status>(&text).unwrap_or_default();
        // A proxy in between does not speak Kubernetes.
        if status.message.is_empty() {
            status.message = one_line(&String::from_utf8_lossy(&text));
        }
        status.code = code;
        Err(Failure::refused(status, retry_after.map(Duration::from_secs)))
    }
}

/// All of an answer. It may take its time, but not without a word.
async fn read_all(response: Response<Body>, silence: Duration, text: &mut Vec<u8>) -> Result<(), Failure> {
    let mut body = response.into_body();
    while let Some(bytes) = next(&mut body, silence).await? {
        text.extend_from_slice(&bytes);
    }
    Ok(())
}

/// The next bytes; nothing at the end of a complete body.
async fn next(body: &mut Body, silence: Duration) -> Result<Option<hyper::body::Bytes>, Failure> {
    loop {
        let frame = timeout(silence, body.frame()).await.map_err(|_| Failure::Silent(silence))?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|error| Failure::Connection(causes(&error)))?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
}

/// A watch that is open.
pub(super) struct Watch {
    body: Body,
    silence: Duration,
    buffer: Vec<u8>,
    /// So much of the buffer has no line end.
    scanned: usize,
}

impl Watch {
    /// What has arrived together, as whole lines; nothing at the end. A line that was cut off is as if it had not come.
    pub(super) async fn lines(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(end) = fresh.iter().rposition(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.scanned + end + 1);
                self.scanned = rest.len();
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            self.scanned = self.buffer.len();
            match next(&mut self.body, self.silence).await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}
