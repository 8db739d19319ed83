//! Upgraded connections: bytes both ways until one side ends it, falls silent, or tollgate drains.

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::clock;
use crate::health::breaker::Outcome;
use crate::health::tasks::watched;
use crate::metrics::cells::LevelGuard;
use crate::metrics::edge_labels::TunnelEvent;
use crate::metrics::labels::{Direction, TaskType};
use crate::store::places::Holds;

use super::circuit::{self, STABLE_AFTER};
use super::gate::Drain;
use super::io::ConnState;
use super::pool::Lease;
use super::timer::{Tick, Timers};
use super::upstreams::Permit;
use super::worker::Worker;

/// Bytes read at a time, in each direction.
const CHUNK: usize = 16 * 1024;
/// RFC 6455 §5.5.1.
const OPCODE_CLOSE: u8 = 0x8;
/// RFC 6455 §5.2: the last of the opcodes that carry messages.
const OPCODE_BINARY: u8 = 0x2;
/// RFC 6455 §5.2: the last frame of a message.
const FIN: u8 = 0x80;
/// How long both sides have to let the upgrade happen once it is agreed.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a tunnel has for itself.
#[derive(Debug)]
pub struct Held {
    /// Its connection to the upstream.
    pub lease: Lease,
    /// Counts it among those that are open.
    pub guard: Option<LevelGuard>,
    /// What lets it be told how the call went.
    pub permit: Option<Permit>,
    /// Its places among its caller's requests at once.
    pub holds: Option<Holds>,
}

/// Relays between the two sides once both have switched protocols. Runs until the tunnel ends.
pub fn spawn(
    worker: &Rc<Worker>,
    conn: &Arc<ConnState>,
    (downstream, upstream): (OnUpgrade, OnUpgrade),
    protocol: &HeaderValue,
    held: Held,
) {
    let counted = Counted {
        worker: Rc::clone(worker),
        opened: clock::monotonic(),
        ended_by: Cell::new(None),
    };
    let is_websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    let (worker, conn) = (Rc::clone(worker), Arc::clone(conn));
    let relayed = async move {
        // Held to the end: the connection counts as open, the upstream's is no one else's.
        let Held { lease, guard, mut permit, holds } = held;
        let (_switched, _held) = (Switched(conn), (lease, guard, holds));
        let both = async {
            let downstream = downstream.await.map_err(|_| TunnelEvent::CloseClient)?;
            let upstream = upstream.await.map_err(|_| TunnelEvent::CloseUpstream)?;
            Ok((downstream, upstream))
        };
        let both = tokio::time::timeout(HANDSHAKE, both).await;
        let (downstream, upstream) = match both.unwrap_or(Err(TunnelEvent::IdleTimeout)) {
            Ok(both) => both,
            Err(event) => return counted.ended_by(event),
        };
        let idle_timeout = worker.gate.settings.tunnel_idle_timeout;
        let activity = Activity {
            counted: &counted,
            timers: &worker.timers,
            last: Cell::new(worker.timers.now()),
            is_websocket,
            said_goodbye: Cell::new(false),
            client_spoke: Cell::new(false),
            first_end: Cell::new(None),
        };
        let (down_read, down_write) = tokio::io::split(TokioIo::new(downstream));
        let (up_read, up_write) = tokio::io::split(TokioIo::new(upstream));
        let drain = is_websocket.then_some(&worker.gate.drain);
        let metrics = &worker.gate.metrics;
        let _buffers = (metrics.buffer_held(), metrics.buffer_held());
        let to_downstream = relay(up_read, down_write, &activity, drain, Side::Server);
        let to_upstream = relay(down_read, up_write, &activity, drain, Side::Client);
        let mut relays = pin!(async {
            tokio::select! {
                // An error on either way ends both; a clean end of one leaves the other open.
                _ = async { tokio::try_join!(to_downstream, to_upstream) } => {}
                () = silence(&worker.timers, &activity.last, idle_timeout) => counted.ended_by(TunnelEvent::IdleTimeout),
            }
        });
        let has_ended = tokio::time::timeout(STABLE_AFTER, relays.as_mut()).await.is_ok();
        if let (Some(permit), Some(outcome)) = (permit.take(), activity.outcome(has_ended)) {
            circuit::note(&worker.gate, permit, outcome, clock::monotonic());
        }
        if !has_ended {
            relays.await;
        }
    };
    tokio::task::spawn_local(watched(TaskType::Websocket, relayed));
}

/// The connection or stream that has become a tunnel; told when that is over.
struct Switched(Arc<ConnState>);

impl Drop for Switched {
    fn drop(&mut self) {
        self.0.switch_ended();
    }
}

/// Tells of a tunnel once it is over. Dropped without a reason, it is the worker that has ended.
struct Counted {
    worker: Rc<Worker>,
    opened: Instant,
    ended_by: Cell<Option<TunnelEvent>>,
}

impl Counted {
    /// Why it ends, if nothing else was the reason before.
    fn ended_by(&self, event: TunnelEvent) {
        self.ended_by.set(self.ended_by.get().or(Some(event)));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let after = clock::monotonic().saturating_duration_since(self.opened);
        let event = self.ended_by.get().unwrap_or(TunnelEvent::Drain);
        self.worker.gate.metrics.tunnel_closed(event, after);
    }
}

/// When something last came through, either way, and how it came to an end.
struct Activity<'a> {
    counted: &'a Counted,
    timers: &'a Timers,
    last: Cell<Tick>,
    is_websocket: bool,
    /// Whether either side has sent a Close frame (RFC 6455 §5.5.1).
    said_goodbye: Cell<bool>,
    /// Whether anything has come from the client.
    client_spoke: Cell<bool>,
    /// Who ended it first, and whether by a clean end of the connection.
    first_end: Cell<Option<(Side, bool)>>,
}

impl Activity<'_> {
    fn note(&self) {
        self.last.set(self.timers.now());
    }

    /// Notes that this side has ended its connection, or that it broke.
    fn ended(&self, side: Side, is_clean: bool) {
        self.counted.ended_by(side.closing());
        if self.first_end.get().is_none() {
            self.first_end.set(Some((side, is_clean)));
        }
    }

    /// What it says of the upstream: that it took the upgrade says nothing, for it may drop the
    /// connection at once.
    fn outcome(&self, has_ended: bool) -> Option<Outcome> {
        match self.first_end.get() {
            _ if self.said_goodbye.get() => Some(Outcome::Good),
            None if has_ended => None,
            None => Some(Outcome::Good),
            // It may be what the client said that ended it (RFC 6455 §7.1.7): whoever can have the
            // upstream give up a connection must not have it shut to others.
            Some((Side::Server, _)) if self.client_spoke.get() => None,
            Some((Side::Server, is_clean)) => {
                // A WebSocket that ends without a word has broken off (§7.1.5).
                let is_good = is_clean && !self.is_websocket;
                Some(if is_good { Outcome::Good } else { Outcome::Bad })
            }
            Some((Side::Client, _)) => None,
        }
    }
}

/// Ends once `limit` has passed since `last`, wherever that has moved meanwhile; never, if it is zero.
async fn silence(timers: &Timers, last: &Cell<Tick>, limit: Duration) {
    if limit.is_zero() {
        return std::future::pending().await;
    }
    loop {
        let quiet = timers.now().since(last.get());
        if quiet >= limit {
            return;
        }
        tokio::time::sleep(limit.saturating_sub(quiet)).await;
    }
}

/// Which role the frames of one direction come from: a client's are masked (RFC 6455 §5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Side {
    /// The way that its bytes go.
    fn direction(self) -> Direction {
        match self {
            Side::Client => Direction::In,
            Side::Server => Direction::Out,
        }
    }

    /// What it is called when this side ends it.
    fn closing(self) -> TunnelEvent {
        match self {
            Side::Client => TunnelEvent::CloseClient,
            Side::Server => TunnelEvent::CloseUpstream,
        }
    }

    fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

async fn relay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity<'_>,
    drain: Option<&Drain>,
    side: Side,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut frames = FrameTracker::default();
    let mut leaving = std::pin::pin!(async {
        match drain {
            Some(drain) => drain.begun().await,
            None => std::future::pending().await,
        }
    });
    let mut is_leaving = false;
    loop {
        if is_leaving && frames.is_between() {
            activity.counted.ended_by(TunnelEvent::Drain);
            // Between two frames: say goodbye in the peer's own terms (RFC 6455 §7.4.1).
            to.write_all(&going_away(side)).await?;
            return to.shutdown().await;
        }
        let count = tokio::select! {
            biased;
            () = &mut leaving, if !is_leaving => {
                is_leaving = true;
                continue;
            }
            count = from.read(&mut buffer) => {
                count.inspect_err(|_| activity.ended(side, false))?
            }
        };
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            activity.ended(side, true);
            // It may have ended because it was told of the drain first.
            if drain.is_some_and(Drain::is_draining) && frames.is_between() {
                to.write_all(&going_away(side)).await?;
            }
            return to.shutdown().await;
        };
        activity.note();
        if side == Side::Client {
            activity.client_spoke.set(true);
        }
        if drain.is_some() {
            let messages = frames.feed(bytes);
            let metrics = &activity.counted.worker.gate.metrics;
            metrics.tunnel_messages(side.direction(), messages);
            if frames.said_goodbye {
                activity.counted.ended_by(side.closing());
                activity.said_goodbye.set(true);
            }
        }
        let passed_on = async {
            to.write_all(bytes).await?;
            to.flush().await
        };
        passed_on.await.inspect_err(|_: &io::Error| activity.ended(side.other(), false))?;
        activity.note();
    }
}

/// A Close frame with status 1001.
fn going_away(side: Side) -> Vec<u8> {
    const FIN_CLOSE: u8 = 0x88;
    const STATUS: [u8; 2] = 1001_u16.to_be_bytes();
    let [high, low] = STATUS;
    match side {
        Side::Server => vec![FIN_CLOSE, 2, high, low],
        Side::Client => {
            let [a, b, c, d, ..] = RandomState::new().hash_one(0).to_le_bytes();
            vec![FIN_CLOSE, 0x80 | 2, a, b, c, d, high ^ a, low ^ b]
        }
    }
}

/// Follows WebSocket frames just far enough to know where one ends (RFC 6455 §5.2), and what it is.
#[derive(Debug, Default)]
struct FrameTracker {
    head: [u8; 14],
    head_bytes: usize,
    payload_left: u64,
    /// Whether a Close frame has begun.
    said_goodbye: bool,
}

impl FrameTracker {
    fn is_between(&self) -> bool {
        self.head_bytes == 0 && self.payload_left == 0
    }

    /// Goes on by so much, and says how many messages had their last frame begun in it.
    fn feed(&mut self, mut bytes: &[u8]) -> u64 {
        let mut messages: u64 = 0;
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload_left > 0 {
                let skipped = usize::try_from(self.payload_left).unwrap_or(usize::MAX);
                let skipped = skipped.min(bytes.len());
                self.payload_left = self.payload_left.saturating_sub(skipped as u64);
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.head.get_mut(self.head_bytes) {
                *place = *first;
            }
            let is_close = self.head_bytes == 0 && *first & 0x0f == OPCODE_CLOSE;
            self.said_goodbye |= is_close;
            self.head_bytes = self.head_bytes.saturating_add(1);
            bytes = rest;
            if let Some(payload) = self.payload_length() {
                self.payload_left = payload;
                self.head_bytes = 0;
                let [kind, ..] = self.head;
                // Text, binary, or what goes on with one; with FIN, it is the last.
                let is_last = kind & FIN != 0 && kind & 0x0f <= OPCODE_BINARY;
                messages = messages.saturating_add(u64::from(is_last));
            }
        }
        messages
    }

    /// The payload's length, once the head is whole.
    fn payload_length(&self) -> Option<u64> {
        let [_, second, h2, h3, h4, h5, h6, h7, h8, h9, ..] = self.head;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (length, head) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes([h2, h3])), 4),
            127 => (u64::from_be_bytes([h2, h3, h4, h5, h6, h7, h8, h9]), 10),
            short => (u64::from(short), 2),
        };
        (self.head_bytes >= head + mask && self.head_bytes >= 2).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::timer::TICK;

    fn tracked(bytes: &[u8], chunk: usize) -> FrameTracker {
        let mut tracker = FrameTracker::default();
        for part in bytes.chunks(chunk) {
            tracker.feed(part);
        }
        tracker
    }

    /// By a clock that is set: a minute of silence, in which a word at 59 seconds counts.
    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "the time that is set, and not the real one")]
    async fn a_tunnel_is_idle_from_the_last_word_on() {
        const SECOND: Duration = Duration::from_secs(1);
        let (timers, began) = (Timers::new(), tokio::time::Instant::now());
        let last = Cell::new(timers.now());
        let clock = async {
            let mut ticks = tokio::time::interval(TICK);
            loop {
                ticks.tick().await;
                timers.advance(began.elapsed());
            }
        };
        let speaks = async {
            tokio::time::sleep(59 * SECOND).await;
            last.set(timers.now());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = silence(&timers, &last, 60 * SECOND) => {}
            () = clock => {}
            () = speaks => {}
        }
        let passed = began.elapsed();
        assert!(passed >= 119 * SECOND, "{passed:?}");
        assert!(passed <= 119 * SECOND + 4 * TICK, "{passed:?}");
        let never = silence(&timers, &last, Duration::ZERO);
        assert!(tokio::time::timeout(1000 * SECOND, never).await.is_err());
    }

    #[test]
    fn frames_are_followed_in_pieces_of_any_size() {
        let mut medium = vec![0x82, 126, 1, 0];
        medium.extend([7; 256]);
        let mut long = vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0];
        long.extend([7; 65536]);
        let whole: Vec<Vec<u8>> = vec![
            vec![0x81, 0],
            vec![0x81, 2, b'h', b'i'],
            vec![0x81, 0x82, 1, 2, 3, 4, 9, 9],
            medium,
            long,
        ];
        for chunk in [1, 2, 3, 5, 7, 64, 100_000] {
            for frame in &whole {
                assert!(tracked(frame, chunk).is_between());
                assert!(!tracked(&frame[..frame.len() - 1], chunk).is_between());
            }
            assert!(tracked(&whole.concat(), chunk).is_between());
        }
    }

    #[test]
    fn messages_are_counted_by_their_last_frame() {
        let frames: [&[u8]; 8] = [
            &[0x81, 1, b'a'],
            // A binary message in three frames, with a ping between them.
            &[0x02, 1, b'b'],
            &[0x00, 0],
            &[0x89, 0],
            &[0x80, 0x81, 1, 2, 3, 4, 9],
            &[0x8a, 0],
            &[0x82, 0],
            &[0x88, 2, 3, 0xe8],
        ];
        for chunk in [1, 2, 3, 100] {
            let mut tracker = FrameTracker::default();
            let messages: u64 = frames.concat().chunks(chunk).map(|it| tracker.feed(it)).sum();
            assert_eq!((messages, tracker.said_goodbye), (3, true), "in pieces of {chunk}");
        }
    }

    #[test]
    fn a_client_s_goodbye_unmasks_to_1001() {
        let frame = going_away(Side::Client);
        assert_eq!(u16::from_be_bytes([frame[6] ^ frame[2], frame[7] ^ frame[3]]), 1001);
        assert_eq!(going_away(Side::Server), [0x88, 2, 0x03, 0xe9]);
    }
}
