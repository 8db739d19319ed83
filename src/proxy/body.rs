//! Bodies on their way through: they stream, and are never collected.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::identity::identifier::Identifier;

use super::exchange::{End, Exchange};
use super::headers;
use super::io::ConnState;
use super::multiplex::StreamState;
use super::pool::Lease;
use super::reply::Refusal;
use super::timer::Tick;

/// Why a body could not be brought to its end. The other side sees the connection break off, never
/// a clean end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The sender broke off, or sent what is no body.
    #[error("the sender broke off")]
    Broken(#[source] hyper::Error),
    /// Nothing arrived for too long.
    #[error("the sender fell silent")]
    Stalled,
    /// The request's own body failed while its answer was under way.
    #[error("the request's body failed")]
    UploadFailed,
    /// What follows the last chunk is no trailer section.
    #[error("the trailers can be read in two ways")]
    Trailers,
    /// More arrived than is allowed.
    #[error("the body is above the limit")]
    TooLarge,
}

/// What the downstream's task has to know of a request's body, which the upstream's task reads.
#[derive(Debug)]
pub struct UploadState {
    conn: Arc<ConnState>,
    timeout: Duration,
    due: Cell<Tick>,
    bytes: Cell<u64>,
    failure: Cell<Option<Refusal>>,
    is_finished: Cell<bool>,
    is_awaited: Cell<bool>,
    last_progress: Cell<Tick>,
}

impl UploadState {
    /// Why the body failed, if it did; `RequestTimeout` if it has stalled by now.
    pub fn failure(&self) -> Option<Refusal> {
        let stalled =
            || self.conn.timers.is_past(self.due.get()).then_some(Refusal::RequestTimeout);
        let failure = self.failure.get().or_else(stalled);
        if failure.is_none() && self.due.get() != Tick::NEVER {
            self.conn.alarm.arm(self.due.get());
        }
        failure
    }

    /// Whether the upstream has been given all of it.
    pub fn is_finished(&self) -> bool {
        self.is_finished.get()
    }

    /// Whether it is the downstream that everybody waits for.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited.get()
    }

    /// When something of it last went to the upstream.
    pub fn last_progress(&self) -> Tick {
        self.last_progress.get()
    }

    /// Bytes of content so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }
}

/// A request's body on its way to the upstream.
#[derive(Debug)]
pub struct UploadBody {
    inner: Option<(Incoming, Rc<UploadState>)>,
    bytes_max: u64,
    /// Knows the fields that bear credentials, which are none of a trailer's.
    identifier: Option<Arc<Identifier>>,
    /// The stream that it is sent on, where HTTP/2 is spoken.
    stream: Option<Rc<StreamState>>,
}

impl UploadBody {
    /// No body.
    pub fn empty() -> Self {
        UploadBody { inner: None, bytes_max: 0, identifier: None, stream: None }
    }

    /// A body of at most `bytes_max` (0: no limit), each part of it within `timeout`.
    pub fn new(
        inner: Incoming,
        conn: &Arc<ConnState>,
        timeout: Duration,
        bytes_max: u64,
        identifier: &Arc<Identifier>,
    ) -> (Self, Rc<UploadState>) {
        let state = Rc::new(UploadState {
            conn: Arc::clone(conn),
            timeout,
            due: Cell::new(Tick::NEVER),
            bytes: Cell::new(0),
            failure: Cell::new(None),
            is_finished: Cell::new(false),
            is_awaited: Cell::new(false),
            last_progress: Cell::new(conn.timers.now()),
        });
        conn.set_uploading(true);
        let (inner, identifier) = (Some((inner, Rc::clone(&state))), Some(Arc::clone(identifier)));
        (UploadBody { inner, bytes_max, identifier, stream: None }, state)
    }

    /// Holds on to the stream that it is sent on.
    pub fn set_stream(&mut self, stream: Rc<StreamState>) {
        self.stream = Some(stream);
    }
}

impl Drop for UploadBody {
    fn drop(&mut self) {
        if let Some((_, state)) = &self.inner {
            state.conn.set_uploading(false);
            if !state.is_finished.get() {
                state.conn.leave_unread();
            }
        }
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let bytes_max = self.bytes_max;
        let UploadBody { inner, identifier, stream, .. } = &mut *self;
        let Some((inner, state)) = inner else { return Poll::Ready(None) };
        if let Some(stream) = stream {
            stream.begin_upload();
        }
        let frame = match Pin::new(&mut *inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                state.is_awaited.set(true);
                if state.due.get() == Tick::NEVER {
                    let due = state.conn.timers.after(state.timeout);
                    state.due.set(due);
                    state.conn.alarm.arm(due);
                }
                return Poll::Pending;
            }
        };
        if state.is_awaited.replace(false) {
            // From now on the downstream's task has to look at the upstream's time too.
            state.conn.alarm.arm(state.conn.timers.now());
        }
        state.due.set(Tick::NEVER);
        state.last_progress.set(state.conn.timers.now());
        match frame {
            None => {
                state.is_finished.set(true);
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                state.failure.set(Some(Refusal::BadRequest));
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    // hyper takes bare LF for the end of a line here, and forgets what follows up
                    // to an empty line in full. What it took for trailers may be a request, so that
                    // none of this connection's is answered after this one. A section without a
                    // field never is one.
                    state.conn.end_after_answer();
                    if trailers.is_empty() && !state.conn.is_stream() {
                        state.failure.set(Some(Refusal::BadRequest));
                        return Poll::Ready(Some(Err(BodyError::Trailers)));
                    }
                    let fields = identifier.iter().flat_map(|it| it.fields());
                    headers::strip_trailers(trailers, fields);
                }
                let length = frame.data_ref().map_or(0, Bytes::len);
                let length = u64::try_from(length).unwrap_or(u64::MAX);
                state.bytes.set(state.bytes.get().saturating_add(length));
                if bytes_max > 0 && state.bytes.get() > bytes_max {
                    state.failure.set(Some(Refusal::ContentTooLarge));
                    return Poll::Ready(Some(Err(BodyError::TooLarge)));
                }
                state.is_finished.set(inner.is_end_stream());
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(|(inner, _)| inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or(SizeHint::with_exact(0), |(inner, _)| inner.size_hint())
    }
}

/// An answer's body on its way to the downstream, and what is owed when it ends.
#[derive(Debug)]
pub struct ProxyBody {
    source: Source,
    exchange: Option<Exchange>,
}

#[derive(Debug)]
enum Source {
    Own(Option<Bytes>),
    Upstream(Download),
}

/// An answer that the upstream is sending.
#[derive(Debug)]
pub struct Download {
    /// What arrives.
    pub inner: Incoming,
    /// The upstream connection, to be pooled once the body has ended.
    pub lease: Option<Lease>,
    /// The request's body, which may still be under way.
    pub upload: Option<Rc<UploadState>>,
    /// The downstream's connection.
    pub conn: Arc<ConnState>,
    /// Longest silence.
    pub timeout: Duration,
    /// When the present silence is too long.
    pub due: Tick,
    /// Whether its end has arrived.
    pub has_ended: bool,
    /// Whether the downstream may know no other sign of its end than the connection's.
    pub is_until_close: bool,
    /// Why it broke off, until what came before has had time to go out.
    pub failure: Option<BodyError>,
}

impl ProxyBody {
    /// A whole body of tollgate's own; empty is none.
    pub fn own(bytes: Bytes) -> Self {
        ProxyBody { source: Source::Own((!bytes.is_empty()).then_some(bytes)), exchange: None }
    }

    /// A body that streams from the upstream.
    pub fn upstream(download: Download) -> Self {
        ProxyBody { source: Source::Upstream(download), exchange: None }
    }

    /// Whether it is tollgate's own.
    pub fn is_own(&self) -> bool {
        matches!(self.source, Source::Own(_))
    }

    /// Ties the end of the exchange to the end of this body.
    pub fn attach(&mut self, exchange: Exchange) {
        self.exchange = Some(exchange);
    }

    fn end(&mut self, end: End) {
        if let Some(exchange) = self.exchange.take() {
            let bytes_in = match &self.source {
                Source::Own(_) => 0,
                Source::Upstream(download) => {
                    download.upload.as_ref().map_or(0, |upload| upload.bytes())
                }
            };
            exchange.finish(end, bytes_in);
        }
    }
}

impl Drop for ProxyBody {
    fn drop(&mut self) {
        // hyper drops a body that it need not poll: empty ones, and those of HEAD.
        let has_ended = match &mut self.source {
            Source::Own(_) => true,
            Source::Upstream(download) => download.release(),
        };
        self.end(if has_ended { End::Complete } else { End::DownstreamGone });
    }
}

impl Download {
    /// Gives the upstream connection back if nothing of the answer is left on it.
    fn release(&mut self) -> bool {
        // Of a body in chunks only its end tells that it has ended.
        self.has_ended |= self.inner.is_end_stream();
        if self.has_ended
            && let Some(lease) = self.lease.take()
        {
            // With some of the request still unsent the connection is of no use to another.
            if self.upload.as_ref().is_none_or(|upload| upload.is_finished()) {
                lease.give_back();
            }
        }
        self.has_ended
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                self.due = Tick::NEVER;
                self.conn.await_reader();
                if let Some(trailers) = frame.trailers_mut() {
                    headers::strip_trailers(trailers, std::iter::empty());
                    // Nothing follows, and nobody will ask.
                    self.has_ended = true;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                // hyper drops what it has not written yet, the head too: a client is to see an
                // answer that broke off, not none.
                self.failure = Some(BodyError::Broken(error));
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.has_ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => {
                self.conn.reader_waits();
                if self.upload.as_ref().is_some_and(|upload| upload.failure().is_some()) {
                    return Poll::Ready(Some(Err(BodyError::UploadFailed)));
                }
                if self.due == Tick::NEVER {
                    self.due = self.conn.timers.after(self.timeout);
                } else if self.conn.timers.is_past(self.due) {
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
                self.conn.alarm.arm(self.due);
                Poll::Pending
            }
        }
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Own(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Upstream(download) => ready!(download.poll_frame(cx)),
        };
        if let (Some(Err(_)), Source::Upstream(download)) = (&frame, &this.source)
            && download.is_until_close
        {
            download.conn.end_in_reset();
        }
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(exchange)) = (frame.data_ref(), &mut this.exchange) {
                    exchange.add_bytes_out(data.len());
                }
                let has_ended = match &mut this.source {
                    Source::Own(_) => true,
                    Source::Upstream(download) => download.release(),
                };
                if has_ended {
                    this.end(End::Complete);
                }
            }
            Some(Err(BodyError::UploadFailed)) => this.end(End::DownstreamGone),
            Some(Err(BodyError::Stalled)) => this.end(End::UpstreamStalled),
            Some(Err(_)) => this.end(End::UpstreamBroke),
            None => {
                if let Source::Upstream(download) = &mut this.source {
                    download.release();
                }
                this.end(End::Complete);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Upstream(download) => download.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(
                bytes.as_ref().map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            ),
            Source::Upstream(download) => download.inner.size_hint(),
        }
    }
}
