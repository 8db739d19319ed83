//! A downstream's bytes, plain or in TLS, and those of them that were read ahead.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Most bytes that are read before it is known what is spoken: an ordinary request's head.
const EARLY_BYTES_MAX: usize = 4096;
/// What a client of HTTP/2 says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a downstream speaks on a plain connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.0 or HTTP/1.1, or nothing at all.
    Http1,
    /// HTTP/2, by prior knowledge.
    Http2,
}

/// A downstream's connection, to be read and written in the clear.
#[derive(Debug)]
pub struct Transport {
    stream: Stream,
    /// Read already, and still to be given out.
    early: Vec<u8>,
    early_given: usize,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Without TLS.
    pub fn plain(stream: TcpStream) -> Self {
        Transport { stream: Stream::Plain(stream), early: Vec::new(), early_given: 0 }
    }

    /// With TLS, after its handshake.
    pub fn tls(stream: TlsStream<TcpStream>) -> Self {
        Transport { stream: Stream::Tls(Box::new(stream)), early: Vec::new(), early_given: 0 }
    }

    /// The socket itself.
    pub fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether the peer is known to send no more, however much of what it sent is unread. Nobody is
    /// woken when that changes.
    pub fn is_ended(&self, cx: &mut Context<'_>) -> bool {
        let readiness = pin!(self.socket().ready(Interest::READABLE)).poll(cx);
        matches!(readiness, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Whether the kernel holds something of the peer's, by its own word: that of the runtime is as
    /// old as its last look.
    pub fn has_unread(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        matches!(SockRef::from(self.socket()).peek(&mut byte), Ok(1..))
    }

    /// Finds out from the first bytes which version of HTTP a client speaks. What was read for it
    /// is given out again to whoever reads next; nothing is allocated before something arrives.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_spoken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Spoken>> {
        loop {
            if self.early.is_empty() {
                ready!(self.socket().poll_read_ready(cx))?;
                self.early.reserve(EARLY_BYTES_MAX);
            }
            let known = self.early.len();
            self.early.resize(EARLY_BYTES_MAX, 0);
            let mut room = ReadBuf::new(self.early.get_mut(known..).unwrap_or_default());
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut room);
            let count = room.filled().len();
            self.early.truncate(known.saturating_add(count));
            ready!(read)?;
            let begun = self.early.get(..PREFACE.len()).unwrap_or(&self.early);
            if count == 0 || !PREFACE.starts_with(begun) {
                return Poll::Ready(Ok(Spoken::Http1));
            }
            if begun.len() == PREFACE.len() {
                return Poll::Ready(Ok(Spoken::Http2));
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(early) = self.early.get(self.early_given..)
            && !early.is_empty()
        {
            let count = early.len().min(buf.remaining());
            buf.put_slice(early.get(..count).unwrap_or_default());
            self.early_given = self.early_given.saturating_add(count);
            if self.early_given >= self.early.len() {
                (self.early, self.early_given) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
