//! `GET /api/v1/stream`: how it goes, once a second, as server-sent events.
//!
//! One task makes one frame for all who listen. It is there from the first of them to the last: while
//! nobody looks there is no task, no timer and nothing kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderValue, RETRY_AFTER};
use parking_lot::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::MissedTickBehavior;

use crate::health::tasks::watched;
use crate::metrics::labels::TaskType;

use super::answers::error_response;
use super::api::{Answered, Reply};
use super::body::Events;
use super::snapshot::{Before, frame};
use super::state::AdminState;

/// Streams at a time: the admin port has 64 connections, which others need, too.
pub const STREAMS_MAX: usize = 16;
/// Frames that wait for one listener; whoever is further behind is dropped, and may come again.
const BEHIND_MAX: usize = 4;
const INTERVAL: Duration = Duration::from_secs(1);
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// Who listens.
#[derive(Debug, Default)]
pub struct Streams(Mutex<Listeners>);

#[derive(Debug, Default)]
struct Listeners {
    senders: Vec<Sender<Bytes>>,
    /// Whether there is a task.
    is_told: bool,
}

/// A stream; the first one brings the task with it.
///
/// # Errors
/// 503: there are [`STREAMS_MAX`] already.
pub fn listen(state: &Arc<AdminState>) -> Answered {
    let Some((events, is_first)) = state.streams.join() else {
        let error = "as many streams as there may be are open; close a status page elsewhere";
        let answer = error_response(StatusCode::SERVICE_UNAVAILABLE, error);
        return Err(answer.with_field(RETRY_AFTER, RETRY_SECONDS));
    };
    if is_first {
        tokio::spawn(watched(TaskType::StatusPage, tell(Arc::clone(state))));
    }
    Ok(Reply::Events(Events::new(events)))
}

impl Streams {
    /// One more, and whether somebody has to begin to tell it; `None`: there are too many.
    fn join(&self) -> Option<(Receiver<Bytes>, bool)> {
        let mut listeners = self.0.lock();
        listeners.senders.retain(|sender| !sender.is_closed());
        if listeners.senders.len() >= STREAMS_MAX {
            return None;
        }
        let (sender, receiver) = channel(BEHIND_MAX);
        listeners.senders.push(sender);
        Some((receiver, !std::mem::replace(&mut listeners.is_told, true)))
    }

    /// Whether anybody is left. If not, the next one has to begin anew, and nothing is kept.
    fn has_any(&self) -> bool {
        let mut listeners = self.0.lock();
        listeners.senders.retain(|sender| !sender.is_closed());
        if listeners.senders.is_empty() {
            *listeners = Listeners::default();
        }
        listeners.is_told
    }

    /// Hands an event to everybody; who has not taken the last ones is not kept.
    fn send(&self, event: &Bytes) {
        self.0.lock().senders.retain(|sender| sender.try_send(event.clone()).is_ok());
    }
}

/// Tells, for as long as there is anybody to tell.
async fn tell(state: Arc<AdminState>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<Before> = None;
    loop {
        interval.tick().await;
        if !state.streams.has_any() {
            return;
        }
        let (json, totals) = frame(&state, before.as_ref());
        before = Some(totals);
        state.streams.send(&event(&json));
    }
}

/// JSON has no line breaks of its own, so that one line of data holds it.
fn event(json: &[u8]) -> Bytes {
    [b"data: ", json, b"\n\n"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_begins_and_the_last_leaves_nothing() {
        let streams = Streams::default();
        assert!(!streams.has_any());
        let (one, is_first) = streams.join().unwrap();
        assert!(is_first);
        let (other, is_first) = streams.join().unwrap();
        assert!(!is_first);
        drop(one);
        assert!(streams.has_any());
        drop(other);
        assert!(!streams.has_any());
        assert_eq!(streams.0.lock().senders.capacity(), 0, "nothing is kept");
        assert!(streams.join().unwrap().1, "and the next one begins anew");
    }

    #[test]
    fn there_are_sixteen_at_most() {
        let streams = Streams::default();
        let mut all: Vec<_> = (0..STREAMS_MAX).map(|_| streams.join().unwrap()).collect();
        assert!(streams.join().is_none());
        all.pop();
        assert!(streams.join().is_some(), "one has left");
    }

    #[test]
    fn who_does_not_read_is_dropped_and_the_others_are_not() {
        let streams = Streams::default();
        let (mut reads, _) = streams.join().unwrap();
        let (mut sleeps, _) = streams.join().unwrap();
        let event = event(b"{}");
        for _ in 0..BEHIND_MAX * 3 {
            streams.send(&event);
            assert_eq!(reads.try_recv().unwrap(), "data: {}\n\n");
        }
        assert_eq!(streams.0.lock().senders.len(), 1);
        let mut left = 0;
        while sleeps.try_recv().is_ok() {
            left += 1;
        }
        assert_eq!(left, BEHIND_MAX);
        assert!(sleeps.is_closed());
    }
}
