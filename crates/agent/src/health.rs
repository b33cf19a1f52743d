//! How the agent is: `/livez`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::text::encode;

use crate::status::Status;

/// How long one request may take, from the connection to the last byte.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// `/livez` and `/readyz`.
    Health,
    /// `/metrics`.
    Metrics,
}

impl Status {
    fn page(&self, pages: Pages, path: &str) -> (StatusCode, &'static str, String) {
        const TEXT: &str = "text/plain; charset=utf-8";
        let answer = |yes: bool, no: &str| match yes {
            true => (StatusCode::OK, TEXT, "ok\n".to_owned()),
            false => (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{no}\n")),
        };
        match (pages, path) {
            (Pages::Health, "/livez") => answer(self.is_live(), "the loop is stuck"),
            (Pages::Health, "/readyz") => answer(
                self.is_ready(),
                "nothing has been written since the start; what an earlier run left is in force",
            ),
            (Pages::Metrics, "/metrics") => {
                let mut text = String::new();
                match encode(&mut text, self.registry()) {
                    Ok(()) => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
                }
            }
            _ => (StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned()),
        }
    }

    fn respond(&self, pages: Pages, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (code, kind, text) = match *request.method() {
            Method::GET | Method::HEAD => self.page(pages, request.uri().path()),
            _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new()),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = code;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        response
    }
}

/// Answers on `listeners` from a thread of its own, as long as the process lives. The loop may be busy meanwhile.
///
/// # Errors
/// There is no thread or runtime to be had, or a listener cannot be used.
pub fn serve(listeners: Vec<(TcpListener, Pages)>, status: &Arc<Status>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (listener, pages) in listeners {
        listener.set_nonblocking(true)?;
        let _guard = runtime.enter();
        runtime.spawn(accept(tokio::net::TcpListener::from_std(listener)?, pages, status.clone()));
    }
    thread::Builder::new().name("health".to_owned()).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, pages: Pages, status: Arc<Status>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let status = status.clone();
        let service = service_fn(move |request| {
            let response = status.respond(pages, &request);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        // Who breaks off or never asks gets no answer.
        tokio::spawn(tokio::time::timeout(PATIENCE, connection));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(status: &Status, pages: Pages, path: &str) -> u16 {
        status.page(pages, path).0.as_u16()
    }

    #[test]
    fn ready_after_the_first_program() {
        let status = Status::default();
        assert_eq!(code(&status, Pages::Health, "/readyz"), 503);
        status.applied("replace", Duration::from_millis(3));
        assert_eq!(code(&status, Pages::Health, "/readyz"), 200);
        assert_eq!(code(&status, Pages::Health, "/metrics"), 404);
        let (_, _, metrics) = status.page(Pages::Metrics, "/metrics");
        assert!(metrics.contains("ringfence_apply_duration_seconds_count{mode=\"replace\"} 1\n"), "{metrics}");
    }
}
