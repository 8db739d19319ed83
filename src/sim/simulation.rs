//! A whole replay: logs in, counts out.

use crate::limiter::time::Timestamp;
use crate::policy::compiled::Policy;

use super::callers::Callers;
use super::line::Wanted;
use super::logs::{LogError, Merged, Reader};
use super::record::{Order, Record, Was};
use super::replay::Lane;
use super::routes::Routes;
use super::tally::Tally;
use super::templates::Templates;

/// Requests that are kept for [`super::fit`] and [`super::suggest`].
pub const KEPT_MAX: usize = 100_000_000;
/// In place of how long a request lasted.
pub const UNKNOWN: u32 = u32::MAX;
/// Lines between two calls of whoever wants to know how far it is.
const PROGRESS_LINES: u64 = 1 << 14;

/// A request that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// When it came.
    pub at: Timestamp,
    /// Who sent it.
    pub caller: u32,
    /// Which rules it meets.
    pub route: u32,
    /// Its path's template.
    pub template: u32,
    /// How long it lasted, in microseconds; the most there is where that is not known.
    pub lasts: u32,
}

/// A replay.
pub struct Simulation<'p> {
    /// Who and what was met.
    pub reader: Reader<'p>,
    /// The counts.
    pub tally: Tally,
    /// What the log itself says: how many were refused, and those that differ.
    pub recorded: Recorded,
    /// Of the policy to compare with, how many it refuses.
    pub before_blocked: u64,
    /// The requests, if they are kept.
    pub kept: Option<Vec<Kept>>,
    tried: Lane<'p>,
    compared: Option<Lane<'p>>,
    order: Order,
}

/// What a log says of its requests, beside what the policy that is tried says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Refused then.
    pub blocked: u64,
    /// Refused now, and not then.
    pub newly: u64,
    /// Refused then, and not now.
    pub freed: u64,
    /// Those that a limit in shadow would have refused then, by tollgate's own log.
    pub shadow: u64,
    /// Those of which that differs now.
    pub shadow_differs: u64,
}

impl<'p> Simulation<'p> {
    /// Of a policy, perhaps beside another one.
    pub fn new(policy: &'p Policy, against: Option<&'p Policy>, wanted: Wanted) -> Self {
        let policies = [Some(policy), against];
        let callers = Callers::new(policies, wanted.identity.clone());
        Simulation {
            reader: Reader::new(callers, Routes::new(policies), wanted),
            tally: Tally::new(policy),
            recorded: Recorded::default(),
            before_blocked: 0,
            kept: None,
            tried: Lane::new(policy),
            compared: against.map(Lane::new),
            order: Order::default(),
        }
    }

    /// Keeps the requests, for whoever wants to go through them again.
    pub fn keeping(mut self) -> Self {
        self.kept = Some(Vec::new());
        self
    }

    /// Has paths told apart by their templates, too.
    pub fn with_templates(mut self) -> Self {
        self.reader.templates = Some(Templates::default());
        self
    }

    /// Replays the logs to their end; `progress` is called now and then with the lines so far.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn run(
        &mut self,
        logs: &mut Merged,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), LogError> {
        let mut told = 0;
        while let Some(record) = logs.next(&mut self.reader)? {
            if self.order.push(record) {
                self.replay(false);
            }
            if self.reader.lines >= told + PROGRESS_LINES {
                told = self.reader.lines;
                progress(told);
            }
        }
        self.replay(true);
        progress(self.reader.lines);
        Ok(())
    }

    /// Requests that stood too far from their place in the log.
    pub fn late(&self) -> u64 {
        self.order.late()
    }

    /// Requests that met a limit of `concurrency` and whose end the log does not know.
    pub fn endless(&self) -> u64 {
        self.tried.endless()
    }

    /// States that were forgotten before their time, by which a limit may have been passed.
    pub fn evictions(&self) -> u64 {
        self.tried.evictions()
    }

    /// The policy that is tried.
    pub fn policy(&self) -> &'p Policy {
        self.tried.policy()
    }

    /// The policy that it is compared with.
    pub fn against(&self) -> Option<&'p Policy> {
        self.compared.as_ref().map(Lane::policy)
    }

    fn replay(&mut self, is_last: bool) {
        let mut order = std::mem::take(&mut self.order);
        order.take(is_last, |record| self.rule(&record));
        self.order = order;
    }

    fn rule(&mut self, record: &Record) {
        let (Some(entry), Some(route)) =
            (self.reader.callers.get(record.caller), self.reader.routes.get(record.route))
        else {
            return;
        };
        let [Some(known), compared] = &entry.known else { return };
        let [Some(Ok(matched)), matched_before] = &route.matched else { return };
        let tally = &mut self.tally;
        let ruling = self.tried.decide(known, matched, record, |by| tally.met(by));

        let was_blocked = record.was == Was::Blocked;
        self.recorded.blocked += u64::from(was_blocked);
        self.recorded.newly += u64::from(ruling.is_blocked && !was_blocked);
        self.recorded.freed += u64::from(was_blocked && !ruling.is_blocked);
        let was_shadow = record.was == Was::Shadow;
        self.recorded.shadow += u64::from(was_shadow);
        self.recorded.shadow_differs += u64::from(was_shadow != ruling.is_shadow);
        let before = match (&mut self.compared, compared, matched_before) {
            (Some(lane), Some(known), Some(Ok(matched))) => {
                lane.decide(known, matched, record, |_| {}).is_blocked
            }
            _ => was_blocked,
        };
        self.before_blocked += u64::from(before);
        self.tally.add(record.at, entry.identity, known.resolved.tier, &ruling, before);
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.len() < KEPT_MAX) {
            let Record { at, lasts, caller, route, template, .. } = *record;
            let lasts = lasts.and_then(|lasts| u32::try_from(lasts.as_micros()).ok());
            let lasts = lasts.unwrap_or(UNKNOWN);
            kept.push(Kept { at, caller, route, template, lasts });
        }
    }
}
