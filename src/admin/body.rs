//! The body of an answer: whole, or told bit by bit for as long as somebody listens.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{mpsc, watch};

/// What is sent in answer.
#[derive(Debug)]
pub enum AdminBody {
    /// All of it at once; `None` once it was handed over.
    Whole(Option<Bytes>),
    /// Whatever comes, until its sender is gone.
    Events(Events),
}

/// A body that goes on. While it lives, its connection has no end set.
#[derive(Debug)]
pub struct Events {
    parts: mpsc::Receiver<Bytes>,
    deadline: Option<Deadline>,
}

/// When a connection has to be over; it is moved while there is something to tell.
#[derive(Clone, Debug)]
pub struct Deadline(watch::Sender<Option<Instant>>);

impl Deadline {
    /// One at `at`.
    pub fn new(at: Instant) -> Self {
        Deadline(watch::Sender::new(Some(at)))
    }

    /// Moves it; `None`: there is none for now.
    pub fn set(&self, at: Option<Instant>) {
        self.0.send_replace(at);
    }

    /// Waits until it has passed.
    pub async fn passed(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let at = *changes.borrow_and_update();
            let over = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                // The sender is `self`'s own.
                _ = changes.changed() => {}
            }
        }
    }
}

impl Events {
    /// What the receiver is sent. The body ends when the sender is dropped; when the body is
    /// dropped, because nobody listens any more, the sender sees that it is closed.
    pub fn new(parts: mpsc::Receiver<Bytes>) -> Self {
        Events { parts, deadline: None }
    }

    /// The same, on a connection with this deadline: it is lifted until the last part has come.
    pub fn lifting(mut self, deadline: Deadline) -> Self {
        deadline.set(None);
        self.deadline = Some(deadline);
        self
    }
}

impl Body for AdminBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            AdminBody::Whole(bytes) => Poll::Ready(bytes.take().map(|it| Ok(Frame::data(it)))),
            AdminBody::Events(events) => {
                let part = std::task::ready!(events.parts.poll_recv(cx));
                if part.is_none()
                    && let Some(deadline) = events.deadline.take()
                {
                    // What is left to send is little, and whoever does not take it is cut off.
                    deadline.set(Some(crate::clock::monotonic() + super::server::LAST_PART_MAX));
                }
                Poll::Ready(part.map(|it| Ok(Frame::data(it))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, AdminBody::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AdminBody::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |it| it.len() as u64))
            }
            AdminBody::Events(_) => SizeHint::default(),
        }
    }
}
