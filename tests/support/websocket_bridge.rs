//! A client of RFC 8441: WebSockets of HTTP/1.1 that come to it go on as streams of one connection of
//! HTTP/2.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::support;

/// What RFC 6455 §1.3 answers to the key that everybody here sends.
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Listens for those that are to go to this server, by prior knowledge.
pub fn spawn(server: SocketAddr) -> SocketAddr {
    support::listen(move |listener| async move {
        let stream = TcpStream::connect(server).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (requests, connection) = h2::client::Builder::new()
            .initial_connection_window_size(16 << 20)
            .initial_window_size(1 << 20)
            .handshake::<_, Bytes>(stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(join(stream, requests.clone()));
        }
    })
}

async fn join(mut stream: TcpStream, mut requests: SendRequest<Bytes>) {
    stream.set_nodelay(true).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    while !requests.is_extended_connect_protocol_enabled() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let request = Request::builder()
        .method("CONNECT")
        .uri("http://test/ws")
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap();
    let (answer, sending) = requests.send_request(request, false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    stream.write_all(SWITCHING.as_bytes()).await.unwrap();
    let (read, write) = stream.into_split();
    tokio::join!(to_stream(read, sending), from_stream(answer.into_body(), write));
}

async fn to_stream(mut read: OwnedReadHalf, mut sending: SendStream<Bytes>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        // Whoever is gone without a word has no more to say.
        let count = read.read(&mut buffer).await.unwrap_or(0);
        let mut piece = Bytes::copy_from_slice(&buffer[..count]);
        if piece.is_empty() {
            sending.send_data(piece, true).ok();
            return;
        }
        while !piece.is_empty() {
            sending.reserve_capacity(piece.len());
            let granted = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await;
            let Some(Ok(granted)) = granted else { return };
            let part = piece.split_to(granted.min(piece.len()));
            if sending.send_data(part, false).is_err() {
                return;
            }
        }
    }
}

async fn from_stream(mut receiving: RecvStream, mut write: OwnedWriteHalf) {
    // A reset is an end, too.
    while let Some(Ok(piece)) = receiving.data().await {
        receiving.flow_control().release_capacity(piece.len()).ok();
        if write.write_all(&piece).await.is_err() {
            return;
        }
    }
    write.shutdown().await.ok();
}
