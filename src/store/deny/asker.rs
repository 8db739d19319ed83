//! One request asks Redis for all that are the same, once a denial of them is over.
//!
//! When a denial ends, all requests that are on their way would ask at once, and all but one or two
//! would be denied again. Here the first asks, and the others wait for what it hears. A denial is one
//! for all of them; after an admission the next of them asks. As tokens may have come back for many,
//! each further admission in a row lets two go on, and after `TURNS_MAX` all do.
//!
//! Who waits does so in the order of coming, for as long as it likes, and is told at once when there
//! is nothing more to wait for. Whoever asks and is dropped passes its turn on.
//!
//! Reads no clock: the time is an argument.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::limiter::decision::Decision;

/// Rounds that there can be at a time; requests that find their place taken ask beside each other.
const PLACES: usize = 1_024;
/// Requests that wait in one round, those that have given up included.
const WAITERS_MAX: usize = 4_096;
/// Requests that wait in all of them; more ask for themselves. About 100 bytes for each.
const WAITERS_MAX_TOTAL: usize = 16_384;
/// Turns in a row that have brought no denial.
const TURNS_MAX: u32 = 8;
/// How long after the last turn the next request takes one, too, in microseconds: a denial that is
/// over before it is told of is remembered nowhere else.
const OPEN: u64 = 1_000_000;

/// Who asks for what.
#[derive(Debug)]
pub struct Askers {
    places: Box<[Mutex<Option<Round>>]>,
    rounds: AtomicU64,
    waiting: AtomicUsize,
    /// Requests that were denied by what another has heard.
    told: AtomicU64,
}

/// Turns at one kind of request.
#[derive(Debug)]
struct Round {
    key: u64,
    /// Claims of an earlier round have no part in this one.
    id: u64,
    /// From then on whoever asks is lost, and all of it is void.
    until: u64,
    asking: u32,
    /// Those that have ended, since the last denial.
    turns: u32,
    queue: VecDeque<oneshot::Sender<Said>>,
}

/// What a waiting request is told; nothing is said where the sender is dropped.
#[derive(Debug)]
enum Said {
    Denied(Arc<Denial>),
    YourTurn,
}

/// What Redis has said, and to what.
#[derive(Debug)]
pub struct Denial {
    /// As it was made.
    pub decision: Decision,
    /// When it was asked for.
    pub sent: u64,
    /// What was void then.
    pub stamp: u32,
}

/// Whose turn it is.
#[derive(Debug)]
pub enum Turn<'a> {
    /// This request's, and others wait for what it hears.
    Own(Claim<'a>),
    /// Another's.
    Other(Waiter<'a>),
    /// Everybody's.
    Free,
}

/// The right to ask for others. Dropped, the next of them has it.
#[derive(Debug)]
pub struct Claim<'a> {
    askers: &'a Askers,
    key: u64,
    id: u64,
    patience: u64,
    is_over: bool,
}

/// A place in the queue.
#[derive(Debug)]
pub struct Waiter<'a> {
    askers: &'a Askers,
    key: u64,
    id: u64,
    patience: u64,
    said: oneshot::Receiver<Said>,
}

/// What came of waiting.
#[derive(Debug)]
pub enum Heard<'a> {
    /// Another was denied.
    Denied(Arc<Denial>),
    /// It has become this request's turn.
    Own(Claim<'a>),
    /// There is nothing to wait for any more, or no time.
    Nothing,
}

impl Default for Askers {
    /// Nobody asks yet.
    fn default() -> Self {
        Askers {
            places: (0..PLACES).map(|_| Mutex::default()).collect(),
            rounds: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            told: AtomicU64::new(0),
        }
    }
}

impl Askers {
    /// Whose turn it is to ask at `at`, for `patience` at most, both in microseconds. Only where it
    /// `was_denied` a round begins.
    pub fn turn(&self, key: u64, at: u64, patience: u64, was_denied: bool) -> Turn<'_> {
        let Some(place) = self.place(key) else { return Turn::Free };
        let mut place = place.lock();
        let until = at.saturating_add(patience);
        match &mut *place {
            Some(round) if round.key == key && at < round.until && round.asking > 0 => {
                return self.join(round, patience);
            }
            Some(round) if round.key == key && at < round.until => {
                round.until = until;
                round.asking = 1;
                return Turn::Own(Claim::new(self, round, patience));
            }
            Some(round) if at < round.until && round.asking > 0 => return Turn::Free,
            _ if !was_denied => return Turn::Free,
            _ => {}
        }
        let id = self.next_id();
        let queue = VecDeque::new();
        let round = place.insert(Round { key, id, until, asking: 1, turns: 0, queue });
        Turn::Own(Claim::new(self, round, patience))
    }

    /// Requests that were denied without a call.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// One more of them.
    pub fn count_told(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    fn join<'a>(&'a self, round: &mut Round, patience: u64) -> Turn<'a> {
        if round.queue.len() >= WAITERS_MAX {
            return Turn::Free;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITERS_MAX_TOTAL {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Turn::Free;
        }
        let (sender, said) = oneshot::channel();
        round.queue.push_back(sender);
        Turn::Other(Waiter { askers: self, key: round.key, id: round.id, patience, said })
    }

    /// One turn has ended without a denial, and `admits` tells what came of it. Time is known to who
    /// has heard something.
    fn pass_on(&self, key: u64, id: u64, admits: bool, until: Option<u64>) {
        let Some(place) = self.place(key) else { return };
        let mut place = place.lock();
        let Some(round) = place.as_mut().filter(|round| round.id == id) else { return };
        round.asking = round.asking.saturating_sub(1);
        round.turns = round.turns.saturating_add(1);
        if round.turns >= TURNS_MAX {
            let over = place.take();
            drop(place);
            // Outside of the lock: it wakes all of them.
            drop(over);
            return;
        }
        round.until = round.until.max(until.unwrap_or(0));
        let mut others = if admits && round.turns > 1 { 2 } else { 1 };
        while others > 0 {
            let Some(next) = round.queue.pop_front() else { break };
            // Those that have gone are passed over.
            if next.send(Said::YourTurn).is_ok() {
                round.asking = round.asking.saturating_add(1);
                others -= 1;
            }
        }
    }

    fn next_id(&self) -> u64 {
        self.rounds.fetch_add(1, Ordering::Relaxed)
    }

    fn place(&self, key: u64) -> Option<&Mutex<Option<Round>>> {
        // Other bits than those that find its denial.
        self.places.get((key >> 32) as usize % PLACES)
    }
}

impl<'a> Claim<'a> {
    fn new(askers: &'a Askers, round: &Round, patience: u64) -> Self {
        Claim { askers, key: round.key, id: round.id, patience, is_over: false }
    }

    /// It was let pass, as is known at `at`.
    pub fn admitted(mut self, at: u64) {
        self.is_over = true;
        let until = at.saturating_add(self.patience.max(OPEN));
        self.askers.pass_on(self.key, self.id, true, Some(until));
    }

    /// It was denied, as is known at `at`, and so are all who wait. `denial` is made if there are any.
    pub fn denied(mut self, at: u64, denial: impl FnOnce() -> Denial) {
        self.is_over = true;
        let Some(place) = self.askers.place(self.key) else { return };
        let queue = {
            let mut place = place.lock();
            let Some(round) = place.as_mut().filter(|round| round.id == self.id) else { return };
            // Who else asks in this round has nobody to tell of it any more.
            round.id = self.askers.next_id();
            round.until = at.saturating_add(OPEN);
            (round.asking, round.turns) = (0, 0);
            std::mem::take(&mut round.queue)
        };
        if queue.is_empty() {
            return;
        }
        let denial = Arc::new(denial());
        for waiter in queue {
            // Who has gone needs no answer.
            let _ = waiter.send(Said::Denied(Arc::clone(&denial)));
        }
    }

    /// What it heard, if anything, is of no use to others: they ask for themselves.
    pub fn is_for_nothing(mut self) {
        self.is_over = true;
        let Some(place) = self.askers.place(self.key) else { return };
        let mut place = place.lock();
        if place.as_ref().is_some_and(|round| round.id == self.id) {
            let over = place.take();
            drop(place);
            drop(over);
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.askers.pass_on(self.key, self.id, false, None);
        }
    }
}

impl<'a> Waiter<'a> {
    /// Waits to be told, so long at most.
    pub async fn wait(mut self, at_most: Duration) -> Heard<'a> {
        match timeout(at_most, &mut self.said).await {
            Ok(Ok(Said::Denied(denial))) => Heard::Denied(denial),
            Ok(Ok(Said::YourTurn)) => Heard::Own(Claim {
                askers: self.askers,
                key: self.key,
                id: self.id,
                patience: self.patience,
                is_over: false,
            }),
            Ok(Err(_)) | Err(_) => Heard::Nothing,
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.askers.waiting.fetch_sub(1, Ordering::Relaxed);
        self.said.close();
        // It was told a moment ago, and has gone without hearing it.
        if let Ok(Said::YourTurn) = self.said.try_recv() {
            self.askers.pass_on(self.key, self.id, false, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use crate::limiter::decision::Verdict;
    use crate::limiter::time::Timestamp;

    const KEY: u64 = 7;
    const PATIENCE: u64 = 20_000;
    const LONG: Duration = Duration::from_secs(60);

    type Waiting<'a> = Pin<Box<dyn Future<Output = Heard<'a>> + 'a>>;

    fn own(askers: &Askers, at: u64) -> Claim<'_> {
        match askers.turn(KEY, at, PATIENCE, true) {
            Turn::Own(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    fn waiter(askers: &Askers, at: u64) -> Waiter<'_> {
        match askers.turn(KEY, at, PATIENCE, false) {
            Turn::Other(waiter) => waiter,
            other => panic!("{other:?}"),
        }
    }

    fn waiting(askers: &Askers, at: u64) -> Waiting<'_> {
        Box::pin(waiter(askers, at).wait(LONG))
    }

    /// What it has heard by now.
    fn now<'a>(waiting: &mut Waiting<'a>) -> Option<Heard<'a>> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(heard) => Some(heard),
            Poll::Pending => None,
        }
    }

    fn claim(heard: Option<Heard<'_>>) -> Claim<'_> {
        match heard {
            Some(Heard::Own(claim)) => claim,
            other => panic!("{other:?}"),
        }
    }

    fn denial() -> Denial {
        let decision = Decision::new(Verdict::Deny, Timestamp::from_micros(1));
        Denial { decision, sent: 3, stamp: 4 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_denial_is_told_to_all_who_wait() {
        let askers = Askers::default();
        let first = own(&askers, 0);
        let mut others: Vec<_> = (1..5).map(|at| waiting(&askers, at)).collect();
        assert!(others.iter_mut().all(|it| now(it).is_none()));
        first.denied(9, denial);
        for other in &mut others {
            assert!(matches!(now(other), Some(Heard::Denied(it)) if it.sent == 3));
        }
        drop(others);
        assert_eq!(askers.waiting.load(Ordering::Relaxed), 0);
        // Nothing may be remembered of it, and yet the next one asks alone.
        assert!(matches!(askers.turn(KEY, 10, PATIENCE, false), Turn::Own(_)));
        let later = 10 + PATIENCE + OPEN;
        assert!(matches!(askers.turn(KEY, later, PATIENCE, false), Turn::Free), "over");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_was_denied_before_waits_for_each_other() {
        let askers = Askers::default();
        assert!(matches!(askers.turn(KEY, 0, PATIENCE, false), Turn::Free));
        let _first = own(&askers, 0);
        let neighbour = KEY ^ 1;
        assert!(
            matches!(askers.turn(neighbour, 0, PATIENCE, true), Turn::Free),
            "its place is taken"
        );
        let elsewhere = KEY + (1 << 32);
        assert!(matches!(askers.turn(elsewhere, 0, PATIENCE, true), Turn::Own(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_admission_the_next_asks_and_after_more_of_them_more() {
        let askers = Askers::default();
        let first = own(&askers, 0);
        let mut others: Vec<_> = (0..8).map(|at| waiting(&askers, at)).collect();
        first.admitted(10);
        let second = claim(now(&mut others[0]));
        assert!(others[1..].iter_mut().all(|it| now(it).is_none()));
        second.admitted(20);
        let [third, fourth] = [1, 2].map(|index| claim(now(&mut others[index])));
        assert!(others[3..].iter_mut().all(|it| now(it).is_none()));
        third.denied(30, denial);
        assert!(others[3..].iter_mut().all(|it| matches!(now(it), Some(Heard::Denied(_)))));
        // Its round is over, and it takes nothing from the next one.
        let fifth = own(&askers, 31);
        let mut sixth = waiting(&askers, 32);
        fourth.denied(33, denial);
        assert!(now(&mut sixth).is_none());
        fifth.denied(34, denial);
        assert!(matches!(now(&mut sixth), Some(Heard::Denied(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn turns_in_a_row_come_to_an_end() {
        let askers = Askers::default();
        let mut claims = VecDeque::from([own(&askers, 0)]);
        let mut others: Vec<_> = (0..64).map(|at| waiting(&askers, at)).collect();
        for turn in 1..=TURNS_MAX {
            claims.pop_front().unwrap().admitted(10 + u64::from(turn));
            if turn < TURNS_MAX {
                others.retain_mut(|it| match now(it) {
                    Some(heard) => {
                        claims.push_back(claim(Some(heard)));
                        false
                    }
                    None => true,
                });
            }
        }
        assert!(others.len() > 40, "{}", others.len());
        assert!(others.iter_mut().all(|it| matches!(now(it), Some(Heard::Nothing))));
        assert!(matches!(askers.turn(KEY, 30, PATIENCE, false), Turn::Free), "nobody waits");
        drop(claims);
        assert!(matches!(askers.turn(KEY, 30, PATIENCE, false), Turn::Free));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_and_leaves_passes_its_turn_on() {
        let askers = Askers::default();
        let first = own(&askers, 0);
        let [mut a, mut b, mut c] = [1, 2, 3].map(|at| waiting(&askers, at));
        drop(first);
        // Told, and gone before it has heard it.
        assert!(now(&mut b).is_none());
        drop(a);
        let second = claim(now(&mut b));
        assert!(now(&mut c).is_none());
        second.denied(9, denial);
        assert!(matches!(now(&mut c), Some(Heard::Denied(_))));

        // Who has left the queue is passed over.
        let first = own(&askers, 10);
        [a, b] = [11, 12].map(|at| waiting(&askers, at));
        drop(a);
        first.admitted(13);
        drop(claim(now(&mut b)));
        assert_eq!(askers.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_longer_than_it_likes() {
        let askers = Askers::default();
        let first = own(&askers, 0);
        let impatient = waiter(&askers, 1);
        let patient = pin!(waiter(&askers, 2).wait(LONG));
        let likes = Duration::from_millis(5);
        let mut just_less = pin!(tokio::time::sleep(likes - Duration::from_millis(1)));
        let mut impatient = pin!(impatient.wait(likes));
        tokio::select! {
            biased;
            heard = &mut impatient => panic!("{heard:?}"),
            () = &mut just_less => {}
        }
        assert!(matches!(impatient.await, Heard::Nothing));
        let at_once = Duration::from_millis(1);
        first.is_for_nothing();
        assert!(matches!(timeout(at_once, patient).await, Ok(Heard::Nothing)));
        assert_eq!(askers.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_too_long_is_lost() {
        let askers = Askers::default();
        let lost = own(&askers, 0);
        let mut waits = waiting(&askers, PATIENCE - 1);
        assert!(matches!(askers.turn(KEY, PATIENCE, PATIENCE, false), Turn::Free));
        let next = own(&askers, PATIENCE);
        assert!(matches!(now(&mut waits), Some(Heard::Nothing)), "it waits for nobody");
        let mut other = waiting(&askers, PATIENCE);
        drop(lost);
        assert!(now(&mut other).is_none(), "it has no part in this round");
        next.denied(PATIENCE + 1, denial);
        assert!(matches!(now(&mut other), Some(Heard::Denied(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_bounded_in_a_round_and_in_all() {
        let askers = Askers::default();
        let mut kept = Vec::new();
        let mut claims = Vec::new();
        let mut alone = 0;
        for round in 0..5_u64 {
            let key = round << 32;
            let Turn::Own(claim) = askers.turn(key, 0, PATIENCE, true) else { panic!("{round}") };
            claims.push(claim);
            for _ in 0..=WAITERS_MAX {
                match askers.turn(key, 1, PATIENCE, false) {
                    Turn::Other(waiter) => kept.push(waiter),
                    Turn::Free => alone += 1,
                    Turn::Own(_) => panic!("two of them"),
                }
            }
        }
        assert_eq!(kept.len(), WAITERS_MAX_TOTAL);
        assert_eq!(alone, 4 + WAITERS_MAX + 1);
        drop(kept);
        assert_eq!(askers.waiting.load(Ordering::Relaxed), 0);
    }
}
