//! A TCP relay that can delay what passes through it, or swallow it, as a network does that lost a
//! route.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A running relay. It ends with the runtime.
pub struct Relay {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    swallowed: Arc<AtomicUsize>,
    delay_ms: Arc<AtomicU64>,
}

impl Relay {
    /// Relays to a port of the loopback interface.
    pub async fn spawn(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let relay = Relay {
            address: listener.local_addr().unwrap(),
            accepted: Arc::default(),
            swallowed: Arc::default(),
            delay_ms: Arc::default(),
        };
        let delay_ms = Arc::clone(&relay.delay_ms);
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
                let at_once = Arc::default();
                tokio::spawn(pass(near_read, far_write, at_once, is_lost.clone()));
                tokio::spawn(pass(far_read, near_write, Arc::clone(&delay_ms), is_lost));
            }
        });
        relay
    }

    /// From now on nothing comes through the connections that there are; new ones work.
    pub fn swallow(&self) {
        self.swallowed.store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// From now on every answer takes so long.
    pub fn delay(&self, by: Duration) {
        self.delay_ms.store(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    /// Connections that were made through it.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    delay_ms: Arc<AtomicU64>,
    is_lost: impl Fn() -> bool,
) {
    let mut buffer = [0; 16_384];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let delay = Duration::from_millis(delay_ms.load(Ordering::SeqCst));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // Read and dropped: the sockets stay open on both sides.
        if !is_lost() && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
