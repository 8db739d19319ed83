//! A backend that speaks HTTP/2, with or without TLS, by a script for each request.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::support;

/// What a backend saw and counts.
#[derive(Default)]
pub struct Seen {
    /// Heads, in the order in which they came.
    pub heads: Mutex<Vec<http::request::Parts>>,
    /// Connections so far.
    pub connections: AtomicUsize,
    /// Connections that have ended.
    pub ended: AtomicUsize,
    /// Most streams that were open at a time on one connection.
    pub most_open: AtomicUsize,
    /// Why streams were reset, in the order in which the script learnt of it.
    pub resets: Mutex<Vec<Reason>>,
}

/// One stream, for the script.
pub struct Exchange {
    /// The request's head.
    pub head: http::request::Parts,
    /// Its body.
    pub body: RecvStream,
    /// The answer.
    pub respond: SendResponse<Bytes>,
    /// Number of the connection, from 0.
    pub connection: usize,
    /// What the backend saw.
    pub seen: Arc<Seen>,
    _open: Open,
}

/// Counts a stream as open.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Exchange {
    /// Answers 200 with this content.
    pub fn ok(&mut self, body: &'static str) {
        let response = Response::new(());
        let mut stream = self.respond.send_response(response, body.is_empty()).unwrap();
        if !body.is_empty() {
            stream.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
        }
    }

    /// The whole content, and the trailers.
    pub async fn read(&mut self) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.body.data().await {
            let chunk = chunk?;
            self.body.flow_control().release_capacity(chunk.len()).unwrap();
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes, self.body.trailers().await?))
    }

    /// Waits until the other side resets the stream.
    pub async fn reset(&mut self) -> Reason {
        let reason = std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await;
        let reason = reason.unwrap_or(Reason::INTERNAL_ERROR);
        self.seen.resets.lock().unwrap().push(reason);
        reason
    }
}

/// A backend.
pub struct Http2Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it saw.
    pub seen: Arc<Seen>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

/// How a backend behaves.
#[derive(Clone, Default)]
pub struct How {
    /// Streams that it allows; none: as many as there may be.
    pub streams_max: Option<u32>,
    /// TLS, if it is spoken.
    pub tls: Option<TlsAcceptor>,
    /// After so many requests each connection says goodbye.
    pub goodbye_after: Option<usize>,
}

impl Http2Backend {
    /// Runs `script` for each request.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(
        script: impl Fn(Exchange) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::spawn_with(How::default(), script)
    }

    /// Runs `script` for each request.
    pub fn spawn_with<F: Future<Output = ()> + Send + 'static>(
        how: How,
        script: impl Fn(Exchange) -> F + Send + Sync + 'static,
    ) -> Self {
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (of_thread, script) = (Arc::clone(&seen), Arc::new(script));
        let address = support::listen(|listener| async move {
            let accepting = async {
                while let Ok((stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).unwrap();
                    let (how, seen) = (how.clone(), Arc::clone(&of_thread));
                    let script = Arc::clone(&script);
                    tokio::spawn(async move {
                        match how.tls.clone() {
                            None => serve(stream, how, seen, script).await,
                            Some(tls) => match tls.accept(stream).await {
                                Ok(stream) => serve(stream, how, seen, script).await,
                                Err(_) => drop(seen.ended.fetch_add(1, Ordering::SeqCst)),
                            },
                        }
                    });
                }
            };
            tokio::select! {
                () = accepting => {}
                _ = stopped => {}
            }
        });
        Http2Backend { address, seen, stop: Some(stop) }
    }

    /// Answers every request with 200 and `ok`.
    pub fn ok() -> Self {
        Self::spawn(|mut exchange| async move { exchange.ok("ok") })
    }

    /// Its URL as an upstream's.
    pub fn h2c(&self) -> String {
        format!("h2c://{}", self.address)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// The last head.
    pub fn last(&self) -> http::request::Parts {
        self.seen.heads.lock().unwrap().last().unwrap().clone()
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.seen.heads.lock().unwrap().len()
    }
}

impl Drop for Http2Backend {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
    }
}

async fn serve<F: Future<Output = ()> + Send + 'static>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    how: How,
    seen: Arc<Seen>,
    script: Arc<impl Fn(Exchange) -> F + Send + Sync + 'static>,
) {
    let number = seen.connections.fetch_add(1, Ordering::SeqCst);
    let mut builder = h2::server::Builder::new();
    if let Some(max) = how.streams_max {
        builder.max_concurrent_streams(max);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
    let mut taken = 0;
    let open = Arc::new(AtomicUsize::new(0));
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (head, body): (_, RecvStream) = Request::into_parts(request);
        seen.heads.lock().unwrap().push(head.clone());
        seen.most_open.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let (seen, open) = (Arc::clone(&seen), Open(Arc::clone(&open)));
        let exchange = Exchange { head, body, respond, connection: number, seen, _open: open };
        tokio::spawn(script(exchange));
        taken += 1;
        if how.goodbye_after == Some(taken) {
            connection.graceful_shutdown();
        }
    }
    seen.ended.fetch_add(1, Ordering::SeqCst);
}
