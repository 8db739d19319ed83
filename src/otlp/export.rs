//! From a worker to the collector: a bounded queue, and a task of the control thread that sends
//! what is in it. A collector that is slow, broken or absent costs spans, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::tls::client::plain_client;
use crate::tls::roots::Roots;

use super::context::Ratio;
use super::encode::{Resource, batch};
use super::span::RequestSpan;

/// Requests whose spans wait.
const QUEUE: usize = 4096;
/// Requests whose spans are sent at once.
const BATCH: usize = 512;
/// How often the queue is looked into. Whoever puts something into it wakes nobody.
const PAUSE: Duration = Duration::from_millis(250);
/// For a whole export: connection, answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// For the last one.
const TIMEOUT_AT_END: Duration = Duration::from_secs(1);
/// After a failure, doubled with each further one.
const BACK_OFF: Duration = Duration::from_secs(1);
/// Longest pause after a failure.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// Between two lines about a collector that takes nothing.
const TELL_PAUSE: Duration = Duration::from_secs(60);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Spans since the start; those of one request count together, as one.
#[derive(Debug, Default)]
pub struct SpanCounts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl SpanCounts {
    /// Requests whose spans the collector has.
    pub fn exported(&self) -> u64 {
        self.exported.load(Relaxed)
    }

    /// Requests whose spans are lost.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// What workers have of it.
#[derive(Clone, Debug)]
pub struct Tracer {
    /// Which part of the traces that begin here is recorded.
    pub ratio: Ratio,
    queue: mpsc::Sender<RequestSpan>,
    counts: Arc<SpanCounts>,
}

impl Tracer {
    /// Hands over the spans of a request, if there is room.
    pub fn record(&self, span: RequestSpan) {
        if self.queue.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }

    /// What became of spans so far.
    pub fn counts(&self) -> &Arc<SpanCounts> {
        &self.counts
    }
}

/// Sends spans.
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Receiver<RequestSpan>,
    counts: Arc<SpanCounts>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    resource: Resource,
    /// What the collector has not taken yet.
    waiting: Vec<RequestSpan>,
    failures: u32,
    told: Option<Instant>,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{}", chain(.0.as_ref()))]
    Connection(Box<dyn std::error::Error + Send + Sync>),
    #[error("answered {0}")]
    Status(StatusCode),
}

impl ExportError {
    /// Whether the same batch may be taken later (OTLP 1.0, "Failures").
    fn is_passing(&self) -> bool {
        match self {
            ExportError::Timeout(_) | ExportError::Connection(_) => true,
            ExportError::Status(status) => {
                matches!(status.as_u16(), 429 | 502 | 503 | 504)
            }
        }
    }
}

/// Both ends of the queue. Nothing is sent before [`Exporter::run`].
///
/// # Errors
/// TLS cannot be set up.
pub fn exporter(url: Uri, ratio: Ratio, resource: Resource) -> Result<(Tracer, Exporter), String> {
    let is_tls = url.scheme() == Some(&http::uri::Scheme::HTTPS);
    let roots = if is_tls { Roots::System } else { Roots::Given(Vec::new()) };
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(plain_client(&roots)?)
        .https_or_http()
        .enable_http1()
        .build();
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
    let (sender, queue) = mpsc::channel(QUEUE);
    let counts = Arc::new(SpanCounts::default());
    let tracer = Tracer { ratio, queue: sender, counts: Arc::clone(&counts) };
    let (waiting, failures, told) = (Vec::new(), 0, None);
    Ok((tracer, Exporter { queue, counts, client, url, resource, waiting, failures, told }))
}

impl Exporter {
    /// Sends until `is_ending`, and what is left by then once more.
    pub async fn run(mut self, mut is_ending: watch::Receiver<bool>) {
        loop {
            let pause = match self.failures {
                0 => PAUSE,
                failures => {
                    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
                    BACK_OFF.saturating_mul(doubled).min(BACK_OFF_MAX)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // An error means that the other end is gone, which is an end too.
                _ = is_ending.wait_for(|it| *it) => break,
            }
            // A queue that fills faster than it is looked into is emptied in one.
            while self.fill() {
                let is_full = self.waiting.len() >= BATCH;
                if !self.send(TIMEOUT).await || !is_full || *is_ending.borrow() {
                    break;
                }
            }
        }
        let all = async { while self.fill() && self.send(TIMEOUT_AT_END).await {} };
        tokio::time::timeout(TIMEOUT_AT_END, all).await.ok();
        let left = self.waiting.len().saturating_add(self.queue.len());
        self.count_dropped(left);
    }

    /// Whether there is something to send.
    fn fill(&mut self) -> bool {
        while self.waiting.len() < BATCH
            && let Ok(span) = self.queue.try_recv()
        {
            self.waiting.push(span);
        }
        !self.waiting.is_empty()
    }

    /// Whether the collector answered well. What may be taken later stays.
    async fn send(&mut self, within: Duration) -> bool {
        let body = batch(&self.resource, &self.waiting);
        let sent = tokio::time::timeout(within, self.post(body)).await;
        match sent.unwrap_or(Err(ExportError::Timeout(within))) {
            Ok(rejected) => {
                let rejected = rejected.min(self.waiting.len());
                self.count_dropped(rejected);
                let taken = self.waiting.len().saturating_sub(rejected);
                let taken = u64::try_from(taken).unwrap_or(u64::MAX);
                self.counts.exported.fetch_add(taken, Relaxed);
                self.waiting.clear();
                if self.failures > 0 {
                    tracing::info!("the collector of traces takes spans again");
                }
                self.failures = 0;
                self.told = None;
                true
            }
            Err(error) => {
                if !error.is_passing() {
                    let lost = self.waiting.len();
                    self.count_dropped(lost);
                    self.waiting.clear();
                }
                self.failures = self.failures.saturating_add(1);
                self.tell(&error);
                false
            }
        }
    }

    /// Returns how many requests the collector refused some span of, at most.
    async fn post(&self, body: Vec<u8>) -> Result<usize, ExportError> {
        let request = Request::post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("tollgate/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body.into()))
            .map_err(|error| ExportError::Connection(error.into()))?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| ExportError::Connection(error.into()))?;
        let status = answer.status();
        // Read to its end, so that the connection can be kept.
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(ExportError::Connection)?.to_bytes();
        if !status.is_success() {
            return Err(ExportError::Status(status));
        }
        Ok(rejected(&body))
    }

    fn count_dropped(&self, requests: usize) {
        self.counts.dropped.fetch_add(u64::try_from(requests).unwrap_or(u64::MAX), Relaxed);
    }

    fn tell(&mut self, error: &ExportError) {
        let now = clock::monotonic();
        let is_soon = |last: Instant| now.saturating_duration_since(last) < TELL_PAUSE;
        if !self.told.is_some_and(is_soon) {
            self.told = Some(now);
            let dropped = self.counts.dropped();
            tracing::warn!(%error, dropped, "the collector of traces takes no spans");
        }
    }
}

/// `partialSuccess.rejectedSpans` of an answer; 0 where it says nothing of the kind.
fn rejected(answer: &[u8]) -> usize {
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(answer) else { return 0 };
    let Some(count) = answer.pointer("/partialSuccess/rejectedSpans") else { return 0 };
    // A 64-bit number is a string in this encoding; not every collector keeps to it.
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok());
    usize::try_from(count.unwrap_or(0)).unwrap_or(usize::MAX)
}

/// An error and what it came from, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_collector_refused_is_read() {
        assert_eq!(rejected(b"{}"), 0);
        assert_eq!(rejected(b""), 0);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":"3"}}"#), 3);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":2,"errorMessage":"x"}}"#), 2);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":"-1"}}"#), 0);
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        for (status, is_passing) in
            [(429, true), (503, true), (400, false), (404, false), (500, false)]
        {
            let error = ExportError::Status(StatusCode::from_u16(status).unwrap());
            assert_eq!(error.is_passing(), is_passing, "{status}");
        }
    }
}
