//! The upstream's addresses, kept fresh beside the data path.
//!
//! One task looks the name up; requests only ask it to, and wait no longer than they have time to
//! connect. So there is never more than one look-up at a time, nor more than one a second, and a
//! resolver that hangs holds up one thread.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

/// Shortest time between two look-ups of a name, whatever asks for them.
const PAUSE: Duration = Duration::from_secs(1);
/// A look-up that takes longer has failed.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(10);

/// Looks up a name, for this port.
pub type Resolver = Box<dyn Fn(&str, u16) -> Pending + Send + Sync>;
/// The answer to a look-up.
pub type Pending = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The upstream's addresses. An address needs no look-up; a name is looked up again after its
/// time to live and after a failed connection, and a resolver that fails keeps the last answer.
pub struct Addresses {
    host: Box<str>,
    port: u16,
    is_literal: bool,
    known: ArcSwap<Vec<SocketAddr>>,
    next: AtomicUsize,
    resolver: Resolver,
    wanted: Notify,
    /// Whether the last look-up is less than [`PAUSE`] ago.
    is_resting: AtomicBool,
    look_ups: watch::Sender<LookUp>,
}

/// The last look-up.
#[derive(Clone, Copy, Debug, Default)]
struct LookUp {
    number: u64,
    failure: Option<io::ErrorKind>,
}

impl Addresses {
    /// The addresses of `host`, a name or an address without brackets, by the system's resolver.
    pub fn new(host: &str, port: u16) -> Arc<Self> {
        let resolver: Resolver = Box::new(|host, port| {
            let host = host.to_owned();
            Box::pin(async move {
                let is_localhost = host == "localhost";
                let mut found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
                if is_localhost {
                    add_loopback(&mut found, port);
                }
                Ok(found)
            })
        });
        Self::with_resolver(host, port, resolver)
    }

    /// The same by another resolver.
    pub fn with_resolver(host: &str, port: u16, resolver: Resolver) -> Arc<Self> {
        let literal = host.parse::<IpAddr>().ok();
        let known = literal.map(|ip| SocketAddr::new(ip, port)).into_iter().collect();
        Arc::new(Addresses {
            host: host.into(),
            port,
            is_literal: literal.is_some(),
            known: ArcSwap::from_pointee(known),
            next: AtomicUsize::new(0),
            resolver,
            wanted: Notify::new(),
            is_resting: AtomicBool::new(false),
            look_ups: watch::Sender::new(LookUp::default()),
        })
    }

    /// The addresses as last known; where none ever were, those of the next look-up. How long that
    /// takes is the caller's to bound.
    ///
    /// # Errors
    /// The resolver's.
    pub async fn get(&self) -> io::Result<Arc<Vec<SocketAddr>>> {
        let known = self.known.load_full();
        if !known.is_empty() {
            return Ok(known);
        }
        let last = self.look_up_soon().await;
        let known = self.known.load_full();
        match last.failure {
            Some(kind) if known.is_empty() => Err(kind.into()),
            _ => Ok(known),
        }
    }

    /// What a look-up finds that is not among `tried`, all of which have just failed; nothing, if
    /// that was done less than a second ago. How long it takes is the caller's to bound.
    pub async fn beyond(&self, tried: &Arc<Vec<SocketAddr>>) -> Vec<SocketAddr> {
        if self.is_literal {
            return Vec::new();
        }
        if Arc::ptr_eq(tried, &self.known.load()) {
            self.look_up_soon().await;
        }
        self.known.load().iter().filter(|it| !tried.contains(it)).copied().collect()
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

    /// Looks the name up again every `ttl`, a second at least, and when asked. Runs until it is
    /// dropped.
    pub async fn keep_fresh(&self, ttl: Duration) {
        if self.is_literal {
            return;
        }
        loop {
            self.look_up().await;
            tokio::select! {
                biased;
                // Whoever asked until now has been answered.
                () = self.wanted.notified() => {}
                () = std::future::ready(()) => {}
            }
            tokio::time::sleep(PAUSE).await;
            self.is_resting.store(false, SeqCst);
            // Either is reason enough.
            let _ = tokio::time::timeout(ttl.saturating_sub(PAUSE), self.wanted.notified()).await;
        }
    }

    /// The next look-up, or the last one, if that was less than a second ago.
    async fn look_up_soon(&self) -> LookUp {
        let mut look_ups = self.look_ups.subscribe();
        if !self.is_resting.load(SeqCst) {
            self.wanted.notify_one();
            // The sender lives as long as `self`.
            let _ = look_ups.changed().await;
        }
        *look_ups.borrow()
    }

    async fn look_up(&self) {
        let found = (self.resolver)(&self.host, self.port);
        let found = tokio::time::timeout(LOOK_UP_LIMIT, found).await;
        let found = found.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
        let failure = match found {
            Ok(found) if !found.is_empty() => {
                // What is the same stays the same: whoever tried it all need not try it again.
                if **self.known.load() != found {
                    self.known.store(Arc::new(found));
                }
                None
            }
            Ok(_) => Some(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            Err(error) => Some(error),
        };
        if let Some(error) = &failure {
            tracing::warn!(%error, "the upstream's name cannot be resolved");
        }
        let failure = failure.map(|error| error.kind());
        // First: who still sees that it is not so has subscribed, and is told now.
        self.is_resting.store(true, SeqCst);
        self.look_ups.send_modify(|last| {
            *last = LookUp { number: last.number.wrapping_add(1), failure };
        });
    }
}

/// `localhost` is both loopback addresses, whichever of them this machine's files name
/// (RFC 6761 §6.3): a backend may listen on either.
fn add_loopback(found: &mut Vec<SocketAddr>, port: u16) {
    let both = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    for address in both.map(|ip| SocketAddr::new(ip, port)) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").field("known", &self.known).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test that makes its own")]
mod tests {
    use std::collections::VecDeque;

    use parking_lot::Mutex;

    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    /// An answer of the scripted resolver.
    enum Answer {
        Found(&'static [u16]),
        Fails,
        Hangs,
    }

    use Answer::{Fails, Found, Hangs};

    /// A resolver that answers by a script, the last line of it for ever, and counts.
    fn scripted(script: Vec<Answer>) -> (Arc<Addresses>, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, script) = (Arc::clone(&asked), Mutex::new(VecDeque::from(script)));
        let resolver: Resolver = Box::new(move |_, _| {
            count.fetch_add(1, Relaxed);
            let mut script = script.lock();
            let found: io::Result<Vec<SocketAddr>> = match script.front().unwrap() {
                Found(ports) => Ok(ports.iter().map(|port| address(*port)).collect()),
                Fails => Err(io::ErrorKind::Other.into()),
                Hangs => {
                    if script.len() > 1 {
                        script.pop_front();
                    }
                    return Box::pin(std::future::pending());
                }
            };
            if script.len() > 1 {
                script.pop_front();
            }
            Box::pin(std::future::ready(found))
        });
        (Addresses::with_resolver("backend", 80, resolver), asked)
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn ports(addresses: &[SocketAddr]) -> Vec<u16> {
        addresses.iter().map(SocketAddr::port).collect()
    }

    async fn known(addresses: &Addresses) -> Vec<u16> {
        ports(&addresses.get().await.unwrap())
    }

    fn keep_fresh(addresses: &Arc<Addresses>, ttl: Duration) {
        let addresses = Arc::clone(addresses);
        tokio::spawn(async move { addresses.keep_fresh(ttl).await });
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_again_within_its_time_to_live() {
        let (addresses, asked) = scripted(vec![Found(&[1]), Found(&[2]), Found(&[3])]);
        keep_fresh(&addresses, TTL);
        assert_eq!(known(&addresses).await, [1]);
        tokio::time::sleep(TTL - Duration::from_secs(1)).await;
        assert_eq!((known(&addresses).await, asked.load(Relaxed)), (vec![1], 1));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((known(&addresses).await, asked.load(Relaxed)), (vec![2], 2));
        tokio::time::sleep(TTL).await;
        assert_eq!(known(&addresses).await, [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_to_live_of_nothing_is_one_of_a_second() {
        let (addresses, asked) = scripted(vec![Found(&[1])]);
        keep_fresh(&addresses, Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(10_500)).await;
        assert_eq!(asked.load(Relaxed), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_connection_brings_on_a_look_up_and_what_is_new_is_tried() {
        let (addresses, asked) = scripted(vec![Found(&[1]), Found(&[1, 2])]);
        keep_fresh(&addresses, TTL);
        let tried = addresses.get().await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = tokio::time::Instant::now();
        assert_eq!(ports(&addresses.beyond(&tried).await), [2]);
        assert_eq!(before.elapsed(), Duration::ZERO, "it was not done at once");
        assert_eq!(asked.load(Relaxed), 2);
        // Whoever tried the old ones too is told without another look-up.
        assert_eq!(ports(&addresses.beyond(&tried).await), [2]);
        assert_eq!(asked.load(Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_connections_fail_there_is_one_look_up_a_second() {
        let (addresses, asked) = scripted(vec![Found(&[1])]);
        keep_fresh(&addresses, TTL);
        let tried = addresses.get().await.unwrap();
        let started = tokio::time::Instant::now();
        while started.elapsed() < Duration::from_millis(9_950) {
            let (one, other) = (addresses.beyond(&tried), addresses.beyond(&tried));
            let (one, other) = tokio::join!(one, other);
            assert_eq!((one.len(), other.len()), (0, 0));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!((8..=10).contains(&asked.load(Relaxed)), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_fails_or_finds_nothing_or_hangs_keeps_the_last_answer() {
        let (addresses, asked) =
            scripted(vec![Found(&[1, 2]), Fails, Found(&[]), Hangs, Found(&[3])]);
        keep_fresh(&addresses, Duration::from_secs(2));
        for looked_up in 1..=4 {
            assert_eq!(known(&addresses).await, [1, 2]);
            let tried = addresses.get().await.unwrap();
            assert_eq!(asked.load(Relaxed), looked_up);
            if looked_up == 4 {
                // It hangs: whoever wants more waits, and no longer than it wants to.
                let limit = Duration::from_secs(1);
                let before = tokio::time::Instant::now();
                let beyond = tokio::time::timeout(limit, addresses.beyond(&tried)).await;
                assert!(beyond.is_err() && before.elapsed() <= limit + Duration::from_millis(1));
            }
            tokio::time::sleep(Duration::from_millis(2_001)).await;
        }
        tokio::time::sleep(LOOK_UP_LIMIT + TTL).await;
        assert_eq!(known(&addresses).await, [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn where_nothing_is_known_a_request_waits_for_the_first_answer_or_its_failure() {
        let (addresses, _) = scripted(vec![Fails, Found(&[1])]);
        keep_fresh(&addresses, TTL);
        let failure = addresses.get().await.unwrap_err();
        assert_eq!(failure.kind(), io::ErrorKind::Other);
        tokio::time::sleep(PAUSE + Duration::from_millis(1)).await;
        assert_eq!(known(&addresses).await, [1], "it was not asked again for the asking");
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_is_begun_with_in_its_turn() {
        let (addresses, _) = scripted(vec![Found(&[1, 2, 3])]);
        keep_fresh(&addresses, TTL);
        let all = addresses.get().await.unwrap();
        let firsts: Vec<u16> =
            (0..4).map(|_| addresses.rotated(&all).next().unwrap().port()).collect();
        assert_eq!(firsts, [1, 2, 3, 1]);
        assert_eq!(addresses.rotated(&all).count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_never_looked_up() {
        for literal in ["192.0.2.1", "::1"] {
            let resolver: Resolver = Box::new(|host, _| panic!("{host} is looked up"));
            let addresses = Addresses::with_resolver(literal, 80, resolver);
            addresses.keep_fresh(Duration::ZERO).await;
            let known = addresses.get().await.unwrap();
            assert_eq!(known[0].ip().to_string(), literal);
            assert!(addresses.beyond(&known).await.is_empty());
        }
    }
}
