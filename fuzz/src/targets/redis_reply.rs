//! What Redis may answer: replies of the scripts, beside a reader of the layout that their heads
//! describe, and what the limiter in memory would have answered.

use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use fred::bytes::Bytes;
use fred::types::Value;

use tollgate::clock::monotonic;
use tollgate::limiter::check::Limits;
use tollgate::limiter::decision::{Decision, LimitStatus, Verdict};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode, Period};
use tollgate::limiter::refund::Grant;
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, RuleId, Scope, TierId, TierSource};
use tollgate::redis::slots::{SLOTS, ranges, redirection};
use tollgate::redis::target::RedisAddress;
use tollgate::store::deny::{DenyCache, Known};
use tollgate::store::memory::MemoryStore;
use tollgate::store::redis::board;
use tollgate::store::redis::codec::{Asker, Call, without_lease};
use tollgate::store::redis::names::KeyNames;
use tollgate::store::redis::replicas;
use tollgate::store::share::ShareStore;

use super::Input;

/// Bytes of what a reply to a check begins with.
const HEAD: usize = 13;
/// Bytes of each limit in it.
const LIMIT: usize = 20;

static NAMES: LazyLock<KeyNames> = LazyLock::new(|| KeyNames::new("tg"));
static START: LazyLock<Instant> = LazyLock::new(monotonic);

/// The first byte says what is answered: a check, with a plan and a reply in the rest, or anything
/// else, with a value in the rest.
///
/// A reply is a decision exactly if it is one to this call; whatever it is, nothing that is done with
/// it fails. What the limiter in memory says is read back as it was said.
pub fn redis_reply(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() {
        b'v' => values(&mut input),
        b'e' => {
            let text = String::from_utf8_lossy(input.0);
            let asked = RedisAddress::Tcp { host: "asked".to_owned(), port: 1 };
            if let Some(to) = redirection(&text, &asked) {
                let kinds = ["MOVED", "ASK", "TRYAGAIN"];
                let kind = text.split_ascii_whitespace().next().unwrap_or_default();
                assert!(kinds.contains(&kind), "{text:?} is {to:?}");
            }
        }
        how => replies(how, &mut input),
    }
}

fn replies(how: u8, input: &mut Input<'_>) {
    let mut plan = Plan::new(Identity::User("42".into()), TierId(0), TierSource::Default);
    plan.cost = (input.number() as u32).max(1);
    let scopes = input.byte() % 4;
    for index in 0..scopes {
        let limits = limits(input);
        let rule = (index > 0).then_some(RuleId(u16::from(index)));
        let key = ["i", "e:a", "e:b", "e:c"][usize::from(index)];
        plan.push(Scope { rule, key, key_hash: index.into(), limits });
    }
    let asker = Asker { holder: 1, sequence: input.number() as u32 };
    if how & 1 == 1 {
        return as_in_memory(&plan, asker, input);
    }
    let call = Call::new(&NAMES, &plan, None, asker);
    // As it is, or with a head that fits, so that what follows is looked at.
    let mut reply = input.0.to_vec();
    if how & 2 == 2 {
        let head = asker.sequence.to_le_bytes();
        reply = [&head[..], &reply].concat();
        reply.resize(if how & 4 == 4 { length(&plan) } else { reply.len() }, how);
    }
    let expected = decision(&plan, asker.sequence, &reply);
    let found = call.ticket.decode(&plan, &reply).ok();
    assert_eq!(found, expected, "{}", reply.escape_ascii());
    let _ = call.ticket.decode_probe(&reply);
    let _ = call.ticket.decode_charge(&reply);
    if let Some(decision) = found {
        is_borne(&plan, &decision, asker);
    }
    // The same with a lease behind it, for the one scope that has such.
    let limits = || plan.scopes().map(|scope| scope.limits);
    let check = without_lease(&reply);
    let expected = decision(&plan, asker.sequence, check).filter(|_| reply.len() != HEAD);
    let leased = call.ticket.decode_lease(limits(), &reply).ok();
    if reply.len() != HEAD {
        assert_eq!(leased.as_ref().map(|it| &it.decision), expected.as_ref());
    }
    if let Some(leased) = leased {
        let grant = Grant::of_lease(&leased.decision, leased.span);
        let _ = Call::refund(&NAMES, &plan, &grant, asker);
    }
}

fn limits(input: &mut Input<'_>) -> Limits {
    let has = input.byte();
    let mut limit = |bit: u8| {
        let number = if has & bit == 0 { 0 } else { input.number() as u32 };
        NonZeroU32::new(number)
    };
    let rate = limit(1);
    let burst = limit(1);
    let second = rate.zip(burst).map(|(rate, burst)| Bucket { rate, burst });
    let set = LimitSet {
        second,
        minute: limit(2),
        hour: limit(4),
        day: limit(8),
        month: limit(16),
        concurrency: limit(32),
    };
    Limits { set, mode: if has & 64 == 0 { Mode::Enforce } else { Mode::Shadow } }
}

/// How long the reply to a check is.
fn length(plan: &Plan<'_>) -> usize {
    let limits = plan.scopes().map(|it| {
        let set = &it.limits.set;
        let calendar = set.day.is_some() || set.month.is_some();
        3 + 2 * usize::from(calendar) + 2 * usize::from(set.concurrency.is_some())
    });
    HEAD + LIMIT * limits.sum::<usize>()
}

/// Where each limit of a plan stands in the reply: scope, period, and place behind the head.
fn places(plan: &Plan<'_>) -> Vec<(u8, Period, usize)> {
    let (mut places, mut beyond) = (Vec::new(), 3 * plan.scopes().count());
    for (index, scope) in (0_u8..).zip(plan.scopes()) {
        let sliding = [Period::Second, Period::Minute, Period::Hour].into_iter();
        places.extend(sliding.zip(3 * usize::from(index)..).map(|(it, at)| (index, it, at)));
        let set = &scope.limits.set;
        if set.day.is_some() || set.month.is_some() {
            places.extend([(index, Period::Day, beyond), (index, Period::Month, beyond + 1)]);
            beyond += 2;
        }
        if set.concurrency.is_some() {
            places.push((index, Period::Concurrency, beyond));
            beyond += 2;
        }
    }
    places
}

/// What the reply says, if it is one to this call.
fn decision(plan: &Plan<'_>, sequence: u32, reply: &[u8]) -> Option<Decision> {
    let micros = |at: usize| {
        let number = f64::from_le_bytes(reply[at..at + 8].try_into().expect("eight bytes"));
        if number > 0.0 { number.min(u64::MAX as f64) as u64 } else { 0 }
    };
    if reply.len() != length(plan) || reply[..4] != sequence.to_le_bytes() {
        return None;
    }
    let verdict = match reply[4] {
        0 => Verdict::Allow,
        1 => Verdict::Deny,
        _ => return None,
    };
    let mut decision = Decision::new(verdict, Timestamp::from_micros(micros(5)));
    for (scope, period, place) in places(plan) {
        let limits = plan.scope(scope).expect("it is there").limits;
        let Some((quota, limit)) = limits.set.quota_and_limit(period) else { continue };
        let at = HEAD + LIMIT * place;
        let remaining = u32::from_le_bytes(reply[at..at + 4].try_into().expect("four bytes"));
        let wait = Micros::from_micros(micros(at + 4));
        let whole_at = Timestamp::from_micros(micros(at + 12));
        let mode = limits.mode;
        if remaining > limit
            || verdict == Verdict::Allow && mode == Mode::Enforce && wait > Micros::ZERO
        {
            return None;
        }
        let status = LimitStatus { scope, period, mode, quota, limit, remaining, wait, whole_at };
        decision.push(status);
    }
    Some(decision)
}

/// What is done with a decision, whatever it says.
fn is_borne(plan: &Plan<'_>, decision: &Decision, asker: Asker) {
    let scopes = plan.scopes().count();
    if decision.verdict == Verdict::Deny {
        let _ = decision.retry_after();
    }
    let shown = decision.shown().map(|it| (it.whole_at.as_secs_ceil(), it.remaining <= it.limit));
    assert!(shown.is_none_or(|(_, is_sound)| is_sound));
    let _ = (decision.shadow_denied(), (0..scopes).filter(|it| decision.is_exhausted(*it)).count());
    let grant = Grant::new(decision, scopes);
    let charged = (0..scopes).filter(|it| decision.is_charged(*it)).count();
    assert_eq!((0..scopes).filter(|it| grant.charge(*it).is_some()).count(), charged);
    let _ = Call::refund(&NAMES, plan, &grant, asker);
    if scopes == 0 {
        return;
    }
    let share = ShareStore::new(8, NAMES.clone());
    share.note(plan, decision);
    share.refunded(plan, &grant);
    let denials = DenyCache::new(*START);
    let now = *START + Duration::from_millis(1);
    let Known::Nothing(ticket) = denials.look(plan, now) else { panic!("denied by nobody") };
    denials.note(&ticket, plan, decision, now);
    if let Known::Denied(again) = denials.look(plan, now) {
        assert_eq!((decision.verdict, again.verdict), (Verdict::Deny, Verdict::Deny));
        assert_eq!(again.statuses().len(), decision.statuses().len());
    }
    denials.charged(&plan.identity, decision.now, now);
}

/// A few requests to the limiter in memory, each of whose decisions is written as the script would.
fn as_in_memory(plan: &Plan<'_>, asker: Asker, input: &mut Input<'_>) {
    let memory = MemoryStore::new(8);
    let mut now = Timestamp::from_micros(1_767_225_600_000_000);
    for _ in 0..8 {
        now = now.plus(Micros::from_micros(input.number() % (1 << 40)));
        let decided = memory.check(plan, now);
        let mut reply = asker.sequence.to_le_bytes().to_vec();
        reply.push(u8::from(decided.verdict == Verdict::Deny));
        reply.extend((decided.now.as_micros() as f64).to_le_bytes());
        reply.resize(length(plan), 0);
        for (scope, period, place) in places(plan) {
            let own = |it: &&LimitStatus| it.scope == scope && it.period == period;
            let Some(status) = decided.statuses().iter().find(own) else { continue };
            let (wait, whole_at) = (status.wait.as_micros(), status.whole_at.as_micros());
            let packed = [(wait as f64).to_le_bytes(), (whole_at as f64).to_le_bytes()].concat();
            let at = HEAD + LIMIT * place;
            reply[at..at + 4].copy_from_slice(&status.remaining.to_le_bytes());
            reply[at + 4..at + LIMIT].copy_from_slice(&packed);
        }
        let call = Call::new(&NAMES, plan, None, asker);
        // A decision that is later than doubles are exact is of a year beyond 2255.
        let is_exact = decided.statuses().iter().all(|it| it.whole_at.as_micros() < 1 << 53);
        if is_exact {
            assert_eq!(call.ticket.decode(plan, &reply), Ok(decided.clone()));
        }
        is_borne(plan, &decided, asker);
        // Of another call it is none.
        reply[0] ^= 1;
        assert!(call.ticket.decode(plan, &reply).is_err());
    }
}

/// Replies of the other scripts and commands.
fn values(input: &mut Input<'_>) {
    let value = value(input, 4);
    if let Ok(read) = board::read(value.clone()) {
        let Value::Array(parts) = &value else { panic!("{value:?} is a table") };
        assert_eq!(parts.len(), 3, "{value:?}");
        assert!(read.fields.iter().all(|(field, _)| field != "v" && field != "e"), "{value:?}");
        // Written as the script does, the same is read again.
        let version = read
            .version
            .as_ref()
            .map_or(Value::Null, |it| Value::String(format!("{}:{}", it.table, it.changes).into()));
        let fields = read.fields.iter().flat_map(|(field, value)| {
            [Value::String(field.as_str().into()), Value::Bytes(value.clone())]
        });
        let log = read.log.iter().cloned().map(Value::Bytes).collect();
        let parts = vec![version, Value::Array(fields.collect()), Value::Array(log)];
        assert_eq!(board::read(Value::Array(parts)).ok(), Some(read));
    }
    if let Some(seen) = replicas::seen(value.clone()) {
        let numbers = [seen.replicas, seen.recent].map(|it| Value::Integer(it.into()));
        let [replicas, recent] = numbers;
        let generation = Value::String((*seen.generation).into());
        let now = Value::String(seen.now.as_micros().to_string().into());
        let rank = Value::Integer(seen.rank.into());
        let parts = vec![replicas, recent, generation, now, rank];
        assert_eq!(replicas::seen(Value::Array(parts)), Some(seen));
    }
    let asked = RedisAddress::Tcp { host: "asked".to_owned(), port: 1 };
    for range in ranges(&value, &asked).into_iter().flatten() {
        assert!(usize::from(range.first.max(range.last)) < SLOTS, "{range:?}");
    }
    // A check's reply is bytes; any other value is none.
    let plan = Plan::new(Identity::User("42".into()), TierId(0), TierSource::Default);
    let call = Call::new(&NAMES, &plan, None, Asker::default());
    let bytes = value.as_bytes().unwrap_or_default();
    assert_eq!(call.ticket.decode(&plan, bytes).ok(), decision(&plan, 0, bytes), "{value:?}");
}

fn value(input: &mut Input<'_>, depth: u8) -> Value {
    match input.byte() {
        b'i' => Value::Integer(input.number() as i64),
        b'd' => Value::Double(f64::from_bits(input.number())),
        b't' => Value::Boolean(true),
        b'f' => Value::Boolean(false),
        b's' => Value::String(String::from_utf8_lossy(input.until(b'\n')).as_ref().into()),
        b'b' => Value::Bytes(Bytes::copy_from_slice(input.until(b'\n'))),
        b'q' => Value::Queued,
        b'[' if depth > 0 => {
            let mut values = Vec::new();
            while !input.0.is_empty() && input.0[0] != b']' {
                values.push(value(input, depth - 1));
            }
            input.byte();
            Value::Array(values)
        }
        _ => Value::Null,
    }
}
