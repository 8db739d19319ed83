//! One page of records: the first ones behind a place, of rows that come in any order.
//!
//! However many rows there are, no more records than the page has are held at a time.

use std::collections::BTreeMap;

use super::record::{Counts, Key, Query, Record, Row};

/// Most records of a page.
pub const RECORDS_MAX: usize = 100_000;

/// Collects a page.
#[derive(Debug)]
pub struct Collector<'q> {
    query: &'q Query,
    limit: usize,
    found: BTreeMap<Key, Counts>,
    has_more: bool,
}

/// Records in their order, and where the next page begins if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The records; such as came to nothing are left out.
    pub records: Vec<Record>,
    /// What to go on behind.
    pub next: Option<Key>,
}

impl<'q> Collector<'q> {
    /// For these records.
    pub fn new(query: &'q Query) -> Self {
        let limit = query.limit.clamp(1, RECORDS_MAX);
        Collector { query, limit, found: BTreeMap::new(), has_more: false }
    }

    /// Takes a row, if it belongs to the page.
    pub fn add(&mut self, row: &Row<'_>) {
        if !self.query.takes(row) {
            return;
        }
        let key = Key {
            start: self.query.by.start(row.minute),
            identity: row.identity.into(),
            tier: row.tier.into(),
            endpoint: row.endpoint.into(),
        };
        if self.query.after.as_ref().is_some_and(|after| key <= *after) {
            return;
        }
        if let Some(counts) = self.found.get_mut(&key) {
            *counts += row.counts;
            return;
        }
        if self.found.len() >= self.limit {
            // Who is pushed out never comes back: from here on the last one only moves forward.
            self.has_more = true;
            if self.found.last_key_value().is_some_and(|(last, _)| key > *last) {
                return;
            }
            self.found.pop_last();
        }
        self.found.insert(key, row.counts);
    }

    /// The page.
    pub fn finish(self) -> Page {
        let last = self.found.last_key_value().map(|(key, _)| key.clone());
        let next = last.filter(|_| self.has_more);
        let records = self.found.into_iter().filter(|(_, counts)| !counts.is_zero());
        Page { records: records.map(|(key, counts)| Record { key, counts }).collect(), next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::record::Period;
    use proptest::prelude::*;

    proptest! {
        /// Page after page gives what one page with room for all gives, in whatever order rows come.
        #[test]
        fn pages_are_the_whole_in_parts(
            rows in prop::collection::vec((0..200_u32, 0..6_usize, 1..9_i64), 0..120),
            limit in 1..12_usize,
        ) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let row = |&(minute, who, requests): &(u32, usize, i64)| Row {
                minute, identity: names[who], tier: "t", endpoint: "e",
                counts: Counts { requests, ..Counts::default() },
            };
            let mut query = Query { by: Period::Hour, from: 10, to: 190, ..Query::everything(RECORDS_MAX) };
            let mut all = Collector::new(&query);
            rows.iter().for_each(|it| all.add(&row(it)));
            let all = all.finish();
            prop_assert_eq!(&all.next, &None);
            query.limit = limit;
            let mut parts = Vec::new();
            loop {
                let mut some = Collector::new(&query);
                rows.iter().for_each(|it| some.add(&row(it)));
                let some = some.finish();
                prop_assert!(some.records.len() <= limit);
                parts.extend(some.records);
                query.after = some.next;
                if query.after.is_none() {
                    break;
                }
            }
            prop_assert_eq!(parts, all.records);
        }
    }
}
