//! A TCP relay that can swallow what passes through it, as a network does that lost a route.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A running relay. It ends with the runtime.
pub struct Relay {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    swallowed: Arc<AtomicUsize>,
}

impl Relay {
    /// Relays to a port of the loopback interface.
    pub async fn spawn(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let relay = Relay {
            address: listener.local_addr().unwrap(),
            accepted: Arc::default(),
            swallowed: Arc::default(),
        };
        let (accepted, swallowed) = (Arc::clone(&relay.accepted), Arc::clone(&relay.swallowed));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let far = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                let is_lost = {
                    let swallowed = Arc::clone(&swallowed);
                    move || number < swallowed.load(Ordering::SeqCst)
                };
                tokio::spawn(pass(near_read, far_write, is_lost.clone()));
                tokio::spawn(pass(far_read, near_write, is_lost));
            }
        });
        relay
    }

    /// From now on nothing comes through the connections that there are; new ones work.
    pub fn swallow(&self) {
        self.swallowed.store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    is_lost: impl Fn() -> bool,
) {
    let mut buffer = [0; 16_384];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        // Read and dropped: the sockets stay open on both sides.
        if !is_lost() && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
