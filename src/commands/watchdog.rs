//! The watchdog: a thread of the operating system that looks at the event loops from outside.
//!
//! It has to be one: what runs on a runtime stands still with it. It does nothing that can wait for
//! anybody, so its own lateness is the machine's.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::clock;
use crate::health::detector::Detector;
use crate::health::loops::{LOOK_INTERVAL, Loops};
use crate::health::pressure::OBSERVE_INTERVAL;

/// How often an event loop that has no timer of its own is asked how late it is.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// A running watchdog; dropped, it ends.
#[derive(Debug)]
pub struct Watchdog {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts to look.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(detector: Arc<Detector>) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let of_thread = Arc::clone(&is_over);
        let thread = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watch(&detector, &of_thread))?;
        Ok(Watchdog { is_over, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().ok();
        }
    }
}

fn watch(detector: &Detector, is_over: &AtomicBool) {
    let mut observed = clock::monotonic();
    while !is_over.load(Relaxed) {
        std::thread::park_timeout(LOOK_INTERVAL);
        let now = clock::monotonic();
        detector.loops().look(now);
        if now.saturating_duration_since(observed) >= OBSERVE_INTERVAL {
            observed = now;
            detector.observe(now);
        }
    }
}

/// Tells how late the event loop is that runs this, for ever.
pub async fn sample(loops: Arc<Loops>, index: usize) {
    let mut interval = interval(SAMPLE_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = interval.tick().await.into_std();
        loops.woke(index, due, clock::monotonic());
    }
}
