//! What it costs that polls are seen from outside, and what the watchdog itself takes.
//!
//! `cargo bench --bench polls`

use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::monotonic;
use tollgate::commands::watchdog::Watchdog;
use tollgate::health::detector::{Detector, Queues};
use tollgate::health::heartbeat::Heartbeats;
use tollgate::health::loops::Loops;
use tollgate::health::tasks::watched;
use tollgate::metrics::labels::TaskType;
use tollgate::metrics::registry::{Build, Metrics};

const POLLS: u32 = 2_000_000;
const TASKS: u32 = 200_000;
const ROUNDS: usize = 7;
/// How long the watchdog is left alone.
const IDLE: Duration = Duration::from_secs(5);

/// A task that does nothing but be polled so often: as bare as a poll gets.
async fn yields(times: u32) {
    for _ in 0..times {
        let mut has_yielded = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut has_yielded, true) {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
    }
}

fn runtime() -> std::io::Result<tokio::runtime::LocalRuntime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())
}

/// Nanoseconds for each of `times`, at best.
fn best(times: u32, mut round: impl FnMut()) -> f64 {
    let one = |_| {
        let start = monotonic();
        round();
        monotonic().saturating_duration_since(start).as_nanos() as f64 / f64::from(times)
    };
    (0..ROUNDS).map(one).fold(f64::INFINITY, f64::min)
}

/// CPU time of this process so far, in seconds.
fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

fn main() -> Result<(), std::io::Error> {
    let build = Build { version: "", commit: "", rustc: "" };
    let metrics = Metrics::new(2, build, Duration::from_millis(10));
    let loops = Loops::new(metrics.runtime(), 2, monotonic());
    let runtime = runtime()?;
    loops.sit(0, runtime.metrics());

    let spawned = |is_watched: bool, tasks: u32, polls: u32| {
        runtime.block_on(async {
            for _ in 0..tasks {
                let task = yields(polls);
                let task = if is_watched {
                    tokio::task::spawn_local(watched(TaskType::Request, task))
                } else {
                    tokio::task::spawn_local(task)
                };
                let _ = task.await;
            }
        });
    };
    let bare = best(POLLS, || spawned(false, 1, POLLS));
    let seen = best(POLLS, || spawned(true, 1, POLLS));
    println!("a poll: {bare:.1} ns bare, {seen:.1} ns seen");
    let bare = best(TASKS, || spawned(false, TASKS, 1));
    let seen = best(TASKS, || spawned(true, TASKS, 1));
    println!("a task of two polls, spawned and awaited: {bare:.1} ns bare, {seen:.1} ns seen");

    let hearts = Arc::new(Heartbeats::new(2, monotonic()));
    let detector = Detector::new(loops, hearts, metrics.pool("upstream"), Queues::default);
    let watchdog = Watchdog::start(detector)?;
    let (from, start) = (cpu_seconds(), monotonic());
    std::thread::sleep(IDLE);
    let spent = cpu_seconds() - from;
    let span = monotonic().saturating_duration_since(start).as_secs_f64();
    drop(watchdog);
    println!("the watchdog of 2 workers, nothing to do: {:.3} % of a core", spent * 100.0 / span);
    Ok(())
}
