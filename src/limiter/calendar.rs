//! Quotas by the calendar: how much was spent in a day and in a month of UTC.
//!
//! Counted by the number of the day or month that the clock names, the present one and the one
//! before or behind it: a clock that is set back over midnight, and comes again, finds what it has
//! left. Nobody is locked out by one that was years ahead.

use super::quota::Period;
use super::time::{Micros, Timestamp};

/// One day.
pub const DAY: Micros = Micros::from_micros(86_400_000_000);
/// How many in a row, the present one first, may have no room. Two are counted, and each counts in
/// the one before it as well.
pub const AHEAD_MAX: u8 = 4;
/// Days of 400 years, after which the calendar repeats.
const DAYS_OF_ERA: u64 = 146_097;
/// From 1 March of the year 0 to 1 January 1970, in days.
const DAYS_TO_EPOCH: u64 = 719_468;
/// From the year 0 to 1970, in years.
const YEARS_TO_EPOCH: u64 = 1_970;

/// What was spent by day and by month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calendar {
    days: Pair,
    months: Pair,
}

/// The two of a kind that were counted last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pair([Count; 2]);

/// What was spent in the day or month of this number since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    number: u32,
    spent: u32,
}

impl Calendar {
    /// What was spent in the day or month that `now` lies in, or in the next one, whichever is
    /// more: a clock that was set back comes there again, and waiting must never make it worse.
    /// `period` is one of the two.
    pub fn spent(&self, period: Period, now: Timestamp) -> u32 {
        let (pair, number) = (self.pair(period), number(period, now));
        pair.spent(number).max(pair.spent(number.saturating_add(1)))
    }

    /// When all of it is unspent again if nothing more comes; `now` where it is. A clock that was
    /// ahead may have spent of those after the present one, so that it is never before a wait ends.
    pub fn whole_at(&self, period: Period, now: Timestamp) -> Timestamp {
        let (pair, number) = (self.pair(period), number(period, now));
        let (mut at, mut whole_at) = (now, now);
        for ahead in 0..u32::from(AHEAD_MAX) {
            at = end(period, at);
            if pair.spent(number.saturating_add(ahead)) > 0 {
                whole_at = at;
            }
        }
        whole_at
    }

    /// Counts `cost`.
    pub fn add(&mut self, period: Period, now: Timestamp, cost: u32) {
        self.pair_mut(period).add(number(period, now), cost);
    }

    /// Takes up to `cost` out of what was counted at `at`.
    pub fn remove(&mut self, period: Period, at: Timestamp, cost: u32) {
        self.pair_mut(period).remove(number(period, at), cost);
    }

    /// Whether nothing of the day and month of `now`, or of later ones, is counted.
    pub fn is_over(&self, now: Timestamp) -> bool {
        [Period::Day, Period::Month].into_iter().all(|period| {
            let present = number(period, now);
            let is_over = |count: &Count| count.spent == 0 || count.number < present;
            self.pair(period).0.iter().all(is_over)
        })
    }

    /// What is counted: numbers of days or months since the epoch, and counts.
    pub fn counts(&self, period: Period) -> impl Iterator<Item = (u32, u32)> {
        let counts = self.pair(period).0.iter().filter(|count| count.spent > 0);
        counts.map(|count| (count.number, count.spent))
    }

    /// Counts `cost` in the day or month of this number.
    pub fn add_at(&mut self, period: Period, number: u32, cost: u32) {
        self.pair_mut(period).add(number, cost);
    }

    fn pair(&self, period: Period) -> &Pair {
        if period == Period::Month { &self.months } else { &self.days }
    }

    fn pair_mut(&mut self, period: Period) -> &mut Pair {
        if period == Period::Month { &mut self.months } else { &mut self.days }
    }
}

impl Pair {
    fn spent(&self, number: u32) -> u32 {
        let is_it = |count: &&Count| count.number == number;
        self.0.iter().find(is_it).map_or(0, |count| count.spent)
    }

    fn add(&mut self, number: u32, cost: u32) {
        let [first, second] = &mut self.0;
        let place = if first.number == number {
            first
        } else if second.number == number {
            second
        } else {
            // In place of one that holds nothing; then of one beyond the next, where a clock that
            // was ahead has left it; then of the older one.
            let worth = |count: &Count| {
                (count.spent > 0, count.number <= number.saturating_add(1), count.number)
            };
            let place = if worth(first) <= worth(second) { first } else { second };
            *place = Count { number, spent: 0 };
            place
        };
        place.spent = place.spent.saturating_add(cost);
    }

    fn remove(&mut self, number: u32, cost: u32) {
        for count in self.0.iter_mut().filter(|count| count.number == number) {
            count.spent = count.spent.saturating_sub(cost);
        }
    }
}

/// When the day or month of `now` is over.
pub fn end(period: Period, now: Timestamp) -> Timestamp {
    let days = match period {
        Period::Month => first_day(month(day(now)).saturating_add(1)),
        _ => day(now).saturating_add(1),
    };
    Timestamp::from_micros(days.saturating_mul(DAY.as_micros()))
}

/// The number, since the epoch, of the day or month that `now` lies in.
pub fn number(period: Period, now: Timestamp) -> u32 {
    let number = match period {
        Period::Month => month(day(now)),
        _ => day(now),
    };
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Days since the epoch.
fn day(now: Timestamp) -> u64 {
    now.as_micros() / DAY.as_micros()
}

/// Months since the epoch. Years are counted from 1 March, so that the day that is added in some
/// of them comes last; then a month begins 153 days after the fifth before it.
fn month(day: u64) -> u64 {
    let day = day.saturating_add(DAYS_TO_EPOCH);
    let (era, of_era) = (day / DAYS_OF_ERA, day % DAYS_OF_ERA);
    let leaps = of_era / 1_460 + of_era / 146_096;
    let year = (of_era + of_era / 36_524 - leaps) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // From March.
    let month = (5 * of_year + 2) / 153;
    (era * 400 + year) * 12 + month + 2 - YEARS_TO_EPOCH * 12
}

/// The number of a month's first day.
fn first_day(month: u64) -> u64 {
    // From March of the year 0.
    let months = month.saturating_add(YEARS_TO_EPOCH * 12 - 2);
    let (years, month) = (months / 12, months % 12);
    let (era, year) = (years / 400, years % 400);
    let of_era = 365 * year + year / 4 - year / 100 + (153 * month + 2) / 5;
    (era * DAYS_OF_ERA + of_era).saturating_sub(DAYS_TO_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_leap(year: u64) -> bool {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    }

    #[test]
    fn days_and_months_are_those_of_the_calendar() {
        let lengths = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let (mut first, mut number) = (0, 0);
        for year in 1_970..2_500 {
            for (index, length) in lengths.into_iter().enumerate() {
                let length = length + u64::from(index == 1 && is_leap(year));
                assert_eq!(first_day(number), first, "{year}-{}", index + 1);
                assert_eq!(month(first), number);
                assert_eq!(month(first + length - 1), number);
                first += length;
                number += 1;
            }
        }
    }

    #[test]
    fn a_day_ends_at_midnight_and_a_month_with_its_last_day() {
        // 2026-02-28 23:59:59.999999 and a microsecond later.
        let at = |micros| Timestamp::from_micros(micros);
        let last = 1_772_323_199_999_999;
        for period in [Period::Day, Period::Month] {
            assert_eq!(end(period, at(last)), at(last + 1), "{period:?}");
        }
        assert_eq!(end(Period::Day, at(last + 1)), at(last + 1 + 86_400_000_000));
        assert_eq!(end(Period::Month, at(last + 1)), at(last + 1 + 31 * 86_400_000_000));
    }

    #[test]
    fn a_clock_that_is_set_back_over_midnight_finds_what_it_has_left() {
        let midnight = Timestamp::from_micros(20_000 * DAY.as_micros());
        let (before, after) = (midnight.minus(Micros::SECOND), midnight.plus(Micros::SECOND));
        let mut calendar = Calendar::default();
        calendar.add(Period::Day, before, 5);
        calendar.add(Period::Day, after, 3);
        assert_eq!(calendar.spent(Period::Day, before), 5);
        calendar.add(Period::Day, before, 1);
        assert_eq!(calendar.spent(Period::Day, before), 6);
        assert_eq!(calendar.spent(Period::Day, after), 3);
        assert_eq!(calendar.whole_at(Period::Day, before), midnight.plus(DAY));
        calendar.add(Period::Day, after, 4);
        assert_eq!(calendar.spent(Period::Day, before), 7, "of the day that is to come again");
        calendar.remove(Period::Day, after, 9);
        assert_eq!(calendar.spent(Period::Day, after), 0);
        assert!(!calendar.is_over(before) && calendar.is_over(after.plus(DAY)));
    }

    #[test]
    fn a_clock_that_was_years_ahead_locks_nobody_out() {
        let now = Timestamp::from_micros(20_000 * DAY.as_micros());
        let ahead = Timestamp::from_micros(40_000 * DAY.as_micros());
        let mut calendar = Calendar::default();
        calendar.add(Period::Day, now, 1);
        calendar.add(Period::Day, ahead, 7);
        for days in 0..3 {
            let now = Timestamp::from_micros((20_000 + days) * DAY.as_micros());
            assert_eq!(calendar.spent(Period::Day, now), u32::from(days == 0));
            calendar.add(Period::Day, now, 2);
        }
    }
}
