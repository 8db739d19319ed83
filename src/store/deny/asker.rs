//! One request asks for all that are the same, where a denial has ended by time.

use tokio::sync::watch;

use parking_lot::Mutex;

/// Claims that there can be at a time; two requests of one place ask beside each other.
const PLACES: usize = 1_024;

/// Who asks for what.
#[derive(Debug)]
pub struct Askers(Box<[Mutex<Option<Claimed>>]>);

#[derive(Debug)]
struct Claimed {
    key: u64,
    /// From then on it is void: who asks is lost.
    until: u64,
    told: watch::Sender<()>,
}

/// Whose turn it is.
#[derive(Debug)]
pub enum Turn<'a> {
    /// This request's, and others wait for what is said of it.
    Own(Claim<'a>),
    /// Another's: over when this changes, or its sender is gone.
    Other(watch::Receiver<()>),
    /// Everybody's.
    Free,
}

/// The right to ask for others, who look again when it is dropped.
#[derive(Debug)]
pub struct Claim<'a> {
    askers: &'a Askers,
    key: u64,
    until: u64,
}

impl Askers {
    pub fn new() -> Self {
        Askers((0..PLACES).map(|_| Mutex::default()).collect())
    }

    /// Whose turn it is to ask at `at`; with `claims` it may be this request's until `until`.
    pub fn turn(&self, key: u64, at: u64, until: u64, claims: bool) -> Turn<'_> {
        let Some(place) = self.0.get(key as usize % PLACES) else { return Turn::Free };
        let mut claimed = place.lock();
        match &*claimed {
            Some(other) if at < other.until && other.key == key => {
                Turn::Other(other.told.subscribe())
            }
            Some(other) if at < other.until => Turn::Free,
            _ if !claims => Turn::Free,
            _ => {
                *claimed = Some(Claimed { key, until, told: watch::Sender::new(()) });
                Turn::Own(Claim { askers: self, key, until })
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let Some(place) = self.askers.0.get(self.key as usize % PLACES) else { return };
        let mut claimed = place.lock();
        if claimed.as_ref().is_some_and(|it| (it.key, it.until) == (self.key, self.until)) {
            *claimed = None;
        }
    }
}
