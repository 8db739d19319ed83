//! The TLS handshakes of one worker that are under way: bounded in number and in time.
//!
//! Who stalls in a handshake holds a place. When all are taken, the oldest handshake ends: an honest
//! one is over after a round trip or two, so the oldest is the least likely to be honest, and a
//! crowd that stalls on purpose pushes out itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::tls::server::ServerTls;

use super::io::ConnState;
use super::timer::Alarm;

/// Handshakes of one worker that may be under way at a time.
pub const HANDSHAKES_MAX: usize = 512;
/// The first byte of a TLS record that opens a handshake (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Why there is no TLS on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The peer speaks something else: HTTP without TLS, most likely.
    Plain,
    /// The peer and tollgate did not agree, or the connection broke.
    Failed,
    /// Not within the time.
    Timeout,
    /// Too many were under way, and this was the oldest.
    Evicted,
}

/// Those that are under way, the oldest first.
#[derive(Debug, Default)]
pub struct Handshakes {
    next: Cell<u64>,
    under_way: RefCell<BTreeMap<u64, Place>>,
}

#[derive(Debug)]
struct Place {
    alarm: Arc<Alarm>,
    is_evicted: Rc<Cell<bool>>,
}

impl Handshakes {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.under_way.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shakes hands with a client whose connection `conn` has just begun, within its first time.
    ///
    /// # Errors
    /// There is no TLS on this connection; with [`HandshakeError::Plain`] the socket comes back, so
    /// that its peer can be told.
    pub async fn accept(
        &self,
        stream: TcpStream,
        tls: &ServerTls,
        conn: &ConnState,
    ) -> Result<TlsStream<TcpStream>, (HandshakeError, Option<TcpStream>)> {
        let turn = self.begin(conn);
        let mut first = [0];
        let peeked = turn.wait_for(conn, stream.peek(&mut first)).await;
        match peeked.map_err(|error| (error, None))? {
            Ok(1..) if first == [HANDSHAKE_RECORD] => {}
            Ok(1..) => return Err((HandshakeError::Plain, Some(stream))),
            Ok(0) | Err(_) => return Err((HandshakeError::Failed, None)),
        }
        let accepted = turn.wait_for(conn, TlsAcceptor::from(tls.config()).accept(stream)).await;
        accepted.map_err(|error| (error, None))?.map_err(|error| {
            tracing::debug!(%error, "a TLS handshake failed");
            (HandshakeError::Failed, None)
        })
    }

    fn begin(&self, conn: &ConnState) -> Turn<'_> {
        let mut under_way = self.under_way.borrow_mut();
        while under_way.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = under_way.pop_first()
        {
            oldest.is_evicted.set(true);
            oldest.alarm.ring();
        }
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        let is_evicted = Rc::new(Cell::new(false));
        let place = Place { alarm: Arc::clone(&conn.alarm), is_evicted: Rc::clone(&is_evicted) };
        under_way.insert(id, place);
        Turn { all: self, id, is_evicted }
    }
}

/// One handshake's place among them; dropping it frees the place.
struct Turn<'a> {
    all: &'a Handshakes,
    id: u64,
    is_evicted: Rc<Cell<bool>>,
}

impl Turn<'_> {
    async fn wait_for<F: Future>(
        &self,
        conn: &ConnState,
        future: F,
    ) -> Result<F::Output, HandshakeError> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            conn.alarm.register(cx.waker());
            if self.is_evicted.get() {
                return Poll::Ready(Err(HandshakeError::Evicted));
            }
            match future.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Ok(output)),
                Poll::Pending if conn.is_overdue() => Poll::Ready(Err(HandshakeError::Timeout)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.all.under_way.borrow_mut().remove(&self.id);
    }
}
