//! The upstream's addresses, kept fresh beside the data path.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::Notify;

/// Shortest time between two look-ups of a name, whatever asks for them.
const PAUSE: Duration = Duration::from_secs(1);

/// The upstream's addresses. An address needs no look-up; a name is looked up again after its
/// time to live and after a failed connection, and a resolver that fails keeps the last answer.
#[derive(Debug)]
pub struct Addresses {
    host: Box<str>,
    port: u16,
    known: ArcSwap<Vec<SocketAddr>>,
    next: AtomicUsize,
    wanted: Notify,
}

impl Addresses {
    /// The addresses of `host`, a name or an address without brackets.
    pub fn new(host: &str, port: u16) -> Arc<Self> {
        let literal = host.parse::<IpAddr>().ok();
        let known = literal.map(|ip| SocketAddr::new(ip, port)).into_iter().collect();
        Arc::new(Addresses {
            host: host.into(),
            port,
            known: ArcSwap::from_pointee(known),
            next: AtomicUsize::new(0),
            wanted: Notify::new(),
        })
    }

    /// The upstream as `Host` names it.
    pub fn authority(&self) -> Option<HeaderValue> {
        let (host, port) = (&self.host, self.port);
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_string() };
        let authority = if port == 80 { host } else { format!("{host}:{port}") };
        HeaderValue::try_from(authority).ok()
    }

    /// The addresses as last known; looked up here and now if none ever were.
    ///
    /// # Errors
    /// The resolver's.
    pub async fn get(&self) -> io::Result<Arc<Vec<SocketAddr>>> {
        let known = self.known.load_full();
        if !known.is_empty() {
            return Ok(known);
        }
        self.look_up().await?;
        Ok(self.known.load_full())
    }

    /// All addresses, each call beginning with the next one.
    pub fn rotated<'a>(
        &self,
        addresses: &'a [SocketAddr],
    ) -> impl Iterator<Item = SocketAddr> + 'a {
        let count = addresses.len();
        let first = self.next.fetch_add(1, Relaxed).checked_rem(count).unwrap_or(0);
        addresses.iter().cycle().skip(first).take(count).copied()
    }

    /// Asks for a look-up soon.
    pub fn refresh(&self) {
        self.wanted.notify_one();
    }

    /// Looks the name up again every `ttl`, and when asked. Runs until it is dropped.
    pub async fn keep_fresh(&self, ttl: Duration) {
        if self.host.parse::<IpAddr>().is_ok() {
            return;
        }
        loop {
            if let Err(error) = self.look_up().await {
                tracing::warn!(%error, "the upstream's name cannot be resolved");
            }
            tokio::time::sleep(PAUSE.min(ttl)).await;
            // Either is reason enough.
            let _ = tokio::time::timeout(ttl.saturating_sub(PAUSE), self.wanted.notified()).await;
        }
    }

    async fn look_up(&self) -> io::Result<()> {
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host((&*self.host, self.port)).await?.collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        self.known.store(Arc::new(found));
        Ok(())
    }
}
