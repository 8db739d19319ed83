//! Tasks that are counted by what they are for, and whose polls another thread can see.
//!
//! A task that blocks its worker is seen by nothing that runs on that worker. So each poll leaves a
//! stamp in a place that the watchdog looks at: a number that is odd while a poll runs. No clock is
//! read for it; the watchdog, which sees the same odd number twice, knows how long it was the same.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::metrics::cells::LevelGuard;
use crate::metrics::labels::TaskType;
use crate::metrics::runtime::RuntimeCells;

thread_local! {
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
}

/// Which poll of one event loop runs.
#[derive(Debug, Default)]
// A cache line of its own: another thread reads it 50 times a second, and no more often.
#[repr(align(128))]
pub struct PollStamp(AtomicU64);

impl PollStamp {
    /// The number of the poll that runs; `None` between polls.
    pub fn running(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|number| number % 2 == 1)
    }

    /// A poll runs until the guard is dropped, a panic included. Within another poll nothing begins:
    /// what runs is the outer one.
    #[inline]
    pub fn begin(&self) -> Running<'_> {
        // A load and a store in place of an atomic addition, which locks the line: one thread writes.
        let number = self.0.load(Relaxed);
        if number % 2 == 1 {
            return Running { stamp: None, next: 0 };
        }
        self.0.store(number.wrapping_add(1), Relaxed);
        Running { stamp: Some(self), next: number.wrapping_add(2) }
    }
}

/// A poll that runs.
#[derive(Debug)]
#[must_use = "the poll runs as long as it lives"]
pub struct Running<'a> {
    stamp: Option<&'a PollStamp>,
    next: u64,
}

impl Drop for Running<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(stamp) = self.stamp {
            stamp.0.store(self.next, Relaxed);
        }
    }
}

/// Where the tasks of a thread leave their stamps and are counted.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Of the thread's event loop.
    pub stamp: Arc<PollStamp>,
    /// Of the process.
    pub cells: Arc<RuntimeCells>,
}

/// The calling thread's tasks belong there from now on.
pub fn sit(seat: Seat) {
    if cfg!(feature = "without-signals") {
        return;
    }
    SEAT.set(Some(seat));
}

/// The task of this future counts as one of this kind as long as it lives, and its polls are seen.
/// To be called on the thread that runs it; on one without a seat it changes nothing.
pub fn watched<F>(kind: TaskType, future: F) -> Watched<F> {
    SEAT.with_borrow(|seat| Watched {
        stamp: seat.as_ref().map(|seat| Arc::clone(&seat.stamp)),
        _counted: seat.as_ref().and_then(|seat| seat.cells.task(kind)),
        future,
    })
}

/// The same for what a runtime runs beside its tasks: not counted.
pub fn watched_root<F>(future: F) -> Watched<F> {
    SEAT.with_borrow(|seat| Watched {
        stamp: seat.as_ref().map(|seat| Arc::clone(&seat.stamp)),
        _counted: None,
        future,
    })
}

pin_project! {
    /// See [`watched`].
    #[derive(Debug)]
    pub struct Watched<F> {
        stamp: Option<Arc<PollStamp>>,
        _counted: Option<LevelGuard>,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _running = this.stamp.as_ref().map(|stamp| stamp.begin());
        this.future.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::task::Waker;

    use super::*;

    fn seat() -> Seat {
        let seat = Seat { stamp: Arc::default(), cells: Arc::new(RuntimeCells::new(1, 1)) };
        sit(seat.clone());
        seat
    }

    fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_poll_is_seen_while_it_runs_and_every_poll_is_another() {
        let Seat { stamp, .. } = seat();
        let of_task = Arc::clone(&stamp);
        let seen = poll_fn(move |_| {
            let inner = of_task.begin();
            let number = of_task.running();
            drop(inner);
            assert_eq!(of_task.running(), number, "a poll within a poll ends nothing");
            if number == Some(1) { Poll::Pending } else { Poll::Ready(number) }
        });
        let mut task = std::pin::pin!(watched(TaskType::Request, seen));
        assert_eq!(stamp.running(), None);
        assert!(poll_once(task.as_mut()).is_pending());
        assert_eq!(stamp.running(), None);
        assert_eq!(poll_once(task.as_mut()), Poll::Ready(Some(3)));
    }

    #[test]
    fn a_panic_ends_its_poll() {
        let Seat { stamp, .. } = seat();
        let mut task = Box::pin(watched(TaskType::Request, async { panic!("on purpose") }));
        let polled = catch_unwind(AssertUnwindSafe(|| poll_once(task.as_mut())));
        assert!(polled.is_err());
        assert_eq!(stamp.running(), None);
    }

    #[test]
    fn a_task_counts_from_its_making_to_its_end() {
        let Seat { cells, .. } = seat();
        let task = watched(TaskType::Websocket, async {});
        let root = watched_root(async {});
        assert_eq!((cells.tasks(TaskType::Websocket), cells.all_tasks()), (1, 1));
        drop((task, root));
        assert_eq!(cells.all_tasks(), 0);
    }

    #[test]
    fn a_thread_without_a_seat_counts_nothing() {
        let task = std::thread::spawn(|| {
            let mut task = std::pin::pin!(watched(TaskType::Request, async { 7 }));
            poll_once(task.as_mut())
        });
        assert_eq!(task.join().unwrap(), Poll::Ready(7));
    }
}
