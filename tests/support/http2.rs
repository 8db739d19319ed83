//! Two clients of HTTP/2: one that keeps the rules, and one that sends the frames that it is told.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};

use super::support::PATIENCE;

#[path = "frames.rs"]
mod frames;

pub use frames::*;

/// Runs `test` on a runtime of its own, for a while at most.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async { tokio::time::timeout(PATIENCE * 2, test).await });
    // Connections that nobody ends are no reason to wait.
    runtime.shutdown_background();
    result.expect("the test did not end")
}

/// A connection that keeps the rules. Its end, and why, can be awaited.
pub struct Polite {
    /// Sends requests.
    pub requests: SendRequest<Bytes>,
    /// Ends with the connection.
    pub ended: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Whole {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Polite {
    /// Connects, by prior knowledge.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(tokio::net::TcpStream::connect(address).await.unwrap()).await
    }

    /// Over any connection.
    pub async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        Polite { requests, ended: tokio::spawn(connection) }
    }

    /// A request without a body, and its answer.
    pub async fn get(&mut self, path: &str) -> Whole {
        self.ask(request("GET", path).body(()).unwrap(), None).await.unwrap()
    }

    /// Any request, with a body of one piece or none, and its answer.
    pub async fn ask(
        &mut self,
        request: Request<()>,
        body: Option<&[u8]>,
    ) -> Result<Whole, h2::Error> {
        self.requests.clone().ready().await?;
        let (answer, mut sending) = self.requests.send_request(request, body.is_none())?;
        if let Some(body) = body {
            sending.send_data(Bytes::copy_from_slice(body), true)?;
        }
        whole(answer.await?).await
    }
}

/// A request of this method for this path of a host.
pub fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://test{path}"))
}

/// Reads an answer to its end.
pub async fn whole(answer: Response<h2::RecvStream>) -> Result<Whole, h2::Error> {
    let (head, mut content) = answer.into_parts();
    let mut body = Vec::new();
    while let Some(piece) = content.data().await {
        let piece = piece?;
        content.flow_control().release_capacity(piece.len())?;
        body.extend_from_slice(&piece);
    }
    let trailers = content.trailers().await?;
    Ok(Whole { status: head.status.as_u16(), headers: head.headers, body, trailers })
}

/// A connection on which frames are sent as they are.
pub struct Raw {
    /// The socket.
    pub stream: TcpStream,
}

impl Raw {
    /// Connects, says the preface, and settles on the defaults.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Raw { stream };
        raw.send(PREFACE).send(frame(SETTINGS, 0, 0, b""));
        raw
    }

    /// Sends bytes as they are; a peer that has had enough is no reason to fail.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).ok();
        self
    }

    /// The next frame; `None` at the end of the connection.
    pub fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of this type, others left out; `None` at the end of the connection.
    pub fn frame_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.frame()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }
}

/// The pseudo fields of a GET, and these fields.
pub fn get(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "test"), (":path", path)];
    block(&[&pseudo, fields].concat())
}
