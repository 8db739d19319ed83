//! The packed arguments and reply of the script. All numbers little endian.

use fred::bytes::Bytes;

use crate::limiter::check::Limits;
use crate::limiter::check::lease::{Leased, Wish};
use crate::limiter::decision::{Decision, LimitStatus, Verdict};
use crate::limiter::own::Debit;
use crate::limiter::quota::{LimitSet, Mode, Period};
use crate::limiter::refund::Grant;
use crate::limiter::time::{Micros, Timestamp};
use crate::policy::plan::Plan;

use super::further::{self, KINDS, Task};
use super::names::KeyNames;

/// The script, for places, charges, refunds and checks; the heads of its parts have the shapes of
/// what is packed here.
pub const SCRIPT: &str = concat!(
    include_str!("places.lua"),
    include_str!("charge.lua"),
    include_str!("refund.lua"),
    include_str!("check.lua")
);

/// Above this a double skips integers.
const EXACT_MAX: u64 = (1 << 53) - 1;
const ARGUMENT_HEAD: usize = 16;
const ARGUMENT_SCOPE: usize = 17;
const REFUND_HEAD: usize = 13;
const REFUND_SCOPE: usize = 21;
const CHARGE: usize = 33;
const REPLY_HEAD: usize = 13;
const REPLY_LIMIT: usize = 20;
const REPLY_LEASE: usize = 8;

/// One call of the script.
#[derive(Clone, Debug)]
pub struct Call {
    /// One for each scope, then one for each of their further limits.
    pub keys: Vec<Bytes>,
    /// The packed argument.
    pub argument: Bytes,
    /// The second one, where there is more to say.
    pub how: Option<Bytes>,
    /// Of a charge: the counts.
    pub counts: Option<Bytes>,
    /// The lease that is wished for, packed.
    pub wish: Option<Bytes>,
    /// What reads the reply.
    pub ticket: Ticket,
}

/// What a reply to one call must look like.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// Echoed in the reply.
    pub sequence: u32,
    scopes: usize,
    further: usize,
}

/// Who calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// Whose places are counted as one.
    pub holder: u64,
    /// The call's number.
    pub sequence: u32,
}

/// A reply that the script does not give, or not to this call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Not as long as the plan's scopes ask for.
    #[error("reply of {found} bytes, expected {expected}")]
    Length {
        /// Bytes that came.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// The echo is another call's.
    #[error("reply to call {found}, expected {expected}")]
    Sequence {
        /// The echo.
        found: u32,
        /// The call's own number.
        expected: u32,
    },
    /// Neither allowed nor denied.
    #[error("verdict {0}, expected 0 or 1")]
    Verdict(u8),
    /// Allowed by a limit that had no room, or with more left than the limit is.
    #[error("a verdict that its own limits contradict")]
    Contradiction,
    /// It came to be done only after the time at which nobody waited for it any more, and was not.
    #[error("done too late, by the clock of redis")]
    TooLate(Timestamp),
}

impl Call {
    /// The call for `plan`. `now` is for tests and replays; without it Redis's own clock decides.
    pub fn new(names: &KeyNames, plan: &Plan<'_>, now: Option<Timestamp>, asker: Asker) -> Self {
        let scopes = plan.scopes();
        let mut argument = Vec::with_capacity(ARGUMENT_HEAD + 3 * ARGUMENT_SCOPE);
        // 0 asks for Redis's clock, so a given epoch is one microsecond late.
        let now = now.map_or(0, |now| now.as_micros().clamp(1, EXACT_MAX));
        argument.extend_from_slice(&asker.sequence.to_le_bytes());
        argument.extend_from_slice(&(now as f64).to_le_bytes());
        argument.extend_from_slice(&plan.cost.to_le_bytes());
        for scope in scopes.clone() {
            push_limits(&mut argument, &scope.limits.set, scope.limits.mode);
        }
        let how = further::argument(Task::Check, asker.holder, sets(plan), None);
        let ticket = Ticket::new(plan, asker.sequence);
        Call {
            keys: keys(names, plan),
            argument: argument.into(),
            how,
            wish: None,
            counts: None,
            ticket,
        }
    }

    /// The same call, which is not to be done once Redis's clock is past `before`.
    pub fn before(mut self, before: Option<Timestamp>) -> Self {
        if let Some(before) = before {
            let mut argument = self.argument.to_vec();
            if let Some(now) = argument.get_mut(4..12) {
                now.copy_from_slice(&(-(before.as_micros().min(EXACT_MAX) as f64)).to_le_bytes());
            }
            self.argument = argument.into();
        }
        self
    }

    /// Charges what was let pass alone to one scope, and under a second key, where there is one, to
    /// its days and months, unless Redis's clock is past `before`. `now` is
    /// that clock, as far as it is known.
    pub fn charge(
        keys: Vec<Bytes>,
        debit: &Debit,
        now: Timestamp,
        before: Option<Timestamp>,
        asker: Asker,
    ) -> Self {
        let exact = |number: u64| (number.min(EXACT_MAX) as f64).to_le_bytes();
        let [minute, hour] = debit.ages(now);
        let mut argument = Vec::with_capacity(CHARGE);
        argument.extend_from_slice(&asker.sequence.to_le_bytes());
        argument.extend_from_slice(&exact(before.map_or(0, Timestamp::as_micros)));
        argument.extend_from_slice(&debit.rate.to_le_bytes());
        argument.extend_from_slice(&exact(debit.tokens));
        argument.extend_from_slice(&exact(debit.level));
        argument.push(u8::try_from(minute.len()).unwrap_or(u8::MAX));
        let mut counts = Vec::with_capacity((minute.len() + hour.len()) * 5);
        for (age, count) in minute.into_iter().chain(hour) {
            counts.push(age);
            counts.extend_from_slice(&count.to_le_bytes());
        }
        for of_period in &debit.quotas {
            for place in 0..2 {
                let (number, count) = of_period.get(place).copied().unwrap_or_default();
                counts.extend_from_slice(&number.to_le_bytes());
                counts.extend_from_slice(&count.to_le_bytes());
            }
        }
        Call {
            keys,
            argument: argument.into(),
            how: None,
            wish: None,
            counts: Some(counts.into()),
            ticket: Ticket { sequence: asker.sequence, scopes: 0, further: 0 },
        }
    }

    /// What a check of `plan` would come to now. Charges nothing.
    pub fn peek(names: &KeyNames, plan: &Plan<'_>, now: Option<Timestamp>, asker: Asker) -> Self {
        let how = further::argument(Task::Look, asker.holder, sets(plan), None);
        Call { how, ..Self::new(names, plan, now, asker) }
    }

    /// A check of `plan`, which has one scope, that may come back with a lease.
    pub fn lease(
        names: &KeyNames,
        plan: &Plan<'_>,
        wish: &Wish,
        now: Option<Timestamp>,
        asker: Asker,
    ) -> Self {
        let span = u32::try_from(wish.span.as_micros()).unwrap_or(u32::MAX);
        let words = [wish.tokens, span, wish.divisor.get()];
        let packed: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        Call { wish: Some(packed.into()), ..Self::new(names, plan, now, asker) }
    }

    /// Takes back what a check of `plan` charged. The ticket is for no reply: there is nothing in
    /// it that matters.
    pub fn refund(names: &KeyNames, plan: &Plan<'_>, grant: &Grant, asker: Asker) -> Self {
        let limits = plan.scopes().map(|scope| scope.limits);
        Self::refund_of(keys(names, plan), plan.cost, limits, grant, asker)
    }

    /// The same for the keys and limits of a plan that is gone.
    pub fn refund_of(
        keys: Vec<Bytes>,
        cost: u32,
        limits: impl Iterator<Item = Limits> + Clone,
        grant: &Grant,
        asker: Asker,
    ) -> Self {
        let mut argument = Vec::with_capacity(REFUND_HEAD + 3 * REFUND_SCOPE);
        let exact = |number: u64| (number.min(EXACT_MAX) as f64).to_le_bytes();
        argument.push(1);
        argument.extend_from_slice(&exact(grant.at().as_micros()));
        argument.extend_from_slice(&cost.to_le_bytes());
        for (index, limits) in limits.clone().enumerate() {
            let charge = grant.charge(index);
            let set = &limits.set;
            let rate = set.second.map_or(0, |bucket| bucket.rate.get());
            let counted = |is_limited, number| if is_limited { number } else { 0 };
            let minute = charge.map_or(0, |charge| counted(set.minute.is_some(), charge.minute));
            let hour = charge.map_or(0, |charge| counted(set.hour.is_some(), charge.hour));
            argument.push(match charge {
                None => 0,
                Some(charge) => {
                    let is_leased = set.second.is_some_and(|it| !charge.ahead(it.rate).is_zero());
                    1 + u8::from(is_leased)
                }
            });
            argument.extend_from_slice(&rate.to_le_bytes());
            argument.extend_from_slice(&exact(minute));
            argument.extend_from_slice(&exact(hour));
        }
        let sets = limits.map(|limits| limits.set);
        let how = further::argument(Task::GiveBack, asker.holder, sets, Some(grant));
        let ticket = Ticket { sequence: asker.sequence, scopes: 1, further: 0 };
        Call { keys, argument: argument.into(), how, wish: None, counts: None, ticket }
    }

    /// Says how many places of this key its holder holds. The ticket is for no reply.
    pub fn places(key: Bytes, count: u32, asker: Asker) -> Self {
        let how = further::places(asker.holder, count);
        let ticket = Ticket { sequence: asker.sequence, scopes: 1, further: 0 };
        let (how, argument) = (Some(how), Bytes::new());
        Call { keys: vec![key], argument, how, wish: None, counts: None, ticket }
    }

    /// Writes a value and has it expire at once: shows that Redis can still do what a check needs.
    pub fn probe(names: &KeyNames, sequence: u32) -> Self {
        let mut argument = Vec::with_capacity(ARGUMENT_HEAD + ARGUMENT_SCOPE);
        argument.extend_from_slice(&sequence.to_le_bytes());
        argument.extend_from_slice(&0_f64.to_le_bytes());
        argument.extend_from_slice(&1_u32.to_le_bytes());
        // Enforced: rate and burst so large that it always passes, and is whole in a microsecond.
        argument.push(0);
        for limit in [1_000_000, 1_000_000, 0, 0_u32] {
            argument.extend_from_slice(&limit.to_le_bytes());
        }
        let keys = vec![names.probe()];
        Call {
            keys,
            argument: argument.into(),
            how: None,
            counts: None,
            wish: None,
            ticket: Ticket { sequence, scopes: 1, further: 0 },
        }
    }
}

impl Ticket {
    fn new(plan: &Plan<'_>, sequence: u32) -> Self {
        let (scopes, further) = (plan.scopes().count(), further::of(sets(plan)).count());
        Ticket { sequence, scopes, further }
    }

    /// Whether the reply to a probe says that it was allowed, hence written.
    ///
    /// # Errors
    /// A reply that the script does not give to this call.
    pub fn decode_probe(&self, reply: &[u8]) -> Result<bool, ReplyError> {
        let mut fields = self.fields(reply)?;
        Ok(fields.verdict()? == Verdict::Allow)
    }

    /// The decision on `plan`, which the call was made of.
    ///
    /// # Errors
    /// A reply that the script does not give to this call.
    pub fn decode(&self, plan: &Plan<'_>, reply: &[u8]) -> Result<Decision, ReplyError> {
        self.decode_of(plan.scopes().map(|scope| scope.limits), reply)
    }

    /// When a charge was made, by Redis's clock.
    ///
    /// # Errors
    /// It was not, or the reply is not one to this call.
    pub fn decode_charge(&self, reply: &[u8]) -> Result<Timestamp, ReplyError> {
        let mut fields = self.fields(reply)?;
        fields.verdict()?;
        Ok(Timestamp::from_micros(fields.micros()))
    }

    /// The same for the limits of a plan that is gone.
    ///
    /// # Errors
    /// A reply that the script does not give to this call.
    pub fn decode_of(
        &self,
        limits: impl Iterator<Item = Limits>,
        reply: &[u8],
    ) -> Result<Decision, ReplyError> {
        let mut fields = self.fields(reply)?;
        let verdict = fields.verdict()?;
        let mut decision = Decision::new(verdict, Timestamp::from_micros(fields.micros()));
        let sliding = self.scopes.saturating_mul(Period::SLIDING.len() * REPLY_LIMIT);
        let mut beyond = Fields(fields.0.get(sliding..).unwrap_or_default());
        let mut is_sound = true;
        for (index, limits) in (0_u8..).zip(limits) {
            let mut push = |period: Option<Period>, fields: &mut Fields<'_>| {
                let remaining = fields.u32();
                let wait = Micros::from_micros(fields.micros());
                let whole_at = Timestamp::from_micros(fields.micros());
                let found =
                    period.and_then(|period| Some((period, limits.set.quota_and_limit(period)?)));
                if let Some((period, (quota, limit))) = found {
                    let (scope, mode) = (index, limits.mode);
                    let is_refused = mode == Mode::Enforce && !wait.is_zero();
                    is_sound &= remaining <= limit && !(is_refused && verdict == Verdict::Allow);
                    decision.push(LimitStatus {
                        scope,
                        period,
                        mode,
                        quota,
                        limit,
                        remaining,
                        wait,
                        whole_at,
                    });
                }
            };
            for period in Period::SLIDING {
                push(Some(period), &mut fields);
            }
            for kind in KINDS.into_iter().filter(|kind| kind.is_in(&limits.set)) {
                for period in kind.periods() {
                    push(period, &mut beyond);
                }
            }
        }
        if !is_sound {
            return Err(ReplyError::Contradiction);
        }
        Ok(decision)
    }

    /// The same with what has become of the wish for a lease.
    ///
    /// # Errors
    /// A reply that the script does not give to this call.
    pub fn decode_lease(
        &self,
        limits: impl Iterator<Item = Limits>,
        reply: &[u8],
    ) -> Result<Leased, ReplyError> {
        if reply.len() == REPLY_HEAD {
            self.fields(reply)?;
        }
        let check = without_lease(reply);
        let decision = self.decode_of(limits, check)?;
        let mut lease = Fields(reply.get(check.len()..).unwrap_or_default());
        let tokens = lease.u32();
        Ok(Leased { decision, tokens, span: Micros::from_micros(u64::from(lease.u32())) })
    }

    /// The reply after its length and echo have been checked.
    fn fields<'r>(&self, reply: &'r [u8]) -> Result<Fields<'r>, ReplyError> {
        if let [_, _, _, _, 2, now @ ..] = reply
            && now.len() == 8
        {
            let mut fields = Fields(reply);
            let (found, _) = (fields.u32(), fields.take::<1>());
            if found == self.sequence {
                return Err(ReplyError::TooLate(Timestamp::from_micros(fields.micros())));
            }
        }
        let limits = self.scopes * Period::SLIDING.len() + self.further * 2;
        let expected = REPLY_HEAD + limits * REPLY_LIMIT;
        if reply.len() != expected {
            return Err(ReplyError::Length { found: reply.len(), expected });
        }
        let mut fields = Fields(reply);
        let found = fields.u32();
        if found != self.sequence {
            return Err(ReplyError::Sequence { found, expected: self.sequence });
        }
        Ok(fields)
    }
}

/// The part of a lease's reply that is a check's.
pub fn without_lease(reply: &[u8]) -> &[u8] {
    let end = if reply.len() == REPLY_HEAD { 0 } else { REPLY_LEASE };
    reply.get(..reply.len().saturating_sub(end)).unwrap_or_default()
}

fn sets<'a>(plan: &'a Plan<'_>) -> impl Iterator<Item = LimitSet> + Clone + 'a {
    plan.scopes().map(|scope| scope.limits.set)
}

fn keys(names: &KeyNames, plan: &Plan<'_>) -> Vec<Bytes> {
    let hash = names.identity_hash(&plan.identity);
    let own = plan.scopes().map(|scope| names.scope(&hash, scope.key));
    own.chain(further::keys(names, &hash, plan)).collect()
}

fn push_limits(argument: &mut Vec<u8>, set: &LimitSet, mode: Mode) {
    let (rate, burst) = set.second.map_or((0, 0), |it| (it.rate.get(), it.burst.get()));
    argument.push(match mode {
        Mode::Enforce => 0,
        Mode::Shadow => 1,
    });
    let windows = [set.minute, set.hour].map(|limit| limit.map_or(0, |limit| limit.get()));
    for limit in [rate, burst].into_iter().chain(windows) {
        argument.extend_from_slice(&limit.to_le_bytes());
    }
}

/// Reads one field after the other; past the end there are zeros, which the length's check rules
/// out.
struct Fields<'r>(&'r [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((head, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn micros(&mut self) -> u64 {
        // Saturates: a NaN or a negative number, which the script does not give, is 0.
        f64::from_le_bytes(self.take()) as u64
    }

    fn verdict(&mut self) -> Result<Verdict, ReplyError> {
        match self.take::<1>() {
            [0] => Ok(Verdict::Allow),
            [1] => Ok(Verdict::Deny),
            [other] => Err(ReplyError::Verdict(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const ASKER: Asker = Asker { holder: 1, sequence: 7 };
    use crate::limiter::quota::Bucket;
    use crate::policy::identity::Identity;
    use crate::policy::plan::{RuleId, Scope, TierId, TierSource};
    use std::num::NonZeroU32;

    fn names() -> KeyNames {
        KeyNames::new("tg")
    }

    fn plan() -> Plan<'static> {
        let limit = NonZeroU32::new;
        let second = Some(Bucket { rate: limit(5).unwrap(), burst: limit(10).unwrap() });
        let set = LimitSet { second, minute: limit(100), ..LimitSet::default() };
        let user = Identity::User("42".into());
        let mut plan = Plan::new(user, TierId(0), TierSource::Default);
        plan.cost = 3;
        let enforce = Limits { set, mode: Mode::Enforce };
        plan.push(Scope { rule: None, key: "i", key_hash: 1, limits: enforce });
        let shadow =
            Limits { set: LimitSet { hour: limit(7), ..LimitSet::default() }, mode: Mode::Shadow };
        let rule = Some(RuleId(0));
        plan.push(Scope { rule, key: "e:reports", key_hash: 2, limits: shadow });
        plan
    }

    fn reply(sequence: u32, verdict: u8, limits: &[(u32, f64, f64)]) -> Vec<u8> {
        let mut reply = sequence.to_le_bytes().to_vec();
        reply.push(verdict);
        reply.extend(5e6_f64.to_le_bytes());
        for (remaining, wait, whole_at) in limits {
            reply.extend(remaining.to_le_bytes());
            reply.extend(wait.to_le_bytes());
            reply.extend(whole_at.to_le_bytes());
        }
        reply
    }

    #[test]
    fn each_scope_has_a_key() {
        let call = Call::new(&names(), &plan(), None, ASKER);
        let hash = names().identity_hash(&Identity::User("42".into()));
        assert_eq!(call.keys, [format!("tg:{{{hash}}}:i"), format!("tg:{{{hash}}}:e:reports")]);
    }

    #[test]
    fn the_argument_is_packed_as_the_script_reads_it() {
        let now = Timestamp::from_micros(1_700_000_000_123_456);
        let call = Call::new(&names(), &plan(), Some(now), ASKER);
        let mut expected = vec![7, 0, 0, 0];
        expected.extend(1_700_000_000_123_456_f64.to_le_bytes());
        expected.extend([3, 0, 0, 0]);
        expected.extend([0, 5, 0, 0, 0, 10, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(call.argument, expected);
    }

    #[test]
    fn a_reply_becomes_the_limits_that_the_plan_has() {
        let call = Call::new(&names(), &plan(), None, ASKER);
        let limits = [
            (2, 0.0, 6e6),
            (97, 0.0, 66e6),
            (0, 0.0, 0.0),
            (0, 0.0, 0.0),
            (0, 0.0, 0.0),
            (0, 4e15, 9e6),
        ];
        let decision = call.ticket.decode(&plan(), &reply(7, 0, &limits)).unwrap();
        assert_eq!(decision.verdict, Verdict::Allow);
        assert_eq!(decision.now, Timestamp::from_micros(5_000_000));
        let shown: Vec<_> = decision
            .statuses()
            .iter()
            .map(|it| (it.scope, it.period, it.quota, it.limit, it.remaining, it.wait.as_micros()))
            .collect();
        assert_eq!(
            shown,
            [
                (0, Period::Second, 5, 10, 2, 0),
                (0, Period::Minute, 100, 100, 97, 0),
                (1, Period::Hour, 7, 7, 0, Micros::NEVER.as_micros()),
            ]
        );
    }

    #[test]
    fn a_reply_to_another_call_is_no_decision() {
        let call = Call::new(&names(), &plan(), None, ASKER);
        let limits = [(1, 0.0, 0.0); 6];
        let decode = |reply: &[u8]| call.ticket.decode(&plan(), reply).unwrap_err();
        let other = ReplyError::Sequence { found: 8, expected: 7 };
        assert_eq!(decode(&reply(8, 0, &limits)), other);
        assert_eq!(decode(&reply(7, 2, &limits)), ReplyError::Verdict(2));
        let short = ReplyError::Length { found: 113, expected: 133 };
        assert_eq!(decode(&reply(7, 0, limits.get(..5).unwrap())), short);
        assert_eq!(decode(b"OK"), ReplyError::Length { found: 2, expected: 133 });
        assert_eq!(decode(&reply(7, 1, &[(11, 1.0, 0.0); 6])), ReplyError::Contradiction);
        assert_eq!(decode(&reply(7, 0, &[(0, 1.0, 0.0); 6])), ReplyError::Contradiction);
        let odd = [(0, f64::NAN, -1.0); 6];
        let decision = call.ticket.decode(&plan(), &reply(7, 1, &odd)).unwrap();
        assert!(decision.statuses().iter().all(|status| status.wait.is_zero()));
    }
}
