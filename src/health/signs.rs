//! When something was counted last, told from totals that somebody looks at about once a second.
//!
//! So whoever counts need not keep the time, and a call that fails costs no more than its count.

use crate::limiter::time::Timestamp;

/// Something that was counted, and when that was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sign {
    /// When its total had risen.
    pub at: Timestamp,
    /// What it is called.
    pub what: &'static str,
}

/// Totals that only rise, each with its name, always in the same order.
#[derive(Clone, Debug, Default)]
pub struct Signs {
    totals: Vec<u64>,
    last: Option<Sign>,
}

impl Signs {
    /// Looks at the totals of `now`. Of several that have risen, the last one counts.
    pub fn observe(
        &mut self,
        totals: impl IntoIterator<Item = (&'static str, u64)>,
        now: Timestamp,
    ) {
        for (place, (what, total)) in totals.into_iter().enumerate() {
            if place >= self.totals.len() {
                self.totals.push(0);
            }
            let Some(known) = self.totals.get_mut(place) else { continue };
            if total > *known {
                *known = total;
                self.last = Some(Sign { at: now, what });
            }
        }
    }

    /// What was counted last.
    pub fn last(&self) -> Option<Sign> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rose_last_is_known() {
        let mut signs = Signs::default();
        let mut check = |second: u64, totals: [u64; 2], expected: Option<(u64, &str)>| {
            let at = |second: u64| Timestamp::from_micros(second * 1_000_000);
            signs.observe(["timeout", "error"].into_iter().zip(totals), at(second));
            let said = signs.last().map(|it| (it.at.as_secs_ceil(), it.what));
            assert_eq!(said, expected, "{second}");
        };
        check(1, [0, 0], None);
        check(2, [1, 0], Some((2, "timeout")));
        check(3, [1, 0], Some((2, "timeout")));
        check(4, [1, 5], Some((4, "error")));
        check(5, [2, 5], Some((5, "timeout")));
        check(6, [3, 6], Some((6, "error")));
        check(7, [3, 6], Some((6, "error")));
    }
}
