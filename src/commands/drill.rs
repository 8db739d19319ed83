//! The leak drill: a build that leaks on purpose, to see that the detector finds it in a process
//! that really runs. Only with the feature `leak-drill`, which no release has.

use std::time::Duration;

use crate::clock;
use crate::health::memory::Schedule;

/// `leak BYTES`, a second; or `warm-up BYTES`, in all, with a time constant of a third of the
/// window.
const WHAT: &str = "TOLLGATE_LEAK_DRILL";
/// The detector's window in place of an hour; everything else in proportion.
const WINDOW: &str = "TOLLGATE_LEAK_DRILL_WINDOW";
/// How often something is allocated, and in blocks of what size, as requests might.
const TICK: Duration = Duration::from_millis(100);
const BLOCK: u64 = 1024;

/// The detector's times: as the environment says, or the usual ones.
pub fn schedule() -> Schedule {
    let window = std::env::var(WINDOW).ok().and_then(|it| humantime::parse_duration(&it).ok());
    window.filter(|it| !it.is_zero()).map_or_else(Schedule::default, Schedule::with_window)
}

/// Allocates what the environment says, and gives nothing back.
pub async fn run() {
    let what = std::env::var(WHAT).unwrap_or_default();
    let amount = |name| what.strip_prefix(name).and_then(|it| it.trim().parse::<f64>().ok());
    let (leak, warm_up) = (amount("leak ").unwrap_or(0.0), amount("warm-up ").unwrap_or(0.0));
    let window = schedule().window;
    tracing::warn!(what, ?window, "this build leaks memory on purpose");
    let started = clock::monotonic();
    let tau = window.as_secs_f64() / 3.0;
    let mut interval = tokio::time::interval(TICK);
    let mut allocated = 0;
    loop {
        interval.tick().await;
        let seconds = clock::monotonic().saturating_duration_since(started).as_secs_f64();
        let due = leak * seconds + warm_up * (1.0 - (-seconds / tau).exp());
        while allocated + BLOCK <= due as u64 {
            // Written to, or it would be address space and no memory.
            Box::leak(Box::new([1_u8; BLOCK as usize]));
            allocated += BLOCK;
        }
    }
}
