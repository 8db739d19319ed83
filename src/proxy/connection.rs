//! One downstream connection, from its socket to its end: TLS where that is expected, then the
//! version of HTTP that its client speaks.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::identity::certificate;
use crate::limiter::time::Timestamp;
use crate::metrics::edge_labels::{HandshakeResult, RefusalReason};
use crate::tls::server::ServerTls;

use super::announced::{self, Versions};
use super::handshake::HandshakeError;
use super::http2;
use super::io::{ConnState, DownstreamIo, Peer, Phase};
use super::listener::{Accepted, ConnectionGuard};
use super::reply;
use super::service;
use super::timer::{TICK, Tick};
use super::transport::{Spoken, Transport};
use super::worker::Worker;

/// How long a connection that is idle in a drain may still bring a request: whoever is about to
/// send one gets an answer that says goodbye instead of a reset.
const FAREWELL: Duration = Duration::from_secs(1);

/// When an idle connection ends in a drain.
#[derive(Debug, Default)]
struct Farewell(Option<Tick>);

impl Farewell {
    /// Whether a connection that is idle now has been so for long enough.
    fn is_due(&mut self, worker: &Worker, state: &ConnState) -> bool {
        if !worker.gate.drain.is_draining() {
            return false;
        }
        let due = *self.0.get_or_insert_with(|| worker.timers.after(FAREWELL));
        state.alarm.arm(due);
        worker.timers.is_past(due)
    }

    /// It is not idle.
    fn put_off(&mut self) {
        self.0 = None;
    }
}

/// How long a peer that was refused may go on sending before the connection is reset.
const LINGER: Duration = Duration::from_secs(3);

/// Serves a connection that was handed to this worker, to its end.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { stream, peer, tls, mut guard } = accepted;
    let mut stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "an accepted socket cannot be used");
            return;
        }
    };
    let peer = match worker.gate.settings.announced {
        None => peer,
        // Boxed, as hardly anybody has such a proxy in front.
        Some(versions) => {
            let announced = announced_peer(&worker, &mut stream, peer, versions, &mut guard);
            match Box::pin(announced).await {
                Some(peer) => peer,
                None => return,
            }
        }
    };
    let peer = Peer::new(peer, tls.is_some(), guard);
    let state = ConnState::new(peer, &worker.timers, worker.gate.settings.phases);
    let begun = match tls {
        // Boxed, so that a plain connection need not have the room.
        Some(tls) => Box::pin(begin_tls(&worker, stream, &tls, &state)).await,
        None => begin_plain(&worker, stream, &state).await,
    };
    match begun {
        // Boxed for the same reason.
        Some((transport, Spoken::Http2)) => {
            Box::pin(http2::serve(worker, transport, state)).await;
        }
        Some((transport, Spoken::Http1)) => serve_http1(worker, transport, state).await,
        None => {}
    }
}

/// Whom a connection was made for: whom a trusted proxy names, or its peer. `None`: it is not known,
/// or has its connections already.
async fn announced_peer(
    worker: &Worker,
    stream: &mut TcpStream,
    peer: SocketAddr,
    versions: Versions,
    guard: &mut ConnectionGuard,
) -> Option<SocketAddr> {
    let gate = &worker.gate;
    if !gate.active.load().policy.is_trusted(peer.ip()) {
        return Some(peer);
    }
    let named = match announced::read(stream, versions).await {
        Ok(Some(named)) => named,
        // The proxy itself: its checks of health.
        Ok(None) => return Some(peer),
        Err(error) => {
            gate.metrics.connection_refused(RefusalReason::ProxyProtocol);
            if gate.unannounced.is_first() {
                tracing::warn!(
                    %peer, %error,
                    "a trusted proxy's connection is closed: server.proxy_protocol has it say whom \
                     each is made for (said once)"
                );
            }
            return None;
        }
    };
    if let Some(counts) = &gate.addresses {
        guard.of_address = counts.enter(named.ip());
        if guard.of_address.is_none() {
            gate.metrics.connection_refused(RefusalReason::MaxConnectionsPerIp);
            return None;
        }
    }
    Some(named)
}

/// Waits for the first bytes, which tell the version of HTTP.
async fn begin_plain(
    worker: &Worker,
    stream: TcpStream,
    state: &ConnState,
) -> Option<(Transport, Spoken)> {
    let mut transport = Transport::plain(stream);
    let mut farewell = Farewell::default();
    let spoken = poll_fn(|cx| {
        state.alarm.register(cx.waker());
        match transport.poll_spoken(cx) {
            Poll::Ready(spoken) => Poll::Ready(spoken.ok()),
            Poll::Pending if state.is_overdue() => Poll::Ready(None),
            Poll::Pending if farewell.is_due(worker, state) && !transport.has_unread() => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await?;
    Some((transport, spoken))
}

/// Shakes hands; what is spoken then is what was agreed on (RFC 7301).
async fn begin_tls(
    worker: &Worker,
    stream: TcpStream,
    tls: &ServerTls,
    state: &ConnState,
) -> Option<(Transport, Spoken)> {
    let metrics = &worker.gate.metrics;
    let in_progress = metrics.tls_handshake_started();
    let mut accepted = worker.handshakes.accept(stream, tls, state).await;
    if let Ok(stream) = &accepted
        && let Some(client) = stream.get_ref().1.peer_certificates().and_then(|it| it.first())
        && !take_certificate(client, worker.gate.clock.now(), &state.peer)
    {
        accepted = Err((HandshakeError::Failed, None));
    }
    drop(in_progress);
    metrics.tls_handshake_ended(match &accepted {
        Ok(_) => HandshakeResult::Ok,
        Err((HandshakeError::Plain | HandshakeError::Failed, _)) => HandshakeResult::Failed,
        Err((HandshakeError::Timeout, _)) => HandshakeResult::Timeout,
        Err((HandshakeError::Evicted, _)) => HandshakeResult::Evicted,
    });
    match accepted {
        Ok(stream) => {
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            state.greeted();
            let spoken = if is_http2 { Spoken::Http2 } else { Spoken::Http1 };
            Some((Transport::tls(stream), spoken))
        }
        Err((HandshakeError::Plain, Some(mut stream))) => {
            // Better than an alert that its user cannot read.
            let answer = reply::bad_request_raw();
            let _ = tokio::time::timeout(TICK, stream.write_all(answer)).await;
            let _ = stream.shutdown().await;
            linger(stream).await;
            None
        }
        Err(_) => None,
    }
}

/// Takes note of whom a client's certificate names; whether there still is such a client. A session
/// that is resumed brings the certificate that it began with, and nobody looks at its times again.
fn take_certificate(client: &[u8], now: Timestamp, peer: &Peer) -> bool {
    match certificate::read(client) {
        Ok(certificate) if certificate.not_after >= now => {
            peer.certificate.set(certificate).is_ok()
        }
        Ok(_) => {
            tracing::debug!("a session was resumed with a certificate that is over");
            false
        }
        Err(error) => {
            tracing::debug!(%error, "a client's certificate cannot be read");
            false
        }
    }
}

async fn serve_http1(worker: Rc<Worker>, transport: Transport, state: Arc<ConnState>) {
    let header_bytes_max = worker.gate.settings.header_bytes_max;
    let io = DownstreamIo::new(transport, Arc::clone(&state), header_bytes_max);
    let service = {
        let (worker, state) = (Rc::clone(&worker), Arc::clone(&state));
        service_fn(move |request| service::handle(Rc::clone(&worker), Arc::clone(&state), request))
    };
    let mut connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(header_bytes_max)
        .max_buf_size(header_bytes_max.max(8192))
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();

    let mut farewell = Farewell::default();
    let (mut has_looked, mut said_farewell) = (false, false);
    let ended = poll_fn(|cx| {
        state.alarm.register(cx.waker());
        loop {
            if state.is_last() && !said_farewell {
                said_farewell = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            match Pin::new(&mut connection).poll(cx) {
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending if state.is_overdue() => return Poll::Ready(Some(state.phase())),
                Poll::Pending => {}
            }
            // An answer that began before the drain did not say goodbye: whoever has it may ask
            // once more. So it is idleness that counts, and not the time since the drain began.
            if said_farewell || !state.is_between_requests() {
                has_looked = false;
                farewell.put_off();
                return Poll::Pending;
            }
            if !farewell.is_due(&worker, &state) {
                return Poll::Pending;
            }
            if !has_looked {
                has_looked = true;
                state.look_for_unread();
            } else if state.found_unread() {
                // A request that the runtime will tell of in a moment.
                has_looked = false;
                farewell.put_off();
                return Poll::Pending;
            } else {
                said_farewell = true;
                state.leave_unread();
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    })
    .await;
    // Nothing is left of a connection that was upgraded.
    let Some(parts) = connection.into_parts() else { return };
    let mut stream = parts.io.into_inner();
    if ended == Some(Phase::Head) && state.is_settled() {
        // hyper has seen no request, so the answer is written by hand: not into the middle of
        // one that its reader is slow to take.
        let answer = reply::REQUEST_TIMEOUT_RAW.as_bytes();
        let _ = tokio::time::timeout(TICK, stream.write_all(answer)).await;
        let _ = stream.shutdown().await;
        state.leave_unread();
    }
    if state.ends_in_reset() {
        // The only way to tell HTTP/1.0 that a body without a length was cut (RFC 9112 §8).
        let _ = SockRef::from(stream.transport().socket()).set_linger(Some(Duration::ZERO));
    } else if state.may_have_unread() {
        linger(stream).await;
    }
}

/// Reads and forgets until the peer closes, for a while. To close a socket with something unread
/// resets the connection, and that can take the answer away before the peer has read it
/// (RFC 9112 §9.6).
pub async fn linger(mut stream: impl AsyncRead + Unpin) {
    let mut forgotten = vec![0; 16 * 1024];
    let until_end = async { while let Ok(1..) = stream.read(&mut forgotten).await {} };
    let _ = tokio::time::timeout(LINGER, until_end).await;
}
