//! A request as it is replayed: small, so that many can be put in order; and what puts them in order.

use crate::limiter::time::{Micros, Timestamp};
use crate::log::access::Decided;

use super::line::Line;

/// Requests that are held to be put in order. A line may stand half as many places from where it
/// belongs.
pub const HELD_MAX: usize = 1 << 21;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it came.
    pub at: Timestamp,
    /// How long it lasted, where that is known.
    pub lasts: Option<Micros>,
    /// Who sent it, by [`super::callers::Callers`].
    pub caller: u32,
    /// Which rules it meets, by [`super::routes::Routes`].
    pub route: u32,
    /// Its path's template, by [`super::templates::Templates`]; 0 where nobody asks for it.
    pub template: u32,
    /// What became of it, by the log.
    pub was: Was,
}

/// What became of a request, by the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Was {
    /// It was let through, or that cannot be told.
    Passed,
    /// It was refused for its limits: status 429, or tollgate says so.
    Blocked,
    /// tollgate says that a limit in shadow would have refused it.
    Shadow,
}

impl Was {
    /// Of a line.
    pub fn of(line: &Line<'_>) -> Self {
        match (line.decided, line.status) {
            (Some(Decided::Deny), _) => Was::Blocked,
            (Some(Decided::ShadowDeny), _) => Was::Shadow,
            (Some(_), _) => Was::Passed,
            (None, Some(429)) => Was::Blocked,
            (None, _) => Was::Passed,
        }
    }
}

/// Puts requests in the order in which they came. Logs are written when answers end, by several
/// workers at a time, and so are nearly in order at best.
#[derive(Debug)]
pub struct Order {
    held: Vec<Record>,
    held_max: usize,
    last: Timestamp,
    late: u64,
}

impl Default for Order {
    fn default() -> Self {
        Order::holding(HELD_MAX)
    }
}

impl Order {
    /// With room for so many.
    pub fn holding(held_max: usize) -> Self {
        Order { held: Vec::new(), held_max, last: Timestamp::EPOCH, late: 0 }
    }

    /// Adds one. Whether [`Order::take`] is to be called now.
    pub fn push(&mut self, record: Record) -> bool {
        self.held.push(record);
        self.held.len() >= self.held_max
    }

    /// Gives out what is held in order: the earlier half, or all of it behind the last line. One that
    /// came before what is given out already comes with the next ones, at their time.
    pub fn take(&mut self, is_last: bool, mut give: impl FnMut(Record)) {
        // Stable: of those at one moment, the first line goes first.
        self.held.sort_by_key(|record| record.at);
        let given = if is_last { self.held.len() } else { self.held.len() / 2 };
        for mut record in self.held.drain(..given) {
            if record.at < self.last {
                self.late += 1;
                record.at = self.last;
            }
            self.last = record.at;
            give(record);
        }
    }

    /// Those that came too late for their place.
    pub fn late(&self) -> u64 {
        self.late
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(at: u64, caller: u32) -> Record {
        let at = Timestamp::from_micros(at);
        Record { at, lasts: None, caller, route: 0, template: 0, was: Was::Passed }
    }

    fn ordered(moments: &[u64], held_max: usize) -> (Vec<Record>, u64) {
        let (mut order, mut given) = (Order::holding(held_max), Vec::new());
        for (at, caller) in moments.iter().zip(0..) {
            if order.push(record(*at, caller)) {
                order.take(false, |record| given.push(record));
            }
        }
        order.take(true, |record| given.push(record));
        (given, order.late())
    }

    proptest! {
        #[test]
        fn what_is_near_its_place_is_put_there(
            steps in prop::collection::vec((0..50_u64, 0..400_u64), 1..200), held_max in 16..64_usize,
        ) {
            // Each stands at most eight places from where it belongs.
            let mut at = 0;
            let moments: Vec<u64> = steps.iter().map(|(step, back)| {
                at += 50 + step;
                at.saturating_sub(*back)
            }).collect();
            let (given, late) = ordered(&moments, held_max * 2);
            let mut expected: Vec<Record> =
                moments.iter().zip(0..).map(|(at, caller)| record(*at, caller)).collect();
            expected.sort_by_key(|record| record.at);
            prop_assert_eq!(given, expected);
            prop_assert_eq!(late, 0);
        }
    }

    #[test]
    fn what_is_far_from_its_place_is_counted() {
        let (given, late) = ordered(&[10, 20, 30, 40, 5, 50], 4);
        let moments: Vec<u64> = given.iter().map(|it| it.at.as_micros()).collect();
        assert_eq!((moments, late), (vec![10, 20, 20, 30, 40, 50], 1));
    }
}
