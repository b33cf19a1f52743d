//! How the agent is: `/livez`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The loop is taken for stuck when it has not turned for so long. A full load of many ipsets takes its time.
const STUCK: Duration = Duration::from_secs(60);
/// How long one request may take, from the connection to the last byte.
const PATIENCE: Duration = Duration::from_secs(10);

/// Label `mode` of the apply histogram.
type Mode = [(&'static str, &'static str); 1];

/// What the loop tells about itself, for others to read at any time.
#[derive(Debug)]
pub struct Status {
    started: Instant,
    /// When the loop turned last, in seconds after `started`.
    turned: AtomicU64,
    ready: AtomicBool,
    registry: Registry,
    apply_duration: Family<Mode, Histogram, fn() -> Histogram>,
    pub(crate) apply_errors: Counter,
    pub(crate) in_sync: Gauge,
    pub(crate) generation: Gauge<u64, AtomicU64>,
    pub(crate) drift_repairs: Counter,
    pub(crate) policy_errors: Gauge<u64, AtomicU64>,
    pub(crate) source_errors: Counter,
    pub(crate) pods: Gauge<u64, AtomicU64>,
}

impl Default for Status {
    fn default() -> Status {
        let mut status = Status {
            started: Instant::now(),
            turned: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            registry: Registry::with_prefix("ringfence"),
            // A millisecond to half a minute.
            apply_duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))),
            apply_errors: Counter::default(),
            in_sync: Gauge::default(),
            generation: Gauge::default(),
            drift_repairs: Counter::default(),
            policy_errors: Gauge::default(),
            source_errors: Counter::default(),
            pods: Gauge::default(),
        };
        let registry = &mut status.registry;
        let (help, duration) = ("Time to compile and write a program", status.apply_duration.clone());
        registry.register_with_unit("apply_duration", help, Unit::Seconds, duration);
        registry.register("apply_errors", "Attempts to write or repair that failed", status.apply_errors.clone());
        registry.register("in_sync", "Whether the last known state is enforced", status.in_sync.clone());
        registry.register("program_generation", "Number of the program in force", status.generation.clone());
        registry.register("drift_repairs", "Times that others' changes were mended", status.drift_repairs.clone());
        registry.register("policy_errors", "Policies with an error, which allow nothing", status.policy_errors.clone());
        registry.register("source_errors", "Attempts to read the state that failed", status.source_errors.clone());
        registry.register("pods", "Pods of the whole cluster in the state that is enforced", status.pods.clone());
        status
    }
}

impl Status {
    /// The loop is alive.
    pub(crate) fn turn(&self) {
        self.turned.store(self.started.elapsed().as_secs(), Ordering::Relaxed);
    }

    /// A program is in force.
    pub(crate) fn applied(&self, mode: &'static str, took: Duration) {
        self.apply_duration.get_or_create(&[("mode", mode)]).observe(took.as_secs_f64());
        self.ready.store(true, Ordering::Relaxed);
    }

    fn is_live(&self) -> bool {
        self.started.elapsed().as_secs().saturating_sub(self.turned.load(Ordering::Relaxed)) < STUCK.as_secs()
    }

    fn page(&self, pages: Pages, path: &str) -> (StatusCode, &'static str, String) {
        const TEXT: &str = "text/plain; charset=utf-8";
        let answer = |yes: bool, no: &str| match yes {
            true => (StatusCode::OK, TEXT, "ok\n".to_owned()),
            false => (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{no}\n")),
        };
        match (pages, path) {
            (Pages::Health, "/livez") => answer(self.is_live(), "the loop is stuck"),
            (Pages::Health, "/readyz") => answer(self.ready.load(Ordering::Relaxed), "nothing has been enforced yet"),
            (Pages::Metrics, "/metrics") => {
                let mut text = String::new();
                match encode(&mut text, &self.registry) {
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

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// `/livez` and `/readyz`.
    Health,
    /// `/metrics`.
    Metrics,
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

    #[test]
    fn a_stuck_loop_is_not_live() {
        let Some(started) = Instant::now().checked_sub(STUCK * 2) else { return };
        let status = Status { started, ..Status::default() };
        assert_eq!(code(&status, Pages::Health, "/livez"), 503);
        status.turn();
        assert_eq!(code(&status, Pages::Health, "/livez"), 200);
    }
}
